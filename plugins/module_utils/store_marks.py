# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""When each content of a store was last read and found right.

A mark is a small file by the content's digest. Its time is when that was; in it is how the content's file looked then:
size and time of its last change. A file that looks different now was written to, and what was true of it no longer counts.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path


class Marks:
    """The marks in one directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def set(self, sha256: str, status: os.stat_result) -> None:
        """Note that the file with this status holds this content. `status` is from before it was read."""
        try:
            self.folder.mkdir(mode=0o750, exist_ok=True)
            (self.folder / sha256).write_text(_look(status))
        except OSError as error:
            # A mark only spares the next run some reading; a full disk is no reason to fail for want of one.
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise

    def fits(self, sha256: str, status: os.stat_result) -> bool:
        """Whether a file still looks as it did when it was read."""
        try:
            return (self.folder / sha256).read_text() == _look(status)
        except (FileNotFoundError, UnicodeDecodeError):
            return False

    def when(self, sha256: str) -> float | None:
        """When a content was last read and found right, in seconds of the epoch."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / sha256).stat().st_mtime
        return None

    def forget(self, sha256: str) -> None:
        (self.folder / sha256).unlink(missing_ok=True)


def _look(status: os.stat_result) -> str:
    return f"{status.st_size} {status.st_mtime_ns}\n"
