# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What the plan does in the situations that operators meet."""

from __future__ import annotations

import os
import subprocess
import sys

from ansible_collections.localfirst.llm_fleet.tests.unit.plugins.module_utils.fleet_builders import (
    host,
    labels,
    model,
    plan,
    record,
    seats,
    surged,
)

# Placement


def test_replicas_spread_over_hosts():
    result = plan([model("tiny", 3)], [host("gpu1"), host("gpu2"), host("gpu3")])
    assert seats(result.plan) == {"tiny-0-a": "gpu1", "tiny-1-a": "gpu2", "tiny-2-a": "gpu3"}


def test_cpu_replicas_share_a_host():
    result = plan([model("tiny", 3)], [host("gpu1")])
    assert set(seats(result.plan).values()) == {"gpu1"}
    assert not result.faults


def test_a_new_replica_goes_where_most_gpus_stay_free():
    result = plan([model("big", 1, gpus=1)], [host("gpu1", 2), host("gpu2", 4)])
    assert seats(result.plan) == {"big-0-a": "gpu2"}


def test_models_with_many_gpus_are_seated_first():
    catalog = [model("a-small", 2, gpus=1), model("z-large", 1, gpus=2)]
    result = plan(catalog, [host("gpu1", 2), host("gpu2", 2)])
    assert not result.faults


def test_models_with_few_hosts_to_choose_from_are_seated_first():
    catalog = [model("free", 1, gpus=1), model("bound", 1, gpus=1, placement={"hosts": ["gpu1"]})]
    result = plan(catalog, [host("gpu1", 1), host("gpu2", 1)])
    assert seats(result.plan) == {"bound-0-a": "gpu1", "free-0-a": "gpu2"}


def test_patterns_choose_hosts():
    result = plan([model("tiny", 4, placement={"hosts": ["rack1-*", "spare"]})],
                  [host("rack1-a"), host("rack2-a"), host("spare")])
    assert set(seats(result.plan).values()) == {"rack1-a", "spare"}


def test_a_model_that_fits_nowhere_is_a_fault_that_says_why_for_every_host():
    catalog = [model("big", 1, gpus=2, placement={"hosts": ["gpu[1-3]"]})]
    hosts = [host("gpu1", 1), host("gpu2", 1), host("gpu3", 4, reachable=False), host("gpu4", 4)]
    [fault] = plan(catalog, hosts).faults
    assert fault.where == "llm_fleet_models[big].placement"
    assert "gpu1, gpu2: 1 of 1 GPUs free" in fault.what
    assert "gpu3: can't be reached" in fault.what
    assert "gpu4: not in placement.hosts" in fault.what


def test_a_gpu_listed_by_two_hosts_is_a_fault_that_names_both():
    twins = [host("gpu1", gpus=0, **{}), host("gpu2")]
    for twin in twins:
        twin["gpus"] = ["GPU-x"]
    [fault] = plan([model("tiny")], twins).faults
    assert "GPU-x" in fault.what and "gpu1, gpu2" in fault.where


# Stickiness


def test_all_means_one_replica_on_each_host_and_a_host_that_comes_or_goes_moves_nothing():
    catalog = [model("tiny", "all")]
    first = plan(catalog, [host("gpu1"), host("gpu2"), host("gpu3")])
    without = plan(catalog, [host("gpu1"), host("gpu3")], first.plan)
    assert seats(without.plan) == {"tiny-0-a": "gpu1", "tiny-2-a": "gpu3"}
    again = plan(catalog, [host("gpu0"), host("gpu1"), host("gpu3")], without.plan)
    assert seats(again.plan) == {"tiny-1-a": "gpu0", "tiny-0-a": "gpu1", "tiny-2-a": "gpu3"}


