# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The module that tells what a host ran: from files as the other modules leave them."""

from __future__ import annotations

import json

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import release_history, routes
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lease import Lease

OWNER = {"user": "alice", "job": "", "host": "laptop", "place": "here", "process": "1:1", "purpose": "rollout of tiny"}


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


@pytest.fixture
def look(run_module, state):
    def run(**arguments):
        return run_module("release_info", state_dir=str(state), socket=str(state / "no.sock"), **arguments)

    return run


def entry(model: str, number: int) -> dict:
    return {"at": f"2026-11-28T10:00:{number:02}Z", "model": model, "replica": 0, "release": "r", "version": "1.0.0", "outcome": "good"}


def test_a_bare_host_has_nothing_and_is_no_error(look):
    assert look()["history"] == []
    seen = look(gateway=True)
    assert (seen["routes"], seen["locks"], seen["servers"], seen["changed"]) == ({}, [], {}, False)


def test_history_is_the_newest_of_one_model(look, state):
    for number in range(5):
        release_history.append(state / "releases.jsonl", entry("tiny", number))
        release_history.append(state / "releases.jsonl", entry("other", number))
    assert [one["at"][-3:] for one in look(model="tiny", entries=2)["history"]] == ["03Z", "04Z"]
    assert len(look()["history"]) == 10


def test_a_gateway_tells_routes_and_locks(look, state):
    state.mkdir()
    routes.write_routes(str(state / "routes.json"), routes.route("tiny", "be_tiny_0f3a5c7e9b1d", 5, [], {}))
    Lease(state / "locks", "rollout-tiny").take(OWNER, 300)
    seen = look(gateway=True)
    assert seen["routes"]["tiny"]["share"] == 5
    [lock] = seen["locks"]
    assert (lock["name"], lock["user"], lock["purpose"]) == ("rollout-tiny", "alice", "rollout of tiny") and lock["seconds_left"] > 0


def test_what_is_damaged_is_a_warning(look, state):
    (state / "locks").mkdir(parents=True)
    (state / "locks" / "plan.json").write_text("{")
    (state / "routes.json").write_text(json.dumps([]))
    seen = look(gateway=True)
    assert (seen["routes"], seen["locks"]) == ({}, [])
    assert len(seen["warnings"]) == 2
