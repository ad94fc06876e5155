# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The arithmetic of what clients saw, on runs that are written down here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.tests.load import report as reports
from ansible_collections.localfirst.llm_fleet.tests.load.report import Record, Report


def answer(began: float, first: float, ended: float | None = None, version: str = "1.0.0") -> Record:
    return Record(began, first + 1 if ended is None else ended, "gw1", "tiny", "complete", first=first, version=version)


def refusal(began: float, ended: float | None = None, gateway: str = "gw1", model: str = "tiny") -> Record:
    return Record(began, began if ended is None else ended, gateway, model, "refused")


def run(*records: Record, began: float = 0.0, ended: float = 100.0) -> Report:
    versions = reports.by_version(records)
    return Report(began, ended, requests=len(records), records=list(records), by_version=versions)


def spans(report: Report, **options) -> list[tuple]:
    return [(gap["begin"], gap["end"]) for gap in reports.gaps(report, **options)]


def every(step: float, begin: float, end: float) -> list[Record]:
    return [answer(begin + n * step, begin + n * step + 0.1) for n in range(int((end - begin) / step))]


def test_versions_begin_and_end():
    report = run(answer(1, 2), answer(5, 6, 30), answer(4, 5), answer(7, 8, version="1.1.0"), refusal(9))
    assert report.by_version == {
        "1.0.0": {"streams": 3, "first_began": 1, "last_began": 5, "last_ended": 30},
        "1.1.0": {"streams": 1, "first_began": 7, "last_began": 7, "last_ended": 9},
    }
    assert (reports.first_began(report, "1.1.0"), reports.last_began(report, "1.0.0")) == (7, 5)
    assert reports.last_began(report, "2.0.0") is None


def test_seconds_from_a_mark_to_the_last_request_of_a_version():
    report = run(answer(1, 2), answer(5, 6), answer(7, 8, version="1.1.0"))
    marks = [{"at": 3.5, "what": "gate failed"}, {"at": 8, "what": "restored"}]
    assert reports.lasted(report, "1.0.0", marks, "gate failed") == 1.5
    assert reports.lasted(report, "1.0.0", marks, "restored") == -3
    with pytest.raises(ValueError, match=r"no mark is called 'x'; there are: gate failed, restored"):
        reports.lasted(report, "1.0.0", marks, "x")
    with pytest.raises(ValueError, match=r"no answer came from '9'; there are: 1\.0\.0, 1\.1\.0"):
        reports.lasted(report, "9", marks, "restored")


def test_no_gap_where_all_are_answered():
    assert spans(run(*every(0.5, 0, 100))) == []


def test_a_gap_begins_with_the_first_who_is_refused_and_ends_with_the_first_who_is_answered():
    report = run(*every(0.5, 0, 10), *(refusal(10 + n) for n in range(5)), *every(0.5, 15, 20))
    assert spans(report) == [(10, 15.1)]
    assert reports.unanswered(report) == pytest.approx(5.1)


def test_or_with_who_waits():
    # The one who asked at 9 is answered at 15, those before and after at once.
    waited = answer(9, 15)
    assert spans(run(answer(8, 8.5), waited, *every(0.5, 15, 20))) == [(9, 15)]
    assert spans(run(*every(0.5, 0, 20), waited)) == []


def test_who_waited_before_the_last_answer_waits_from_then_on():
    assert spans(run(answer(1, 9.0), answer(2, 4.0), answer(2, 3.0)), longer=3) == [(4, 9)]


def test_no_gap_while_nobody_asks():
    assert spans(run(*every(0.5, 0, 10), *every(0.5, 30, 40))) == []


def test_no_gap_while_all_clients_are_busy_with_long_answers():
    assert spans(run(answer(0, 0.1, 20), answer(0, 0.2, 20), answer(20.2, 20.3, 40))) == []


def test_an_outage_at_the_end_and_one_of_a_whole_run():
    assert spans(run(*every(0.5, 0, 10), refusal(11), refusal(14))) == [(11, 14)]
    assert spans(run(refusal(1), refusal(5, 6))) == [(1, 6)]
    assert spans(run()) == []


def test_only_one_gateway_or_model_fails():
    of_gw2 = [refusal(10 + n, gateway="gw2") for n in range(5)]
    of_private = [refusal(20 + n, model="private") for n in range(3)]
    report = run(*every(0.5, 0, 40), *of_gw2, *of_private)
    assert spans(report) == []
    assert spans(report, gateway="gw2") == [(10, 14)]
    assert spans(report, model="private") == [(20, 22)]


def test_gaps_in_order_and_longer_than_asked():
    report = run(*every(0.5, 0, 5), refusal(5.5), *every(0.5, 8, 10), refusal(10.5), *every(0.5, 20, 25))
    assert spans(report, longer=3) == [(10.5, 20.1)]
    assert spans(report, longer=1) == [(5.5, 8.1), (10.5, 20.1)]


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 30), st.booleans())))
def test_nobody_is_answered_within_a_gap_and_somebody_waits_or_tries(asked):
    records = [answer(began, began + wait) if fine else refusal(began, began + wait) for began, wait, fine in asked]
    last = 0.0
    for gap in reports.gaps(run(*records), longer=0.5):
        assert gap["begin"] >= last
        last = gap["end"]
        assert gap["seconds"] == gap["end"] - gap["begin"] > 0.5
        assert not any(r.answered and gap["begin"] < r.first < gap["end"] for r in records)
        assert any(r.began <= gap["begin"] <= (r.first if r.answered else r.ended) for r in records)


def test_percentiles_are_values_that_were_measured():
    values = [float(value) for value in range(1, 101)]
    assert (reports.percentile(values, 0.5), reports.percentile(values, 0.95)) == (50, 95)
    assert reports.percentile([7.0], 0.95) == 7
    assert reports.percentile([], 0.5) is None


def test_a_timeline_puts_marks_among_what_clients_saw():
    report = run(answer(1, 2), answer(5, 6), answer(7, 8, version="1.1.0"), began=0.5)
    lines = reports.timeline(report, [{"at": 4, "what": "rollout"}])
    assert [line.split("s  ")[1] for line in lines] == [
        "first request that 1.0.0 answered",
        "rollout",
        "last request that 1.0.0 answered",
        "first request that 1.1.0 answered",
        "last request that 1.1.0 answered",
    ]
    assert lines[1].split() == ["3.50", "s", "rollout"]


def test_a_report_survives_its_file():
    report = run(answer(1, 2), refusal(3))
    report.refused = {"503 no_instance": 1}
    assert Report.from_json(report.to_json()) == report
