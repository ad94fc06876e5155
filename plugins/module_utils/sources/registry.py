# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The read half of the registry protocol (OCI distribution), as far as locking and fetching need it.

A registry keeps manifests and blobs, both named by the digest of their bytes; a tag is a name for a manifest that
anybody with write access may move. So nothing here is believed: the digest of a manifest is made of the bytes that
arrived, and must agree with what was asked for and with what the registry says of itself.

Most registries want a token even from readers whom they know nothing about. They say so in their first refusal:
who issues it, for which service, with which scope.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.settings import Settings
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.web import Answer, Refused, Request, Web

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
ACCEPT = ", ".join((OCI_MANIFEST, DOCKER_MANIFEST, OCI_INDEX, DOCKER_INDEX))
DIGEST = re.compile("sha256:[0-9a-f]{64}")
# The distribution specification lets registries refuse manifests above 4 MiB.
MANIFEST_LIMIT = 4 * 1024 * 1024

SCHEME = re.compile(r"(?:^|,)\s*(basic|bearer)(?=\s|,|$)", re.IGNORECASE)
PARAMETER = re.compile(r'([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
# What a token is good for where its issuer does not say: the token specification's own default.
TOKEN_SECONDS = 60


class Manifest(NamedTuple):
    """A manifest as it arrived. `digest` is made of `body`."""

    body: bytes
    digest: str
    data: dict

    @property
    def is_index(self) -> bool:
        """Whether it lists other manifests, one a platform, and no content of its own."""
        return "manifests" in self.data


class Registry:
    """One repository of a registry, read with whatever proof of identity the registry asks for.

    `where` is what messages name, `prefix` the key in llm_fleet_sources that holds the registry's credentials.
    """

    def __init__(self, web: Web, base: str, repository: str, settings: Settings, *, where: str, prefix: str) -> None:
        self.web = web
        self.base = base.rstrip("/")
        self.host = urlsplit(base).netloc
        self.repository = repository
        self.settings = settings
        self.where = where
        self.prefix = prefix
        self._proof = f"Bearer {settings.token}" if settings.token else ""
        self._issuer: dict[str, str] = {}
        self._until = float("inf")

    def manifest(self, reference: str, accept: str = ACCEPT) -> Manifest:
        """The manifest behind a tag or a digest."""
        answer = self._ask(f"manifests/{quote(reference, safe=':')}", {"Accept": accept}, MANIFEST_LIMIT)
        digest = f"sha256:{hashlib.sha256(answer.body).hexdigest()}"
        told = answer.headers.get("Docker-Content-Digest", "")
        wanted = reference if DIGEST.fullmatch(reference) else told if DIGEST.fullmatch(told) else digest
        if digest != wanted:
            raise self.error(
                f"the manifest of {reference} has the wrong digest: expected {wanted}, actual {digest}",
                "run again; if it stays, something between here and the registry changes what it sends",
            )
        return Manifest(answer.body, digest, self._parse(answer.body, reference))

    def blob(self, digest: str) -> Request:
        """How to fetch a blob, once a manifest has been read: by that the registry has said what proof it wants."""
        return Request(self._url(f"blobs/{digest}"), headers=Proven(self))

    def small_blob(self, digest: str, limit: int) -> bytes:
        """The content of a blob that is worth a look: a configuration, a licence."""
        body = self._ask(f"blobs/{digest}", {}, limit).body
        actual = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if actual != digest:
            raise self.error(
                f"a blob has the wrong digest: expected {digest}, actual {actual}",
                "run again; if it stays, the registry's storage is damaged",
            )
        return body

    def error(self, what: str, fix: str, **details) -> ArtifactError:
        return ArtifactError(what, self.where, fix, **details)

    def _parse(self, body: bytes, reference: str) -> dict:
        try:
            data = json.loads(body)
        except (RecursionError, ValueError):
            data = None
        if not isinstance(data, dict) or data.get("schemaVersion") != 2:
            raise self.error(
                f"{self.host} sends no manifest of version 2 for {self.repository}:{reference}",
                "check that the address is a registry's; what was pushed by very old tools has to be pushed again",
            )
        return data

    def _url(self, path: str) -> str:
        return f"{self.base}/v2/{quote(self.repository)}/{path}"

    def headers(self) -> dict[str, str]:
        """What goes with every request, the proof of identity renewed where it has run out."""
        if time.monotonic() > self._until:
            self._fetch_token()
        return {**self.settings.headers, **({"Authorization": self._proof} if self._proof else {})}

    def _ask(self, path: str, headers: dict[str, str], limit: int) -> Answer:
        request = Request(self._url(path), headers=Proven(self))
        try:
            try:
                return self.web.get(request, limit, headers)
            except Refused as refusal:
                if refusal.status != 401 or not self._identify(refusal.headers.get_all("WWW-Authenticate") or []):
                    raise
            return self.web.get(request, limit, headers)
        except Refused as refusal:
            raise self._explained(refusal) from refusal

    def _identify(self, asked: list[str]) -> bool:
        """Do what a refusal asks for; False where there is nothing that has not been tried."""
        offers = challenges(asked)
        if "realm" in offers.get("bearer", {}) and not self.settings.token:
            self._issuer = offers["bearer"]
            self._fetch_token()
            return True
        if "basic" in offers and self._password() not in ("", self._proof):
            self._proof = self._password()
            return True
        return False

    def _password(self) -> str:
        if not self.settings.username and not self.settings.password:
            return ""
        pair = f"{self.settings.username}:{self.settings.password}"
        return f"Basic {base64.b64encode(pair.encode()).decode('ascii')}"

    def _fetch_token(self) -> None:
        """Have the registry's issuer make out a token for reading this repository."""
        realm = urlsplit(self._issuer["realm"])
        if realm.scheme != "https" and (realm.scheme != "http" or self.base.startswith("https:")):
            # The password goes to the issuer, so it gets no less protection there than at the registry.
            raise self.error(
                f"{self.host} wants tokens from {realm.scheme}://{realm.netloc}, which is not encrypted",
                "have the registry name an https:// realm",
            )
        query = {"scope": self._issuer.get("scope") or f"repository:{self.repository}:pull"}
        if self._issuer.get("service"):
            query["service"] = self._issuer["service"]
        joined = f"{realm.query}&{urlencode(query)}".lstrip("&")
        password = self._password()
        request = Request(realm._replace(query=joined).geturl(), {"Authorization": password} if password else {})
        try:
            answer = self.web.json(request)
        except Refused as refusal:
            if refusal.status not in (400, 401, 403):
                raise
            raise self.error(
                f"{realm.netloc} answers {refusal.status} and makes out no token for {self.repository}",
                self._password_fix(),
                status=refusal.status,
            ) from refusal
        answer = answer if isinstance(answer, dict) else {}
        token = answer.get("token") or answer.get("access_token")
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise self.error(f"{realm.netloc} answers without a token", "look at that server's log, then run again")
        lasts = answer.get("expires_in")
        lasts = lasts if isinstance(lasts, int) and lasts > 0 else TOKEN_SECONDS
        self._proof = f"Bearer {token}"
        # A request that leaves with the token's last breath would be refused.
        self._until = time.monotonic() + lasts * 0.75

    def _explained(self, refusal: Refused) -> ArtifactError:
        """A refusal in the words of a registry."""
        if refusal.status in (401, 403):
            reader = "this user" if self._password() or self.settings.token else "a reader without credentials"
            return self.error(
                f"{self.host} does not let {reader} read {self.repository} ({refusal.status})",
                self._password_fix(),
                status=refusal.status,
            )
        if refusal.status == 404:
            return self.error(
                f"{self.host} has no such tag or digest in {self.repository}",
                "check repository and tag; some registries say so, too, where the reader has no permission",
                status=refusal.status,
            )
        return refusal

    def _password_fix(self) -> str:
        verb = "correct" if self._password() or self.settings.token else "give"
        return f"{verb} username and password (or token) of '{self.prefix}' in llm_fleet_sources, or check the repository's name"


class Proven(Mapping):
    """Headers that are made when a request leaves: a download may be resumed long after its first token has expired."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def __getitem__(self, name: str) -> str:
        return self._registry.headers()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._registry.headers())

    def __len__(self) -> int:
        return len(self._registry.headers())


def challenges(headers) -> dict[str, dict[str, str]]:
    """The schemes that WWW-Authenticate headers offer, each with its parameters; names in lower case."""
    found: dict[str, dict[str, str]] = {}
    for header in headers:
        # What stands in quotes may look like a scheme; it is blanked out for the search and read for the values.
        bare = re.sub(r'"(?:[^"\\]|\\.)*"', lambda quoted: '"' + "." * (len(quoted[0]) - 2) + '"', header)
        starts = list(SCHEME.finditer(bare))
        for start, following in zip(starts, [*starts[1:], None]):
            text = header[start.end() : following.start() if following else len(header)]
            values = {
                name.lower(): re.sub(r"\\(.)", r"\1", quoted) or plain for name, quoted, plain in PARAMETER.findall(text)
            }
            found.setdefault(start[1].lower(), values)
    return found


def entries(data: dict, key: str) -> list[dict]:
    """A list of descriptors, without what is none."""
    listed = data.get(key)
    return [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []


def annotations(entry: dict) -> dict[str, str]:
    notes = entry.get("annotations")
    return {key: value for key, value in notes.items() if isinstance(value, str)} if isinstance(notes, dict) else {}


def read_digest(entry: dict, registry: Registry) -> str:
    digest = entry.get("digest")
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise registry.error(f"the manifest has a digest that is not sha256: {str(digest)[:80]!r}", "push it again")
    return digest


def read_size(entry: dict, registry: Registry) -> int:
    size = entry.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise registry.error(f"the manifest has a size that is no number of bytes: {str(size)[:80]!r}", "push it again")
    return size
