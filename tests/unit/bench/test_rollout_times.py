# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Where the seconds of a rollout went, on marks that are written down here; and that these are the marks which the playbooks write."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.tests.bench.rollout_times import canary_seconds, rollback_times, rollout_times
from ansible_collections.localfirst.llm_fleet.tests.load.report import Record

REPO = Path(__file__).resolve().parents[3]


def marks(*told: tuple) -> list[dict]:
    return [{"at": at, "what": what, "batch": batch} for at, what, batch in told]


SURGE = marks(
    (100, "begin", 0),
    (104, "loaded 2.5 stopped 0.0", 1),
    (107, "share 20", 1),
    (113, "share 20", 1),
    (114, "share 50", 1),
    (116, "drained 1.0", 1),
    (121, "loaded 3.0 stopped 0.0", 2),
    (124, "share 100", 2),
    (125, "drained 0", 2),
)
REPLACE = marks(
    (200, "begin", 0),
    (201, "share 0", 1),
    (203, "drained 1.5", 1),
    (208, "loaded 3.0 stopped 0.5", 1),
    (210, "share 50", 1),
)


def test_a_surge():
    times = rollout_times(SURGE, began=80, ended=140, hosts=2)
    assert times == {
        "total_s": 60,
        # 20 s before the first batch, 15 s after the last.
        "fixed_s": 35,
        "load_s": 5.5,
        "drain_s": 1.0,
        "canary_s": 6,
        "stop_s": 0,
        # 25 s of batches.
        "overhead_s": 12.5,
        "overhead_per_host_s": 6.25,
    }


def test_a_replacement_without_a_canary():
    times = rollout_times(REPLACE, began=190, ended=215, hosts=1)
    assert (times["load_s"], times["drain_s"], times["canary_s"]) == (3.0, 1.5, 0)
    # Stopping is told, and is overhead.
    assert (times["stop_s"], times["overhead_s"]) == (0.5, 5.5)


def test_all_seconds_go_somewhere():
    for told, began, ended in ((SURGE, 99, 126), (REPLACE, 150, 300)):
        times = rollout_times(told, began, ended, 3)
        parts = ("fixed_s", "load_s", "drain_s", "canary_s", "overhead_s")
        assert sum(times[part] for part in parts) == pytest.approx(ended - began)


def test_what_was_taken_back_has_no_such_times():
    for told in (SURGE + marks((126, "back", 0)), marks((100, "begin", 0)), []):
        with pytest.raises(ValueError, match="ended well"):
            rollout_times(told, 0, 200, 2)


def test_a_canary_among_replacements_begins_when_its_engine_has_loaded():
    before = ((1, "share 0", 1), (3, "drained 1", 1), (5, "loaded 1 stopped 1", 1))
    told = marks(*before, (7, "share 20", 1), (12, "share 20", 1), (13, "share 50", 1))
    assert canary_seconds(told) == 5
    # The next batch has shares, too, and none of them is its business.
    later = marks((14, "share 50", 2), (17, "loaded 1 stopped 1", 2), (19, "share 100", 2))
    assert canary_seconds([mark for mark in told if mark["at"] not in (7, 12)] + later) == 0


def answer(began: float, version: str | None = "1.0.0", outcome: str = "complete", lasts: float = 1) -> Record:
    return Record(began, began + lasts, "gw1", "talk", outcome, first=began, version=version)


BACK = marks((10, "back", 0), (14, "drained 3", 1))


def test_the_last_client_of_the_bad_release():
    seen = [answer(5), answer(11, "2.0.0", lasts=8), answer(8, "2.0.0"), answer(30)]
    assert rollback_times(BACK, seen, "1.0.0") == {"rollback_s": 1, "last_ended_s": 9}


@pytest.mark.parametrize("harmed", [answer(13, None, "refused"), answer(13, "1.0.0", "broken"), answer(13, "2.0.0", "broken")])
def test_whom_the_old_release_did_not_answer_is_not_back(harmed):
    assert rollback_times(BACK, [answer(8, "2.0.0"), harmed, answer(30)], "1.0.0")["rollback_s"] == 3


def test_nobody_came_after_the_gate():
    assert rollback_times(BACK, [answer(8, "2.0.0"), answer(12)], "1.0.0") == {"rollback_s": 0, "last_ended_s": 0}
    with pytest.raises(ValueError, match="nobody to bring back"):
        rollback_times(BACK, [answer(8), answer(12)], "1.0.0")


def test_the_playbooks_write_these_marks():
    """Were they called otherwise there, the sums here would be wrong and nobody would know."""
    tasks = {path.stem: path.read_text() for path in (REPO / "playbooks" / "tasks" / "rollout").glob("*.yml")}
    assert "what: begin, batch: 0" in tasks["begin"]
    assert "{mark_what: back}" in tasks["back"]
    assert 'mark_what: "loaded {{' in tasks["start"] and "}} stopped {{" in tasks["start"]
    assert 'mark_what: "drained {{' in tasks["drain"]
    assert "'what': 'share ' ~ share" in tasks["route"]
