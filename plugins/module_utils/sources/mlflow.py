# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Model versions of an MLflow registry: `mlflow://name/version` or `mlflow://name@alias`, over MLflow's REST API.

The registry says where a version's files are. Two places can be read from here: the server's own artifact proxy
(`mlflow server --serve-artifacts`), and a bucket, which is then asked as any other `s3://` source is.

MLflow knows no digests. Whoever registers a version may leave them as its tags, `sha256:<path>` or
`sha256.<path>`; the files then need not be downloaded to be locked.
"""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.base import (
    RemoteFile,
    Resolution,
    Source,
    guess_format,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.web import Refused, Request, Web, byte_count, origin

API = "api/2.0/mlflow"
ARTIFACTS = "api/2.0/mlflow-artifacts/artifacts"
MOST_FILES = 10_000
DIGEST_TAG = re.compile(r"sha256[:.](.+)", re.DOTALL)
DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
LICENCE_TAGS = ("licence", "license")
ENDPOINT_FIX = 'give the server\'s address as "mlflow://": {endpoint: "https://mlflow.example"} in llm_fleet_sources'
STORE_FIX = (
    "start the MLflow server with --serve-artifacts, or keep its artifacts in s3://, and register the version again"
)
NO_FOLDER = "the registered version is no folder with files"
FOLDER_FIX = "register the folder that the model's files were logged to, not one of its files"


class MlflowSource(Source):
    """One version of a registered model."""

    def __init__(self, url, settings) -> None:
        super().__init__(url, settings)
        self.base = settings.endpoint.rstrip("/")
        self.name = url.path

    def resolve(self) -> Resolution:
        version = self._version
        status = version.get("status", "READY")
        if status != "READY":
            raise self._error(
                f"version {self._number} of '{self.name}' is not ready ({status})", "wait until it is registered, or register it again"
            )
        tags = {str(tag.get("key")): str(tag.get("value", "")) for tag in version.get("tags") or []}
        files = self._with_digests(self._store.files(), tags)
        licence = next((tags[tag] for tag in LICENCE_TAGS if tags.get(tag)), None)
        source = self.url.at(self._number)
        return Resolution(source, tuple(files), guess_format([file.path for file in files]), licence)

    def locate(self, path: str, size: int | None = None, sha256: str | None = None) -> Request:
        return self._store.locate(path)

    @cached_property
    def web(self) -> Web:
        """What the files are fetched with: a bucket has settings of its own."""
        return self._store.web

    # What the registry is asked with: the client that other sources have for everything.
    api: Web = cached_property(Source.web.func)

    @cached_property
    def _version(self) -> dict:
        """The registry's entry of the version that the URL names."""
        wanted = self.url.revision
        if wanted.startswith("@"):
            answer = self._ask("registered-models/alias", name=self.name, alias=wanted[1:])
        else:
            answer = self._ask("model-versions/get", name=self.name, version=wanted)
        version = answer.get("model_version")
        if not isinstance(version, dict) or not re.fullmatch("[1-9][0-9]*", str(version.get("version", ""))):
            raise self._no_mlflow()
        return version

    @property
    def _number(self) -> str:
        pinned = not self.url.revision.startswith("@")
        return self.url.revision if pinned else str(self._version["version"])

    @cached_property
    def _store(self) -> ProxiedFiles | BucketFiles:
        """Where the version's files are."""
        answer = self._ask("model-versions/get-download-uri", name=self.name, version=self._number)
        uri = str(answer.get("artifact_uri", ""))
        parts = urlsplit(uri)
        if parts.scheme == "s3":
            return BucketFiles(self, uri)
        if parts.scheme == "mlflow-artifacts":
            # Without a host it is the server that was asked; another one is reached the same way.
            there = f"{urlsplit(self.base).scheme}://{parts.netloc}" if parts.netloc else self.base
            return ProxiedFiles(self, there, parts.path.strip("/"))
        there, proxied, path = uri.partition(f"/{ARTIFACTS}/")
        if proxied and parts.scheme in ("http", "https"):
            return ProxiedFiles(self, there, path.strip("/"))
        kind = f"{parts.scheme}://" if parts.scheme not in ("", "file") else "the MLflow server's own disk"
        raise self._error(f"the files of '{self.name}' {self._number} are in {kind}, where only MLflow can read them", STORE_FIX)

    def _with_digests(self, files: list[RemoteFile], tags: dict[str, str]) -> list[RemoteFile]:
        """The files with the digests that the version's tags give them."""
        digests = {}
        for tag, value in sorted(tags.items()):
            named = DIGEST_TAG.fullmatch(tag)
            found = DIGEST.fullmatch(value.strip().lower())
            if named and not found:
                raise self._error(f"its tag '{tag}' is not 64 hexadecimal digits", "correct the tag, or remove it")
            if named and digests.setdefault(named[1], found[1]) != found[1]:
                raise self._error(f"two of its tags give {named[1]} different digests", "remove the wrong one")
        missing = sorted(set(digests) - {file.path for file in files})
        if missing:
            raise self._error(
                f"its tags name {missing[0]}, which is not among its files", "log that file again, or remove the tag"
            )
        return [RemoteFile(file.path, file.size, digests.get(file.path, file.sha256)) for file in files]

    def _ask(self, call: str, **query: str) -> dict:
        if not self.base:
            raise self._error("nothing says which MLflow server has this model", ENDPOINT_FIX)
        return self.read(f"{self.base}/{API}/{call}", query, self._explained)

    def read(self, url: str, query: dict[str, str], explained) -> dict:
        """What a call of the API answers; `explained` says what a refusal means."""
        try:
            answer = self.api.json(self.request(f"{url}?{urlencode(query)}", url))
        except Refused as refusal:
            raise explained(refusal) from refusal
        if not isinstance(answer, dict):
            raise self._no_mlflow()
        return answer

    def request(self, url: str, shown: str = "") -> Request:
        """The registry says where files are, but not who gets the operator's credentials."""
        trusted = origin(url) == origin(self.base)
        return Request(url, self.credentials() if trusted else {}, shown)

    def _explained(self, refusal: Refused) -> ArtifactError:
        """A refusal in the words of a registry."""
        if refusal.status in (401, 403):
            return self.denied(refusal)
        try:
            answer = json.loads(refusal.body)
            code, message = answer["error_code"], str(answer["message"])
        except (ValueError, TypeError, KeyError, RecursionError):
            # Not the words of MLflow: the address is something else's.
            return self._no_mlflow() if refusal.status == 404 else refusal
        if code == "RESOURCE_DOES_NOT_EXIST" or "alias" in message:
            revision = self.url.revision
            wanted = f"alias '{revision[1:]}'" if revision.startswith("@") else f"version {revision}"
            return self._error(
                f"the registry has no {wanted} of model '{self.name}'",
                f"{self._offer()}; correct the source, or register it",
                status=refusal.status,
            )
        return self._error(f"the registry answers {refusal.status} {code}", "look at the MLflow server's log, then run again")

    def denied(self, refusal: Refused) -> ArtifactError:
        verb = "correct" if "Authorization" in self.credentials() else "give"
        return self._error(
            f"the MLflow server refuses access ({refusal.status})",
            f"{verb} token, or username and password, in llm_fleet_sources; the user needs READ on '{self.name}'",
            status=refusal.status,
        )

    def _offer(self) -> str:
        """What the registry has of the model."""
        url = f"{self.base}/{API}/registered-models/get"
        try:
            model = self.api.json(self.request(f"{url}?{urlencode({'name': self.name})}", url))["registered_model"]
            aliases = [entry["alias"] for entry in model.get("aliases") or []]
            versions = [int(entry["version"]) for entry in model.get("latest_versions") or []]
        except (ArtifactError, TypeError, KeyError, ValueError, AttributeError):
            return f"it does not know '{self.name}' at all"
        newest = f"its newest version is {max(versions)}" if versions else "it has no version"
        return f"{newest}, its aliases are {', '.join(sorted(aliases))}" if aliases else f"{newest}, and it has no aliases"

    def _no_mlflow(self) -> ArtifactError:
        return self._error(f"{self.base} does not speak MLflow's API", ENDPOINT_FIX)

    def _error(self, what: str, fix: str, **details: Any) -> ArtifactError:
        return ArtifactError(what, self.url.text, fix, **details)


class ProxiedFiles:
    """Files that an MLflow server hands out itself, below one path of its artifact store."""

    def __init__(self, source: MlflowSource, base: str, root: str) -> None:
        self.source = source
        self.url = f"{base.rstrip('/')}/{ARTIFACTS}"
        self.root = root
        self.web = source.api

    def files(self) -> list[RemoteFile]:
        found: list[RemoteFile] = []
        waiting = [""]
        while waiting:
            folder = waiting.pop()
            for entry in self._listing(folder):
                # Some versions answer with the whole path, some with the last part of it.
                name = str(entry.get("path", "")).rstrip("/").rpartition("/")[2]
                if name in ("", ".", ".."):
                    raise self._error(f"the MLflow server lists a file without a name in '{folder}'", "look at its artifacts")
                if entry.get("is_dir"):
                    waiting.append(f"{folder}{name}/")
                else:
                    found.append(RemoteFile(f"{folder}{name}", _size(entry.get("file_size")), None))
            if len(found) + len(waiting) > MOST_FILES:
                raise self._error(f"there are more than {MOST_FILES} files", "register a smaller folder")
        if not found:
            raise self._error(NO_FOLDER, FOLDER_FIX)
        return sorted(found, key=lambda file: file.path)

    def locate(self, path: str) -> Request:
        return self.source.request(f"{self.url}/{quote(f'{self.root}/{path}')}")

    def _listing(self, folder: str) -> list[dict]:
        query = {"path": f"{self.root}/{folder}".rstrip("/")}
        files = self.source.read(self.url, query, self._explained).get("files") or []
        return [entry for entry in files if isinstance(entry, dict)]

    def _explained(self, refusal: Refused) -> ArtifactError:
        if refusal.status in (401, 403):
            return self.source.denied(refusal)
        if refusal.status in (404, 501, 503):
            return self._error(f"the MLflow server does not hand out artifacts ({refusal.status})", STORE_FIX)
        return refusal

    def _error(self, what: str, fix: str) -> ArtifactError:
        return ArtifactError(what, self.source.url.text, fix)


class BucketFiles:
    """Files that lie in a bucket, read with what llm_fleet_sources says of that bucket."""

    def __init__(self, source: MlflowSource, uri: str) -> None:
        from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources import open_source

        bucket, _slash, prefix = uri[len("s3://") :].partition("/")
        self.source = source
        self.inner = open_source(f"s3://{bucket}/{quote(prefix)}", source.all_settings)

    @property
    def web(self) -> Web:
        return self.inner.web

    def files(self) -> list[RemoteFile]:
        found = self.inner.resolve()
        if found.source != self.inner.url.text:
            raise ArtifactError(NO_FOLDER, self.source.url.text, FOLDER_FIX)
        return list(found.files)

    def locate(self, path: str) -> Request:
        return self.inner.locate(path)


def _size(value: object) -> int | None:
    """A number of bytes; as a text where the server is strict about 64-bit numbers in JSON."""
    return byte_count(str(value))
