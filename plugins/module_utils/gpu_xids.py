# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What NVIDIA's kernel module has logged about GPUs since the machine started: XID errors, and GPUs that fell off the bus."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.gpu_pci import normal_address

# The kernel's own messages; in a container, which has none, what root has logged under the kernel's name. Anybody may log under any
# name, but only journald says by whom.
COMMAND = (
    "journalctl", "--boot", "--quiet", "--no-pager", "--output=json", "--output-fields=MESSAGE",
    "_TRANSPORT=kernel", "+", "SYSLOG_IDENTIFIER=kernel", "_UID=0",
)  # fmt: skip
MOST = 200
"""A GPU in trouble logs thousands of them; the newest tell enough."""

_XID = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?)[^)]*\): (\d+)(?:, )?(.*)")
# The second one is about a GPU that was gone before the driver could take it, and then there is no XID.
_FALLEN = re.compile(r"NVRM: (?:The NVIDIA )?GPU (?:at )?(?:PCI:)?([0-9a-fA-F:.]+)\b[^\n]*(?:\n[^\n]*){0,4}?fallen off the bus")
FELL_OFF = 79


def parse_journal(text: str) -> tuple[list[dict[str, Any]], set[str]]:
    """XIDs, oldest first, and the addresses of GPUs that fell off the bus. A line that is not JSON is none of journalctl's."""
    xids: list[dict[str, Any]] = []
    fallen: set[str] = set()
    for line in text.splitlines():
        if "NVRM" not in line and "[" not in line:  # journalctl writes a message that is not text as a list of numbers
            continue
        message, micros = _entry(line)
        for found in _XID.finditer(message):
            address, code = normal_address(found[1]), int(found[2])
            xids.append({"time": _time(micros), "address": address, "code": code, "text": found[3].strip()})
            if code == FELL_OFF:
                fallen.add(address)
        fallen.update(filter(None, (normal_address(found[1]) for found in _FALLEN.finditer(message))))
    return xids[-MOST:], fallen


def _entry(line: str) -> tuple[str, int]:
    try:
        entry = json.loads(line)
    except ValueError:
        return "", 0
    if not isinstance(entry, dict):
        return "", 0
    message, stamp = entry.get("MESSAGE"), str(entry.get("__REALTIME_TIMESTAMP", ""))
    if isinstance(message, list) and all(isinstance(byte, int) and 0 <= byte < 256 for byte in message):
        message = bytes(message).decode(errors="replace")
    return (message if isinstance(message, str) else ""), (int(stamp) if re.fullmatch(r"[0-9]{1,17}", stamp) else 0)


def _time(micros: int) -> str:
    return f"{datetime.fromtimestamp(micros // 10**6, timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
