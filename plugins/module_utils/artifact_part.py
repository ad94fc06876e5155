# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""A file on its way: what has arrived, its digest so far, and that nobody else works on it.

The lock lies on the file itself, so it goes with whoever held it, however that one ended.

Peers bring a file in any order. Beside a part with holes lies `<sha256>.have`, which says what of it is there; whoever goes
on over HTTP asks for the holes only, and keeps that note true. Without one, a part's size says how far it is.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Callable

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import whole_files
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError, File
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_files import CHUNK

NOTE = 5.0  # seconds of which a run that is killed loses what it brought into holes


class Part:
    """What has arrived of one file. Made by `take`, which gives it to one run at a time."""

    def __init__(self, path: Path, file: File, descriptor: int) -> None:
        self.path = path
        self.file = file
        self.handle = os.fdopen(descriptor, "r+b", buffering=0)
        self.validator_path = path.with_suffix(".validator")
        self.have_path = path.with_suffix(".have")
        self.present: list[tuple[int, int]] = []  # what lies behind holes
        self.position = 0
        self.received = 0  # bytes that were brought, those of a wasted attempt included
        self.resumed = False  # whether some of the bytes are an earlier run's, or peers'
        self.sources: list[str] = []  # the places that the bytes came from
        self.last = ""
        self._digest = hashlib.sha256()
        self._pending: Future | None = None
        self._executor: Executor | None = None
        self._advance: Callable[[int], None] = lambda _count: None
        self._noted = 0.0
        self._unnoted = False  # whether something was written since

    @classmethod
    def take(cls, path: Path, file: File) -> Part | None:
        """The part, for whoever calls; None while another run has it."""
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Whoever had it before may have given it its name in the store, or thrown it away, since we opened it.
                if whole_files.is_at(descriptor, path):
                    return cls(path, file, descriptor)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *_error) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        return self.handle.closed

    def begin(self, executor: Executor, advance: Callable[[int], None]) -> None:
        """Read what an earlier run left, so that the digest can go on from there."""
        self._settle()
        self._executor, self._advance = executor, lambda _count: None
        self._digest, self.position = hashlib.sha256(), 0
        size = os.fstat(self.handle.fileno()).st_size
        self.present = ranges(self.have_path, size) if size <= self.file.size else []
        if size > self.file.size:
            self.restart()
        elif self.has_holes:
            self.skip_present()
        else:
            self.read_what_is_there()
        self.received = 0
        self.resumed = self.position > 0 or bool(self.present)
        self._advance = advance

    @property
    def has_holes(self) -> bool:
        return self.have_path.exists()

    @property
    def limit(self) -> int:
        """Where the hole ends that begins at `position`."""
        return next((begin for begin, _end in self.present if begin >= self.position), self.file.size)

    def hold(self, present: Iterable[Iterable[int]]) -> None:
        """Note what of the file is there, as [begin, end): by somebody else, in whatever order."""
        draft = self.have_path.with_suffix(".have-new")
        try:
            draft.write_text(json.dumps([list(each) for each in present]))
            os.replace(draft, self.have_path)
        except OSError as error:
            self._full(error)

    def note(self) -> None:
        """Say how far it is: whoever comes after a kill, or waits for this run, learns it from nowhere else."""
        self._noted, self._unnoted = time.monotonic(), False
        if not self.has_holes:
            return
        behind = [(max(begin, self.position), end) for begin, end in self.present if end > self.position]
        if not behind:
            self.handle.truncate(self.position)
            self.have_path.unlink()
            return
        try:
            os.fdatasync(self.handle.fileno())
        except OSError as error:
            self._full(error)
        self.hold([(0, self.position), *behind] if self.position else behind)

    @property
    def has_another_writer(self) -> bool:
        """Whether it was given to the peer program (`Peer.may_write`), and not taken back since: that run was killed."""
        return os.fstat(self.handle.fileno()).st_uid != os.geteuid()

    def take_back(self) -> None:
        """Nobody else writes to it any more."""
        if self.has_another_writer:
            os.fchown(self.handle.fileno(), os.geteuid(), -1)

    def go_on_in_a_copy(self) -> None:
        """Leave the file to whoever may still write to it, and go on with what is known to be there in one of our own."""
        here, draft = self.held(), self.path.with_suffix(".part-new")
        self.hold(here)
        try:
            draft.unlink(missing_ok=True)
            copy = os.fdopen(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "r+b", buffering=0)
            fcntl.flock(copy, fcntl.LOCK_EX | fcntl.LOCK_NB)  # before it has the name, so that nobody else takes it
            for begin, end in here:
                copy.seek(begin)
                while begin < end:
                    begin += os.sendfile(copy.fileno(), self.handle.fileno(), begin, end - begin)
            os.replace(draft, self.path)
        except OSError as error:
            self._full(error)
        self.handle.close()
        self.handle = copy

    def held(self) -> list[tuple[int, int]]:
        """What is there, whoever brought it."""
        size = os.fstat(self.handle.fileno()).st_size
        if self.has_holes:
            return ranges(self.have_path, size)
        return [(0, size)] if 0 < size <= self.file.size else []

    def skip_present(self) -> None:
        """Read what is there at this place, if anything is. It was counted by whoever brought it."""
        advance, received = self._advance, self.received
        self._advance = lambda _count: None
        self.handle.seek(self.position)
        for begin, end in self.present:
            if begin == self.position:
                self.read_what_is_there(end)
        self._advance, self.received = advance, received

    def read_what_is_there(self, end: int | None = None) -> None:
        self._settle()
        self.handle.seek(self.position)
        buffer = memoryview(bytearray(CHUNK))
        while count := self.handle.readinto(buffer if end is None else buffer[: end - self.position]):
            self._digest.update(buffer[:count])
            self._count(count)

    def write(self, data: memoryview) -> None:
        """Hash and write, both at once. `data` has to stay as it is until the next call."""
        self._settle()
        self._pending = self._executor.submit(self._digest.update, data)
        try:
            written = 0
            while written < len(data):
                written += self.handle.write(data[written:])
        except OSError as error:
            self._full(error)
        self._count(len(data))
        self._unnoted = True
        if time.monotonic() - self._noted > NOTE:
            self.note()

    def hexdigest(self) -> str:
        self._settle()
        return self._digest.hexdigest()

    def continuing(self, where: str) -> dict[str, str]:
        """The headers that ask `where` for the rest."""
        if not self.position and self.limit == self.file.size:
            return {}
        headers = {"Range": f"bytes={self.position}-{self.limit - 1 if self.limit < self.file.size else ''}"}
        place, _newline, validator = self._validator().partition("\n")
        # Another place has validators of its own for the same bytes; there the digest alone decides.
        if validator and place == where:
            headers["If-Range"] = validator
        return headers

    def validate(self, where: str, validator: str) -> None:
        """Remember how the server names these contents."""
        text = f"{where}\n{validator}"
        if validator and text != self._validator():
            try:
                self.validator_path.write_text(text)
            except OSError as error:
                self._full(error)

    def come_from(self, where: str) -> None:
        self.last = where
        if where not in self.sources:
            self.sources.append(where)

    def restart(self) -> None:
        self._settle()
        self.handle.seek(0)
        self.handle.truncate()
        self._advance(-self.position)
        self.position = 0
        self.resumed = False
        self.sources = []
        self.present = []
        self._digest = hashlib.sha256()
        self._forget_notes()

    def finish(self) -> None:
        """Write all of it to the disk: what is renamed into place must survive a power cut."""
        try:
            os.fsync(self.handle.fileno())
        except OSError as error:
            self._full(error)
        self._forget_notes()

    def discard(self) -> None:
        """Leave nothing of it."""
        self._settle()
        self._advance(-self.position)
        self._forget_notes()
        if whole_files.is_at(self.handle.fileno(), self.path):
            self.path.unlink()
        self.close()

    def close(self) -> None:
        self._settle()
        if self._unnoted:
            self.note()
        self.handle.close()

    def _forget_notes(self) -> None:
        self._unnoted = False
        for path in (self.validator_path, self.have_path, self.have_path.with_suffix(".have-new"), self.path.with_suffix(".part-new")):
            path.unlink(missing_ok=True)

    def _count(self, count: int) -> None:
        self.position += count
        self.received += count
        self._advance(count)

    def _settle(self) -> None:
        """Wait for the bytes that are being hashed."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _full(self, error: OSError) -> None:
        # Space was checked before the first byte, so something else filled the disk. The host needs
        # the room more than the next run needs the head start.
        self.discard()
        raise ArtifactError.from_os_error(error, self.path.parent) from error

    def _validator(self) -> str:
        return self.validator_path.read_text() if self.validator_path.exists() else ""


def ranges(path: Path, size: int) -> list[tuple[int, int]]:
    """What a note says of a part of this size: as [begin, end), in order. What makes no sense counts for nothing."""
    try:
        found = sorted((int(begin), int(end)) for begin, end in json.loads(path.read_text()))
    except (OSError, OverflowError, RecursionError, TypeError, ValueError):
        return []
    sound, last = [], 0
    for begin, end in found:
        if last <= begin < end <= size:
            sound.append((begin, end))
            last = end
    return sound
