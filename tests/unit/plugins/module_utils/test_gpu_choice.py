# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""`gpus: auto`: the fewest that hold the model, and no other release for what does not concern it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.lookup.engine_profiles import BUILT_IN, read_profiles
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.fit import demand_of
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.gpu_choice import with_gpus
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.release import wanted_releases
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.shape_config import shape_of_config
from ansible_collections.localfirst.llm_fleet.tests.unit.plugins.module_utils.fleet_builders import model, plan
from ansible_collections.localfirst.llm_fleet.tests.unit.support.fit_builders import GIB, node
from ansible_collections.localfirst.llm_fleet.tests.unit.support.known_models import CONFIGS

PROFILES, _faults = read_profiles([BUILT_IN])
IMAGE = {"image": "registry.example/engine", "digest": f"sha256:{'a' * 64}"}


def lock(weights: int, version: str = "1.0.0", shape: bool = True) -> dict:
    entry = {
        "source": "https://models.example/chat",
        "format": "safetensors",
        "size": weights,
        "files": [{"path": "model.safetensors", "size": weights, "sha256": "a" * 64}],
        # 32 heads, 8 of keys and values.
        **({"shape": shape_of_config(CONFIGS["Llama-3.1-8B"], weights)} if shape else {}),
    }
    return {"images": {"vllm": IMAGE, "llamacpp": IMAGE}, "models": {"chat": {version: entry}}}


def asked(engine: str = "vllm", **other) -> dict:
    return model("chat", gpus="auto", engine=engine, **{"context": 8192, "parallel": 1, **other})


def choose(hosts: list, weights: int, current: dict | None = None, shape: bool = True, **other) -> int:
    [done], faults = with_gpus([asked(**other)], lock(weights, shape=shape), PROFILES, hosts, current)
    assert not faults, faults
    return done["gpus"]


def test_it_is_the_fewest_that_hold_the_model():
    hosts = [node("gpu1", *[80] * 8)]
    assert [choose(hosts, size * GIB) for size in (16, 60, 100, 200, 400)] == [1, 1, 2, 4, 8]


def test_it_divides_the_heads_where_that_matters():
    hosts = [node("gpu1", *[80] * 8)]
    three = 180 * GIB  # more than two have, and no more than three
    assert choose(hosts, three, engine="llamacpp") == 3 and choose(hosts, three) == 4


@given(
    weights=st.integers(1, 700),
    sizes=st.lists(st.sampled_from([16, 24, 48, 80, 141]), min_size=1, max_size=8),
    engine=st.sampled_from(["vllm", "llamacpp"]),
)
def test_no_smaller_number_would_do(weights, sizes, engine):
    host, locked = node("gpu1", *sizes), lock(weights * GIB)
    [done], faults = with_gpus([asked(engine)], locked, PROFILES, [host], None)
    record = wanted_releases([done], locked, PROFILES)["chat"]

    def enough(count: int) -> bool:
        needs = demand_of(record, count)
        return needs.divides and sum(needs.fits(host, gpu) for gpu in host["gpus"]) >= count

    assert not faults and not any(enough(count) for count in range(1, done["gpus"]))
    # Either that number holds it, and then the plan finds the place, or none does.
    holds = not plan([done], [host], wanted={"chat": record}).faults
    assert holds == enough(done["gpus"]) == any(enough(count) for count in range(1, len(sizes) + 1))


def test_only_gpus_that_the_model_may_have_count():
    big, small = node("gpu1", 80), node("gpu2", 24, 24, 24, 24)
    assert choose([big, small], 40 * GIB) == 1
    assert choose([big, small], 40 * GIB, placement={"hosts": ["gpu2"]}) == 4
    named = {**small, "gpu_names": dict.fromkeys(small["gpus"], "NVIDIA L4")}
    assert choose([big, named], 40 * GIB, placement={"hosts": ["*"], "gpu": ["*L4*"]}) == 4


def test_a_replica_gets_one_mig_device_at_most():
    parts = node("gpu1", 20, 20, 20)
    names = [f"MIG-{number}" for number in range(3)]
    mig = {**parts, "gpus": names, "gpu_memory": dict.fromkeys(names, 20 * GIB)}
    assert choose([mig], 8 * GIB) == 1 and choose([mig], 40 * GIB) == 1  # which the plan then refuses
    assert choose([mig, node("gpu2", 24, 24, 24, 24)], 40 * GIB) == 4


def test_what_runs_keeps_its_number_while_that_is_enough():
    two = node("gpu1", 48, 48)
    [done], _faults = with_gpus([asked()], lock(60 * GIB), PROFILES, [two], None)
    current = plan([done], [two], wanted=wanted_releases([done], lock(60 * GIB), PROFILES)).plan
    assert [len(it["gpus"]) for it in current["instances"]] == [2]
    larger = node("gpu2", 141)
    assert choose([two, larger], 60 * GIB) == 1
    assert choose([two, larger], 60 * GIB, current) == 2
    # A new version that they do not hold is another matter, and a driver that is silent is none.
    assert choose([two, larger], 100 * GIB, current) == 1
    assert choose([{**two, "gpu_memory": {}}, larger], 60 * GIB, current) == 2


def test_the_catalogs_word_on_memory_counts():
    assert choose([node("gpu1", 80)], 40 * GIB, shape=False, limits={"gpu_memory": "50g"}) == 1


@pytest.mark.parametrize(
    ("hosts", "shape", "word"),
    [
        ([node("gpu1", 80)], False, "lock again"),
        ([node("gpu1")], True, "hosts.yml"),
        ([{**node("gpu1", 80), "gpu_memory": {}}], True, "hosts.yml"),
        ([], True, "hosts.yml"),
    ],
)
def test_where_it_cannot_be_told_the_catalog_has_to_say_it(hosts, shape, word):
    _models, [fault] = with_gpus([asked()], lock(GIB, shape=shape), PROFILES, hosts, None)
    assert fault.where == "llm_fleet_models[chat].gpus" and word in f"{fault.what} {fault.fix}" and "number" in fault.fix


def test_numbers_stay_and_the_answer_can_be_asked_again_for_another_version():
    hosts = [node("gpu1", *[80] * 8)]
    [done], _faults = with_gpus([asked()], lock(16 * GIB), PROFILES, hosts, None)
    assert done["gpus"] == 1
    [again], _faults = with_gpus([{**done, "version": "2.0.0"}], lock(200 * GIB, "2.0.0"), PROFILES, hosts, None)
    assert again["gpus"] == 4
    numbered = {**asked(), "gpus": 3}
    assert with_gpus([numbered], {}, {}, hosts, None) == ([numbered], [])
