# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""From the lockfile's shapes and the hosts' answers to what is refused for its memory."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.lookup.engine_profiles import BUILT_IN, read_profiles
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile_text import render_lockfile
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.shape_config import shape_of_config
from ansible_collections.localfirst.llm_fleet.tests.unit.support.host_answers import BARE_HOST
from ansible_collections.localfirst.llm_fleet.tests.unit.support.known_models import CONFIGS

GIB = 2**30
SOURCE = "https://models.example/chat.gguf"
GPU = {"uuid": "GPU-1", "state": "ready", "mig": {"mode": "", "devices": []}}


def lockfile(shape: dict | None) -> str:
    entry = {
        "asked": SOURCE,
        "source": SOURCE,
        "format": "gguf",
        **({"shape": shape} if shape else {}),
        "files": [{"path": "chat.gguf", "size": 5 * GIB, "sha256": "a" * 64}],
    }
    images = {"llamacpp": {"image": "registry.example/llamacpp", "digest": f"sha256:{'a' * 64}"}}
    return render_lockfile({"images": images, "models": {"chat": {"1.0.0": entry}}})


LLAMA = shape_of_config(CONFIGS["Llama-3.1-8B"], 5 * GIB)


@pytest.fixture
def plan(run_module, tmp_path):
    """Plan for one model on one node with one GPU, or without."""

    def run(shape: dict | None = LLAMA, gpu_gib: int = 0, machine_gib: int = 512, current=None, reserves=None, **model) -> dict:
        (tmp_path / "models.lock.yml").write_text(lockfile(shape))
        entry = {"name": "chat", "version": "1.0.0", "versions": {"1.0.0": {"source": SOURCE}}, "engine": "llamacpp", **model}
        gpus = {"gpu": {"state": "ready", "problem": "", "gpus": [GPU]}, "gpu_memory": {"GPU-1": gpu_gib * GIB}} if gpu_gib else {}
        facts = {**BARE_HOST, "plan": current}
        node = {**facts, "name": "gpu1", "address": "10.0.0.2", "memory_bytes": machine_gib * GIB, **gpus, **(reserves or {})}
        return run_module(
            "fleet_plan",
            clients=[],
            profiles=read_profiles([BUILT_IN])[0],
            ca_dir=str(tmp_path),
            gateways=["gw1"],
            nodes=["gpu1"],
            asked=["gw1", "gpu1"],
            models=[{"gpus": bool(gpu_gib) + 0, **entry}],
            hosts=[{**facts, "name": "gw1", "address": "10.0.0.1"}, node],
            lockfile=str(tmp_path / "models.lock.yml"),
        )

    return run


def test_what_fits_is_planned_without_a_word(plan):
    result = plan(gpu_gib=24)
    assert result["faults"] == [] and result["memory_warnings"] == []
    assert [it["gpus"] for it in result["plan"]["instances"]] == [["GPU-1"]]


def test_what_does_not_fit_is_refused(plan):
    result = plan(gpu_gib=12, context=32_768)
    assert result["failed"] and "chat" in result["msg"]
    [fault] = result["faults"]
    assert "context: " in fault["fix"] and "settings.cache_type_k" in fault["fix"]
    assert not plan(gpu_gib=12, context=32_768, limits={"gpu_memory": "11g"}).get("failed")


def test_what_is_kept_for_the_driver_is_the_hosts_to_say(plan):
    assert not plan(gpu_gib=12).get("failed")
    assert plan(gpu_gib=12, reserves={"gpu_memory_reserve": 8 * GIB})["failed"]


def test_a_machine_has_memory_too(plan):
    assert not plan(machine_gib=16).get("failed")
    assert plan(machine_gib=8, context=32_768)["failed"]
    assert plan(machine_gib=16, reserves={"memory_reserve": 12 * GIB})["failed"]


def test_what_runs_stays_with_a_warning(plan):
    served = plan(gpu_gib=24)["plan"]
    result = plan(gpu_gib=4, current=served)
    assert not result.get("failed") and result["plan"] == served
    assert result["memory_warnings"]


def test_an_older_lockfile_is_planned_with_a_warning(plan):
    result = plan(None, gpu_gib=4)
    assert not result.get("failed")
    [warning] = result["memory_warnings"]
    assert "lock again" in warning


def test_a_plan_of_an_earlier_release_of_the_collection_goes_on(plan):
    served = plan(gpu_gib=24)["plan"]
    older = {**served, "releases": {name: {k: v for k, v in one.items() if k != "fit"} for name, one in served["releases"].items()}}
    result = plan(gpu_gib=24, current=older)
    assert result["plan"]["instances"] == served["instances"] and result["leaving"] == []
    assert result["memory_warnings"] == []


def test_the_number_of_gpus_may_follow_from_their_size(plan):
    result = plan(gpu_gib=24, gpus="auto")
    assert result["faults"] == [] and [it["gpus"] for it in result["plan"]["instances"]] == [["GPU-1"]]
    # The same as with that number written out.
    assert result["plan"] == plan(gpu_gib=24, gpus=1)["plan"]
    refused = plan(gpus="auto")
    assert refused["failed"] and [fault["where"] for fault in refused["faults"]] == ["llm_fleet_models[chat].gpus"]
