# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What a store holds, version by version, and what is known of each: found by looking only."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import DIGEST, Artifact
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_files import files_below
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_store import Store
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_survey import SOUND, UNREAD, regular
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_users import Container

Key = tuple[int, int]  # device and inode
ATTEMPTS = 5


@dataclass(frozen=True)
class Known:
    """A model version that somebody knows, and how: current, wanted, previous, locked."""

    artifact: Artifact
    reasons: tuple[str, ...]

    @classmethod
    def parse(cls, entry: Mapping[str, Any]) -> Known:
        artifact = Artifact.parse(entry["model"], entry["version"], files=entry.get("files") or ())
        return cls(artifact, tuple(entry.get("reasons") or ()))


@dataclass
class Tree:
    """A directory of hard links for one version. `whole` is false for what an interrupted run left of one."""

    model: str
    version: str
    path: Path
    whole: bool
    files: dict[str, os.stat_result] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.model} {self.version}" if self.whole else f"{self.model} {self.version} (what an interrupted run left)"

    def inodes(self) -> set[Key]:
        return {key_of(status) for status in self.files.values()}


def key_of(status: os.stat_result) -> Key:
    return status.st_dev, status.st_ino


def trees(store: Store) -> list[Tree]:
    """Every tree of a store. Without the store's lock, what goes meanwhile is left out."""
    found = []
    for model in _folders(store.models):
        for path in _folders(model):
            version, whole = path.name, not path.name.startswith(".")
            if not whole:
                version = path.name[1:].rpartition(".")[0] or path.name[1:]
            files = _files(path)
            if files is not None:
                found.append(Tree(model.name, version, path, whole, files))
    return found


def _folders(place: Path) -> list[Path]:
    try:
        return sorted(Path(entry.path) for entry in os.scandir(place) if entry.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _files(tree: Path) -> dict[str, os.stat_result] | None:
    for _attempt in range(ATTEMPTS):
        try:
            return dict(sorted(files_below(tree), key=lambda item: item[0])) if tree.is_dir() else None
        except FileNotFoundError:
            continue
    return None


def contents(store: Store) -> dict[str, os.stat_result]:
    """The contents of a store by digest; a file with another kind of name is not one."""
    found = {}
    if store.blobs.is_dir():
        for entry in os.scandir(store.blobs):
            status = regular(Path(entry.path)) if DIGEST.fullmatch(entry.name) else None
            if status is not None:
                found[entry.name] = status
    return found


def parts(store: Store) -> dict[Path, os.stat_result]:
    """Unfinished downloads."""
    statuses = {path: regular(path) for path in store.incoming.glob("*.part")} if store.incoming.is_dir() else {}
    return {path: status for path, status in sorted(statuses.items()) if status is not None}


class Report:
    """What is in a store: read once, and then asked."""

    def __init__(self, store: Store, known: Iterable[Known] = (), used_by: Iterable[Container] = ()) -> None:
        self.store = store
        self.known: dict[tuple[str, str], list[Known]] = {}
        for each in known:
            self.known.setdefault((each.artifact.model, each.artifact.version), []).append(each)
        self.containers = list(used_by)
        self.contents = contents(store)
        self.trees = trees(store)
        self.names = {key_of(status): digest for digest, status in self.contents.items()}

    def as_dict(self) -> dict:
        rows = [self._of_tree(tree) for tree in self.trees if tree.whole]
        linked = {(row["model"], row["version"]) for row in rows}
        rows += [row for key in sorted(set(self.known) - linked) for row in self._unlinked(key)]
        named = {self.names[key] for tree in self.trees for key in tree.inodes() if key in self.names}
        named |= {file.sha256 for all_known in self.known.values() for each in all_known for file in each.artifact.files}
        unnamed = [status.st_size for digest, status in self.contents.items() if digest not in named]
        unfinished = [status.st_size for status in parts(self.store).values()]
        return {
            "artifacts": sorted(rows, key=lambda row: (row["model"], row["version"])),
            "contents": _count([status.st_size for status in self.contents.values()]),
            "unnamed": _count(unnamed),
            "unfinished": _count(unfinished),
        }

    def users(self, tree: Path, model: str, version: str) -> list[str]:
        return sorted({each.name for each in self.containers if each.uses(self.store.root, tree, model, version)})

    def fitting(self, tree: Tree) -> Known | None:
        """What is known of a tree: of several entries under one name, the one that it is most like."""
        here = {(path, self.names.get(key_of(status))) for path, status in tree.files.items()}
        candidates = self.known.get((tree.model, tree.version), [])
        return max(candidates, key=lambda each: len(here & {(f.path, f.sha256) for f in each.artifact.files}), default=None)

    def _of_tree(self, tree: Tree) -> dict:
        sizes = {key_of(status): status.st_size for status in tree.files.values()}
        nameless = [path for path, status in tree.files.items() if key_of(status) not in self.names]
        known = self.fitting(tree)
        missing = set(nameless)
        for file in known.artifact.files if known and known.artifact.files else ():
            status = tree.files.get(file.path)
            if status is None or self.names.get(key_of(status)) != file.sha256:
                missing.add(file.path)
        digests = {self.names[key] for key in tree.inodes() if key in self.names}
        return {
            **self._row(tree.model, tree.version, known, tree.path, digests),
            "linked": True,
            "files": len(tree.files),
            "size": sum(sizes.values()),
            "complete": not missing,
            "missing": sorted(missing),
        }

    def _unlinked(self, key: tuple[str, str]) -> list[dict]:
        """A version without a tree, as on a depot: as much of it as there is, if anything."""
        rows = []
        for known in self.known[key]:
            artifact = known.artifact
            here = [file for file in artifact.contents if self.store.state(file) in (SOUND, UNREAD)]
            if not here:
                continue
            digests = {file.sha256 for file in here}
            rows.append({
                **self._row(*key, known, self.store.tree(artifact), digests),
                "linked": False,
                "files": sum(file.sha256 in digests for file in artifact.files),
                "size": sum(file.size for file in here),
                "complete": len(here) == len(artifact.contents),
                "missing": [file.path for file in artifact.files if file.sha256 not in digests],
            })
        return rows

    def _row(self, model: str, version: str, known: Known | None, tree: Path, digests: set[str]) -> dict:
        return {
            "model": model,
            "version": version,
            "path": str(tree),
            "reasons": list(known.reasons) if known else [],
            "used_by": self.users(tree, model, version),
            "verified": self._verified(digests),
        }

    def _verified(self, digests: set[str]) -> str | None:
        """Since when all of it is known to be right: the oldest of its marks. None where one is missing or out of date."""
        marks = self.store.marks
        times = [marks.when(digest) if marks.fits(digest, self.contents[digest]) else None for digest in digests]
        oldest = min((time for time in times if time is not None), default=None)
        if oldest is None or None in times:
            return None
        return datetime.datetime.fromtimestamp(oldest, datetime.timezone.utc).isoformat(timespec="seconds")


def _count(sizes: list[int]) -> dict[str, int]:
    return {"count": len(sizes), "bytes": sum(sizes)}
