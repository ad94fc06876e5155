# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Models of the Hugging Face hub, or of a mirror that speaks its API: `hf://org/name[@revision][?files=globs]`.

huggingface_hub says what a revision has; it is needed where models are locked, and nowhere else. The bytes come through
the collection's own client, by the commit that was locked, so that they are resumed and verified like all others.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from urllib.parse import quote, urljoin

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.source_choice import engines_read
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.base import (
    RemoteFile,
    Resolution,
    Source,
    guess_format,
    some,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.web import (
    DIRECT,
    Interrupted,
    Refused,
    Request,
    origin,
    tls_context,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.web_errors import refusal, unreachable

try:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    HAS_HUB = True
except ImportError:
    HAS_HUB = False

HUB = "https://huggingface.co"
COMMIT = re.compile("[0-9a-f]{40}")
SHARD = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)")

# huggingface_hub keeps one HTTP client for the whole process, and sources have settings of their own.
_one_at_a_time = threading.Lock()


class HfSource(Source):
    """A repository of the hub at one revision."""

    def __init__(self, url, settings) -> None:
        super().__init__(url, settings)
        self.endpoint = (settings.endpoint or os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
        # A token of the environment is meant for the environment's hub.
        self.token = settings.token or ("" if settings.endpoint else os.environ.get("HF_TOKEN", "").strip())
        self.page = f"{self.endpoint}/{url.path}"
        if not re.fullmatch(r"[\x21-\x7e]*", self.token):
            # A client library would refuse it too, with a message that shows it.
            raise self._error("the hub's token has spaces or odd letters in it", "correct it in llm_fleet_sources, or HF_TOKEN")

    def resolve(self) -> Resolution:
        if not HAS_HUB:
            raise self._error(
                f"hf:// needs huggingface_hub, which {sys.executable} does not have",
                "install it with pip on the host that locks (llm_fleet_lock_host), or build it into the execution environment",
            )
        info = self.web.patiently(self._ask)
        commit = str(info.sha or "")
        if not COMMIT.fullmatch(commit):
            raise self._error("the hub names no commit for this revision", "check that the endpoint is a hub's, not a page for people")
        files = [_file(sibling) for sibling in info.siblings or []]
        wanted = self.selected(files) if self.url.options.get("files") else self._usual(files)
        if not wanted:
            raise self._error("the repository has no files at this revision", "choose another revision, or name files (?files=…)")
        if getattr(info, "gated", False):
            self._knock(commit, wanted)
        pinned = self.url.at(commit)
        left_out = frozenset(file.path for file in files) - {file.path for file in wanted}
        return Resolution(pinned, tuple(wanted), guess_format([file.path for file in wanted]), _licence(info), left_out.__contains__)

    def locate(self, path: str, size: int | None = None, sha256: str | None = None) -> Request:
        headers = dict(self.settings.headers)
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        url = f"{self.page}/resolve/{quote(self.url.revision or 'main', safe='')}/{quote(path)}"
        return Request(url, headers, advice={401: self._token_fix() if self.token else self._licence_fix(), 403: self._licence_fix()})

    def _usual(self, files: list[RemoteFile]) -> list[RemoteFile]:
        """What an engine loads, where the URL does not say it."""
        read = set(engines_read(file.path for file in files))
        named = [file for file in sorted(files, key=lambda file: file.path) if file.path in read]
        if any(file.path.endswith(".safetensors") for file in named):
            return named
        models = sorted({SHARD.sub("", file.path) for file in named if file.path.lower().endswith(".gguf")})
        models = [model for model in models if "mmproj" not in model.lower()]
        if len(models) > 1:
            raise self._error(
                f"the repository holds {len(models)} GGUF models: {some(models)}",
                f"name the one you want, as in {self.url.text}?files={models[0].replace('.gguf', '*.gguf')}",
            )
        return named

    def _knock(self, commit: str, files: list[RemoteFile]) -> None:
        """A gated model tells everybody which files it has: whether it gives them away shows only when one is asked for."""
        pinned = HfSource(self.url._replace(revision=commit), self.settings)
        smallest = min(files, key=lambda file: file.size or 0)
        try:
            pinned.web.head(pinned.locate(smallest.path))
        except Refused as error:
            if error.headers.get("X-Error-Code") != "GatedRepo" and error.status not in (401, 403):
                raise
            raise self._gated(error.status) from None

    # Asking through huggingface_hub

    def _ask(self):
        revision = self.url.revision or None
        try:
            with _one_at_a_time, self._client() as failures:
                api = huggingface_hub.HfApi(
                    endpoint=self.endpoint,
                    token=self.token or False,
                    library_name="localfirst.llm_fleet",
                    headers=dict(self.settings.headers),
                )
                try:
                    return api.model_info(self.url.path, revision=revision, files_metadata=True, timeout=self.settings.timeout)
                except HfHubHTTPError as error:
                    raise self._refused(error.response) from None
                except failures as error:
                    raise self._unreachable(error) from error
        except HFValidationError:
            raise self._error("the hub allows no repository of this name", "correct it in the catalog") from None
        except (ValueError, KeyError, TypeError) as error:
            raise self._error(
                "the answer is no description of a model", f"check that {self.endpoint} is a hub, and not a page for people"
            ) from error

    @contextlib.contextmanager
    def _client(self) -> Iterator[type[Exception]]:
        """Gives huggingface_hub a client with this source's proxy and trust; what comes back is how that one fails."""
        if hasattr(huggingface_hub, "set_client_factory"):
            usual = type(huggingface_hub.get_session())  # httpx, under the name that this release knows it by
            library = sys.modules[usual.__module__.partition(".")[0]]
            huggingface_hub.set_client_factory(lambda: self._httpx(usual))
            undo = huggingface_hub.set_client_factory
            again = getattr(sys.modules.get("huggingface_hub.utils._http"), "default_client_factory", None)
            failures = library.HTTPError
        else:
            import requests

            huggingface_hub.configure_http_backend(self._requests)
            undo, again, failures = huggingface_hub.configure_http_backend, requests.Session, requests.RequestException
        try:
            yield failures
        finally:
            if again is not None:
                undo(again)

    def _httpx(self, kind: type):
        proxy = self.settings.proxy
        return kind(
            verify=tls_context(self.settings.ca_path or None, self.settings.validate_certs),
            proxy=None if proxy in ("", DIRECT) else proxy,
            trust_env=proxy != DIRECT,
            follow_redirects=True,
            timeout=self.settings.timeout,
            event_hooks={"response": [self._stay]},
        )

    def _requests(self):
        import requests

        session, settings = requests.Session(), self.settings
        session.verify = (settings.ca_path or True) if settings.validate_certs else False
        if settings.proxy:
            # requests also takes passwords out of ~/.netrc; that and NO_PROXY are no part of these settings.
            session.trust_env = False
            session.proxies = {} if settings.proxy == DIRECT else {"http": settings.proxy, "https": settings.proxy}
        session.hooks["response"].append(lambda response, *_args, **_named: self._stay(response))
        return session

    def _stay(self, response) -> None:
        """The operator's headers are for this server, and the clients beneath would take them along."""
        target = response.headers.get("Location") if 300 <= response.status_code < 400 else None
        if target and origin(urljoin(str(response.url), target)) != origin(self.endpoint):
            scheme, host, _port = origin(urljoin(str(response.url), target))
            raise self._error(f"{self.endpoint} redirects to {scheme}://{host}", "set the endpoint to that address if it is the right one")

    # What can go wrong

    def _refused(self, response) -> Exception:
        status, code = response.status_code, response.headers.get("X-Error-Code", "")
        invalid = "credentials" in response.headers.get("X-Error-Message", "").lower()
        if code == "RevisionNotFound":
            return self._error(f"the hub has no revision '{self.url.revision or 'main'}' of {self.url.path}", "choose another one")
        if code == "GatedRepo":
            return self._gated(status)
        if code == "RepoNotFound" or (status == 401 and not invalid):
            # The hub does not tell a stranger whether a repository is missing or private.
            return self._error(
                f"the hub shows no repository {self.url.path} ({status})",
                "check the name" if self.token else f"check the name; for a private model, {self._token_fix()}",
                status=status,
            )
        reason = getattr(response, "reason_phrase", None) or getattr(response, "reason", "")
        return refusal(status, str(reason), response.headers, self.page, advice={401: self._token_fix(), 403: self._licence_fix()})

    def _unreachable(self, error: BaseException) -> Exception:
        """The error beneath those of the client libraries says the most."""
        chain, seen = [error], {id(error)}
        while (following := chain[-1].__cause__ or chain[-1].__context__) is not None and id(following) not in seen:
            chain.append(following)
            seen.add(id(following))
        kinds = ((socket.gaierror,), (ssl.SSLError,), (socket.timeout, TimeoutError), (OSError,))
        for kind in kinds:
            for link in chain:
                if isinstance(link, kind) and not type(link).__module__.startswith(("requests", "urllib3")):
                    return unreachable(link, self.page, [self.endpoint], self.settings.timeout, self.web.proxy_of(self.endpoint))
        # Not what it says: that may repeat a header.
        return Interrupted(ArtifactError(f"{self.endpoint} cannot be asked ({type(error).__name__})", self.page, "run again"))

    def _token_fix(self) -> str:
        if self.token:
            return "the hub does not know this token: make a new one, and give it in llm_fleet_sources"
        return 'give a token of the hub: llm_fleet_sources: {"hf://": {token: …}}'

    def _licence_fix(self) -> str:
        accept = f"accept the model's licence at {self.page}"
        return f"{accept} with the account that the token belongs to" if self.token else f"{accept}, and {self._token_fix()}"

    def _gated(self, status: int) -> ArtifactError:
        return self._error(f"the model {self.url.path} is gated ({status})", self._licence_fix(), status=status)

    def _error(self, what: str, fix: str, **details) -> ArtifactError:
        return ArtifactError(what, self.url.text, fix, **details)


def _file(sibling) -> RemoteFile:
    """What the hub says about a file; only those in LFS have a sha256 there."""
    large = sibling.lfs
    digest = large.get("sha256") if isinstance(large, dict) else getattr(large, "sha256", None)
    size = large.get("size") if isinstance(large, dict) else getattr(large, "size", None)
    return RemoteFile(sibling.rfilename, size if size is not None else sibling.size, digest or None)


def _licence(info) -> str | None:
    """The licence that the model card names, under its own name where it is none of the usual ones."""
    card = getattr(info, "card_data", None)
    found = getattr(card, "license", None) if card is not None else None
    if found == "other":
        found = getattr(card, "license_name", None) or found
    if not found:
        found = next((tag[len("license:") :] for tag in info.tags or [] if tag.startswith("license:")), None)
    if isinstance(found, list):
        found = ", ".join(map(str, found))
    return re.sub(r"[^\x20-\x7e]+", " ", str(found)).strip()[:100] or None if found else None
