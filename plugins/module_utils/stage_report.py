# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""How far hosts are with what is brought to them, in words. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import human

WAITING_FOR = {"none": "is about to begin", "waiting": "waits for its turn"}


def progress_lines(reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each host that is still at it: done, of how much, how fast, and how long it will take."""
    busy = {host: report for host, report in sorted(reports.items()) if report.get("state") in ("none", "waiting", "running")}
    width = max(map(len, busy), default=0)
    return [f"{host.ljust(width)}  {_progress(report)}" for host, report in busy.items()]


def _progress(report: Mapping[str, Any]) -> str:
    if report["state"] in WAITING_FOR:
        return WAITING_FOR[report["state"]]
    done, total = report["done_bytes"], report["total_bytes"]
    share = f" ({100 * done // total} %)" if total else ""
    rest = report.get("eta_s")
    left = f", {duration(rest)} left" if rest else ""
    return f"{human(done)} of {human(total)}{share}, {human(report['rate'])}/s{left}"


def staged(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, dict]:
    """{host: {bytes_moved, seconds, rate}} of hosts that something was brought to; `rate` is in bytes a second."""
    found = {}
    for host, report in sorted(reports.items()):
        if "bytes_moved" in report:
            seconds = max(report.get("updated", 0) - report.get("started", 0), 0)
            moved = report["bytes_moved"]
            found[host] = {"bytes_moved": moved, "seconds": round(seconds, 1), "rate": int(moved / seconds) if seconds else 0}
    return found


def staged_lines(summary: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The same as a line for each host."""
    width = max(map(len, summary), default=0)
    return [
        f"{host.ljust(width)}  {human(each['bytes_moved'])} in {each['seconds']:g} s, {human(each['rate'])}/s"
        for host, each in sorted(summary.items())
    ]


def duration(seconds: int) -> str:
    """A number of seconds for people."""
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
