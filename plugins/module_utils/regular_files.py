# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Reads files that somebody else brought: a pipe among them would be waited for, and a device may never end."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_file(path: str | Path) -> BinaryIO:
    """A regular file, or a link to one, for reading; raises OSError for anything else."""
    # Asked before it is opened, because there are devices that act on that alone.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return open(path, "rb")


def read(path: str | Path, most: int = -1) -> bytes:
    """The bytes of such a file; raises OSError for one that has more than `most`."""
    with open_file(path) as file:
        data = file.read(most + 1 if most >= 0 else -1)
    if 0 <= most < len(data):
        raise OSError(errno.EFBIG, f"it has more than {most} bytes", str(path))
    return data


def text_of(path: str | Path) -> str:
    """The text of such a file, with the ends of lines as Python has them."""
    with open_file(path) as file:
        return io.TextIOWrapper(file, encoding="utf-8").read()
