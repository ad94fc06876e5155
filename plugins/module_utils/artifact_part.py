# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""A file on its way: what has arrived, its digest so far, and that nobody else works on it.

The lock lies on the file itself, so it goes with whoever held it, however that one ended.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Callable

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError, File
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_files import CHUNK


class Part:
    """What has arrived of one file. Made by `take`, which gives it to one run at a time."""

    def __init__(self, path: Path, file: File, descriptor: int) -> None:
        self.path = path
        self.file = file
        self.handle = os.fdopen(descriptor, "r+b", buffering=0)
        self.validator_path = path.with_suffix(".validator")
        self.position = 0
        self.received = 0  # bytes that were brought, those of a wasted attempt included
        self.resumed = False  # whether the first of the bytes are an earlier run's
        self.sources: list[str] = []  # the places that the bytes came from
        self.last = ""
        self._digest = hashlib.sha256()
        self._pending: Future | None = None
        self._executor: Executor | None = None
        self._advance: Callable[[int], None] = lambda _count: None

    @classmethod
    def take(cls, path: Path, file: File) -> Part | None:
        """The part, for whoever calls; None while another run has it."""
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Whoever had it before may have given it its name in the store, or thrown it away, since we opened it.
                if _is_at(descriptor, path):
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
        self._executor = executor
        if os.fstat(self.handle.fileno()).st_size > self.file.size:
            self.restart()
        self.read_what_is_there()
        self.received = 0
        self.resumed = self.position > 0
        self._advance = advance

    def read_what_is_there(self) -> None:
        self.handle.seek(self.position)
        buffer = memoryview(bytearray(CHUNK))
        while count := self.handle.readinto(buffer):
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

    def hexdigest(self) -> str:
        self._settle()
        return self._digest.hexdigest()

    def continuing(self, where: str) -> dict[str, str]:
        """The headers that ask `where` for the rest."""
        if not self.position:
            return {}
        headers = {"Range": f"bytes={self.position}-"}
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
        self._digest = hashlib.sha256()
        self.validator_path.unlink(missing_ok=True)

    def finish(self) -> None:
        """Write all of it to the disk: what is renamed into place must survive a power cut."""
        try:
            os.fsync(self.handle.fileno())
        except OSError as error:
            self._full(error)
        self.validator_path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Leave nothing of it."""
        self._settle()
        self._advance(-self.position)
        self.validator_path.unlink(missing_ok=True)
        if _is_at(self.handle.fileno(), self.path):
            self.path.unlink()
        self.close()

    def close(self) -> None:
        self._settle()
        self.handle.close()

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


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (os.fstat(descriptor).st_dev, os.fstat(descriptor).st_ino)
