# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Which way a rollout goes, by the room that hosts have, and in which batches."""

from __future__ import annotations

from itertools import accumulate
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.fit import demand_of
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.rollout_strategy import (
    GIB,
    STRATEGIES,
    choose,
    gpu_bytes,
    make_batches,
    most_at_once,
    too_large,
)
from ansible_collections.localfirst.llm_fleet.tests.unit.support.fit_builders import known

TARGET = {"size": 4 * GIB, "container": {"memory_bytes": 2 * GIB}}
NEEDED = gpu_bytes(TARGET)


def instance(replica: int, *gpus: str, host: str = "gpu1") -> dict:
    return {"id": f"tiny-{replica}-a", "replica": replica, "host": host, "gpus": list(gpus)}


def state(memory: int = 100 * GIB, free: int = 0, **other) -> dict:
    """A host with GPUs g0 to g3, of which each has `free` bytes."""
    return {"memory_free": memory, "gpu_free": {f"g{number}": free for number in range(4)}, "gpus_idle": [], **other}


# Memory


def test_auto_is_surge_where_each_host_has_memory_for_all_its_new_instances():
    two = [instance(0), instance(1)]
    assert choose("auto", two, TARGET, {"gpu1": state(4 * GIB)}) == ("surge", {0: [], 1: []}, [])
    name, gpus, [lack] = choose("auto", two, TARGET, {"gpu1": state(4 * GIB - 1)})
    assert (name, gpus) == ("replace", {0: [], 1: []})
    assert lack.startswith("gpu1: ") and "4.0 GiB" in lack


def test_one_host_without_room_is_enough_for_replace():
    two = [instance(0), instance(1, host="gpu2")]
    hosts = {"gpu1": state(), "gpu2": state(GIB)}
    name, _gpus, [lack] = choose("auto", two, TARGET, hosts)
    assert name == "replace" and lack.startswith("gpu2: ")
    assert choose("auto", two, TARGET, {**hosts, "gpu2": state()}).name == "surge"


# The number of GPUs that the catalog says by now


@pytest.mark.parametrize(
    ("count", "held", "idle", "found"),
    [
        (2, ["g0"], ["g1", "g2"], ["g0", "g1"]),
        (1, ["g0", "g1"], [], ["g0"]),
        (2, ["g0", "g1"], ["g2"], ["g0", "g1"]),
        (1, [], ["g0"], ["g0"]),
        (0, ["g0"], ["g1"], []),
        (4, ["g0"], ["g1"], ["g0", "g1"]),
    ],
)
def test_where_the_old_ones_stop_a_release_gets_as_many_gpus_as_it_is_to_have(count, held, idle, found):
    target = {**TARGET, "gpus": count}
    assert choose("replace", [instance(0, *held)], target, {"gpu1": state(gpus_idle=idle)}).gpus == {0: found}


def test_two_replicas_of_a_host_share_out_what_is_idle():
    target = {**TARGET, "gpus": 2}
    chosen = choose("replace", [instance(0, "g0"), instance(1, "g1")], target, {"gpu1": state(gpus_idle=["g2", "g3"])})
    assert chosen.gpus == {0: ["g0", "g2"], 1: ["g1", "g3"]}


def test_beside_the_old_ones_another_number_of_gpus_has_to_be_idle():
    target = {**TARGET, "gpus": 2}
    roomy = state(free=100 * GIB)
    assert choose("auto", [instance(0, "g0")], target, {"gpu1": {**roomy, "gpus_idle": ["g2", "g3"]}}) == ("surge", {0: ["g2", "g3"]}, [])
    assert choose("auto", [instance(0, "g0")], target, {"gpu1": {**roomy, "gpus_idle": ["g2"]}}).name == "replace"


def test_a_host_that_nobody_has_measured_has_no_room():
    assert choose("auto", [instance(0)], TARGET, {}).name == "replace"


@pytest.mark.parametrize("container", [{}, {"memory_bytes": None}])
def test_a_release_without_a_limit_needs_no_memory_that_one_could_count(container):
    assert choose("auto", [instance(0)], {**TARGET, "container": container}, {"gpu1": state(0)}).name == "surge"


