# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Reads every content of a store again, each byte once, and says which files of which versions are not what they were.

A content is judged by its own name, so that needs nobody's word. What is known of the fleet gives the damaged ones the
names that people know them by, and tells which files of a tree are gone.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_files import CHUNK
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_store import DAMAGE, Store
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_survey import regular
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.progress import RUNNING, Progress
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_report import Key, Known, Report, Tree, key_of

MISSING, UNKNOWN, NO_FILE, PRESENT = "missing", "unknown", "no such file", "present"


@dataclass
class Verified:
    """What came of reading a store."""

    damaged: list[dict] = field(default_factory=list)
    set_aside: list[str] = field(default_factory=list)  # digests of the contents that have lost their names
    contents: int = 0
    bytes_read: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict:
        rate = int(self.bytes_read / self.seconds) if self.seconds else 0
        return {
            "damaged": self.damaged,
            "set_aside": self.set_aside,
            "contents": self.contents,
            "bytes_read": self.bytes_read,
            "seconds": round(self.seconds, 2),
            "rate": rate,
        }


class Verification:
    """One reading of one store."""

    def __init__(
        self,
        store: Store,
        known: Iterable[Known] = (),
        *,
        keep_marks: bool = True,
        lock_timeout: float = 60,
        progress: Progress | None = None,
    ) -> None:
        """Without `keep_marks` it only reads: nothing is marked, and nothing damaged is set aside."""
        self.store = store
        self.keep_marks = keep_marks
        self.lock_timeout = lock_timeout
        self.progress = progress or Progress(store.incoming)
        self.report = Report(store, known)
        self.known = {(tree.model, tree.version): self.report.fitting(tree) for tree in self.report.trees if tree.whole}
        self.found = Verified()
        self._places = self._all_places()

    def run(self) -> Verified:
        """Read all of it."""
        report, begun = self.report, time.monotonic()
        # What a tree has and no content is: the rest of something that was set aside.
        strays = {
            key_of(status): (tree.path / path, status)
            for tree in report.trees
            if tree.whole
            for path, status in tree.files.items()
            if key_of(status) not in report.names
        }
        self.progress.total = sum(status.st_size for status in report.contents.values())
        self.progress.total += sum(status.st_size for _path, status in strays.values())
        self.progress.state = RUNNING
        actual: dict[Key, str] = {}
        with ThreadPoolExecutor(1, "reading") as reading:
            for digest, status in report.contents.items():
                result = self._read(self.store.blobs / digest, reading)
                actual[key_of(status)] = result
                self._judge(digest, status, result)
            for key, (path, _status) in strays.items():
                actual[key] = self._read(path, reading)
        for tree in report.trees:
            if tree.whole:
                self._compare(tree, actual)
        self.found.damaged.sort(key=lambda row: (row["model"], row["version"], row["file"]))
        self.found.contents = len(report.contents)
        self.found.seconds = time.monotonic() - begun
        return self.found

    def _read(self, path: Path, reading: Executor) -> str:
        self.progress.file = self._places.get(path.name, [(path.name, "", "")])[0][0]
        try:
            digest, count = digest_and_size(path, reading, self.progress.advance)
        except FileNotFoundError:
            return MISSING
        except OSError as error:
            if error.errno not in DAMAGE:
                raise
            return f"unreadable ({error.strerror})"
        self.found.bytes_read += count
        return digest

    def _judge(self, digest: str, before: os.stat_result, actual: str) -> None:
        """Mark a content that is right; set one aside that is not, so that the next staging brings it again."""
        if actual == MISSING:  # it was removed meanwhile
            return
        if actual == digest:
            if self.keep_marks:
                self.store.marks.set(digest, before)
            return
        for title, version, path in self._places.get(digest, [("", "", f"blobs/sha256/{digest}")]):
            self._damaged(title, version, path, digest, actual)
        if self.keep_marks:
            with self.store.locked(self.lock_timeout):
                now = regular(self.store.blobs / digest)
                if now is not None and key_of(now) == key_of(before):
                    (self.store.blobs / digest).unlink()
                    self.store.forget(digest)
                    self.found.set_aside.append(digest)

    def _compare(self, tree: Tree, actual: dict[Key, str]) -> None:
        """What is wrong with a tree beside its contents: those were judged already."""
        known = self.known[tree.model, tree.version]
        wanted = {file.path: file.sha256 for file in known.artifact.files} if known else {}
        for path, status in tree.files.items():
            named, is_here = self.report.names.get(key_of(status)), actual[key_of(status)]
            expected = wanted.get(path, NO_FILE if wanted else named or UNKNOWN)
            if expected == NO_FILE:
                self._damaged(tree.model, tree.version, path, NO_FILE, PRESENT)
            elif named != expected and is_here not in (expected, MISSING):
                self._damaged(tree.model, tree.version, path, expected, is_here)
        for path in sorted(set(wanted) - set(tree.files)):
            self._damaged(tree.model, tree.version, path, wanted[path], MISSING)

    def _damaged(self, model: str, version: str, path: str, expected: str, actual: str) -> None:
        row = {"model": model, "version": version, "file": path, "expected": expected, "actual": actual}
        if row not in self.found.damaged:
            self.found.damaged.append(row)

    def _all_places(self) -> dict[str, list[tuple[str, str, str]]]:
        """The names by which people know each content: as the trees have it, or else as the fleet knows it."""
        places: dict[str, list[tuple[str, str, str]]] = {}
        for tree in self.report.trees:
            for path, status in tree.files.items() if tree.whole else ():
                digest = self.report.names.get(key_of(status))
                if digest is not None:
                    places.setdefault(digest, []).append((tree.model, tree.version, path))
        in_trees = set(places)
        for entries in self.report.known.values():
            for artifact in (entry.artifact for entry in entries):
                for file in artifact.files:
                    if file.sha256 not in in_trees:
                        places.setdefault(file.sha256, []).append((artifact.model, artifact.version, file.path))
        return places


def digest_and_size(path: Path, reading: Executor, advance: Callable[[int], None] = lambda _count: None) -> tuple[str, int]:
    """The sha256 of a regular file and its size. The next piece is read while this one is hashed; no byte is read twice."""
    digest, size = hashlib.sha256(), 0
    buffers = [memoryview(bytearray(CHUNK)) for _buffer in range(2)]
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb", buffering=0) as handle:
        coming, turn = reading.submit(handle.readinto, buffers[0]), 0
        while count := coming.result():
            here = buffers[turn][:count]
            turn = 1 - turn
            coming = reading.submit(handle.readinto, buffers[turn])
            digest.update(here)
            size += count
            advance(count)
    return digest.hexdigest(), size
