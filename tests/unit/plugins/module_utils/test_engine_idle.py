# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What engines work at, asked over real HTTP; time that passes only when somebody waits."""

from __future__ import annotations

import itertools

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.engine_idle import PAUSE, in_flight, metric_sum, wait_idle
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.engine_probe import Target
from ansible_collections.localfirst.llm_fleet.tests.unit.support.range_server import RangeServer

NAME = "llamacpp:requests_processing"
INTERFACE = {"metrics": "/metrics", "busy": {"metric": NAME}}


@pytest.fixture
def engine():
    with RangeServer() as running:
        yield running


def says(engine, count, path="/metrics") -> None:
    engine.add(path, f"# HELP {NAME} Number of requests\n# TYPE {NAME} gauge\n{NAME} {count}\n".encode())


def target(engine, name="tiny-0-a", key="") -> Target:
    return Target(name, engine.url, [], key)


def wait(*waiting, timeout=60, during=lambda now: None) -> tuple[dict, float]:
    """What wait_idle() says, and how long it took."""
    now = 0.0

    def pause(seconds: float) -> None:
        nonlocal now
        now += seconds
        during(now)

    return wait_idle(waiting, timeout, clock=lambda: now, pause=pause), now


@pytest.mark.parametrize(
    ("text", "total"),
    [
        ("m 3\n", 3),
        ("m 3", 3),
        ("m\t3 1700000000000\n", 3),
        ("m 1.5e1\n", 15),
        ('m{a="1"} 1\nm{a="2",b="x y"} 2\n', 3),
        ('m {a="1"} 4\n', 4),
        ('m{a="}"} 4\n', 4),
        ("m 0\n", 0),
        ("# HELP m 7\n# TYPE m gauge\nm 2\n", 2),
        ("m_total 5\nxm 6\n", None),
        ("", None),
        ("m many\n", None),
        ("m NaN\n", None),
        ("m +Inf\n", None),
    ],
)
def test_a_metric_is_summed_over_its_labels(text, total):
    assert metric_sum(text, "m") == total


def test_the_name_of_a_metric_is_no_pattern():
    assert metric_sum("axb 5\n", "a.b") is None


def test_an_engine_is_asked_with_its_key(engine):
    says(engine, 2)
    assert in_flight(target(engine, key="geheim"), INTERFACE) == 2
    assert engine.requests[0][1]["authorization"] == "Bearer geheim"


def test_an_engine_that_does_not_say_is_unknown(engine):
    engine.add("/metrics", b"something_else 1\n")
    assert in_flight(target(engine), INTERFACE) is None
    assert in_flight(target(engine), {**INTERFACE, "metrics": "/none"}) is None
    assert in_flight(target(engine), {"metrics": "/metrics"}) is None
    assert in_flight(target(engine), {"busy": {"metric": NAME}, "metrics": None}) is None
    engine.httpd.server_close()
    assert in_flight(target(engine), INTERFACE) is None


def test_it_waits_for_the_last_of_them(engine):
    says(engine, 1, "/a")
    says(engine, 2, "/b")

    def during(now: float) -> None:
        if now == 2 * PAUSE:
            says(engine, 0, "/a")
        if now == 5 * PAUSE:
            says(engine, 0, "/b")

    one, two = ((target(engine, name), {**INTERFACE, "metrics": f"/{name}"}) for name in "ab")
    assert wait(one, two, during=during) == ({}, 5 * PAUSE)
    # One that is done is not asked again: another that shares its port would count for it.
    assert sum(path == "/a" for path, _headers in engine.requests) == 3


def test_when_the_time_is_over_it_names_those_that_are_busy(engine):
    says(engine, 1, "/a")
    says(engine, 0, "/b")
    one, two = ((target(engine, name), {**INTERFACE, "metrics": f"/{name}"}) for name in "ab")
    assert wait(one, two, timeout=2) == ({"a": 1}, 2)
    assert wait(one, two, timeout=0) == ({"a": 1}, 0)


def test_the_count_that_it_tells_is_the_last_one(engine):
    counts = itertools.count(2)
    says(engine, 1)
    busy, _took = wait((target(engine), INTERFACE), timeout=3 * PAUSE, during=lambda _now: says(engine, next(counts)))
    assert busy == {"tiny-0-a": 4}


def test_nobody_is_waited_for_where_nobody_says(engine):
    assert wait((target(engine), {}), timeout=600) == ({}, 0)
    assert wait(timeout=600) == ({}, 0)
