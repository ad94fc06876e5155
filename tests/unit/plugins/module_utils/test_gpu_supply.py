# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Which GPUs of a node the plan may use, and what a silent driver costs: nothing."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.gpu_supply import check_listed, memory, node_gpus, problems, traits
from ansible_collections.localfirst.llm_fleet.tests.unit.plugins.module_utils.fleet_builders import host, model, plan


def gpu(uuid, state="ready", mig=None, total=80, free=70):
    """One GPU; `mig` lists its MIG devices where MIG is on."""
    devices = [{"uuid": name, "memory_total": 10, "memory_free": 9} for name in mig or []]
    mode = {"mode": "disabled" if mig is None else "enabled", "devices": devices}
    return {"uuid": uuid, "state": state, "mig": mode, "memory_total": total, "memory_free": free}


def told(*gpus, state="ready"):
    return {"state": state, "problem": "" if state == "ready" else "it is broken", "gpus": list(gpus)}


TWO = told(gpu("GPU-1"), gpu("GPU-2"))
LOST = told(gpu("GPU-1"), gpu("GPU-2", "lost"), state="lost")
SILENT = ("mismatch", "failing", "not_loaded", "lost", "no_driver")


def test_a_node_without_a_list_offers_all_that_answers():
    assert node_gpus(None, TWO, []) == ["GPU-1", "GPU-2"]
    assert node_gpus(None, LOST, []) == ["GPU-1"]


def test_a_list_restricts():
    assert node_gpus(["GPU-2"], TWO, []) == ["GPU-2"]
    assert node_gpus([], TWO, ["GPU-1"]) == []
    assert node_gpus(["GPU-2", "GPU-1"], LOST, ["GPU-2"]) == ["GPU-1"]
    # One that the driver does not name at all is as gone as one that it calls lost.
    assert node_gpus(["GPU-9", "GPU-1"], LOST, ["GPU-9"]) == ["GPU-1"]


def test_a_gpu_in_mig_mode_is_its_devices():
    seen = told(gpu("GPU-1", mig=["MIG-a", "MIG-b"]), gpu("GPU-2"))
    assert node_gpus(None, seen, []) == ["MIG-a", "MIG-b", "GPU-2"]
    assert node_gpus(["GPU-1"], seen, []) == ["MIG-a", "MIG-b"]
    assert node_gpus(["MIG-b", "GPU-2"], seen, []) == ["MIG-b", "GPU-2"]


def test_partitions_that_are_still_to_be_laid_out_are_not_lost():
    """They do not outlast a boot."""
    bare = told(gpu("GPU-1", mig=[]), gpu("GPU-2"))
    assert node_gpus(None, bare, ["MIG-a", "GPU-9"]) == ["GPU-2", "MIG-a"]
    assert node_gpus(["MIG-a"], bare, ["MIG-a"]) == ["MIG-a"]
    # Another layout is there: what is not in it is gone.
    assert node_gpus(None, told(gpu("GPU-1", mig=["MIG-b"])), ["MIG-a"]) == ["MIG-b"]


@pytest.mark.parametrize("state", SILENT)
def test_a_silent_driver_leaves_a_node_what_its_instances_have(state):
    assert node_gpus(None, told(state=state), ["GPU-2", "GPU-1", "GPU-2"]) == ["GPU-2", "GPU-1"]
    assert node_gpus(None, told(state=state), []) == []


@pytest.mark.parametrize("state", ["mismatch", "failing", "not_loaded", "lost"])
def test_a_silent_driver_gives_a_listed_gpu_to_nobody_new(state):
    assert node_gpus(["GPU-1", "GPU-2"], told(state=state), ["GPU-2", "GPU-3"]) == ["GPU-2"]


@pytest.mark.parametrize("seen", [None, told(state="no_gpu"), told(state="no_driver")])
def test_a_list_is_taken_at_its_word_before_there_is_a_driver(seen):
    assert node_gpus(["GPU-1"], seen, []) == ["GPU-1"]


