# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Verdicts over samples: what passes, what does not, and what is said of it."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.gates import (
    ENOUGH,
    percentile,
    summary,
    unjudged,
    verdict,
)

TIMES = st.lists(st.floats(0, 1000), min_size=1, max_size=40)


def good(ttft=0.1, tpot=0.01, target="tiny-0-b"):
    return {"target": target, "ok": True, "error": "", "ttft_s": ttft, "tpot_s": tpot}


def bad(error="HTTP 503: busy", target="tiny-0-b", **figures):
    return {"target": target, "ok": False, "error": error, "ttft_s": None, "tpot_s": None, **figures}


def test_a_percentile_lies_between_the_two_nearest_values():
    assert percentile([4, 1, 3, 2], 0) == 1
    assert percentile([4, 1, 3, 2], 50) == 2.5
    assert percentile([4, 1, 3, 2], 100) == 4
    assert percentile([0, 10], 95) == 9.5
    assert percentile([7], 95) == 7
    assert percentile([], 95) is None


@pytest.mark.parametrize("p", [-1, 101, float("nan")])
def test_there_are_no_others(p):
    with pytest.raises(ValueError):
        percentile([1, 2], p)


@given(st.lists(st.floats(0, 1000), min_size=2, max_size=40))
def test_percentiles_are_those_of_the_library(values):
    wanted = statistics.quantiles(values, n=100, method="inclusive")
    for p in (1, 50, 95, 99):
        assert percentile(values, p) == pytest.approx(wanted[p - 1])


def test_a_summary_counts_errors_and_measures_the_others():
    # An answer that broke off has a first token, and is no measure for the time to it.
    figures = summary([good(ttft=1), good(ttft=3, tpot=None), bad(ttft_s=0.001)])
    assert (figures["requests"], figures["errors"]) == (3, 1)
    assert figures["error_rate"] == pytest.approx(1 / 3)
    assert figures["ttft_p50_s"] == 2 and figures["tpot_p95_s"] == 0.01


def test_a_summary_of_nothing_has_no_figures():
    figures = summary([])
    assert figures.pop("requests") == 0 and figures.pop("errors") == 0
    assert figures and set(figures.values()) == {None}


def test_what_keeps_within_its_limits_passes():
    limits = {"ttft_p95": 0.1, "tpot_p95": 0.01, "error_rate": 0, "slowdown": 1}
    assert verdict([good()] * 20, [good()] * 20, limits) == []
    assert verdict([good()], [], {}) == []
    assert verdict([good()], [], dict.fromkeys(limits)) == []


@pytest.mark.parametrize("limits", [{}, {"error_rate": 1}, {"ttft_p95": 99}])
def test_nothing_passes_without_a_good_sample(limits):
    assert verdict([], [good()] * 20, limits)
    (why,) = verdict([bad(), bad("reset"), bad()], [good()] * 20, limits)
    assert "not one of 3" in why and "2 x HTTP 503: busy; 1 x reset" in why


def test_each_target_has_to_answer():
    new = [good(target="one")] * 19 + [bad(target="two")]
    (why,) = verdict(new, [], {"error_rate": 0.5})
    assert "two answered none" in why
    assert verdict([*new, good(target="two")], [], {"error_rate": 0.5}) == []


def test_errors_up_to_the_rate_are_allowed():
    new = [good()] * 19 + [bad()]
    assert verdict(new, [], {"error_rate": 0.05}) == []
    (why,) = verdict(new, [], {"error_rate": 0.04})
    assert why == "error_rate: 1 of 20 requests failed (5.0%), 1 of them at tiny-0-b, 4.0% are allowed: 1 x HTTP 503: busy"


def test_no_error_is_allowed_where_nothing_is_said():
    assert verdict([good()] * 99 + [bad()], [], {})


@pytest.mark.parametrize("measure", ["ttft", "tpot"])
def test_a_limit_is_for_the_p95(measure):
    limits = {f"{measure}_p95": 0.5}
    fast, slow = good(ttft=0.1, tpot=0.1), good(ttft=9, tpot=9, target="tiny-1-b")
    assert verdict([fast] * 99 + [slow], [], limits) == []
    (why,) = verdict([fast] * 80 + [slow] * 20, [], limits)
    assert why.startswith(f"{measure}_p95: 9 s") and "100 samples, tiny-1-b: 9 s" in why and "0.5 s is allowed" in why


def test_a_limit_of_nothing_is_a_limit():
    assert verdict([good()], [], {"ttft_p95": 0})


def test_what_shows_no_time_does_not_keep_within_a_limit():
    (why,) = verdict([good(tpot=None)] * 20, [], {"tpot_p95": 99})
    assert "longer than one token" in why
    (why,) = verdict([good(tpot=None)] * 20, [good()] * 20, {"slowdown": 99})
    assert "longer than one token" in why


@pytest.mark.parametrize("measure", ["ttft", "tpot"])
def test_the_new_release_may_be_slower_by_so_much(measure):
    slow = good(**{measure: good()[f"{measure}_s"] * 2})
    assert verdict([slow] * 20, [good()] * 20, {"slowdown": 2.01}) == []
    (why,) = verdict([slow] * 20, [good()] * 20, {"slowdown": 1.5})
    assert "slowdown" in why and "2 times" in why and "1.5 times is allowed" in why and "tiny-0-b" in why


def test_too_few_samples_of_the_old_release_are_no_measure_and_it_is_said():
    limits = {"slowdown": 1.5}
    few = [good()] * (ENOUGH - 1) + [bad()] * 20
    assert verdict([good(ttft=9)] * 20, few, limits) == []
    assert len(unjudged(few, limits)) == 2 and f"{ENOUGH - 1} samples" in unjudged(few, limits)[0]
    enough = [*few, good()]
    assert verdict([good(ttft=9)] * 20, enough, limits) and unjudged(enough, limits) == []
    assert unjudged([], {}) == []


def test_nothing_is_a_multiple_of_zero():
    instant = [good(tpot=0)] * 20
    assert verdict([good()] * 20, instant, {"slowdown": 1}) == []
    assert len(unjudged(instant, {"slowdown": 1})) == 1


@given(TIMES, TIMES, st.floats(0.01, 10))
def test_a_verdict_can_be_had_of_all_samples(new, old, limit):
    limits = {"ttft_p95": limit, "tpot_p95": limit, "slowdown": limit}
    failures = verdict([good(one, one) for one in new], [good(one, one) for one in old], limits)
    assert bool([why for why in failures if why.startswith("ttft_p95")]) is (percentile(new, 95) > limit)


def test_samples_need_no_target():
    sample = {"ok": True, "ttft_s": 1}
    assert verdict([sample, {"ok": False}], [], {"error_rate": 0.5, "ttft_p95": 1}) == []
    assert len(verdict([sample, {"ok": False}], [], {"ttft_p95": 0.5})) == 2
