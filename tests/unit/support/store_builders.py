# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Small artifacts for tests, and what must hold of a store at any moment."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import Artifact

BODY = random.Random(2).randbytes(2 << 20)  # more than one piece of a download, and no two ranges alike


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def entry(path: str, body: bytes) -> dict:
    """A file as the lockfile names it."""
    return {"path": path, "size": len(body), "sha256": digest(body)}


def artifact(source: str, contents: dict[str, bytes], version: str = "1.0.0") -> Artifact:
    return Artifact.parse("tiny", version, source, [entry(path, body) for path, body in contents.items()])


def tree_of(root: Path, version: str = "1.0.0") -> dict[str, bytes] | None:
    """What engines would read of a version; None where there is no tree."""
    tree = root / "models" / "tiny" / version
    if not tree.is_dir():
        return None
    return {str(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*") if path.is_file()}


def leftovers(root: Path) -> list[str]:
    """Every file of the store but its lock."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.name != ".lock")


def assert_sound(root: Path, wanted: dict[str, dict[str, bytes]]) -> None:
    """Every name in blobs is true, and a version is there completely and correctly or not at all."""
    for blob in (root / "blobs" / "sha256").glob("*"):
        assert digest(blob.read_bytes()) == blob.name
    for version, contents in wanted.items():
        assert tree_of(root, version) in (None, contents)
