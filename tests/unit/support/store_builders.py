# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Small artifacts for tests, and what must hold of a store at any moment."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import Artifact, File
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.web import Request, Web

BODY = random.Random(2).randbytes(2 << 20)  # more than one piece of a download, and no two ranges alike


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def entry(path: str, body: bytes) -> dict:
    """A file as the lockfile names it."""
    return {"path": path, "size": len(body), "sha256": digest(body)}


def artifact(source: str, contents: dict[str, bytes], version: str = "1.0.0") -> Artifact:
    return Artifact.parse("tiny", version, source, [entry(path, body) for path, body in contents.items()])


class Places:
    """An origin for tests: the same addresses for everything, with the file's path added where they end with '/'."""

    def __init__(self, *urls: str, **options) -> None:
        self.urls = urls
        self._web = Web(**{"timeout": 5, "retries": 2, "pause": lambda _seconds: None, **options})

    def web(self, _artifact: Artifact) -> Web:
        return self._web

    def requests(self, artifact: Artifact, file: File) -> list[Request]:
        urls = self.urls or (f"{artifact.source}/",)
        return [Request(f"{url}{file.origin}" if url.endswith("/") else url) for url in urls]


def tree_of(root: Path, version: str = "1.0.0") -> dict[str, bytes] | None:
    """What engines would read of a version; None where there is no tree."""
    tree = root / "models" / "tiny" / version
    if not tree.is_dir():
        return None
    return {str(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*") if path.is_file()}


def leftovers(root: Path) -> list[str]:
    """Every file of the store but its lock, its marks and what it says of its progress."""
    paths = (path for path in root.rglob("*") if path.is_file() and path.name != ".lock")
    return sorted(
        str(path.relative_to(root))
        for path in paths
        if path.parent.name != "verified" and not path.name.startswith("progress")
    )


def assert_sound(root: Path, wanted: dict[str, dict[str, bytes]]) -> None:
    """Every name in blobs is true, and a version is there completely and correctly or not at all."""
    for blob in (root / "blobs" / "sha256").glob("*"):
        assert digest(blob.read_bytes()) == blob.name
    for version, contents in wanted.items():
        assert tree_of(root, version) in (None, contents)