def test_from_a_number_to_all_leaves_one_replica_on_a_host():
    first = plan([model("tiny", 3)], [host("gpu1"), host("gpu2")])
    # As a tool that edited the plan may have left it: the order of instances says nothing.
    current = {**first.plan, "instances": first.plan["instances"][::-1]}
    result = plan([model("tiny", "all")], [host("gpu1"), host("gpu2")], current)
    assert seats(result.plan) == {"tiny-0-a": "gpu1", "tiny-1-a": "gpu2"}


def test_scaling_down_removes_the_highest_number():
    hosts = [host("gpu1"), host("gpu2")]
    first = plan([model("tiny", 3)], hosts)
    result = plan([model("tiny", 2)], hosts, first.plan)
    assert [instance["id"] for instance in result.leaving] == ["tiny-2-a"]


def test_a_replica_moves_into_its_other_slot_so_that_old_and_new_have_different_names():
    hosts = [host("gpu1"), host("gpu2")]
    first = plan([model("tiny", 2)], hosts)
    result = plan([model("tiny", 2)], hosts[:1], first.plan)
    assert seats(result.plan) == {"tiny-0-a": "gpu1", "tiny-1-b": "gpu1"}
    assert [(it["id"], it["host"]) for it in result.leaving] == [("tiny-1-a", "gpu2")]
    moved = result.plan["instances"][1]
    assert moved["port"] == first.plan["instances"][1]["port"] + 1


def test_a_host_that_is_not_allowed_any_more_gives_its_replica_away():
    hosts = [host("gpu1"), host("gpu2")]
    first = plan([model("tiny")], hosts)
    result = plan([model("tiny", placement={"hosts": ["gpu2"]})], hosts, first.plan)
    assert seats(result.plan) == {"tiny-0-b": "gpu2"}


def test_a_lost_gpu_moves_only_what_was_on_it():
    catalog = [model("big", 2, gpus=1)]
    first = plan(catalog, [host("gpu1", 3)])
    lost = first.plan["instances"][0]["gpus"]
    result = plan(catalog, [{**host("gpu1", 3), "gpus": [gpu for gpu in host("gpu1", 3)["gpus"] if gpu not in lost]}],
                  first.plan)
    assert first.plan["instances"][1] in result.plan["instances"]
    assert [instance["id"] for instance in result.leaving] == ["big-0-a"]


def test_a_new_address_is_taken_over_in_place():
    first = plan([model("tiny")], [host("gpu1")])
    result = plan([model("tiny")], [host("gpu1", address="10.9.9.9")], first.plan)
    assert result.plan["instances"][0]["address"] == "10.9.9.9"
    assert not result.leaving and len(result.actions) == 1


def test_gpus_of_what_leaves_are_not_given_away_before_the_next_run():
    first = plan([model("old", 1, gpus=1)], [host("gpu1", 1)])
    result = plan([model("new", 1, gpus=1)], [host("gpu1", 1)], first.plan)
    assert not result.faults and not result.plan["instances"]
    assert [instance["id"] for instance in result.leaving] == ["old-0-a"]
    assert result.pending == ["new: replica 0 waits for GPUs that become free on gpu1: run again then"]
    assert seats(plan([model("new", 1, gpus=1)], [host("gpu1", 1)], result.plan).plan) == {"new-0-a": "gpu1"}


def test_one_freed_gpu_is_promised_to_one_replica_only():
    first = plan([model("old", 1, gpus=1)], [host("gpu1", 1)])
    result = plan([model("new", 2, gpus=1)], [host("gpu1", 1)], first.plan)
    assert len(result.pending) == 1 and len(result.faults) == 1


def test_another_number_of_gpus_waits_for_a_rollout():
    first = plan([model("big", 1, gpus=1)], [host("gpu1", 4)])
    result = plan([model("big", 1, gpus=2)], [host("gpu1", 4)], first.plan)
    assert result.plan["instances"] == first.plan["instances"]
    assert result.pending == ["gpu1: big-0-a has 1 GPU until a rollout to another release gives it 2"]


# Hosts that can't be reached


