# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Signatures beside the contents of a depot's store, verified on that host before any of the files is handed on.

    signatures/<model>/<version>.sig    as it was signed; `model_signing verify` reads it, too
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import whole_files
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import Artifact, ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_files import FILE_MODE
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_store import Store
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_bundle import SignatureError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_check import verify_handed

SUFFIX = ".sig"


class StoreSignatures:
    """The signatures that a store keeps."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.folder = store.root / "signatures"

    def path(self, model: str, version: str) -> Path:
        return self.folder / model / f"{version}{SUFFIX}"

    def keeps(self, artifact: Artifact, text: str) -> bool:
        try:
            return self.path(artifact.model, artifact.version).read_bytes() == text.encode()
        except OSError:
            return False

    def keep(self, artifact: Artifact, text: str) -> None:
        """Put a signature beside the contents; at once, so that nobody ever reads half of it."""
        target = self.path(artifact.model, artifact.version)
        ownership = self.store.ownership
        for folder in (self.folder, target.parent):
            ownership.make_directory(folder)
        whole_files.write(target, text, FILE_MODE, ownership.ids())

    def damaged(self, known: Iterable[Mapping[str, Any]]) -> list[dict]:
        """A row for each kept signature that is not the one of the lockfile, or does not hold for the version's files.

        The next staging puts the right one in its place.
        """
        rows = []
        for each in known:
            signature = each.get("signature")
            path = self.path(each["model"], each["version"])
            if not signature or not path.is_file():
                continue  # hosts that only take files from a depot keep none
            row = {"model": each["model"], "version": each["version"], "file": str(path.relative_to(self.store.root))}
            actual = _digest(path)
            if actual != signature["sha256"]:
                rows.append({**row, "expected": signature["sha256"], "actual": actual})
                continue
            try:
                verify_handed(each["model"], each["files"], signature)
            except SignatureError as error:
                rows.append({**row, "expected": f"signed by {signature['signer']}", "actual": error.what})
        return rows

    def unneeded(self, keep: Collection[tuple[str, str]]) -> list[Path]:
        """The kept signatures of versions that nobody names."""
        found = self.folder.glob(f"*/*{SUFFIX}") if self.folder.is_dir() else []
        return sorted(path for path in found if (path.parent.name, path.name[: -len(SUFFIX)]) not in keep)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # where the model has other versions
            path.parent.rmdir()


def check_handed(title: str, artifact: Artifact, files: Iterable[Mapping[str, Any]], signature: Mapping[str, Any]) -> None:
    """Verify the signature of an artifact before any of it is brought; raises ArtifactError."""
    if hashlib.sha256(signature["content"].encode()).hexdigest() != signature["sha256"]:
        raise ArtifactError("the signature is not the one that was locked", title, "take the lockfile back from git")
    try:
        verify_handed(artifact.model, files, signature)
    except SignatureError as error:
        raise ArtifactError(error.what, f"signature of {title}", error.fix) from None


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        return f"unreadable ({error.strerror})"
