# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What every kind of source can do: say which files a version has, and where the bytes of each one are."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Callable

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.source_choice import matches
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.source_url import SourceUrl
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.settings import Settings
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.web import Request, Web

OLLAMA_BLOB = re.compile(r"blobs/sha256-[0-9a-f]{64}")


@dataclass(frozen=True)
class RemoteFile:
    """One file of a source: its path there, and what the source says about it. What it does not say is None."""

    path: str
    size: int | None
    sha256: str | None
    content: bytes | None = None  # small files that the source's API already handed over


def nothing(_name: str) -> bool:
    """What a source leaves out that takes all it has."""
    return False


def whatever(_name: str) -> bool:
    """What a source leaves out that is a single file: nobody knows what else belongs to it."""
    return True


@dataclass(frozen=True)
class Resolution:
    """What a source means today: the address that will mean the same tomorrow, and its files."""

    source: str
    files: tuple[RemoteFile, ...]
    format: str | None
    licence: str | None
    # Whether the source has a file of this name as well, which was not asked for, or is none that an engine reads.
    left_out: Callable[[str], bool] = field(default=nothing, compare=False)


class Source:
    """A place that model files come from. `resolve` asks it what it has; `locate` needs a pinned URL, and is cheap."""

    # All of llm_fleet_sources, for a source that only says at which other source its files are.
    all_settings: Mapping[str, Any] = {}

    def __init__(self, url: SourceUrl, settings: Settings) -> None:
        self.url = url
        self.settings = settings

    @cached_property
    def web(self) -> Web:
        return Web(
            ca_path=self.settings.ca_path or None,
            validate_certs=self.settings.validate_certs,
            proxy=self.settings.proxy or None,
            timeout=self.settings.timeout,
            retries=self.settings.retries,
        )

    def resolve(self) -> Resolution:
        raise NotImplementedError

    def locate(self, path: str, size: int | None = None, sha256: str | None = None) -> Request:
        """Where the bytes of one file are; `path` is its path at the source."""
        raise NotImplementedError

    def beside(self, name: str, resolution: Resolution) -> Request | None:
        """Where a file is that lies beside the model's own, such as their signature; None where the source has none of that name."""
        known = next((file for file in resolution.files if file.path == name), None)
        if known is None and not resolution.left_out(name):
            return None
        return self.locate(name, known.size if known else None, known.sha256 if known else None)

    def credentials(self) -> dict[str, str]:
        """The headers with which plain web servers want to be asked: the operator's own, and a token or a password."""
        settings, found = self.settings, {}
        if settings.token:
            found["Authorization"] = f"Bearer {settings.token}"
        elif settings.username or settings.password:
            pair = f"{settings.username}:{settings.password}"
            found["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode("ascii")
        return {**found, **settings.headers}

    def selected(self, files: Iterable[RemoteFile]) -> list[RemoteFile]:
        """Those that the URL's `?files=` asks for, or all."""
        found = sorted(files, key=lambda file: file.path)
        patterns = self.url.options.get("files")
        if not patterns:
            return found
        for pattern in patterns:
            if not any(matches(file.path, [pattern]) for file in found):
                raise ArtifactError(
                    f"no file matches '{pattern}'",
                    self.url.text,
                    f"it has {some(file.path for file in found)}; upper and lower case matter",
                )
        return [file for file in found if matches(file.path, patterns)]


def guess_format(paths: Iterable[str]) -> str:
    """What an engine would see in these files: gguf, safetensors, an Ollama store, or just files."""
    names = set(paths)
    last = {path.rpartition("/")[2] for path in names}
    if any(OLLAMA_BLOB.fullmatch(path) for path in names) and any(path.startswith("manifests/") for path in names):
        return "ollama"
    if any(name.endswith(".safetensors") for name in last) and "config.json" in last:
        return "safetensors"
    if any(name.lower().endswith(".gguf") for name in last) and not any(is_weight(name) for name in names):
        return "gguf"
    return "files"


def is_weight(path: str) -> bool:
    """Whether a file holds weights in another format than GGUF."""
    return path.lower().endswith((".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx"))


def some(paths: Iterable[str], most: int = 5) -> str:
    """A few of them, for a message."""
    names = list(paths)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) + more) or "no files"
