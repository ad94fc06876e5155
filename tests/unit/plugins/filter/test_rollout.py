# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What playbooks of rollouts ask of data: who did not answer, whom to probe, which share."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml

from ansible_collections.localfirst.llm_fleet.plugins.filter import rollout as plugin
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.catalog_rollout import GATES

FILTERS = plugin.FilterModule().filters()
DELEGATED = {"ansible_delegated_host": "gw2", "ansible_host": "10.0.0.3"}
GONE = {"unreachable": True, "msg": "no route to host"}


@pytest.mark.parametrize("name", sorted(FILTERS))
def test_the_documentation_names_the_parameters(name):
    documented = yaml.safe_load((Path(plugin.__file__).parent / f"{name}.yml").read_text())["DOCUMENTATION"]
    _input, *others = inspect.signature(FILTERS[name]).parameters.values()
    assert documented["name"] == name
    assert list(documented["options"]) == ["_input", *(parameter.name for parameter in others)]
    for parameter in others:
        assert documented["options"][parameter.name].get("required", False) == (parameter.default is inspect.Parameter.empty)
        assert documented["positional"].split(", ") == list(documented["options"])


# Who did not answer


@pytest.mark.parametrize(
    ("step", "names"),
    [
        ({"changed": True}, []),
        ({"skipped": True}, []),
        ({"results": []}, []),
        ({"failed": True, "msg": "bad"}, []),
        ({**GONE, "_ansible_delegated_vars": DELEGATED}, ["gw2"]),
        (GONE, ["a host"]),
    ],
)
def test_of_a_step(step, names):
    assert FILTERS["unanswered"](step) == names


def test_of_a_loop_those_that_were_delegated_to():
    step = {"results": [
        {"item": "gw3", **GONE},
        {"item": "gw1", "changed": True},
        {"item": "x", **GONE, "_ansible_delegated_vars": DELEGATED},
        {"item": {"id": "tiny-0-a", "host": "gpu1"}, **GONE},
        # A loop over the results of a loop.
        {"item": {"item": {"item": {"id": "tiny-1-a", "host": "gpu2"}}, "changed": True}, **GONE},
        {"item": {"id": "tiny-2-a", "host": "gpu1"}, **GONE},
        {"item": {"id": "tiny-3-a", "host": "gpu9"}, "unreachable": False},
    ]}
    assert FILTERS["unanswered"](step) == ["gpu1", "gpu2", "gw2", "gw3"]


# Whom to probe, by what


def test_targets_are_reached_at_address_and_port():
    instances = [
        {"id": "tiny-0-b", "address": "10.0.0.2", "port": 20001, "release": "aa", "gpus": [], "record": {}},
        {"id": "tiny-1-b", "address": "fd00::2", "port": 20003, "release": "aa"},
    ]
    assert FILTERS["probe_targets"](instances) == [
        {"id": "tiny-0-b", "release": "aa", "url": "http://10.0.0.2:20001"},
        {"id": "tiny-1-b", "release": "aa", "url": "http://[fd00::2]:20003"},
    ]


def test_limits_are_those_gates_that_have_one():
    faults: list = []
    some = GATES({"ttft_p95": 2.5, "error_rate": 0, "samples": 5}, "gates", faults)
    assert FILTERS["gate_limits"](some) == {"ttft_p95": 2.5, "error_rate": 0.0}
    every = {"ttft_p95": 1, "tpot_p95": 1, "error_rate": 1, "slowdown": 1}
    assert set(FILTERS["gate_limits"](GATES(every, "gates", faults))) == set(every)
    assert not faults


def test_a_share_is_in_whole_per_cent():
    assert [FILTERS["share_of"](list(range(count)), 3) for count in range(4)] == [0, 33, 67, 100]
    assert FILTERS["share_of"]([], 0) == 0


# Who runs it, and who asked it to stop


def test_who_asked_to_stop():
    held = {"taken": True, "holder": None, "name": "rollout-tiny"}
    stop = {"user": "bob", "job": "", "host": "laptop", "since": "2026-01-02T03:04:05Z"}
    assert FILTERS["lock_stop"]([{**held, "stop": None}, {**held, "stop": stop}]) == stop
    assert FILTERS["lock_stop"]([{**held, "stop": None}]) == {} == FILTERS["lock_stop"]([])


def test_an_actor_in_a_few_words():
    assert FILTERS["actor_name"]({"user": "ann", "job": "17", "host": "awx"}) == "ann (job 17) on awx"


def test_the_verdict_on_a_canary_by_position_as_playbooks_call_it():
    workers = {"7": {"requests": 9, "responses_5xx": 9, "connection_errors": 0, "response_errors": 0, "aborted_by_server": 0,
                     "aborted_by_client": 0, "answers": 9, "latency_ms": 1.0}}
    looks = [[{"new": {"workers": {}}}], [{"new": {"workers": workers}}]]
    found = FILTERS["canary_verdict"](looks, "new", "old", GATES({}, "gates", []), 100)
    assert found["requests"] == 9 and len(found["failures"]) == 1