# GPUs


def test_gpus_with_room_for_both_are_shared():
    both = instance(0, "g0", "g1")
    each = ceil(NEEDED / 2)
    assert choose("auto", [both], TARGET, {"gpu1": state(free=each)}) == ("surge", {0: ["g0", "g1"]}, [])
    name, gpus, [lack] = choose("auto", [both], TARGET, {"gpu1": state(free=each - 1)})
    assert (name, gpus) == ("replace", {0: ["g0", "g1"]}) and "tiny-0-a" in lack and "2 idle GPUs" in lack


def test_each_gpu_needs_the_room():
    lopsided = state(free=NEEDED)
    lopsided["gpu_free"]["g1"] = 0
    assert choose("auto", [instance(0, "g0", "g1")], TARGET, {"gpu1": lopsided}).name == "replace"
    assert choose("auto", [instance(0, "g0", "g2")], TARGET, {"gpu1": lopsided}).name == "surge"


def test_idle_gpus_are_given_once():
    two = [instance(0, "g0"), instance(1, "g1")]
    assert choose("auto", two, TARGET, {"gpu1": state(gpus_idle=["g2", "g3"])}) == ("surge", {0: ["g2"], 1: ["g3"]}, [])
    assert choose("auto", two, TARGET, {"gpu1": state(gpus_idle=["g2"])}).name == "replace"


def test_idle_gpus_of_another_host_are_none():
    hosts = {"gpu1": state(), "gpu2": state(gpus_idle=["g2"])}
    assert choose("auto", [instance(0, "g0")], TARGET, hosts).name == "replace"


def test_who_has_room_on_its_own_gpus_takes_no_idle_ones():
    roomy = state(gpus_idle=["g2"])
    roomy["gpu_free"]["g0"] = NEEDED
    two = [instance(0, "g0"), instance(1, "g1")]
    assert choose("auto", two, TARGET, {"gpu1": roomy}) == ("surge", {0: ["g0"], 1: ["g2"]}, [])


def test_without_gpus_no_gpu_is_looked_for():
    assert choose("auto", [instance(0)], TARGET, {"gpu1": state(free=0)}).name == "surge"


def test_what_a_release_needs_has_a_base_and_grows_with_its_files():
    assert 0 < gpu_bytes({"size": 0}) < gpu_bytes({"size": 10 * GIB}) - 10 * GIB


# What was asked for


def test_replace_is_replace_whatever_room_there_is():
    assert choose("replace", [instance(0, "g0")], TARGET, {"gpu1": state(gpus_idle=["g2"])}) == ("replace", {0: ["g0"]}, [])


def test_surge_is_surge_and_says_all_that_it_lacks():
    two = [instance(0, "g0"), instance(1, "g1"), instance(2, host="gpu2")]
    name, gpus, lacking = choose("surge", two, TARGET, {"gpu1": state(0, gpus_idle=["g3"]), "gpu2": state(0)})
    assert name == "surge" and set(gpus) == {0, 1, 2}
    assert [lack.partition(":")[0] for lack in lacking] == ["gpu1", "gpu1", "gpu2"]


# Batches


@pytest.mark.parametrize(
    ("count", "stages", "most", "sizes"),
    [
        (1, [1, "25%", "100%"], 1, [1]),
        (8, [1, "25%", "100%"], 8, [1, 1, 6]),
        (8, [1, "25%", "100%"], 2, [1, 1, 2, 2, 2]),
        (5, ["50%"], 5, [3, 2]),  # rounded up, and the rest comes anyway
        (3, [2, 1, 9], 3, [2, 1]),  # what was reached is no stage any more
        (3, ["100%"], 1, [1, 1, 1]),
        (0, ["100%"], 1, []),
    ],
)
def test_stages_become_batches(count, stages, most, sizes):
    assert list(map(len, make_batches(list(range(count)), stages, most))) == sizes


