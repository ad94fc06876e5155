# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Hosts that go out of service and come back: what stays, what is refused, who goes out together."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import maintenance
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.views import (
    gateway_servers,
    host_instances,
    settled_instances,
    status_rows,
)
from ansible_collections.localfirst.llm_fleet.tests.unit.plugins.module_utils.fleet_builders import (
    asked,
    host,
    measured,
    model,
    opened,
    plan,
)

HOSTS = [host("gpu1"), host("gpu2"), host("gpu3")]
NAMES = [one["name"] for one in HOSTS]
CATALOG = [model("chat", 3), model("solo", 1), model("pair", 2)]
PLAN = plan(CATALOG, HOSTS).plan
ANN = ("ann on laptop", "driver 580", "2026-01-02T03:04:05Z")


def where(of: str) -> list[str]:
    return sorted(it["host"] for it in PLAN["instances"] if it["model"] == of)


def told(planned: dict, **states) -> dict:
    """What release_info says of a gateway on which all servers are up, except those named."""
    servers = {server: {"state": "ready", "up": True} for server in gateway_servers(planned["instances"])}
    for name, state in states.items():
        (server,) = [server for server in servers if server.endswith("/" + name.replace("_", "-"))]
        servers[server] = state
    return {"servers": servers}


# Who is meant


@pytest.mark.parametrize(
    ("text", "hosts", "unknown"),
    [
        ("gpu2", ["gpu2"], []),
        ("gpu3, gpu1", ["gpu1", "gpu3"], []),
        ("all", NAMES, []),
        ("gpu*,!gpu2", ["gpu1", "gpu3"], []),
        ("!gpu2,all", ["gpu1", "gpu3"], []),
        ("gpu1,gpu9,x*", ["gpu1"], ["gpu9", "x*"]),
        ("all,!gpu9", NAMES, ["!gpu9"]),
        ("", [], []),
        ("!gpu1", [], []),
    ],
)
def test_which_nodes_are_meant(text, hosts, unknown):
    assert maintenance.asked_hosts(text, NAMES) == {"hosts": hosts, "unknown": unknown}


def test_an_instance_knows_its_name_at_gateways():
    found = maintenance.maintained_instances(PLAN, "gpu1")
    assert [it["id"] for it in found] == [it["id"] for it in PLAN["instances"] if it["host"] == "gpu1"]
    for it in found:
        assert it["server"] == f"be_{it['model']}_{it['release']}/{it['id']}" and it["record"]["release"] == it["release"]


# In the plan


def test_what_is_out_is_nobodys_to_start_or_to_let_in():
    out = maintenance.begin(PLAN, ["gpu1"], *ANN)
    assert out["generation"] == PLAN["generation"] + 1
    assert {it["duty"] for it in host_instances(out, "gpu1")} == {"rest"}
    assert {it["duty"] for it in host_instances(out, "gpu2")} == {"serve"}
    assert {it["host"] for it in settled_instances(out)} == {"gpu2", "gpu3"}


def test_it_comes_back_as_it_was():
    back = maintenance.end(maintenance.begin(PLAN, ["gpu1", "gpu2"], *ANN), ["gpu1", "gpu2"])
    assert back == {**PLAN, "generation": PLAN["generation"] + 2}
    assert maintenance.end(back, ["gpu1"]) is back


def test_who_took_it_out_first_stays_known():
    out = maintenance.begin(PLAN, ["gpu1"], *ANN)
    again = maintenance.begin(out, ["gpu1", "gpu2"], "bob", "too", "2026-02-02T00:00:00Z")
    assert again["maintenance"]["gpu1"]["who"] == ANN[0] and again["maintenance"]["gpu2"]["who"] == "bob"
    assert maintenance.begin(out, ["gpu1"], "bob", "", "later") is out


def test_planning_meanwhile_moves_nothing_and_brings_nothing_new_there():
    out = maintenance.begin(PLAN, ["gpu1"], *ANN)
    grown = plan([*CATALOG, model("late", "all")], HOSTS, out)
    assert not grown.faults
    assert [it for it in grown.plan["instances"] if it["model"] != "late"] == PLAN["instances"]
    assert {it["host"] for it in grown.plan["instances"] if it["model"] == "late"} == {"gpu2", "gpu3"}
    assert any("until gpu1 is back from maintenance" in sentence for sentence in grown.pending)
    assert grown.plan["maintenance"] == out["maintenance"]


def test_a_host_that_leaves_the_fleet_is_no_longer_out():
    out = maintenance.begin(PLAN, ["gpu1"], *ANN)
    assert plan(CATALOG, HOSTS[1:], out).plan["maintenance"] == {}


def test_that_nothing_fits_says_who_is_out():
    out = maintenance.begin(PLAN, NAMES, *ANN)
    (fault,) = plan([*CATALOG, model("late")], HOSTS, out).faults
    assert "gpu1, gpu2, gpu3: in maintenance" in fault.what


def test_status_calls_what_is_stopped_there_by_its_name():
    out = maintenance.begin(PLAN, ["gpu1"], *ANN)
    states = [{"host": name, "reachable": True, "plan": out, "instances": []} for name in NAMES]
    rows = {(row["host"], row["state"]) for row in status_rows(out, states)}
    assert ("gpu1", "in maintenance") in rows and ("gpu2", "missing") in rows and ("gpu1", "missing") not in rows


# What is refused


def test_a_rollout_does_not_begin_on_it():
    out = maintenance.begin(PLAN, ["gpu1"], *ANN)
    found = asked(out, HOSTS, "chat", states=measured(out, HOSTS)).faults
    assert any("gpu1" in fault.what and "ann on laptop" in fault.what and "hosts.yml -e upgrade=gpu1" in fault.fix for fault in found)
    assert not [fault for fault in asked(PLAN, HOSTS, "chat").faults if "maintenance" in fault.what]