def test_an_unreachable_host_keeps_a_removed_model_that_nobody_may_use():
    first = plan([model("tiny")], [host("gpu1")])
    result = plan([], [host("gpu1", reachable=False)], first.plan)
    assert result.plan["instances"] == first.plan["instances"]
    assert result.plan["models"]["tiny"]["access"] == []
    assert not result.leaving
    assert result.pending == ["gpu1: tiny-0-a is no longer wanted, and stays until the host can be reached"]
    answered = plan([], [host("gpu1")], result.plan)
    assert [instance["id"] for instance in answered.leaving] == ["tiny-0-a"]
    assert not answered.plan["models"]


def test_an_unreachable_host_keeps_replicas_above_the_number_wanted():
    hosts = [host("gpu1"), host("gpu2")]
    first = plan([model("tiny", 2)], hosts)
    result = plan([model("tiny", 1)], [host("gpu1"), host("gpu2", reachable=False)], first.plan)
    assert result.plan["instances"] == first.plan["instances"]
    assert result.actions == ["tiny: replicas 2 -> 1"]


def test_an_unreachable_host_takes_nothing_new_and_all_waits_for_it():
    result = plan([model("tiny", "all")], [host("gpu1"), host("gpu2", reachable=False)])
    assert seats(result.plan) == {"tiny-0-a": "gpu1"}
    assert result.pending == ["tiny: replica 1 waits until gpu2 can be reached"]
    assert not result.faults


# Ports


def test_a_replica_that_returns_has_its_old_ports():
    hosts = [host("gpu1")]
    first = plan([model("a"), model("b")], hosts)
    without = plan([model("b")], hosts, first.plan)
    again = plan([model("a"), model("b"), model("c")], hosts, without.plan)
    assert again.plan["ports"] == {"a/0": 20000, "b/0": 20002, "c/0": 20004}


def test_an_exhausted_range_gives_the_lowest_ports_of_the_gone_and_says_so():
    hosts, narrow = [host("gpu1")], (30000, 30005)
    first = plan([model("a"), model("b"), model("c")], hosts, port_range=narrow)
    emptied = plan([model("c")], hosts, first.plan, port_range=narrow)
    assert set(emptied.plan["ports"]) == {"a/0", "b/0", "c/0"}
    result = plan([model("c"), model("d")], hosts, emptied.plan, port_range=narrow)
    assert result.plan["ports"] == {"b/0": 30002, "c/0": 30004, "d/0": 30000}
    assert "ports 30000-30001: no longer kept for a/0" in result.actions


def test_ports_of_what_still_leaves_are_not_given_away():
    hosts, narrow = [host("gpu1")], (30000, 30001)
    first = plan([model("a")], hosts, port_range=narrow)
    result = plan([model("b")], hosts, first.plan, port_range=narrow)
    [fault] = result.faults
    assert fault.where == "llm_fleet_port_range" and "replica 0 of b" in fault.what
    assert not result.plan["instances"]


def test_ports_of_a_forgotten_container_are_not_given_away():
    forgotten = labels(plan([model("gone")], [host("gpu1")]).plan["instances"][0])
    result = plan([model("tiny")], [host("gpu1"), host("gpu2")], running={"gpu1": [forgotten]})
    assert result.plan["ports"] == {"tiny/0": 20002}


def test_a_changed_range_moves_no_port_of_what_stays():
    hosts = [host("gpu1")]
    first = plan([model("a")], hosts)
    result = plan([model("a"), model("b")], hosts, first.plan, port_range=(40001, 40010))
    assert result.plan["ports"] == {"a/0": 20000, "b/0": 40001}
    emptied = plan([], hosts, result.plan, port_range=(40001, 40010))
    again = plan([model("a")], hosts, emptied.plan, port_range=(40001, 40010))
    assert again.plan["ports"]["a/0"] == 40003


# Releases


