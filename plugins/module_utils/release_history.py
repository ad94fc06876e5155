# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What a host has run: one JSON line for each switch, kept on the host itself, oldest first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import whole_files

KEPT = 500
GOOD = "good"


def read(path: str | Path) -> list[dict[str, Any]]:
    """All entries. A line that is no entry is passed over: a crash may have left half of one."""
    entries = []
    try:
        text = Path(path).read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        text = ""
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and {"at", "model", "replica", "release", "outcome"} <= set(entry):
            entries.append(entry)
    return entries


def append(path: str | Path, entry: dict[str, Any]) -> None:
    """Add an entry; the oldest go when there are too many."""
    entries = [*read(path), entry][-KEPT:]
    whole_files.write(path, "".join(f"{json.dumps(one, sort_keys=True)}\n" for one in entries), 0o640)


def last_good(entries: list[dict[str, Any]], model: str, replica: int, other_than: str = "") -> dict[str, Any] | None:
    """The newest entry of a replica that ended well, of another release than the one named."""
    mine = [one for one in entries if (one["model"], one["replica"]) == (model, replica)]
    return next((one for one in reversed(mine) if one["outcome"] == GOOD and one["release"] != other_than), None)
