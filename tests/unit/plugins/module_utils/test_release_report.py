# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What status.yml says of open rollouts, and of gateways that do other than the plan says."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.release_report import gateway_drift, rollout_rows
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.views import gateway_servers
from ansible_collections.localfirst.llm_fleet.tests.unit.plugins.module_utils.fleet_builders import host, model, opened, plan, record

HOSTS = [host("gpu1"), host("gpu2")]


@pytest.fixture
def serving():
    return plan([model("tiny", 2), model("other")], HOSTS).plan


@pytest.fixture
def rolling(serving):
    return opened(serving, HOSTS, "tiny", target=record("tiny", "1.1.0"))


def route(planned, **progress):
    mine = {"rollout": planned["rollouts"]["tiny"]["id"], "switched": [], "baked": False, "back": "", **progress}
    return {"tiny": {"backend": "be_tiny_x", "share": 50, "clients": [], "progress": mine}}


def lock(seconds_left=100):
    return {"name": "rollout-tiny", "user": "alice", "host": "laptop", "seconds_left": seconds_left}


def test_a_rollout_runs_while_its_lock_is_held(rolling):
    told = {name: {"routes": route(rolling, switched=[0]), "locks": [lock()]} for name in ("gw1", "gw2")}
    [row] = rollout_rows(rolling, told)
    assert (row["model"], row["from"], row["to"], row["state"]) == ("tiny", "1.0.0", "1.1.0", "running")
    assert row["switched"] == "1 of 2" and row["share"] == "50 %" and "alice on laptop" in row["lock"]


@pytest.mark.parametrize("locks", [[], [lock(0)], [{**lock(), "name": "rollout-other"}], [{**lock(), "name": "plan"}]])
def test_without_a_living_lock_of_its_own_it_was_interrupted(rolling, locks):
    [row] = rollout_rows(rolling, {"gw1": {"routes": {}, "locks": locks}})
    assert row["state"] == "interrupted" and row["switched"] == "0 of 2" and row["share"] == "0 %"


def test_one_on_its_way_back_is_told_as_that(rolling):
    told = {"gw1": {"routes": route(rolling), "locks": [lock()]}, "gw2": {"routes": route(rolling, back="a gate failed"), "locks": []}}
    assert rollout_rows(rolling, told)[0]["state"] == "back"


def test_gateways_that_differ_show_both_shares(rolling):
    other = route(rolling)
    other["tiny"]["share"] = 5
    told = {"gw1": {"routes": route(rolling)}, "gw2": {"routes": other}}
    assert rollout_rows(rolling, told)[0]["share"] == "5 % or 50 %"


def test_no_rollout_is_no_row(serving):
    assert rollout_rows(serving, {"gw1": {"routes": {}, "locks": [lock()]}}) == []


def healthy(planned):
    return {name: {"state": "ready", "up": True, "requests": 0} for name in gateway_servers(planned["instances"])}


def test_a_gateway_as_planned_has_no_drift(serving):
    assert gateway_drift(serving, {"gw1": {"servers": healthy(serving), "routes": {}}}) == []


def test_servers_that_take_no_requests_are_named(serving):
    servers = healthy(serving)
    drained, down, gone = sorted(servers)
    servers[drained]["state"], servers[down]["up"] = "drain", False
    del servers[gone]
    rows = gateway_drift(serving, {"gw1": {"servers": servers, "routes": {}}})
    assert {row["server"]: row["drift"].split()[0] for row in rows} == {drained: "takes", down: "its", gone: "unknown"}
    assert {row["gateway"] for row in rows} == {"gw1"}


def test_a_model_with_an_open_rollout_is_not_judged(rolling):
    servers = {name: {**it, "state": "drain"} if "tiny" in name else it for name, it in healthy(rolling).items()}
    assert gateway_drift(rolling, {"gw1": {"servers": servers, "routes": route(rolling)}}) == []


def test_a_route_without_a_rollout_is_drift(serving):
    told = {"gw2": {"servers": healthy(serving), "routes": {"tiny": {}}}}
    assert gateway_drift(serving, told) == [{"gateway": "gw2", "server": "tiny", "drift": "has a route of a rollout that is over"}]