def test_a_wanted_version_is_pending_and_new_replicas_run_the_old_one():
    hosts = [host("gpu1"), host("gpu2")]
    first = plan([model("tiny")], hosts)
    result = plan([model("tiny", 2, version="1.1.0")], hosts, first.plan)
    assert {instance["version"] for instance in result.plan["instances"]} == {"1.0.0"}
    entry = result.plan["models"]["tiny"]
    assert (entry["version"], entry["wanted_version"], entry["pending"]) == ("1.0.0", "1.1.0", True)
    old, new = record("tiny")["release"], record("tiny", "1.1.0")["release"]
    assert result.pending == [f"tiny: pending rollout 1.0.0 -> 1.1.0 (release {old} -> {new})"]
    assert list(result.plan["releases"]) == [old]


def test_a_wanted_engine_is_pending_too_and_its_interface_is_not_used_yet():
    first = plan([model("tiny")], [host("gpu1")])
    result = plan([model("tiny", engine="ollama")], [host("gpu1")], first.plan)
    assert result.plan["models"]["tiny"]["engine"] == "llamacpp"
    assert list(result.plan["engines"]) == ["llamacpp"]


def test_a_model_that_runs_nowhere_takes_the_wanted_release():
    first = plan([model("tiny")], [host("gpu1")])
    parked = plan([model("tiny", 0, version="1.1.0")], [host("gpu1")], first.plan)
    assert not parked.plan["models"]["tiny"]["pending"]
    result = plan([model("tiny", 1, version="1.1.0")], [host("gpu1")], parked.plan)
    assert result.plan["instances"][0]["version"] == "1.1.0"


def test_a_model_that_moves_off_its_only_host_keeps_its_release():
    first = plan([model("tiny")], [host("gpu1")])
    result = plan([model("tiny", version="1.1.0")], [host("gpu2")], first.plan)
    assert result.plan["instances"][0]["version"] == "1.0.0"


def test_a_new_source_of_the_same_release_is_taken_over():
    first = plan([model("tiny")], [host("gpu1")])
    mirrored = {"tiny": record("tiny", source="https://mirror.example/tiny.gguf")}
    result = plan([model("tiny")], [host("gpu1")], first.plan, wanted=mirrored)
    [kept] = result.plan["releases"].values()
    assert kept["source"] == "https://mirror.example/tiny.gguf"
    assert result.plan["generation"] == 2 and not result.pending
    assert result.actions == [f"release {kept['release']}: its source changes"]


def test_a_model_without_a_release_is_a_fault():
    [fault] = plan([model("tiny")], [host("gpu1")], wanted={}).faults
    assert fault.where == "llm_fleet_models[tiny]"


def test_both_slots_of_a_replica_stay_during_a_rollout():
    hosts = [host("gpu1", 2)]
    first = plan([model("tiny", 1, gpus=1)], hosts)
    middle = surged(first.plan, "tiny-0-a", "1.1.0", gpus=["GPU-gpu1-1"])
    result = plan([model("tiny", 1, gpus=1, version="1.1.0")], hosts, middle)
    assert result.plan["instances"] == middle["instances"] and not result.leaving
    ended = {**middle, "instances": [it for it in middle["instances"] if it["slot"] == "b"]}
    assert not plan([model("tiny", 1, gpus=1, version="1.1.0")], hosts, ended).plan["models"]["tiny"]["pending"]


# Leaving


def test_a_container_that_nobody_planned_leaves():
    first = plan([model("tiny")], [host("gpu1")])
    stray = labels({**first.plan["instances"][0], "id": "odd-7-a", "model": "odd", "replica": 7, "port": 20777})
    result = plan([model("tiny")], [host("gpu1")], first.plan, running={"gpu1": [stray]})
    [leaving] = result.leaving
    assert (leaving["id"], leaving["host"], leaving["address"]) == ("odd-7-a", "gpu1", host("gpu1")["address"])
    assert leaving["server"] == "odd-7-a"
    assert result.plan == first.plan
    assert [action for action in result.actions if "odd-7-a" in action and "drained" in action]


