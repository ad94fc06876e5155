# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Small bundles for tests, made by the modules that make real ones."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.bundle_manifest import blob_path
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import digest, entry

LOCK = b"the lockfile's text\n"


class Writer:
    """Writes bundles into folders below one."""

    def __init__(self, folder: Path, run_module) -> None:
        self.folder = folder
        self.run_module = run_module

    def write(self, name: str, models: dict[str, dict[str, bytes]], others: dict[str, bytes] | None = None, **arguments) -> Path:
        """{"tiny 1.0.0": {path: contents}}, and other files by their paths in the bundle. What `base` has is not put there."""
        bundle = self.folder / name
        files = {"models.lock.yml": LOCK, **(others or {})}
        artifacts = []
        for title, contents in models.items():
            model, version = title.split()
            listed = [entry(path, body) for path, body in contents.items()]
            artifacts.append({"model": model, "version": version, "source": f"https://models.example/{version}", "files": listed})
            files |= {blob_path(digest(body)): body for body in contents.values()}
        for path, body in files.items():
            (bundle / path).parent.mkdir(parents=True, exist_ok=True)
            (bundle / path).write_bytes(body)
        sealed = self.run_module("bundle_seal", bundle=str(bundle), wanted=list(files), models=artifacts, **arguments)
        assert "failed" not in sealed, sealed
        return bundle


def names(folder: Path) -> set[str]:
    """All files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
