# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Files that are replaced as a whole: nobody ever reads half of one, and a crash leaves the old one or the new one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

BEFORE, AFTER = ".", ".new"  # what a draft's name has around that of its file


def read(path: str | Path) -> str:
    """The text of a file; nothing where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


@contextlib.contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """Where to write what is to replace `path`, for one process at a time; another one waits. What nobody renamed is gone afterwards.

    For large files: what a process that was killed left is overwritten by the next one. Its mode is whatever the disk gives.
    """
    draft = path.with_name(f"{BEFORE}{path.name}{AFTER}")
    while True:
        handle = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            # Whoever had it before may have renamed or removed it while this one waited.
            if not is_at(handle, draft):
                continue
            try:
                yield draft
            finally:
                if is_at(handle, draft):
                    draft.unlink()
            return
        finally:
            os.close(handle)


def is_at(handle: int, path: Path) -> bool:
    """Whether an open file still has its name: whoever had it locked before may have renamed or removed it."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


def write(path: str | Path, content: str | bytes, mode: int, owner: tuple[int, int] = (-1, -1)) -> None:
    """Replace a file, or make it and the directories above it. What is written is on disk when this returns.

    `owner`: numbers of user and group; -1 is whoever runs this. Raises OSError, and leaves nothing of the new one then.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchown(handle, *owner)
            os.fchmod(handle, mode)
            file.write(data)
            file.flush()
            os.fsync(handle)
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise
