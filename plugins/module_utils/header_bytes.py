# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The first bytes of a file that may be large, far away, or written by somebody who means harm.

A header is read from any object with `read(offset, length)`: a file, or ranges of one on a web server. What it says about
its own size is never believed: more than LARGEST bytes are never held, and whatever is not as it should be is a HeaderError.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Protocol

LARGEST = 96 * 2**20  # bytes of a header; tokenizers of 260 000 words take about 10 MiB
PIECE = 2**20  # bytes that are asked for at once


class HeaderError(Exception):
    """A header that is not what its format wants, in words."""


class Reader(Protocol):
    """What a header is read from. It may return fewer bytes than asked for at the end of the file only."""

    def read(self, offset: int, length: int) -> bytes: ...


class BytesReader:
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


class FileReader:
    """A file of this host."""

    def __init__(self, path: str | Path) -> None:
        self.path = path

    def read(self, offset: int, length: int) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(offset)
            return file.read(length)


class Cursor:
    """Goes through a header from its start, a piece at a time, and forgets what it has passed."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.position = 0
        self._start = 0  # of what is held
        self._held = b""

    def take(self, count: int) -> bytes:
        """The next bytes."""
        self._check(count)
        if self.position + count > self._start + len(self._held):
            self._fill(count)
        first = self.position - self._start
        self.position += count
        return self._held[first : first + count]

    def skip(self, count: int) -> None:
        """Goes past bytes without reading them."""
        self._check(count)
        self.position += count

    def unpack(self, form: str) -> tuple:
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def _check(self, count: int) -> None:
        if count < 0 or self.position + count > LARGEST:
            raise HeaderError(f"the header is longer than {LARGEST // 2**20} MiB")

    def _fill(self, count: int) -> None:
        kept = b""
        if self._start <= self.position < self._start + len(self._held):
            kept = self._held[self.position - self._start :]
        wanted = max(PIECE, count) - len(kept)
        self._held = kept + self.reader.read(self.position + len(kept), wanted)
        self._start = self.position
        if len(self._held) < count:
            raise HeaderError("the file ends within its header")
