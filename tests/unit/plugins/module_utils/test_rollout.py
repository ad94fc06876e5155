# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""A rollout as changes of the plan: what opens it, what stands in its way, and what it leaves behind."""

from __future__ import annotations

import copy

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.rollout import (
    KEPT_REJECTIONS,
    abandon,
    closed_leaving,
    commit,
    earlier_release,
    held_releases,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.rollout_strategy import gpu_bytes
from ansible_collections.localfirst.llm_fleet.tests.unit.plugins.module_utils.fleet_builders import (
    ENGINES,
    asked,
    host,
    measured,
    model,
    opened,
    plan,
    record,
    rollout_settings,
)
from ansible_collections.localfirst.llm_fleet.tests.unit.support.fit_builders import known

HOSTS = [host("gpu1", 4), host("gpu2", 4)]
OLD, NEW = record("tiny"), record("tiny", "1.1.0")
AT = "2026-01-02T04:00:00Z"


@pytest.fixture
def fleet():
    """Two replicas of tiny, one of solo, and big with a GPU."""
    return plan([model("tiny", 2), model("solo"), model("big", gpus=1)], HOSTS).plan


def of(planned: dict, name: str, release: dict | None = None) -> list:
    """The instances of a model, or those of one release."""
    return [it for it in planned["instances"] if it["model"] == name and (not release or it["release"] == release["release"])]


def without(mapping: dict, *keys: str) -> dict:
    return {key: value for key, value in mapping.items() if key not in keys}


# Opening


def test_each_replica_gets_the_new_release_in_its_other_slot(fleet):
    result = asked(fleet, HOSTS, "tiny")
    assert result.faults == [] and not result.resumed
    assert of(result.plan, "tiny", OLD) == of(fleet, "tiny")
    for old, new in zip(of(result.plan, "tiny", OLD), of(result.plan, "tiny", NEW)):
        assert (new["id"], new["slot"], new["version"]) == (f"tiny-{old['replica']}-b", "b", "1.1.0")
        assert new["port"] == old["port"] + 1 == fleet["ports"][f"tiny/{old['replica']}"] + 1
        same = ("model", "replica", "host", "address", "gpus")
        assert [new[key] for key in same] == [old[key] for key in same]
    assert len(of(result.plan, "tiny", NEW)) == 2
    assert result.plan["generation"] == fleet["generation"] + 1


def test_from_slot_b_the_way_leads_to_slot_a(fleet):
    second = commit(opened(fleet, HOSTS, "tiny"), "tiny", AT)
    third = opened(second, HOSTS, "tiny", record("tiny", "1.2.0"))
    news = of(third, "tiny", record("tiny", "1.2.0"))
    assert [(it["slot"], it["port"]) for it in news] == [(it["slot"], it["port"]) for it in of(fleet, "tiny")]


def test_nothing_of_other_models_moves_and_nothing_given_is_changed(fleet):
    before = copy.deepcopy(fleet)
    after = opened(fleet, HOSTS, "tiny")
    assert fleet == before
    for name in ("solo", "big"):
        assert of(after, name) == of(fleet, name) and after["models"][name] == fleet["models"][name]
    assert after["ports"] == fleet["ports"]
    assert fleet["releases"].items() <= after["releases"].items()


def test_the_plan_learns_the_release_and_the_interface_of_its_engine(fleet):
    target = record("tiny", "1.1.0", engine="ollama")
    after = opened(fleet, HOSTS, "tiny", target)
    assert after["releases"][target["release"]] == target
    assert after["engines"] == {"llamacpp": ENGINES["llamacpp"], "ollama": ENGINES["ollama"]}
    assert after["models"]["tiny"]["engine"] == "llamacpp"


def test_the_rollout_says_where_from_where_to_who_and_why(fleet):
    rollout = asked(fleet, HOSTS, "tiny", id="r-7", why="faster").rollout
    said = {"from": OLD["release"], "from_version": "1.0.0", "to": NEW["release"], "to_version": "1.1.0"}
    said |= {"id": "r-7", "who": "ann on laptop", "why": "faster", "started": "2026-01-02T03:04:05Z", "undo": False, "override": False}
    assert said.items() <= rollout.items()
    assert opened(fleet, HOSTS, "tiny", id="r-7", why="faster")["rollouts"] == {"tiny": rollout}


def test_a_version_by_hand_is_an_override_and_the_entry_says_what_git_wants(fleet):
    wanted = record("tiny", "2.0.0")
    result = asked(fleet, HOSTS, "tiny", wanted=wanted)
    assert result.rollout["override"] is True
    entry = result.plan["models"]["tiny"]
    assert (entry["release"], entry["wanted_release"], entry["wanted_version"]) == (OLD["release"], wanted["release"], "2.0.0")
    assert entry["pending"] and not opened(fleet, HOSTS, "tiny", wanted=OLD)["models"]["tiny"]["pending"]


def test_a_rollout_of_two_models_at_once(fleet):
    both = opened(opened(fleet, HOSTS, "tiny"), HOSTS, "solo", id="r-2")
    assert set(both["rollouts"]) == {"tiny", "solo"}
    one = commit(both, "tiny", AT)
    assert of(one, "solo") == of(both, "solo") and one["rollouts"] == {"solo": both["rollouts"]["solo"]}


def test_only_replicas_that_do_not_run_it_yet_are_switched(fleet):
    """A replica that runs it already needs no other slot."""
    done = commit(opened(fleet, HOSTS, "tiny"), "tiny", AT)
    [first, second] = of(fleet, "tiny")
    mixed = {**fleet, "instances": [first, of(done, "tiny")[1]], "releases": {**fleet["releases"], NEW["release"]: NEW}}
    result = asked(mixed, HOSTS, "tiny")
    assert result.rollout["batches"] == [[0]]
    assert [it["id"] for it in of(result.plan, "tiny")] == ["tiny-0-a", "tiny-0-b", "tiny-1-b"]
    assert second not in result.plan["instances"]


def test_what_runs_already_is_no_rollout(fleet):
    result = asked(fleet, HOSTS, "tiny", OLD)
    assert result == (fleet, None, False, [])


# GPUs and strategies


def room(planned, **other):
    return measured(planned, HOSTS, memory_free=2**40, **other)


def test_with_room_on_its_gpus_the_new_instance_shares_them(fleet):
    target, [old] = record("big", "1.1.0"), of(fleet, "big")
    states = room(fleet, gpu_free={old["gpus"][0]: gpu_bytes(target)})
    after = opened(fleet, HOSTS, "big", target, states=states)
    assert of(after, "big", target)[0]["gpus"] == old["gpus"]
    assert after["rollouts"]["big"]["strategy"] == "surge"


def test_a_release_that_is_too_large_for_its_gpus_is_refused_and_one_that_ran_before_is_not(fleet):
    target, [old] = {**record("big", "1.1.0"), "fit": known("big", 20 * 2**30)["fit"]}, of(fleet, "big")
    sizes = {gpu: 16 * 2**30 for node in HOSTS for gpu in node["gpus"]}
    states = room(fleet, gpus_idle=[], gpu_memory=sizes)
    [fault] = asked(fleet, HOSTS, "big", target, states=states, accept_outage=True).faults
    assert old["host"] in fault.what and "does not fit" in fault.what
    assert asked(fleet, HOSTS, "big", target, states=states, accept_outage=True, undo=True).faults == []


def test_without_room_it_gets_idle_gpus_of_its_host(fleet):
    target, [old] = record("big", "1.1.0"), of(fleet, "big")
    after = opened(fleet, HOSTS, "big", target, states=room(fleet, gpu_free={old["gpus"][0]: gpu_bytes(target) - 1}))
    [new] = of(after, "big", target)
    assert len(new["gpus"]) == 1 and new["gpus"] != old["gpus"]
    assert new["gpus"][0] in next(node["gpus"] for node in HOSTS if node["name"] == old["host"])
    assert after["rollouts"]["big"]["strategy"] == "surge"


def test_with_neither_it_takes_the_place_of_the_old_one(fleet):
    target, [old] = record("big", "1.1.0"), of(fleet, "big")
    after = opened(fleet, HOSTS, "big", target, states=room(fleet, gpus_idle=[]), accept_outage=True)
    assert of(after, "big", target)[0]["gpus"] == old["gpus"]
    assert after["rollouts"]["big"]["strategy"] == "replace"


def test_the_request_goes_before_the_catalog(fleet):
    settings = rollout_settings(strategy="replace", canary={"bake": "10m"})
    rollout = asked(fleet, HOSTS, "tiny", settings=settings).rollout
    assert (rollout["strategy"], rollout["canary"]["bake"]) == ("replace", 600)
    rollout = asked(fleet, HOSTS, "tiny", settings=settings, strategy="surge", bake=0).rollout
    assert (rollout["strategy"], rollout["canary"]["bake"]) == ("surge", 0)


@pytest.mark.parametrize("canary", ["none", {"share": 0}])
def test_nobody_has_to_be_a_canary(fleet, canary):
    assert asked(fleet, HOSTS, "tiny", settings=rollout_settings(canary=canary)).rollout["canary"] is None
    assert asked(fleet, HOSTS, "tiny").rollout["canary"] == rollout_settings()["canary"]
    assert asked(fleet, HOSTS, "tiny", settings=rollout_settings(canary={"share": 0, "clients": ["qa"]})).rollout["canary"]


def test_batches_are_the_catalogs_and_the_way_back_is_one(fleet):
    assert asked(fleet, HOSTS, "tiny").rollout["batches"] == [[0], [1]]
    assert asked(fleet, HOSTS, "tiny", settings=rollout_settings(batches=["100%"])).rollout["batches"] == [[0, 1]]
    back = asked(fleet, HOSTS, "tiny", undo=True).rollout
    assert (back["batches"], back["canary"], back["undo"]) == ([[0, 1]], None, True)
    # Never all at once where each has to stop first, whoever is in a hurry.
    assert asked(fleet, HOSTS, "tiny", undo=True, strategy="replace").rollout["batches"] == [[0], [1]]


# What stands in its way


@pytest.mark.parametrize("name", ["parked", "nowhere"])
def test_what_does_not_run_needs_no_rollout(name):
    planned = plan([model("parked", 0)], HOSTS).plan
    result = asked(planned, HOSTS, name)
    assert (result.plan, result.rollout) == (planned, None)
    [fault] = result.faults
    assert fault.where == f"llm_fleet_models[{name}]" and "site.yml" in fault.fix


def test_a_host_that_does_not_answer_is_a_fault_that_names_it(fleet):
    silent = [HOSTS[0], {**HOSTS[1], "reachable": False}]
    for states in (measured(fleet, silent), measured(fleet, HOSTS[:1])):
        [fault] = asked(fleet, HOSTS, "tiny", states=states).faults
        assert fault.where == "host gpu2" and "hosts.yml -e remove=gpu2" in fault.fix
        [gone] = [it["id"] for it in of(fleet, "tiny") if it["host"] == "gpu2"]
        assert gone in fault.what


def test_a_rejected_release_needs_somebody_who_knows_better(fleet):
    failed = abandon(opened(fleet, HOSTS, "tiny"), "tiny", AT, "golden prompt 2: French")
    [fault] = asked(failed, HOSTS, "tiny").faults
    assert "golden prompt 2: French" in fault.what and AT in fault.what and "1.1.0" in fault.what
    assert "retry_rejected=true" in fault.fix
    assert asked(failed, HOSTS, "tiny", retry_rejected=True).faults == []
    assert asked(failed, HOSTS, "tiny", undo=True).faults == []
    assert asked(failed, HOSTS, "tiny", record("tiny", "1.1.1")).faults == []


def test_one_replica_without_room_needs_consent(fleet):
    states = measured(fleet, HOSTS, memory_free=5 * 2**30)
    big = record("solo", "1.1.0", container={"port": 8080, "memory_bytes": 6 * 2**30})
    [fault] = asked(fleet, HOSTS, "solo", big, states=states).faults
    assert fault.where == "llm_fleet_models[solo].replicas" and "accept_outage=true" in fault.fix
    assert "6.0 GiB" in fault.what and "5.0 GiB" in fault.what
    assert asked(fleet, HOSTS, "solo", big, states=states, accept_outage=True).faults == []
    [fault] = asked(fleet, HOSTS, "solo", strategy="replace").faults
    assert fault.where == "llm_fleet_models[solo].replicas"
    # Of two, one goes on answering.
    assert asked(fleet, HOSTS, "tiny", strategy="replace").faults == []


def test_a_surge_that_was_asked_for_and_has_no_room_is_a_fault_for_each_host(fleet):
    target = record("tiny", "1.1.0", container={"port": 8080, "memory_bytes": 2**30})
    faults = asked(fleet, HOSTS, "tiny", target, strategy="surge").faults
    assert [fault.where for fault in faults] == ["strategy", "strategy"]
    assert "gpu1" in faults[0].what and "gpu2" in faults[1].what


def test_what_is_left_over_in_the_other_slot_is_a_fault(fleet):
    states = measured(fleet, HOSTS)
    states["gpu2"]["standing"] = ["tiny-0-a", "tiny-0-b", "tiny-7-b", "big-0-b"]
    [fault] = asked(fleet, HOSTS, "tiny", states=states).faults
    assert fault.what.startswith("tiny-0-b ") and fault.where == "host gpu2" and "site.yml" in fault.fix


def test_all_that_is_wrong_comes_at_once(fleet):
    failed = abandon(opened(fleet, HOSTS, "solo"), "solo", AT, "slow")
    states = measured(failed, HOSTS, reachable=False, standing=["solo-0-b"])
    faults = asked(failed, HOSTS, "solo", states=states, strategy="replace").faults
    [solo] = of(fleet, "solo")
    assert [fault.where for fault in faults] == [
        "llm_fleet_models[solo]",
        f"host {solo['host']}",
        "host gpu1",
        "host gpu2",
        "llm_fleet_models[solo].replicas",
    ]


# Resuming


def test_asked_again_it_is_the_same_rollout_and_the_same_plan(fleet):
    first = asked(fleet, HOSTS, "tiny", why="faster")
    # Hosts may be away and slots taken by now: it is theirs.
    states = measured(fleet, HOSTS, reachable=False, standing=["tiny-0-b"])
    again = asked(first.plan, HOSTS, "tiny", id="r-2", who="bob", strategy="replace", states=states)
    assert again == (first.plan, first.rollout, True, [])


def test_an_open_rollout_is_not_turned_around_half_way(fleet):
    first = asked(fleet, HOSTS, "tiny")
    result = asked(first.plan, HOSTS, "tiny", record("tiny", "2.0.0"), id="r-2")
    [fault] = result.faults
    assert result.plan == first.plan and result.resumed
    assert all(word in fault.what for word in ("1.1.0", "2.0.0", "ann on laptop", "2026-01-02T03:04:05Z"))
    assert fault.where == "rollout r-1" and "version=1.1.0" in fault.fix and "rollback.yml" in fault.fix
    # The other one is no way back either.
    assert len(asked(first.plan, HOSTS, "tiny", OLD).faults) == 1


# Its end


def test_a_commit_leaves_the_new_release_and_a_way_back(fleet):
    middle = opened(fleet, HOSTS, "tiny", record("tiny", "1.1.0", engine="ollama"))
    target = record("tiny", "1.1.0", engine="ollama")
    after = commit(middle, "tiny", AT)
    assert of(after, "tiny") == of(middle, "tiny", target)
    entry = after["models"]["tiny"]
    assert (entry["release"], entry["version"], entry["engine"]) == (target["release"], "1.1.0", "ollama")
    assert (entry["pending"], entry["override"], entry["rejected"]) == (False, None, [])
    assert entry["previous"] == {"release": OLD["release"], "version": "1.0.0"}
    assert after["releases"][OLD["release"]] == OLD and after["rollouts"] == {}
    assert after["generation"] == middle["generation"] + 1
    assert earlier_release(after, "tiny") == (OLD, [])


def test_an_abandoned_rollout_leaves_what_was_before(fleet):
    middle = opened(fleet, HOSTS, "tiny", record("tiny", "1.1.0", engine="ollama"))
    after = abandon(middle, "tiny", AT)
    same = ("instances", "ports", "releases", "engines", "rollouts")
    assert [after[key] for key in same] == [fleet[key] for key in same]
    assert after["generation"] == middle["generation"] + 1
    entry = after["models"]["tiny"]
    assert (entry["release"], entry["version"], entry["engine"]) == (OLD["release"], "1.0.0", "llamacpp")
    assert entry["pending"] and "rejected" not in entry and "previous" not in entry


@pytest.mark.parametrize("end", [commit, abandon])
def test_what_ends_a_rollout_changes_nothing_that_it_was_given(fleet, end):
    middle = opened(fleet, HOSTS, "tiny", record("tiny", "1.1.0", engine="ollama"))
    before = copy.deepcopy(middle)
    ended = end(middle, "tiny", AT)
    assert middle == before
    ended["models"]["tiny"]["engine"] = "another"
    assert middle == before


def test_who_rejected_what_and_why_is_kept(fleet):
    middle = opened(fleet, HOSTS, "tiny")
    after = abandon(middle, "tiny", AT, "error_rate: 3 of 20")
    said = {"release": NEW["release"], "version": "1.1.0", "why": "error_rate: 3 of 20", "who": "ann on laptop", "at": AT}
    assert after["models"]["tiny"]["rejected"] == [said]
    # Failed again, it is there once, with the newer reason.
    again = abandon(opened(after, HOSTS, "tiny", retry_rejected=True), "tiny", AT, "slow")
    assert again["models"]["tiny"]["rejected"] == [{**said, "why": "slow"}]
    # And with success it is gone.
    assert commit(opened(again, HOSTS, "tiny", retry_rejected=True), "tiny", AT)["models"]["tiny"]["rejected"] == []


def test_the_oldest_rejections_are_forgotten(fleet):
    planned = fleet
    for number in range(KEPT_REJECTIONS + 3):
        middle = opened(planned, HOSTS, "tiny", record("tiny", f"1.{number}.5"))
        planned = abandon(middle, "tiny", AT, "slow")
    versions = [one["version"] for one in planned["models"]["tiny"]["rejected"]]
    assert versions == [f"1.{number}.5" for number in range(3, KEPT_REJECTIONS + 3)]


def test_back_on_demand_rejects_what_it_leaves_and_has_nothing_to_return_to(fleet):
    target = record("tiny", "1.1.0", engine="ollama")
    new = commit(opened(fleet, HOSTS, "tiny", target), "tiny", AT)
    middle = opened(new, HOSTS, "tiny", OLD, wanted=target, undo=True, why="answers in French", who="bob")
    after = commit(middle, "tiny", AT)
    entry = after["models"]["tiny"]
    assert entry["release"] == OLD["release"] and entry["previous"] is None and entry["pending"]
    said = {"release": target["release"], "version": "1.1.0", "why": "answers in French", "who": "bob", "at": AT}
    assert entry["rejected"] == [said]
    assert target["release"] not in after["releases"] and after["engines"] == fleet["engines"]
    assert [fault.where for fault in earlier_release(after, "tiny")[1]] == ["model"]
    wordless = commit(opened(new, HOSTS, "tiny", OLD, wanted=target, undo=True), "tiny", AT)
    assert wordless["models"]["tiny"]["rejected"][0]["why"]


def test_a_way_back_that_is_given_up_stays_one(fleet):
    new = commit(opened(fleet, HOSTS, "tiny"), "tiny", AT)
    after = abandon(opened(new, HOSTS, "tiny", OLD, wanted=NEW, undo=True), "tiny", AT)
    assert after["models"]["tiny"] == new["models"]["tiny"] and earlier_release(after, "tiny") == (OLD, [])


def test_the_way_back_is_one_release_long(fleet):
    second = commit(opened(fleet, HOSTS, "tiny"), "tiny", AT)
    third = commit(opened(second, HOSTS, "tiny", record("tiny", "1.2.0")), "tiny", AT)
    mine = {name for name, one in third["releases"].items() if one["model"] == "tiny"}
    assert mine == {NEW["release"], record("tiny", "1.2.0")["release"]}
    assert earlier_release(third, "tiny") == (NEW, [])


def test_an_override_is_remembered_with_who_and_when(fleet):
    after = commit(opened(fleet, HOSTS, "tiny", wanted=record("tiny", "2.0.0")), "tiny", AT)
    assert after["models"]["tiny"]["override"] == {"version": "1.1.0", "who": "ann on laptop", "at": AT}
    assert after["models"]["tiny"]["pending"]
    agreed = commit(opened(after, HOSTS, "tiny", record("tiny", "2.0.0")), "tiny", AT)
    assert agreed["models"]["tiny"]["override"] is None and not agreed["models"]["tiny"]["pending"]


@pytest.mark.parametrize(("end", "release"), [(commit, OLD), (abandon, NEW)])
def test_what_leaves_at_the_end_is_told_with_its_records(fleet, end, release):
    middle = opened(fleet, HOSTS, "tiny")
    leaving = closed_leaving(middle, end(middle, "tiny", AT))
    assert [without(it, "server", "release_record", "engine_record") for it in leaving] == of(middle, "tiny", release)
    assert all(it["server"] == it["id"] and it["release_record"] == release for it in leaving)
    assert all(it["engine_record"] == ENGINES["llamacpp"] for it in leaving)


def test_who_has_run_nothing_before_is_told_to_name_a_version(fleet):
    target, [fault] = earlier_release(fleet, "tiny")
    assert target is None and "1.0.0" in fault.what and "version=" in fault.fix
    # A record that somebody took out of the plan.
    committed = commit(opened(fleet, HOSTS, "tiny"), "tiny", AT)
    assert len(earlier_release({**committed, "releases": without(committed["releases"], OLD["release"])}, "tiny")[1]) == 1
    target, [fault] = earlier_release(fleet, "tinny")
    assert target is None and "tinny" in fault.what and "'tiny'" in fault.fix


def test_what_nobody_runs_is_held_for_a_way_back_and_for_open_rollouts(fleet):
    assert held_releases(fleet) == set()
    middle = opened(fleet, HOSTS, "tiny")
    assert held_releases(middle) == {OLD["release"], NEW["release"]}
    assert held_releases(commit(middle, "tiny", AT)) == {OLD["release"]}
    assert held_releases(abandon(middle, "tiny", AT)) == set()


def test_a_release_that_its_host_has_too_few_gpus_for_is_refused(fleet):
    target = record("big", "1.1.0", gpus=8)
    [fault] = asked(fleet, HOSTS, "big", target, accept_outage=True).faults
    assert fault.where == "llm_fleet_models[big].gpus" and "needs 8" in fault.what
    grown = opened(fleet, HOSTS, "big", record("big", "1.1.0", gpus=2), accept_outage=True)
    [new] = [it for it in of(grown, "big") if it["version"] == "1.1.0"]
    assert len(new["gpus"]) == 2
