# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Whether what is planned fits: what is refused, with which advice, and what is said of the rest."""

from __future__ import annotations

import re

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.lookup.engine_profiles import BUILT_IN, read_profiles
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.fit import demand_of, fit_facts
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.memory import MARGIN
from ansible_collections.localfirst.llm_fleet.tests.unit.plugins.module_utils.fleet_builders import model, plan, seats
from ansible_collections.localfirst.llm_fleet.tests.unit.support.fit_builders import GIB, MIB, facts, known, node

PROFILES, _faults = read_profiles([BUILT_IN])
ENTRY = {"shape": facts(8 * GIB)["shape"], "format": "gguf"}


def planned(record: dict, hosts: list, current: dict | None = None, **catalog):
    return plan([model("chat", **{"gpus": 1, **catalog})], hosts, current, wanted={"chat": record})


def needed(record: dict, gpus: int = 1) -> int:
    return demand_of(record, gpus).needed


# From profile, catalog and lockfile to what a release needs


@pytest.mark.parametrize(("engine", "setting"), [("llamacpp", ("cache_type_k", "cache_type_v")), ("ollama", ("kv_cache_type",))])
def test_the_settings_of_the_catalog_count(engine, setting):
    """A cache in 8 bits takes 34 bytes where one in 16 bits takes 64."""
    wide = {"fit": fit_facts(PROFILES[engine], {}, ENTRY), "context": 8192, "parallel": 4}
    narrow = {**wide, "fit": fit_facts(PROFILES[engine], {"settings": dict.fromkeys(setting, "q8_0")}, ENTRY)}
    before, after = demand_of(wide, 1).estimate, demand_of(narrow, 1).estimate
    assert after.kv_cache * 64 == before.kv_cache * 34 and before.kv_cache == 4 * GIB
    assert (after.weights, after.overhead) == (before.weights, before.overhead)


def test_layers_that_are_kept_out_of_the_gpu_count_only_without_one():
    facts_ = fit_facts(PROFILES["llamacpp"], {"settings": {"gpu_layers": 0}}, ENTRY)
    found = {"fit": facts_, "context": 8192, "parallel": 1}
    assert demand_of(found, 1).estimate.weights == 0 and demand_of(found, 0).estimate.weights == 8 * GIB


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"profile": {**PROFILES["llamacpp"], "gpu_memory": None}}, "profile"),
        ({"model": {"settings": {"n_cpu_moe": 4}}}, "n_cpu_moe"),
        ({"entry": {"format": "gguf"}}, "lock again"),
    ],
)
def test_what_is_not_known_is_said_and_the_catalog_may_say_it(change, word):
    profile, entry = change.get("profile", PROFILES["llamacpp"]), change.get("entry", ENTRY)
    found = {"fit": fit_facts(profile, change.get("model", {}), entry)}
    assert demand_of(found, 1).needed is None and word in demand_of(found, 1).why
    said = {**change.get("model", {}), "limits": {"gpu_memory": "20g"}}
    assert demand_of({"fit": fit_facts(profile, said, entry)}, 1).needed == 20 * GIB


def test_a_record_of_an_earlier_release_is_not_known():
    assert demand_of({"size": 5}, 1).needed is None is demand_of(None, 1).needed


# Refusals and advice


def test_a_model_that_does_not_fit_is_refused_with_what_would():
    record = known("chat", 8 * GIB, context=16384, parallel=4)
    [fault] = planned(record, [node("gpu1", 16), node("gpu2", 16, 16)]).faults
    assert fault.where == "llm_fleet_models[chat].placement"
    assert "which needs 16.9 GiB on each GPU (weights 8.0, cache 8.0" in fault.what
    assert "gpu1: 1 of 1 GPUs free, none of them large enough (at most 16.0 GiB)" in fault.what
    for word in ("parallel: ", "context: ", "settings.cache_type_k: ", "smaller quantization", "gpus: 2", "limits.gpu_memory"):
        assert word in fault.fix


