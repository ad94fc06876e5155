# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What is wrong with the GPUs of a fleet, as rows for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEYS = ("gpu", "uuid", "severity", "finding", "since", "text", "advice")


def gpu_health_rows(hosts: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """A row for each finding, the worst first. A host that is no longer looked at is one too: its findings may be old, or missing."""
    rows = []
    for host, health in hosts.items():
        rows += [{"host": host, **{key: finding[key] for key in KEYS}} for finding in health.get("findings", [])]
        # A look that waits for nvidia-smi takes its time.
        if health and health["age"] > 3 * health["interval"] + 300:
            rows.append({"host": host, **dict.fromkeys(KEYS, ""), **_silent(health["checked"])})
    return sorted(rows, key=lambda row: (row["severity"] != "critical", row["host"], row["gpu"], row["finding"]))


def _silent(checked: str) -> dict[str, str]:
    return {
        "severity": "warning",
        "finding": "not_looked_at",
        "since": checked,
        "text": "nobody has looked at its GPUs since then",
        "advice": "On the host: systemctl status llm-fleet-gpu-health.timer, journalctl -u llm-fleet-gpu-health",
    }
