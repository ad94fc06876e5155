# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Takes a bundle over on the other side: into one directory of the controller, where playbooks look for what hosts lack.

    imported.json    every file that was ever brought, by path: what a later, incremental bundle may count on
    images/, packages/, wheels/, collections/, models.lock.yml as in the bundle

Files of models do not stay there: they belong into the stores of depots, or into the controller's.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import regular_files, whole_files
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.apt_index import INDEX, RELEASE
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_files import digest_of
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_survey import regular
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.bundle_manifest import COPY_AGAIN, Entry, Manifest, lacking
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault

RECORD = "imported.json"
INDICES = (f"/{INDEX}", f"/{RELEASE}")
FORMAT = 1


class Imports:
    """What earlier imports have brought to this controller."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: list[Fault] = []
        self.known = self._read()

    def _read(self) -> dict[str, Entry]:
        file = self.folder / RECORD
        try:
            data = json.loads(regular_files.read(file))
            if data["format"] != FORMAT:
                raise ValueError("another release of the collection wrote it")
            return {path: Entry(path, size, sha256) for path, (size, sha256) in data["files"].items()}
        except FileNotFoundError:
            return {}
        except OSError as error:
            what = f"it cannot be read: {(error.strerror or str(error)).lower()}"
            self.faults.append(Fault(what, str(file), "run as a user who may read it"))
            return {}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            fix = "remove it, and import every bundle again, the first one first"
            self.faults.append(Fault(f"it cannot be read: {error}", str(file), fix))
            return {}

    def check(self, manifest: Manifest) -> list[Fault]:
        """What the bundle counts on and is not here: its base was never imported, or what it had is gone."""
        absent = {entry.path: entry for entry in lacking(manifest, self.known)}
        for entry in manifest.earlier:
            if entry.kind != "artifact":
                status = regular(self.folder / entry.path)
                if status is None or status.st_size != entry.size:
                    absent[entry.path] = entry
        fix = f"import the bundle first that this one goes on from (the one whose manifest has {manifest.base}), or write a whole one"
        return [Fault(f"this bundle counts on {path}, which an earlier one was to bring", str(self.folder), fix) for path in sorted(absent)]

    def take(self, bundle: Path, manifest: Manifest, change: bool) -> list[str]:
        """Copy what is new, but for artifacts; returns what was or would be done."""
        actions: dict[str, list[Entry]] = {}
        # An index comes after the packages that it names: a site that follows a broken import finds the old one, which fits.
        for entry in sorted(manifest.files, key=lambda entry: (entry.path.endswith(INDICES), entry)):
            if entry.kind == "artifact" or self._has(entry):
                continue
            actions.setdefault(entry.kind, []).append(entry)
            if change:
                self._copy(bundle / entry.path, entry)
        return [f"take {len(entries)} files of the kind {kind}" for kind, entries in sorted(actions.items())]

    def _has(self, entry: Entry) -> bool:
        path = self.folder / entry.path
        status = regular(path)
        if status is None or status.st_size != entry.size or self.known.get(entry.path) != entry:
            return False
        # One that a broken import replaced may have the size that it had: those of indices hardly ever differ.
        return not entry.path.endswith(INDICES) or digest_of(path) == entry.sha256

    def _copy(self, source: Path, entry: Entry) -> None:
        target = self.folder / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_files.draft_of(target) as draft:
            # Copied, and not linked: what happens to the disk that it came on is nothing to this one.
            with regular_files.open_file(source) as reader, draft.open("wb") as writer:
                shutil.copyfileobj(reader, writer, 2**20)
            if digest_of(draft) != entry.sha256:
                raise OSError(5, f"it changed while it was read; {COPY_AGAIN}", str(source))
            os.replace(draft, target)

    def remember(self, manifest: Manifest, change: bool) -> bool:
        """Note that all of it is here now. Called once the artifacts are where they belong."""
        known = {**self.known, **manifest.entries()}
        text = json.dumps({"format": FORMAT, "files": {path: list(known[path][1:]) for path in sorted(known)}}, indent=1) + "\n"
        file = self.folder / RECORD
        if whole_files.read(file) == text:
            return False
        if change:
            whole_files.write(file, text, 0o644)
        return True
