# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What site.yml makes of a plan in which a rollout is open, or has ended: it keeps what only rollouts may change."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.rollout import abandon, commit
from ansible_collections.localfirst.llm_fleet.tests.unit.plugins.module_utils.fleet_builders import (
    ENGINES,
    host,
    labels,
    measured,
    model,
    opened,
    plan,
    record,
)

HOSTS = [host("gpu1", 4), host("gpu2", 4)]
OLD, NEW = record("tiny"), record("tiny", "1.1.0")
AT = "2026-01-02T04:00:00Z"
SOLO = model("solo", gpus=1)
# What git says once it wants the new version.
CATALOG = [model("tiny", 2, version="1.1.0"), SOLO]


@pytest.fixture
def fleet():
    return plan([model("tiny", 2), SOLO], HOSTS).plan


@pytest.fixture
def rolling(fleet):
    return opened(fleet, HOSTS, "tiny")


def of(planned: dict, name: str) -> list:
    return [it for it in planned["instances"] if it["model"] == name]


# While it is open


def test_with_the_same_catalog_nothing_changes(rolling):
    result = plan(CATALOG, HOSTS, rolling)
    assert result.plan == rolling
    assert not result.actions and not result.leaving and not result.faults


@pytest.mark.parametrize(
    "changes",
    [
        {"replicas": 3},
        {"replicas": 1},
        {"replicas": 0},
        {"replicas": "all"},
        {"placement": {"hosts": ["gpu2"]}},
        {"version": "2.0.0"},
        {"engine": "ollama"},
        {"gpus": 2},
    ],
)
def test_whatever_the_catalog_says_the_model_stays_as_it_is(rolling, changes):
    result = plan([model("tiny", **{"replicas": 2, "version": "1.1.0", **changes}), SOLO], HOSTS, rolling)
    assert of(result.plan, "tiny") == of(rolling, "tiny") and result.plan["rollouts"] == rolling["rollouts"]
    assert result.plan["ports"] == rolling["ports"]
    assert {OLD["release"], NEW["release"]} <= set(result.plan["releases"])
    assert not result.leaving and not result.faults
    [sentence] = [line for line in result.pending if line.startswith("tiny")]
    assert "is open since 2026-01-02T03:04:05Z" in sentence and "ann on laptop" in sentence
    assert not [line for line in result.pending if "tiny-" in line]


def test_who_may_ask_for_the_model_is_no_matter_of_the_rollout(rolling):
    result = plan([model("tiny", 2, version="1.1.0", access=["qa"], queue=3), SOLO], HOSTS, rolling)
    entry = result.plan["models"]["tiny"]
    assert (entry["access"], entry["queue"]) == (["qa"], 3)
    assert of(result.plan, "tiny") == of(rolling, "tiny")


def test_a_new_address_has_to_wait(rolling):
    moved = [{**node, "address": "10.9.9.9"} for node in HOSTS]
    result = plan(CATALOG, moved, rolling)
    assert of(result.plan, "tiny") == of(rolling, "tiny")
    assert {it["address"] for it in of(result.plan, "solo")} == {"10.9.9.9"}


def test_a_gpu_that_is_lost_moves_nothing_of_it():
    fleet = plan([model("big", gpus=1)], HOSTS).plan
    target = record("big", "1.1.0")
    rolling = opened(fleet, HOSTS, "big", target, states=measured(fleet, HOSTS, gpu_free={}))
    result = plan([model("big", gpus=1, version="1.1.0")], [{**node, "gpus": []} for node in HOSTS], rolling)
    assert result.plan["instances"] == rolling["instances"] and not result.leaving


def test_neither_a_host_that_does_not_answer_nor_what_runs_there_changes_anything(rolling):
    silent = [{**node, "reachable": False} for node in HOSTS]
    assert plan(CATALOG, silent, rolling).plan == rolling
    running = {node["name"]: [labels(it) for it in rolling["instances"] if it["host"] == node["name"]] for node in HOSTS}
    result = plan(CATALOG, HOSTS, rolling, running=running)
    assert result.plan == rolling and not result.leaving


def test_a_model_cannot_leave_in_the_middle_of_its_rollout(rolling):
    result = plan([SOLO], HOSTS, rolling)
    [fault] = result.faults
    assert fault.where == "llm_fleet_models[tiny]" and "1.1.0" in fault.what
    assert "rollout.yml -e model=tiny" in fault.fix and "rollback.yml -e model=tiny" in fault.fix
    assert of(result.plan, "tiny") == of(rolling, "tiny")


def test_a_host_cannot_leave_in_the_middle_of_a_rollout_on_it(rolling):
    [fault] = plan(CATALOG, HOSTS[:1], rolling).faults
    assert fault.where == "host gpu2" and "rollback.yml" in fault.fix
    both = plan(CATALOG, [host("gpu3", 4)], rolling).faults
    assert [fault.where for fault in both] == ["host gpu1", "host gpu2"]
    # Of another model it may.
    fleet = plan([SOLO, model("tiny", placement={"hosts": ["gpu2"]})], HOSTS).plan
    elsewhere = opened(fleet, HOSTS, "tiny")
    assert {it["host"] for it in of(elsewhere, "solo")} == {"gpu1"}
    assert plan([SOLO, model("tiny", version="1.1.0", placement={"hosts": ["gpu2"]})], HOSTS[1:], elsewhere).faults == []