def test_it_does_not_go_out_in_the_middle_of_a_rollout():
    rolling = opened(PLAN, HOSTS, "pair")
    there, elsewhere = where("pair")[0], (set(NAMES) - set(where("pair"))).pop()
    (fault,) = maintenance.check(rolling, [there], NAMES, set(NAMES))
    assert "rollout of pair to 1.1.0" in fault.what and there in fault.what
    assert maintenance.check(rolling, [elsewhere], NAMES, set(NAMES)) == []


def test_a_name_that_is_none():
    (fault,) = maintenance.check(PLAN, ["gpu1", "gpu22"], NAMES, {"gpu1"})
    assert "gpu22" in fault.what and "gpu2" in fault.fix


def test_a_host_that_does_not_answer():
    (fault,) = maintenance.check(PLAN, ["gpu1", "gpu2"], NAMES, {"gpu1"})
    assert fault.what == "gpu2 does not answer"


# Who serves meanwhile


def test_the_only_instance_is_named():
    (alone,) = where("solo")
    assert maintenance.sole(PLAN, [alone]) == {"solo": ["solo-0-a"]}
    (fault,) = maintenance.outage(PLAN, [[alone]])
    assert "solo" in fault.what and alone in fault.what and "accept_outage" in fault.fix


def test_another_one_that_is_not_there_does_not_count():
    first, second = where("pair")
    (other,) = [it["id"] for it in PLAN["instances"] if it["model"] == "pair" and it["host"] == second]
    well, ill = told(PLAN), told(PLAN, **{other.replace("-", "_"): {"state": "ready", "up": False}})
    drained = told(PLAN, **{other.replace("-", "_"): {"state": "drain", "up": True}})
    assert "pair" not in maintenance.sole(PLAN, [first], {"gw1": well, "gw2": well})
    assert "pair" in maintenance.sole(PLAN, [first], {"gw1": well, "gw2": ill})
    assert "pair" in maintenance.sole(PLAN, [first], {"gw1": drained, "gw2": well})
    assert "pair" in maintenance.sole(PLAN, [first], {"gw1": {"servers": {}}})


def test_an_upgrade_that_was_broken_off_can_go_on():
    """One of two nodes is out already, whichever it was: the other waits for it, and counts on it."""
    for out in where("pair"):
        ids = [it["id"] for it in PLAN["instances"] if it["host"] == out]
        gateways = {"gw1": told(PLAN, **{name.replace("-", "_"): {"state": "drain", "up": False} for name in ids})}
        made = maintenance.batches(PLAN, where("pair"), "1", gateways)
        assert made[0] == [out] and sorted(chain(*made)) == where("pair")
        assert not [fault for fault in maintenance.outage(PLAN, made, gateways) if "pair" in fault.where]
        # Not in the other order, and right before its turn only what is so by then counts.
        assert "pair" in maintenance.sole(PLAN, made[1], gateways)
        assert [fault for fault in maintenance.outage(PLAN, made[::-1], gateways) if "pair" in fault.where]


# Batches


@pytest.mark.parametrize(
    ("size", "sizes"),
    [("1", [1, 1, 1, 1, 1, 1]), ("4", [4, 2]), ("50%", [3, 3]), ("34%", [3, 3]), ("1%", [1, 1, 1, 1, 1, 1]), ("100%", [6]), ("99", [6])],
)
def test_as_many_at_once_as_asked(size, sizes):
    empty = {"instances": []}
    made = maintenance.batches(empty, list("abcdef"), size)
    assert [len(batch) for batch in made] == sizes and list(chain(*made)) == list("abcdef")


@pytest.mark.parametrize("size", ["0", "-1", "", "half", "25 %", "1.5", "0%"])
def test_a_size_that_is_none(size):
    with pytest.raises(ValueError, match="neither a number"):
        maintenance.batches(PLAN, NAMES, size)


def test_the_only_two_are_not_out_together():
    made = maintenance.batches(PLAN, NAMES, "100%")
    assert list(chain(*made)) == NAMES
    assert not any(set(where("pair")) <= set(batch) for batch in made)


def test_who_comes_before_whom():
    made = [["gpu1"], ["gpu2", "gpu3"], ["gpu4"]]
    assert [maintenance.hosts_before(made, host) for host in ("gpu1", "gpu3", "gpu4")] == [[], ["gpu1"], ["gpu1", "gpu2", "gpu3"]]


def test_what_will_happen_is_said_host_by_host():
    first, second = maintenance.maintenance_lines([["gpu1"], ["idle"]], PLAN, {"gpu1": ["driver 570 -> 580", "reboot"], "idle": ["reboot"]})
    assert "batch 1 of 2, gpu1" in first and "driver 570 -> 580; reboot" in first
    assert all(it["id"] in first for it in PLAN["instances"] if it["host"] == "gpu1")
    assert "batch 2 of 2, idle: drain and stop nothing" in second


@given(
    replicas=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    nodes=st.integers(1, 5),
    size=st.sampled_from(["1", "2", "50%", "100%"]),
)
def test_no_batch_loses_a_model_that_one_host_alone_would_not(replicas, nodes, size):
    hosts = [host(f"n{number}") for number in range(nodes)]
    planned = plan([model(f"m{number}", count) for number, count in enumerate(replicas)], hosts).plan
    names = [one["name"] for one in hosts]
    made = maintenance.batches(planned, names, size)
    assert list(chain(*made)) == names
    alone = {name for one in names for name in maintenance.sole(planned, [one])}
    for batch in made:
        assert set(maintenance.sole(planned, batch)) <= alone
