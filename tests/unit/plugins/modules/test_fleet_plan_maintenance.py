# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Taking nodes out of service and bringing them back, as playbooks ask it of the module."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.lookup.engine_profiles import BUILT_IN, read_profiles
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile_text import render_lockfile
from ansible_collections.localfirst.llm_fleet.tests.unit.support.host_answers import BARE_HOST

FACTS = {**BARE_HOST, "gpus": []}
ADDRESSES = {"gw1": "10.0.0.1", "gpu1": "10.0.0.2", "gpu2": "10.0.0.3"}
ANN = {"who": "ann on laptop", "why": "driver 580"}
SMOKE = [{"prompt": "2+2?", "regex": "4"}]


@pytest.fixture
def plan(run_module, tmp_path):
    """Plan for a model with a replica on each of two nodes; `known` is the plan that the hosts have."""
    source = "https://models.example/tiny.gguf"
    version = {"asked": source, "source": source, "format": "gguf", "files": [{"path": "tiny.gguf", "size": 10, "sha256": f"{1:064x}"}]}
    images = {"llamacpp": {"image": "registry.example/llamacpp", "digest": f"sha256:{'a' * 64}"}}
    lockfile = tmp_path / "models.lock.yml"
    lockfile.write_text(render_lockfile({"images": images, "models": {"tiny": {"1.0.0": version}}}))
    model = {"name": "tiny", "version": "1.0.0", "versions": {"1.0.0": {"source": source}}, "engine": "llamacpp", "replicas": 2}

    def run(known: dict | None = None, hosts: tuple = tuple(ADDRESSES), **arguments) -> dict:
        return run_module(
            "fleet_plan",
            models=[{**model, "smoke": SMOKE}],
            clients=[],
            profiles=read_profiles([BUILT_IN])[0],
            lockfile=str(lockfile),
            ca_dir=str(tmp_path),
            gateways=["gw1"],
            nodes=["gpu1", "gpu2"],
            hosts=[{**FACTS, "name": name, "address": ADDRESSES[name], "plan": known} for name in hosts],
            **{"asked": list(ADDRESSES), **arguments},
        )

    return run


def test_out_and_back(plan):
    first = plan()["plan"]
    out = plan(first, maintenance={"hosts": ["gpu1"], "state": "begin", **ANN})
    assert out["actions"] == ["gpu1: goes out of service"]
    assert out["plan"]["maintenance"]["gpu1"]["why"] == ANN["why"]
    assert out["plan"]["instances"] == first["instances"] and out["leaving"] == []
    # What the node will be asked before clients are let in again.
    assert [prompt["regex"] for prompt in out["probes"]["tiny"]["smoke"]] == ["4"]
    # Whoever plans meanwhile leaves it so.
    assert plan(out["plan"])["plan"] == out["plan"]
    back = plan(out["plan"], maintenance={"hosts": ["gpu1"], "state": "end", **ANN})
    assert back["actions"] == ["gpu1: is back in service"]
    assert back["plan"]["maintenance"] == {}


def test_all_that_forbids_it_at_once(plan):
    first = plan()["plan"]
    result = plan(first, hosts=("gw1", "gpu1"), maintenance={"hosts": ["gpu2", "gpu9"], "state": "begin", **ANN})
    assert result["failed"]
    assert [fault["what"] for fault in result["faults"]] == ["gpu9 is no GPU node", "gpu2 does not answer"]


def test_a_fleet_that_runs_nothing(plan):
    result = plan(maintenance={"hosts": ["gpu1"], "state": "begin", **ANN})
    assert result["failed"] and "run site.yml first" in result["msg"]


def test_every_gateway_has_to_learn_it(plan):
    first = plan()["plan"]
    result = plan(first, hosts=("gpu1", "gpu2"), asked=["gpu1", "gpu2"], maintenance={"hosts": ["gpu1"], "state": "begin", **ANN})
    assert result["failed"] and "every gateway" in result["msg"]


def test_a_run_opens_a_rollout_or_takes_hosts_out_and_never_both(plan):
    first = plan()["plan"]
    both = {"maintenance": {"hosts": ["gpu1"], "state": "begin", **ANN}, "rollout": {"model": "tiny", "who": ANN["who"]}}
    result = plan(first, **both)
    assert result["failed"] and "mutually exclusive" in result["msg"]