def test_what_the_advice_says_is_true():
    """Whatever is advised fits when it is done, and the next larger step does not."""
    room = 16 * GIB
    record = known("chat", 8 * GIB, context=16384, parallel=8)
    [fault] = planned(record, [node("gpu1", 16)]).faults
    parallel, context = (int(re.search(rf"{word}: (\d+)", fault.fix)[1]) for word in ("parallel", "context"))
    assert needed({**record, "parallel": parallel}) <= room < needed({**record, "parallel": parallel + 1})
    assert needed({**record, "context": context}) <= room < needed({**record, "context": context + 256})
    kind = re.search(r"cache_type_v: (\w+)", fault.fix)[1]
    assert needed({**record, "fit": {**record["fit"], "key_type": kind, "value_type": kind}}) <= room


def test_a_host_that_has_room_and_may_not_take_it_is_named():
    record = known("chat", 20 * GIB)
    [fault] = planned(record, [node("gpu1", 16), node("gpu9", 48)], placement={"hosts": ["gpu1"]}).faults
    assert "placement.hosts with gpu9" in fault.fix


def test_a_model_that_nothing_helps_is_told_so():
    [fault] = planned(known("chat", 200 * GIB, context=512), [node("gpu1", 16)]).faults
    assert "no single change" in fault.fix or "smaller quantization" in fault.fix


def test_the_catalogs_word_takes_the_place_of_the_estimate():
    record = known("chat", 20 * GIB)
    assert planned(record, [node("gpu1", 16)]).faults
    assert not planned(record, [node("gpu1", 16)], limits={"gpu_memory": "15g"}).faults
    [fault] = planned(known("chat", GIB), [node("gpu1", 16)], limits={"gpu_memory": "20g"}).faults
    assert "limits.gpu_memory" in fault.what


def test_what_is_kept_for_the_driver_is_not_there():
    record = known("chat", 8 * GIB)
    tight = node("gpu1", 16)
    tight["gpu_memory"] = dict.fromkeys(tight["gpus"], needed(record))
    assert not planned(record, [tight]).faults
    assert planned(record, [{**tight, "gpu_memory_reserve": 1}]).faults


def test_full_gpus_are_no_matter_of_memory():
    result = planned(known("chat", 8 * GIB), [node("gpu1", 24)], replicas=2)
    [fault] = result.faults
    assert "which needs" not in fault.what and "add a host" in fault.fix


# Which GPUs


def test_a_small_model_leaves_the_large_gpu_to_others():
    small = known("small", 4 * GIB)
    first = plan([model("small", gpus=1)], [node("gpu1", 80, 24)], wanted={"small": small})
    assert first.plan["instances"][0]["gpus"] == ["GPU-gpu1-1"]
    large = known("chat", 60 * GIB)
    catalog = [model("small", gpus=1), model("chat", gpus=1)]
    both = plan(catalog, [node("gpu1", 80, 24)], wanted={"small": small, "chat": large})
    given = {it["model"]: it["gpus"] for it in both.plan["instances"]}
    assert not both.faults and given == {"chat": ["GPU-gpu1-0"], "small": ["GPU-gpu1-1"]}


def test_two_gpus_hold_what_one_cannot():
    record = known("chat", 40 * GIB, model="Llama-3.1-70B")
    assert planned(record, [node("gpu1", 32, 32)]).faults
    assert not planned(record, [node("gpu1", 32, 32)], gpus=2).faults


@pytest.mark.parametrize(("gpus", "fits"), [(2, True), (4, True), (3, False), (5, False)])
def test_gpus_that_compute_every_layer_together_must_divide_the_heads(gpus, fits):
    record = known("chat", 10 * GIB, tensor_parallel=True)
    result = planned(record, [node("gpu1", *[80] * 5)], gpus=gpus)
    assert bool(result.faults) != fits
    if not fits:
        [fault] = result.faults
        assert fault.where == "llm_fleet_models[chat].gpus" and "1, 2, 4, 8" in fault.fix


def test_an_engine_that_takes_a_share_needs_its_model_and_one_sequence_in_it():
    """vLLM takes 90 % of a GPU, whatever it needs, and gives the cache what is left."""
    record = known("chat", 16 * GIB, context=8192, parallel=64, sequences="one", share=0.9)
    assert not planned(record, [node("gpu1", 24)]).faults
    assert planned({**record, "fit": {**record["fit"], "share": 0.5}}, [node("gpu1", 24)]).faults
    [fault] = planned({**record, "context": 131_072}, [node("gpu1", 24)]).faults
    assert "context: " in fault.fix and "parallel" not in fault.fix


