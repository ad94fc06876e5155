# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Where the bytes of an artifact come from: hosts of the fleet that have them, or the source that the lockfile names.

Both say the same two things to whoever fetches: which requests to try, in this order, and who asks them.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import Artifact, ArtifactError, File
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources import open_source
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.base import Source
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.settings import WHERE, all_secrets, check_settings
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.web import DIRECT, Request, Web


class Suppliers:
    """Hosts that serve contents by digest: depots, or the controller.

    Every host begins with another one for every content, so that they share the load without talking about it.
    """

    def __init__(self, bases: Iterable[str], web: Web, host: str | None = None) -> None:
        self.bases = [base.rstrip("/") for base in bases]
        self._web = web
        self.host = socket.gethostname() if host is None else host
        for base in self.bases:
            _check_base(base)

    def web(self, _artifact: Artifact) -> Web:
        return self._web

    def requests(self, _artifact: Artifact, file: File) -> list[Request]:
        return [Request(f"{base}/blobs/sha256/{file.sha256}") for base in self._in_turn(file)]

    def torrents(self, file: File) -> list[Request]:
        """Where to ask how hosts bring a content to each other."""
        return [Request(f"{base}/torrents/sha256/{file.sha256}.torrent") for base in self._in_turn(file)]

    def _in_turn(self, file: File) -> list[str]:
        if not self.bases:
            return []
        turn = int(hashlib.sha256(f"{self.host} {file.sha256}".encode()).hexdigest(), 16) % len(self.bases)
        return [*self.bases[turn:], *self.bases[:turn]]


class FromStores:
    """Stores on this host: what they have is copied, or shared where the file system can."""

    def __init__(self, roots: Iterable[str]) -> None:
        self.blobs = [Path(root) / "blobs" / "sha256" for root in roots]
        self._web = Web()

    def web(self, _artifact: Artifact) -> Web:
        return self._web

    def requests(self, _artifact: Artifact, file: File) -> list[Request]:
        return [Request(f"file://{blobs / file.sha256}") for blobs in self.blobs if (blobs / file.sha256).is_file()]


class FromSources:
    """The sources themselves, each through its own protocol. `all_settings` is `llm_fleet_sources`."""

    def __init__(self, all_settings: Mapping[str, Any] | None = None) -> None:
        self.all_settings = all_settings
        self._open: dict[str, Source] = {}

    def web(self, artifact: Artifact) -> Web:
        return self._source(artifact).web

    def requests(self, artifact: Artifact, file: File) -> list[Request]:
        return [self._source(artifact).locate(file.origin, file.size, file.sha256)]

    def _source(self, artifact: Artifact) -> Source:
        if not artifact.source:
            raise ArtifactError(
                f"{artifact.title} names no source", "the artifact", "give the source that the lockfile has, or suppliers"
            )
        if artifact.source not in self._open:
            self._open[artifact.source] = open_source(artifact.source, self.all_settings)
        return self._open[artifact.source]


def _check_base(base: str) -> None:
    try:
        parts = urlsplit(base)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.username is not None or parts.query or parts.fragment:
        raise ArtifactError("a supplier is not the address of a server", "suppliers", "write https://host:port")


def parse_sources(text: str | None) -> dict | None:
    """`llm_fleet_sources` as it comes to a module; None where sources are not to be asked. No message repeats any of it."""
    if text is None:
        return None
    try:
        data = json.loads(text)
    except ValueError:
        data = text
    if not isinstance(data, dict):
        raise ArtifactError("this is no JSON object", "sources", "write sources: \"{{ llm_fleet_sources | to_json }}\"")
    faults: list[Fault] = []
    clean = check_settings(data, WHERE, faults)
    if faults:
        raise ArtifactError(*faults[0])
    return clean


def read_sources(module: Any) -> dict | None:
    """The settings of sources that a module was given; their secrets appear in none of its output from here on."""
    sources = parse_sources(module.params["sources"])
    module.no_log_values.update(secrets_of(sources))
    return sources


def secrets_of(all_settings: Mapping[str, Any] | None) -> list[str]:
    """The values that no output may show."""
    return all_secrets(all_settings or {})


def origins_of(params: Mapping[str, Any], all_settings: Mapping[str, Any] | None) -> list:
    """The places that a module's parameters name, the nearest first."""
    origins: list = [FromStores(params["stores"])] if params.get("stores") else []
    if params["suppliers"]:
        web = Web(
            ca_path=params["ca_path"],
            client_cert=params["client_cert"],
            client_key=params["client_key"],
            proxy=DIRECT,  # suppliers are hosts of the fleet; the way to the internet leads past them
            timeout=params["timeout"],
            retries=params["retries"],
        )
        origins.append(Suppliers(params["suppliers"], web))
    if all_settings is not None:
        origins.append(FromSources(all_settings))
    return origins
