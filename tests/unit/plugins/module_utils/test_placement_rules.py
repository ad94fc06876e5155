# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Where the catalog wants replicas: labels, kinds of GPU, spread, apart, shared GPUs, and GPUs that belong together."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.tests.unit.plugins.module_utils.fleet_builders import host, model, plan, record, seats

GIB = 2**30


def rules(**written) -> dict:
    return {"placement": {"hosts": ["*"], **written}}


def large(name: str, gpus: int, size: int = 80, **other) -> dict:
    """A node whose GPUs all have so many GiB."""
    node = host(name, gpus, **other)
    return {**node, "gpu_memory": dict.fromkeys(node["gpus"], size * GIB)}


def needing(catalog: list, **gibs: int) -> dict:
    """The releases of a catalog, each of which needs so many GiB of a GPU."""
    return {one["name"]: {**record(one["name"]), "fit": {"override": gibs[one["name"]] * GIB}} for one in catalog}


def racks(**names: str) -> list:
    return [host(name, 4, labels={"rack": rack}) for name, rack in names.items()]


def test_a_label_chooses_the_host():
    nodes = racks(n0="r1", n1="r2", n2="r3")
    placed = plan([model("a", 2, 1, **rules(labels={"rack": ["r[23]"]}))], nodes)
    assert set(seats(placed.plan).values()) == {"n1", "n2"}
    refused = plan([model("a", 1, 1, **rules(labels={"rack": ["r9"]}))], nodes)
    assert "its label rack is not r9" in refused.faults[0].what


def test_what_runs_leaves_a_host_whose_label_changed():
    catalog = [model("a", 1, 1, **rules(labels={"rack": ["r1"]}))]
    before = plan(catalog, racks(n0="r1", n1="r2")).plan
    after = plan(catalog, racks(n0="r2", n1="r1"), before)
    assert seats(after.plan) == {"a-0-b": "n1"} and [it["host"] for it in after.leaving] == ["n0"]


@pytest.mark.parametrize("kind", ["*H100*", "nvidia h100*"])
def test_a_kind_of_gpu_is_chosen_even_among_the_gpus_of_one_host(kind):
    node = host("n0", 4)
    names = dict(zip(node["gpus"], ["NVIDIA L4", "NVIDIA H100 PCIe", "NVIDIA L4", "NVIDIA H100 PCIe"]))
    placed = plan([model("a", 1, 2, **rules(gpu=[kind]))], [{**node, "gpu_names": names}])
    assert {names[gpu] for it in placed.plan["instances"] for gpu in it["gpus"]} == {"NVIDIA H100 PCIe"}
    refused = plan([model("a", 1, 3, **rules(gpu=[kind]))], [{**node, "gpu_names": names}])
    assert f"2 of 4 GPUs free that are {kind}" in refused.faults[0].what


def test_a_driver_that_falls_silent_moves_nothing():
    node = host("n0", 1)
    catalog = [model("a", 1, 1, **rules(gpu=["*H100*"]))]
    before = plan(catalog, [{**node, "gpu_names": {node["gpus"][0]: "NVIDIA H100"}}]).plan
    assert plan(catalog, [{**node, "gpu_names": {}}], before).plan == before


def test_replicas_are_spread_over_racks():
    nodes = racks(n0="r1", n1="r1", n2="r1", n3="r2", n4="r3")
    placed = plan([model("a", 3, 1, **rules(spread="rack"))], nodes)
    where = {node["name"]: node["labels"]["rack"] for node in nodes}
    assert Counter(where[name] for name in seats(placed.plan).values()) == {"r1": 1, "r2": 1, "r3": 1}
    more = plan([model("a", 7, 1, **rules(spread="rack"))], nodes)
    assert max(Counter(where[name] for name in seats(more.plan).values()).values()) == 3


@pytest.mark.parametrize("told", ["a", "b", "both"])
def test_models_that_are_apart_never_share_a_host(told):
    catalog = [
        model("a", 2, 1, **rules(apart=["b"] if told != "b" else [])),
        model("b", 1, 1, **rules(apart=["a"] if told != "a" else [])),
    ]
    placed = seats(plan(catalog, [host("n0", 4), host("n1", 4), host("n2", 4)]).plan)
    assert placed["b-0-a"] not in (placed["a-0-a"], placed["a-1-a"])
    refused = plan(catalog, [host("n0", 4)])
    assert "which it is to be apart from" in refused.faults[0].what


def test_a_model_that_is_apart_from_itself_has_one_replica_a_host():
    catalog = [model("a", 2, 1, **rules(apart=["a"]))]
    assert set(seats(plan(catalog, [host("n0", 8), host("n1", 1)]).plan).values()) == {"n0", "n1"}
    assert plan(catalog, [host("n0", 8)]).faults


def test_models_share_a_gpu_only_when_all_of_them_say_so():
    catalog = [model("a", 1, 1, share=True), model("b", 1, 1, share=True), model("c", 1, 1)]
    wanted = needing(catalog, a=30, b=40, c=5)
    placed = plan(catalog, [large("n0", 2)], wanted=wanted)
    gpus = {it["model"]: it["gpus"] for it in placed.plan["instances"]}
    assert not placed.faults and gpus["a"] == gpus["b"] != gpus["c"]
    assert plan(catalog, [large("n0", 1)], wanted=wanted).faults


