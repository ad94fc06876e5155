# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""HAProxy's maps as text, and files that are replaced as a whole."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def read(path: str | Path) -> str:
    """The text of a file; nothing where there is none."""
    try:
        return Path(path).read_text()
    except FileNotFoundError:
        return ""


def write(path: str | Path, text: str, mode: int) -> None:
    """Replace a file as a whole, so that a crash leaves the old one or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(handle, "w") as file:
        os.fchmod(handle, mode)
        file.write(text)
        file.flush()
        os.fsync(handle)
    os.replace(name, path)


def map_entries(text: str) -> dict[str, str]:
    """The entries of a map file, as HAProxy reads it. The first one of a key wins."""
    entries: dict[str, str] = {}
    for line in map(str.strip, text.splitlines()):
        if line and not line.startswith("#"):
            key, _space, value = line.partition(" ")
            entries.setdefault(key, value.strip())
    return entries


def map_text(entries: dict[str, str], comment: str) -> str:
    """A map file with these entries."""
    return "".join([f"# {comment}\n", *(f"{key} {value}\n" for key, value in sorted(entries.items()))])
