# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What holds for the memory of every plan, whatever models, GPUs and histories there are."""

from __future__ import annotations

import re

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.fit import demand_of
from ansible_collections.localfirst.llm_fleet.tests.unit.plugins.module_utils.fleet_builders import model, plan
from ansible_collections.localfirst.llm_fleet.tests.unit.support.fit_builders import GIB, known, node
from ansible_collections.localfirst.llm_fleet.tests.unit.support.known_models import CONFIGS

moderate = settings(max_examples=100, deadline=None)
RESERVE = 2**28

sizes = st.sampled_from([8, 16, 24, 48, 80])


@st.composite
def records(draw, name):
    return known(
        name,
        draw(st.integers(1, 60)) * GIB,
        context=draw(st.sampled_from([512, 8192, 32_768])),
        parallel=draw(st.sampled_from([1, 4, 16])),
        model=draw(st.sampled_from(sorted(CONFIGS))),
        tensor_parallel=draw(st.booleans()),
        **draw(st.sampled_from([{}, {}, {"share": 0.9, "sequences": "one"}])),
    )


@st.composite
def fleets(draw):
    return [
        {
            **node(name, *draw(st.lists(sizes, max_size=4)), memory=draw(st.sampled_from([16, 64, 256])) * GIB),
            "gpu_memory_reserve": RESERVE,
            "memory_reserve": RESERVE,
        }
        for name in draw(st.lists(st.sampled_from(("n0", "n1", "n2")), unique=True, min_size=1))
    ]


@st.composite
def catalogs(draw):
    """(catalog, its releases)."""
    names = draw(st.lists(st.sampled_from(("a", "b", "c")), unique=True, min_size=1))
    catalog = [model(name, draw(st.sampled_from((1, 2, 3, "all"))), draw(st.sampled_from((0, 1, 1, 2)))) for name in names]
    return catalog, {name: draw(records(name)) for name in names}


def new(result, before):
    known_ones = {(it["id"], it["host"]) for it in (before or {"instances": []})["instances"]}
    return [it for it in result.plan["instances"] if (it["id"], it["host"]) not in known_ones]


def check_memory(result, hosts, before=None):
    """What comes fits: on each of its GPUs, or into what others have left of its machine."""
    nodes = {host["name"]: host for host in hosts}
    used = dict.fromkeys(nodes, 0)
    for instance in result.plan["instances"]:
        demand = demand_of(result.plan["releases"][instance["release"]], len(instance["gpus"]))
        used[instance["host"]] += 0 if instance["gpus"] else demand.needed
        if instance in new(result, before):
            for gpu in instance["gpus"]:
                assert demand.needed + RESERVE <= nodes[instance["host"]]["gpu_memory"][gpu]
                assert demand.share is None or demand.needed <= demand.share * nodes[instance["host"]]["gpu_memory"][gpu]
            assert demand.divides
    grown = {it["host"] for it in new(result, before) if not it["gpus"]}
    for name in grown:
        assert used[name] + RESERVE <= nodes[name]["memory"]


@moderate
@given(catalogs(), fleets())
def test_no_plan_ever_exceeds_the_memory_of_a_gpu_or_a_machine(wanted, hosts):
    catalog, releases = wanted
    check_memory(plan(catalog, hosts, wanted=releases), hosts)


@moderate
@given(st.data())
def test_nor_does_any_plan_that_follows(data):
    current = None
    for _step in range(data.draw(st.integers(2, 4))):
        (catalog, releases), hosts = data.draw(catalogs()), data.draw(fleets())
        result = plan(catalog, hosts, current, wanted=releases)
        check_memory(result, hosts, current)
        if not result.faults:
            current = result.plan


@moderate
@given(catalogs(), fleets(), st.integers(0, 11))
def test_a_gpu_that_goes_moves_only_what_was_on_it(wanted, hosts, pick):
    catalog, releases = wanted
    first = plan(catalog, hosts, wanted=releases)
    gpus = [gpu for host in hosts for gpu in host["gpus"]]
    assume(gpus and first.plan["instances"])
    lost = gpus[pick % len(gpus)]
    fewer = [{**host, "gpus": [gpu for gpu in host["gpus"] if gpu != lost]} for host in hosts]
    second = plan(catalog, fewer, first.plan, wanted=releases)
    untouched = [it for it in first.plan["instances"] if lost not in it["gpus"]]
    assert all(it in second.plan["instances"] for it in untouched)
    check_memory(second, fewer, first.plan)


@moderate
@given(catalogs(), fleets())
def test_what_is_refused_for_its_memory_is_told_what_would_fit(wanted, hosts):
    """And no advice is a slip: fewer requests, a shorter context, more GPUs than there were."""
    catalog, releases = wanted
    entries = {entry["name"]: entry for entry in catalog}
    for fault in plan(catalog, hosts, wanted=releases).faults:
        name = re.match(r"llm_fleet_models\[(\w)\]", fault.where)[1]
        if "which needs" in fault.what:
            for word, now in (("parallel", releases[name]["parallel"]), ("context", releases[name]["context"])):
                found = re.search(rf"\b{word}: (\d+)", fault.fix)
                assert found is None or 0 < int(found[1]) < now
            more = re.search(r"gpus: (\d+)", fault.fix)
            assert more is None or int(more[1]) > entries[name]["gpus"]


@moderate
@given(catalogs(), fleets())
def test_whoever_knows_nothing_of_memory_plans_as_before(wanted, hosts):
    """Without shapes and sizes, only the number of GPUs counts."""
    catalog, releases = wanted
    shapeless = {name: {**record, "fit": {"why": "?"}} for name, record in releases.items()}
    sizeless = [{key: host[key] for key in ("name", "address", "gpus", "reachable")} for host in hosts]
    assert plan(catalog, hosts, wanted=shapeless).plan["instances"] == plan(catalog, sizeless, wanted=shapeless).plan["instances"]
    assert not [fault for fault in plan(catalog, sizeless, wanted=shapeless).faults if "which needs" in fault.what]