def test_no_more_share_a_gpu_than_its_memory_holds():
    catalog = [model(name, 1, 1, share=True) for name in "abc"]
    wanted = needing(catalog, a=30, b=40, c=20)
    refused = plan(catalog, [large("n0", 1)], wanted=wanted)
    assert len(refused.faults) == 1
    placed = plan(catalog, [large("n0", 2)], wanted=wanted)
    taken = Counter()
    for it in placed.plan["instances"]:
        taken[it["gpus"][0]] += wanted[it["model"]]["fit"]["override"]
    assert max(taken.values()) <= 80 * GIB


def test_two_replicas_of_one_model_share_no_gpu():
    catalog = [model("a", 2, 1, share=True)]
    assert plan(catalog, [large("n0", 1)], wanted=needing(catalog, a=10)).faults


def test_a_need_that_nobody_knows_is_no_reason_to_share():
    catalog = [model("a", 1, 1, share=True), model("b", 1, 1, share=True)]
    assert plan(catalog, [large("n0", 1)]).faults
    assert not plan(catalog, [large("n0", 2)]).faults


def test_a_shared_gpu_that_is_removed_moves_only_those_on_it():
    catalog = [model(name, 1, 1, share=True) for name in "abcd"]
    wanted = needing(catalog, a=40, b=30, c=40, d=30)
    before = plan(catalog, [large("n0", 3)], wanted=wanted).plan
    lost = before["instances"][0]["gpus"][0]
    node = large("n0", 3)
    after = plan(catalog, [{**node, "gpus": [gpu for gpu in node["gpus"] if gpu != lost]}], before, wanted=wanted)
    stayed = {it["id"]: it["gpus"] for it in before["instances"] if it["gpus"] != [lost]}
    assert not after.faults and stayed.items() <= {it["id"]: it["gpus"] for it in after.plan["instances"]}.items()


def test_gpus_that_nvlink_joins_are_given_together():
    node = host("n0", 6)
    islands = dict(zip(node["gpus"], [0, 1, 2, 1, 2, 5]))
    placed = plan([model("a", 1, 2), model("b", 1, 2)], [{**node, "islands": islands}])
    for it in placed.plan["instances"]:
        assert len({islands[gpu] for gpu in it["gpus"]}) == 1
    # A single one is taken where it tears nothing apart.
    [alone] = plan([model("c", 1, 1)], [{**node, "islands": islands}]).plan["instances"]
    assert islands[alone["gpus"][0]] in (0, 5)


def test_without_nvlink_they_are_at_one_socket():
    node = host("n0", 8)
    sockets = dict(zip(node["gpus"], [0, 0, 0, 1, 1, 1, 1, 1]))
    placed = plan([model("a", 1, 4)], [{**node, "sockets": sockets}])
    assert {sockets[gpu] for gpu in placed.plan["instances"][0]["gpus"]} == {1}


def test_a_replica_gets_one_mig_device_and_never_several():
    node = {**host("n0"), "gpus": ["MIG-1", "MIG-2", "GPU-3"]}
    refused = plan([model("a", 1, 2)], [node])
    assert "only one MIG device" in refused.faults[0].what
    assert not plan([model("a", 2, 1)], [node]).faults


def test_each_host_has_as_many_replicas_as_it_is_to_have():
    catalog = [model("a", "all", 1, per_host=2)]
    before = plan(catalog, [host("n0", 4), host("n1", 2)])
    assert not before.faults and Counter(seats(before.plan).values()) == {"n0": 2, "n1": 2}
    # A host that comes moves nothing; fewer a host takes away the highest of each.
    more = plan(catalog, [host("n0", 4), host("n1", 2), host("n2", 2)], before.plan)
    assert seats(before.plan).items() <= seats(more.plan).items() and Counter(seats(more.plan).values())["n2"] == 2
    fewer = plan([model("a", "all", 1)], [host("n0", 4), host("n1", 2)], before.plan)
    assert Counter(seats(fewer.plan).values()) == {"n0": 1, "n1": 1} and seats(fewer.plan).items() <= seats(before.plan).items()
    lacking = plan(catalog, [host("n0", 4), host("n1", 1)])
    assert "n1: 0 of 1 GPUs free" in lacking.faults[0].what


NEEDS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 2), st.booleans()), min_size=1, max_size=6)


@given(NEEDS, st.lists(st.integers(1, 4), min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_no_gpu_ever_has_more_than_its_memory_and_is_shared_only_by_those_who_say_so(needs, nodes):
    catalog = [model(f"m{number}", 1, gpus, share=share) for number, (_size, gpus, share) in enumerate(needs)]
    wanted = needing(catalog, **{f"m{number}": size for number, (size, _gpus, _share) in enumerate(needs)})
    placed = plan(catalog, [large(f"n{number}", gpus, 64) for number, gpus in enumerate(nodes)], wanted=wanted).plan
    on = {}
    for it in placed["instances"]:
        for gpu in it["gpus"]:
            on.setdefault(gpu, []).append(it["model"])
    sharing = {one["name"] for one in catalog if one["share"]}
    for names in on.values():
        assert len(names) == 1 or set(names) <= sharing
        assert sum(wanted[name]["fit"]["override"] for name in names) <= 64 * GIB