def test_a_container_of_an_unknown_release_leaves_without_records():
    first = plan([model("tiny")], [host("gpu1")])
    stray = labels({**first.plan["instances"][0], "id": "odd-7-a", "replica": 7, "release": "0123456789ab"})
    [leaving] = plan([model("tiny")], [host("gpu1")], first.plan, running={"gpu1": [stray]}).leaving
    assert "release_record" not in leaving


def test_the_same_id_on_another_host_leaves_there_under_a_name_of_its_own():
    first = plan([model("tiny")], [host("gpu1"), host("gpu2")])
    again = labels(first.plan["instances"][0])
    result = plan([model("tiny")], [host("gpu1"), host("gpu2")], first.plan, running={"gpu1": [again], "gpu2": [again]})
    [leaving] = result.leaving
    assert (leaving["id"], leaving["host"], leaving["server"]) == ("tiny-0-a", "gpu2", "tiny-0-a.gpu2")
    assert leaving["release_record"] == record("tiny")


def test_a_container_that_an_interrupted_run_left_is_taken_over():
    made = plan([model("a"), model("b")], [host("gpu1")])
    before = plan([model("a")], [host("gpu1")])
    found = {"gpu1": [labels(instance) for instance in made.plan["instances"]]}
    result = plan([model("a"), model("b")], [host("gpu1")], before.plan, running=found)
    assert result.plan["instances"] == made.plan["instances"]
    assert not result.leaving


# Generations, actions and frozen runs


def test_the_first_plan_has_generation_one_even_when_it_is_empty():
    assert plan([], [host("gpu1")]).plan["generation"] == 1


def test_actions_say_what_happens_where():
    hosts = [host("gpu1", 1), host("gpu2", 1)]
    first = plan([model("tiny", 2), model("big", gpus=1)], hosts)
    release = record("tiny")["release"]
    assert f"gpu2: create tiny-0-a (tiny 1.0.0, release {release}, port 20002)" in first.actions
    changed = model("tiny", 1, access=["demo", "qa"], queue=4)
    result = plan([changed], hosts, first.plan)
    assert f"gpu1: remove tiny-1-a (tiny 1.0.0, release {release}, port 20004), drained first" in result.actions
    for sentence in ("gateways: forget big", "tiny: access demo -> demo, qa", "tiny: queue 16 -> 4"):
        assert sentence in result.actions


def test_a_new_interface_of_an_engine_is_an_action():
    first = plan([model("tiny")], [host("gpu1")]).plan
    before = {**first, "engines": {"llamacpp": {**first["engines"]["llamacpp"], "public": []}}}
    assert plan([model("tiny")], [host("gpu1")], before).actions == ["engine llamacpp: its interface changes"]


def test_another_process_writes_the_same_plan():
    """Python orders sets by a secret of the process; plan.json is compared byte by byte."""
    builders = sys.modules[plan.__module__]
    program = (
        f"import sys, json; sys.path[:] = {sys.path!r}; from {builders.__name__} import *;"
        "print(json.dumps(plan([model(n, 2, engine=e) for n, e in zip('edcba', ['ollama', 'llamacpp'] * 3)],"
        "[host('gpu1')])))"
    )
    plans = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in (1, 2, 3)
    ]
    assert plans[0] and len(set(plans)) == 1


def test_a_frozen_run_changes_nothing_and_says_what_waits():
    hosts = [host("gpu1"), host("gpu2")]
    first = plan([model("tiny")], hosts)
    result = plan([model("tiny", 2, version="1.1.0")], [host("gpu1"), host("gpu2", reachable=False)], first.plan,
                  frozen=True)
    assert result.plan == first.plan
    assert not result.leaving and not result.actions and not result.faults
    assert [line for line in result.pending if line.startswith("tiny: pending rollout 1.0.0 -> 1.1.0")]
    assert [line for line in result.pending if line.startswith("not in this run: gpu1: create tiny-1-a")]