def test_other_models_come_grow_and_go_as_ever(rolling):
    catalog = [CATALOG[0], model("solo", 2, gpus=1), model("more", gpus=1)]
    result = plan(catalog, HOSTS, rolling)
    assert not result.faults and [len(of(result.plan, name)) for name in ("tiny", "solo", "more")] == [4, 2, 1]
    result = plan(CATALOG[:1], HOSTS, rolling)
    assert [it["model"] for it in result.leaving] == ["solo"] and not result.faults
    assert of(result.plan, "tiny") == of(rolling, "tiny")


def test_gpus_of_both_instances_are_taken():
    nodes = [host("gpu1", 2)]
    fleet = plan([model("big", gpus=1)], nodes).plan
    rolling = opened(fleet, nodes, "big", record("big", "1.1.0"))
    assert len({gpu for it in rolling["instances"] for gpu in it["gpus"]}) == 2
    catalog = [model("big", gpus=1, version="1.1.0"), model("more", gpus=1)]
    [fault] = plan(catalog, nodes, rolling).faults
    assert fault.where == "llm_fleet_models[more].placement"
    assert not plan(catalog, nodes, commit(rolling, "big", AT)).faults


def test_a_run_without_all_gateways_says_that_it_is_open(rolling):
    result = plan(CATALOG, HOSTS, rolling, frozen=True)
    assert result.plan == rolling and [line for line in result.pending if "is open since" in line]


# After it


def test_after_a_commit_nothing_is_left_to_do(rolling):
    committed = commit(rolling, "tiny", AT)
    result = plan(CATALOG, HOSTS, committed)
    assert result.plan == committed
    assert not result.actions and not result.pending and not result.leaving


def test_after_a_failure_the_rollout_is_pending_and_says_what_was_wrong(rolling):
    abandoned = abandon(rolling, "tiny", AT, "ttft_p95: 9 s")
    result = plan(CATALOG, HOSTS, abandoned)
    assert result.plan == abandoned and not result.actions
    [sentence] = result.pending
    assert sentence.startswith("tiny: pending rollout 1.0.0 -> 1.1.0") and f"rejected at {AT}: ttft_p95: 9 s" in sentence


def test_a_rejection_of_another_release_is_not_told_of_this_one(rolling):
    abandoned = abandon(rolling, "tiny", AT, "ttft_p95: 9 s")
    result = plan([model("tiny", 2, version="1.1.1"), SOLO], HOSTS, abandoned)
    assert "rejected" not in result.pending[0]
    assert result.plan["models"]["tiny"]["rejected"] == abandoned["models"]["tiny"]["rejected"]


def test_an_override_is_told_until_git_agrees(fleet):
    committed = commit(opened(fleet, HOSTS, "tiny", wanted=OLD), "tiny", AT)
    disagrees = plan([model("tiny", 2), SOLO], HOSTS, committed)
    assert disagrees.plan == committed
    [sentence] = disagrees.pending
    assert f"ann on laptop chose 1.1.0 by hand at {AT}" in sentence
    agrees = plan(CATALOG, HOSTS, committed)
    assert agrees.plan["models"]["tiny"]["override"] is None and not agrees.pending


def test_the_way_back_is_kept_though_nobody_runs_it(fleet):
    committed = commit(opened(fleet, HOSTS, "tiny", record("tiny", "1.1.0", engine="ollama")), "tiny", AT)
    catalog = [model("tiny", 3, version="1.1.0", engine="ollama"), model("other", engine="ollama")]
    later = plan(catalog, HOSTS, committed).plan
    assert later["releases"][OLD["release"]] == OLD and later["engines"]["llamacpp"] == ENGINES["llamacpp"]
    kept = ("previous", "rejected", "override")
    assert [later["models"]["tiny"][key] for key in kept] == [committed["models"]["tiny"][key] for key in kept]
    assert "previous" not in later["models"]["other"]


def test_with_the_model_its_way_back_goes(rolling):
    later = plan([SOLO], HOSTS, commit(rolling, "tiny", AT)).plan
    assert "tiny" not in later["models"]
    assert {one["model"] for one in later["releases"].values()} == {"solo"}


def test_new_replicas_run_what_the_rollout_led_to(rolling):
    later = plan([model("tiny", 4, version="1.2.0")], HOSTS, commit(rolling, "tiny", AT)).plan
    assert [it["release"] for it in of(later, "tiny")] == [NEW["release"]] * 4
    assert [it["id"] for it in of(later, "tiny")] == ["tiny-0-b", "tiny-1-b", "tiny-2-a", "tiny-3-a"]


def test_what_had_to_wait_happens_after_it(rolling):
    fewer = [model("tiny", 1, version="1.1.0"), SOLO]
    waited = plan(fewer, HOSTS, rolling).plan
    result = plan(fewer, HOSTS, commit(waited, "tiny", AT))
    assert [it["id"] for it in result.leaving] == ["tiny-1-b"]
    assert [it["id"] for it in of(result.plan, "tiny")] == ["tiny-0-b"]


def test_a_plan_of_a_time_before_rollouts_is_taken_over(fleet):
    old = {key: value for key, value in fleet.items() if key != "rollouts"}
    result = plan([model("tiny", 2), SOLO], HOSTS, old)
    assert result.plan["instances"] == fleet["instances"] and not result.actions
