# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What people see of ill GPUs."""

from __future__ import annotations

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.gpu_health_report import gpu_health_rows


def health(*findings: tuple[str, str, str], age: float = 30) -> dict:
    told = [
        {"finding": name, "gpu": gpu, "uuid": "", "severity": severity, "since": "2026-11-28T17:00:00Z", "text": "t", "advice": "a"}
        for severity, name, gpu in findings
    ]
    return {"checked": "2026-11-28T17:10:14Z", "interval": 60, "age": age, "severity": "", "drain": False, "findings": told}


def test_the_worst_comes_first_whatever_its_host():
    second = health(("warning", "xid-94", "b"), ("critical", "lost", "c"))
    hosts = {"gpu1": health(("warning", "throttle", "a")), "gpu2": second, "gpu3": health()}
    rows = gpu_health_rows(hosts)
    assert [(row["host"], row["finding"]) for row in rows] == [("gpu2", "lost"), ("gpu1", "throttle"), ("gpu2", "xid-94")]


def test_a_host_that_nobody_looks_at_any_more_is_told_and_one_that_never_was_is_not():
    [row] = gpu_health_rows({"gpu1": health(age=481), "gpu2": health(age=479), "gpu3": {}})
    assert (row["host"], row["finding"], row["since"]) == ("gpu1", "not_looked_at", "2026-11-28T17:10:14Z")
    assert "llm-fleet-gpu-health" in row["advice"]
