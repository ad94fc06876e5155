# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""HAProxy's map files as text."""

from __future__ import annotations


def entries_of(text: str) -> dict[str, str]:
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
