# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Which plan the fleet has: never a guess."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.plan import choose_current
from ansible_collections.localfirst.llm_fleet.tests.unit.plugins.module_utils.fleet_builders import (
    host,
    labels,
    model,
    plan,
)

OLD = plan([model("tiny")], [host("gpu1")]).plan
NEW = plan([model("tiny", 2)], [host("gpu1")], OLD).plan


def state(name, planned=None, instances=(), error="", reachable=True):
    return {"host": name, "plan": planned, "plan_error": error, "instances": list(instances), "reachable": reachable}


def test_a_new_fleet_has_no_plan():
    assert choose_current([state("gw1"), state("gpu1")]) == (None, [])
    assert choose_current([]) == (None, [])


@pytest.mark.parametrize("order", [1, -1])
def test_the_newest_plan_wins_wherever_it_is(order):
    states = [state("gw1", OLD), state("gpu1", NEW), state("gpu2")][::order]
    assert choose_current(states) == (NEW, [])


def test_instances_without_any_plan_are_a_fault_that_names_them():
    current, [fault] = choose_current([state("gw1"), state("gpu1", instances=[labels(OLD["instances"][0])])])
    assert current is None
    assert "gpu1 (tiny-0-a)" in fault.what and fault.fix


def test_a_plan_on_one_host_is_enough():
    found = [labels(OLD["instances"][0])]
    assert choose_current([state("gw1", OLD), state("gpu1", instances=found)]) == (OLD, [])


def test_two_plans_of_one_generation_are_a_fault_that_names_both_hosts():
    other = {**NEW, "instances": NEW["instances"][:1]}
    current, [fault] = choose_current([state("gpu1", other), state("gw2", NEW), state("gw1", NEW)])
    assert current is None
    assert "gpu1 / gw1, gw2" in fault.what


def test_old_plans_may_differ():
    other = {**OLD, "instances": []}
    assert choose_current([state("gw1", NEW), state("gpu1", OLD), state("gpu2", other)]) == (NEW, [])


def test_a_silent_host_says_nothing():
    silent = state("gpu1", NEW, error="no answer", reachable=False)
    assert choose_current([state("gw1", OLD), silent]) == (OLD, [])


def test_a_plan_that_cannot_be_read_is_a_fault_even_where_others_have_one():
    current, [fault] = choose_current([state("gw1", NEW), state("gpu1", error="not JSON")])
    assert current is None
    assert fault.where == "host gpu1" and "not JSON" in fault.what


def test_a_plan_of_another_format_is_a_fault():
    current, [fault] = choose_current([state("gw1", {**NEW, "format": 2})])
    assert current is None
    assert "format 2" in fault.what and "version" in fault.fix


@pytest.mark.parametrize(
    "damaged",
    [
        [],
        "plan",
        {},
        {"format": 1},
        {**NEW, "generation": "3"},
        {**NEW, "generation": True},
        {**NEW, "instances": {}},
        {**NEW, "instances": ["tiny-0-a"]},
        {**NEW, "instances": [{"id": "tiny-0-a"}]},
        {**NEW, "instances": [{**NEW["instances"][0], "model": ["tiny"]}]},
        {**NEW, "models": {}},
        {**NEW, "models": {"tiny": None}},
        {**NEW, "releases": {}},
        {**NEW, "ports": {}},
        {**NEW, "engines": {}},
        {**NEW, "releases": {release: {} for release in NEW["releases"]}},
    ],
)
def test_a_damaged_plan_is_a_fault(damaged):
    current, [fault] = choose_current([state("gw1", damaged), state("gpu1", OLD)])
    assert current is None
    assert fault.where == "host gw1"


def test_all_faults_are_reported_at_once():
    states = [state("gw1", error="not JSON"), state("gpu1", {**NEW, "format": 9}), state("gpu2", {})]
    assert len(choose_current(states)[1]) == len(states)


def test_every_plan_that_is_written_can_be_read():
    parked = plan([model("tiny", 0), model("all", "all")], [host("gpu1")], NEW).plan
    assert choose_current([state("gw1", parked)]) == (parked, [])