def test_a_node_without_gpus_keeps_none():
    assert node_gpus(None, told(state="no_gpu"), ["GPU-1"]) == [] and node_gpus(None, None, ["GPU-1"]) == []


def test_memory_is_that_of_what_can_be_given_away():
    seen = [gpu("GPU-1", mig=["MIG-a"]), gpu("GPU-2"), gpu("GPU-3", "lost"), gpu("GPU-4", total=None, free=None)]
    assert memory(seen, "memory_total") == {"MIG-a": 10, "GPU-2": 80}
    assert memory(seen, "memory_free") == {"MIG-a": 9, "GPU-2": 70}


def test_a_uuid_that_was_never_there_is_a_slip_of_the_pen():
    [fault] = check_listed(["GPU-1", "GPU-11"], TWO, [], "host gpu1")
    assert "GPU-11" in fault.what and fault.where == "host gpu1" and "did you mean 'GPU-1'?" in fault.fix
    assert check_listed(["GPU-1", "MIG-a"], told(gpu("GPU-1", mig=["MIG-a"])), [], "host gpu1") == []
    assert check_listed(["GPU-11"], TWO, ["GPU-11"], "host gpu1") == []  # it broke
    assert check_listed(["GPU-11"], LOST, [], "host gpu1") == [] == check_listed(None, TWO, [], "host gpu1")
    assert check_listed("GPU-11", TWO, [], "host gpu1") == []  # preflight says that it is no list


def test_problems_are_told_of_nodes_that_have_one():
    hosts = {"gpu1": {"gpu": TWO}, "gpu2": {"gpu": LOST}, "gpu3": {}, "gpu4": {"gpu": told(state="no_gpu")}}
    hosts["gw1"] = {"gpu": told(state="failing")}  # a gateway with a GPU in it is no node
    assert problems(hosts, ["gpu1", "gpu2", "gpu3", "gpu4", "gpu9"]) == ["gpu2: it is broken"]


@pytest.mark.parametrize("state", SILENT)
def test_the_plan_of_a_silent_node_stays_as_it_is(state):
    first = plan([model("big", gpus=1, replicas=2)], [host("gpu1", 3)])
    held = [uuid for one in first.plan["instances"] for uuid in one["gpus"]]
    silent = {**host("gpu1"), "gpus": node_gpus(None, told(state=state), held)}
    again = plan([model("big", gpus=1, replicas=2)], [silent], first.plan)
    assert again.plan == first.plan and again.leaving == [] and again.faults == []


def test_the_instance_of_a_lost_gpu_goes_where_there_is_room():
    first = plan([model("big", gpus=1)], [host("gpu1", 2), host("gpu2", 1)])
    [one] = first.plan["instances"]
    [broken] = one["gpus"]
    gpus = [gpu(uuid, "lost" if uuid == broken else "ready") for uuid in host(one["host"], 2)["gpus"]]
    left = {one["host"]: node_gpus(None, told(*gpus, state="lost"), [broken])}
    nodes = [{**node, "gpus": left.get(node["name"], node["gpus"])} for node in (host("gpu1", 2), host("gpu2", 1))]
    again = plan([model("big", gpus=1)], nodes, first.plan)
    assert [it["gpus"] for it in again.leaving] == [[broken]]
    [moved] = again.plan["instances"]
    assert moved["gpus"] != [broken] and len(moved["gpus"]) == 1


TRAITS = {"gpu_names": "NVIDIA H100", "islands": 0, "sockets": 1}


def test_traits_are_those_of_the_gpu_for_its_mig_devices_too():
    gpus = [
        {"uuid": "GPU-1", "name": "NVIDIA H100", "island": 0, "numa_node": 1, "mig": {"devices": [{"uuid": "MIG-1"}]}},
        {"uuid": "GPU-2", "name": "", "island": None, "numa_node": -1, "mig": {"devices": []}},
    ]
    assert traits(gpus) == {key: dict.fromkeys(("GPU-1", "MIG-1"), value) for key, value in TRAITS.items()}
