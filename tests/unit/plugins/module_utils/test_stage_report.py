# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What staging says while it runs, and after it."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.stage_report import (
    duration,
    progress_lines,
    staged,
    staged_lines,
)

MIB = 2**20
RUNNING = {"state": "running", "done_bytes": 10 * MIB, "total_bytes": 40 * MIB, "rate": 2 * MIB, "eta_s": 15}
DONE = {"state": "done", "done_bytes": 40 * MIB, "total_bytes": 40 * MIB, "rate": 4 * MIB, "eta_s": 0}


def test_a_host_that_is_at_it_has_a_line():
    [line] = progress_lines({"gpu1": RUNNING})
    assert line == "gpu1  10.0 MiB of 40.0 MiB (25 %), 2.0 MiB/s, 15 s left"


def test_lines_are_aligned_and_hosts_that_are_done_have_none():
    lines = progress_lines({"gpu10": RUNNING, "gpu2": RUNNING, "gpu3": DONE, "gpu4": {"skipped": True}})
    assert [line.split()[0] for line in lines] == ["gpu10", "gpu2"]
    assert len({line.index("10.0 MiB") for line in lines}) == 1


@pytest.mark.parametrize(
    "report",
    [
        {**RUNNING, "state": "none"},
        {**RUNNING, "state": "waiting"},
        {**RUNNING, "total_bytes": 0, "done_bytes": 0, "rate": 0, "eta_s": None},
    ],
)
def test_whatever_is_not_known_yet_is_left_out(report):
    [line] = progress_lines({"gpu1": report})
    assert "left" not in line and "%" not in line


def test_the_summary_counts_what_moved_and_not_what_was_there():
    reports = {"gpu1": {**DONE, "started": 100.0, "updated": 110.0, "bytes_moved": 20 * MIB}, "gpu2": DONE}
    assert staged(reports) == {"gpu1": {"bytes_moved": 20 * MIB, "seconds": 10.0, "rate": 2 * MIB}}
    assert staged_lines(staged(reports)) == ["gpu1  20.0 MiB in 10 s, 2.0 MiB/s"]


def test_no_time_is_no_rate():
    assert staged({"gpu1": {"bytes_moved": 0, "started": 5.0, "updated": 5.0}})["gpu1"]["rate"] == 0


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (119, "119 s"), (180, "3 min"), (7260, "2 h 1 min")])
def test_long_times_are_told_in_larger_units(seconds, text):
    assert duration(seconds) == text
