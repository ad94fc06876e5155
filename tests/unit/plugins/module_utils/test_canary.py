# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What the counters of gateways say of a canary, from looks as gateway_traffic makes them."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import canary, traffic
from ansible_collections.localfirst.llm_fleet.tests.unit.plugins.module_utils.test_traffic import rows

GATES = {"error_rate": 0.01, "slowdown": None}
STRICT = {"error_rate": 1.0, "slowdown": 2.0}


def look(new: tuple = (0,), old: tuple = (0,), worker: str = "1") -> dict:
    """The counters of one gateway. Of each release (requests, failed, cut, latency in ms), all since the worker started."""
    found = [{**row, "pxname": name} for name, counts in (("new", new), ("old", old)) for row in rows(*counts) if row["pxname"] == "be"]
    return traffic.snapshot({worker: found}, ["new", "old"])


def verdict(*looks: list, gates: dict = GATES, least: int = 100) -> dict:
    return canary.canary_verdict(list(looks), "new", "old", gates, least)


def test_only_what_came_between_the_looks_counts():
    found = verdict([look((50, 9), (70,))], [look((80, 9), (90,))], [look((85, 10), (170,))])
    assert (found["requests"], found["new"]["requests"], found["new"]["errors"]) == (35, 35, 1)
    assert (found["old"]["requests"], found["old"]["errors"]) == (100, 0)
    assert found["failures"] == []


def test_all_gateways_count():
    before, after = [look((10,)), look((500, 5))], [look((30, 1)), look((540, 6))]
    found = verdict(before, after)
    assert (found["requests"], found["new"]["errors"]) == (60, 2)
    assert len(found["failures"]) == 1


def test_after_a_reload_nothing_is_counted_twice_and_nothing_is_lost():
    found = verdict([look((100, 9))], [look((120, 9))], [look((7,), worker="2")])
    assert (found["requests"], found["failures"]) == (27, [])


def test_without_requests_there_is_nothing_to_say():
    for looks in ([], [[look()]], [[look()], [look()]], [[{}], [{}]]):
        found = verdict(*looks)
        assert (found["requests"], found["failures"]) == (0, [])
        assert found["new"]["error_rate"] is None and found["old"]["latency_ms"] is None


def test_one_early_error_is_no_verdict_and_two_are():
    """One of a hundred may fail: it may as well be the first of them."""
    assert verdict([look()], [look((1, 1))])["failures"] == []
    [failure] = verdict([look()], [look((3, 2))])["failures"]
    assert failure.startswith("error_rate: 2 of 3 requests") and "1 may" in failure


def test_a_stream_that_breaks_off_is_an_error_too():
    assert len(verdict([look()], [look((10, 0, 2))])["failures"]) == 1


def test_errors_of_the_old_release_are_not_the_new_ones():
    assert verdict([look()], [look((10,), (100, 50))])["failures"] == []


@pytest.mark.parametrize(
    ("requests", "errors", "least", "rate", "fails"),
    [
        (100, 1, 100, 0.01, False),
        (100, 2, 100, 0.01, True),
        (1000, 10, 100, 0.01, False),
        (1000, 11, 100, 0.01, True),
        (10, 1, 10, 0.01, True),  # of so few not one may fail
        (10, 1, 0, 0.1, False),
        (5, 5, 0, 1.0, False),
        (5, 1, 1000, 0.0, True),
        (5, 1, 1000, None, True),  # no limit in the catalog is no errors
        (100, 29, 100, 0.29, False),  # 0.29 * 100 is less than 29 in binary
    ],
)
def test_how_many_may_fail(requests, errors, least, rate, fails):
    found = verdict([look()], [look((requests, errors))], gates={**GATES, "error_rate": rate}, least=least)
    assert bool(found["failures"]) == fails


@given(st.integers(1, 2000), st.data(), st.integers(0, 1000))
def test_with_enough_requests_it_is_the_rate_that_counts(requests, data, per_mille):
    errors = data.draw(st.integers(0, requests))
    found = verdict([look()], [look((requests, errors))], gates={"error_rate": per_mille / 1000, "slowdown": None}, least=requests)
    assert bool(found["failures"]) == (Fraction(errors, requests) > Fraction(per_mille, 1000))


# Latency


def waited(new: float, old: float, answers: int = 100, gates: dict = STRICT) -> list:
    return verdict([look()], [look((answers, 0, 0, new), (answers, 0, 0, old))], gates=gates)["failures"]


def test_the_new_release_may_be_so_many_times_slower():
    assert waited(1000, 500) == []
    [failure] = waited(1001, 500)
    assert failure.startswith("slowdown: clients waited 1001 ms") and "500 ms" in failure and "2 times" in failure


def test_of_next_to_nothing_a_multiple_is_no_matter():
    assert waited(105, 5) == []
    assert len(waited(106, 5)) == 1
    assert len(waited(202, 100)) == 1


def test_without_the_gate_nobody_compares():
    assert waited(9000, 1, gates=GATES) == []
    assert waited(9000, 1, gates={"error_rate": 0.01}) == []


def test_a_few_answers_make_no_average():
    assert len(waited(9000, 1, answers=canary.ENOUGH)) == 1
    assert waited(9000, 1, answers=canary.ENOUGH - 1) == []
    for new, old in ((3, 100), (100, 3)):
        found = verdict([look()], [look((new, 0, 0, 9000), (old, 0, 0, 1))], gates=STRICT)
        assert found["failures"] == []


def test_what_never_reached_an_engine_is_no_fast_answer():
    """Refused by HAProxy itself: many requests, and few answers."""
    found = verdict([look()], [look((100, 90, 0, 9000), (100, 0, 0, 1))], gates=STRICT)
    assert found["new"]["answers"] == 10 and found["failures"] == []


def test_errors_and_latency_are_told_together():
    found = verdict([look()], [look((100, 50, 0, 9000), (100, 0, 0, 1))], gates={**STRICT, "error_rate": 0.01})
    assert [failure.partition(":")[0] for failure in found["failures"]] == ["error_rate", "slowdown"]