# Machines without GPUs


def test_replicas_without_gpus_share_the_machines_memory():
    record = known("chat", 8 * GIB)
    each = needed(record, 0)
    hosts = [node("gpu1", memory=2 * each), node("gpu2", memory=each)]
    assert seats(planned(record, hosts, gpus=0, replicas=3).plan) == {"chat-0-a": "gpu1", "chat-1-a": "gpu2", "chat-2-a": "gpu1"}
    [fault] = planned(record, hosts, gpus=0, replicas=4).faults
    assert "0.0 GiB of memory left" in fault.what and "replica 3" in fault.what
    assert planned(record, [{**hosts[1], "memory_reserve": 1}], gpus=0).faults


def test_memory_of_what_leaves_is_not_given_away_before_the_next_run():
    old, new = known("old", 8 * GIB), known("new", 8 * GIB)
    hosts = [node("gpu1", memory=needed(old, 0))]
    first = plan([model("old")], hosts, wanted={"old": old})
    second = plan([model("new")], hosts, first.plan, wanted={"new": new})
    assert not second.faults and not second.plan["instances"]
    assert second.pending == ["new: replica 0 waits for memory that becomes free on gpu1: run again then"]
    assert seats(plan([model("new")], hosts, second.plan, wanted={"new": new}).plan) == {"new-0-a": "gpu1"}


# Warnings


def test_what_runs_stays_although_the_estimate_says_no():
    record = known("chat", 8 * GIB)
    first = planned(record, [node("gpu1", 24)])
    result = planned(record, [node("gpu1", 8)], first.plan)
    assert not result.faults and result.plan == first.plan
    [warning] = result.warnings
    assert warning.startswith("gpu1: chat-0-a: by the estimate")


def test_little_to_spare_is_said():
    record = known("chat", 8 * GIB)
    roomy, tight = node("gpu1", 16), node("gpu1", 16)
    roomy["gpu_memory"] = dict.fromkeys(roomy["gpus"], int(needed(record) / (1 - MARGIN)) + MIB)
    tight["gpu_memory"] = dict.fromkeys(tight["gpus"], int(needed(record) / (1 - MARGIN)) - MIB)
    assert planned(record, [roomy]).warnings == []
    [warning] = planned(record, [tight]).warnings
    assert warning.startswith("gpu1: chat-0-a: ") and f"{MARGIN:.0%}" in warning


def test_little_to_spare_in_a_machine_is_said():
    record = known("chat", 8 * GIB)
    [warning] = planned(record, [node("gpu1", memory=needed(record, 0) + MIB)], gpus=0).warnings
    assert warning.startswith("gpu1: chat-0-a: ") and "of memory" in warning


def test_gpus_whose_size_nobody_knows_are_taken_with_a_warning():
    silent = {**node("gpu1", 16), "gpu_memory": {}}
    result = planned(known("chat", 100 * GIB), [silent])
    assert not result.faults and seats(result.plan)
    [warning] = result.warnings
    assert warning.startswith("gpu1: memory not checked") and "driver" in warning


def test_a_model_without_a_shape_is_placed_with_a_warning():
    record = {**known("chat", 100 * GIB), "fit": {"why": "the lockfile does not have its shape: lock again"}}
    result = planned(record, [node("gpu1", 16)])
    assert not result.faults
    [warning] = result.warnings
    assert warning.startswith("chat: memory not checked") and "lock again" in warning and "limits.gpu_memory" in warning


def test_a_container_that_may_have_less_than_its_engine_needs_is_said():
    record = {**known("chat", 8 * GIB), "container": {"port": 8080, "memory_bytes": 4 * GIB}}
    [warning] = planned(record, [node("gpu1", memory=100 * GIB)], gpus=0).warnings
    assert "limits.memory" in warning


def test_what_becomes_known_of_a_release_is_no_other_release():
    unknown = {**known("chat", 8 * GIB), "fit": {"why": "?"}}
    first = planned(unknown, [node("gpu1", 24)])
    result = planned(known("chat", 8 * GIB), [node("gpu1", 24)], first.plan)
    assert result.plan["instances"] == first.plan["instances"] and not result.leaving
    [action] = result.actions
    assert action.endswith("what is known of its memory changes")