@given(
    st.lists(st.integers(0, 999), unique=True, max_size=600),
    st.lists(st.integers(1, 700) | st.integers(1, 100).map("{}%".format), max_size=5),
    st.integers(1, 600),
)
def test_batches_have_each_replica_once_and_stop_at_each_stage(replicas, stages, most):
    batches = make_batches(replicas, stages, most)
    assert [replica for batch in batches for replica in batch] == replicas
    assert all(0 < len(batch) <= most for batch in batches)
    goals = [stage if isinstance(stage, int) else ceil(len(replicas) * int(stage[:-1]) / 100) for stage in stages]
    # A stage that an earlier one has passed is none any more.
    assert {min(goal, len(replicas)) for goal in accumulate(goals, max)} <= {0, *accumulate(map(len, batches))}


@pytest.mark.parametrize(
    ("strategy", "count", "unavailable", "most"),
    [
        ("surge", 8, 1, 8),
        ("surge", 8, "25%", 8),
        ("replace", 8, 3, 3),
        ("replace", 8, "25%", 2),
        ("replace", 7, "25%", 1),  # rounded down: fewer may be missing, never more
        ("replace", 3, "25%", 1),
        ("replace", 3, "100%", 2),
        ("replace", 3, 99, 2),
        ("replace", 1, "100%", 1),
    ],
)
def test_how_many_may_be_away(strategy, count, unavailable, most):
    assert most_at_once(strategy, count, unavailable) == most


@given(st.sampled_from(STRATEGIES), st.integers(1, 600), st.integers(1, 700) | st.integers(1, 100).map("{}%".format))
def test_some_go_on_and_one_always_may(strategy, count, unavailable):
    most = most_at_once(strategy, count, unavailable)
    assert 1 <= most <= count
    if strategy == "replace" and count > 1:
        assert most < count
        assert most == 1 or most <= (unavailable if isinstance(unavailable, int) else count * int(unavailable[:-1]) / 100)


# Where the estimate is known


def test_a_release_whose_memory_is_known_needs_what_the_estimate_says():
    target = {**known("tiny", 4 * GIB), "container": {"memory_bytes": 2 * GIB}}
    needed = demand_of(target, 1).needed
    one = [instance(0, "g0")]
    assert choose("auto", one, target, {"gpu1": state(free=needed)}).name == "surge"
    assert choose("auto", one, target, {"gpu1": state(free=needed - 1)}).name == "replace"


def test_idle_gpus_that_are_too_small_are_none():
    target = {**known("tiny", 20 * GIB), "container": {}}
    sized = state(gpus_idle=["g1", "g2"], gpu_memory={"g1": 16 * GIB, "g2": 48 * GIB})
    assert choose("auto", [instance(0, "g0")], target, {"gpu1": sized}) == ("surge", {0: ["g2"]}, [])


def test_an_engine_that_takes_a_share_needs_all_of_it_free():
    target = {**known("tiny", 4 * GIB, share=0.9), "container": {}}
    sized = {"gpu_memory": {"g0": 100 * GIB}}
    assert choose("auto", [instance(0, "g0")], target, {"gpu1": state(free=91 * GIB, **sized)}).name == "surge"
    assert choose("auto", [instance(0, "g0")], target, {"gpu1": state(free=50 * GIB, **sized)}).name == "replace"


def test_what_is_too_large_for_its_gpus_is_said():
    target = {**known("tiny", 20 * GIB), "container": {}}
    [lack] = too_large([instance(0, "g0")], target, {"gpu1": {"gpu_memory": {"g0": 16 * GIB}}})
    assert lack.startswith("gpu1: tiny-0-a needs") and "g0 has 16.0 GiB" in lack
    assert too_large([instance(0, "g0")], target, {"gpu1": {"gpu_memory": {"g0": 48 * GIB}}}) == []
    assert too_large([instance(0, "g0")], target, {}) == []


def test_gpus_that_cannot_share_the_heads_are_said():
    target = {**known("tiny", GIB, tensor_parallel=True), "container": {}}
    [lack] = too_large([instance(0, "g0", "g1", "g2")], target, {})
    assert "heads" in lack
