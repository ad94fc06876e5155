# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What has to be signed is checked with everything else before any host is touched, and depots get what it takes to verify it."""

from __future__ import annotations

import hashlib
import json

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.lookup.engine_profiles import BUILT_IN, read_profiles
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile_text import render_lockfile
from ansible_collections.localfirst.llm_fleet.tests.unit.plugins.modules.test_fleet_plan_files import BODY, DIGEST, NODES, host
from ansible_collections.localfirst.llm_fleet.tests.unit.support.signature_builders import key

SOURCE = "https://models.example/tiny.gguf"
IMAGE = {"llamacpp": {"image": "registry.example/llamacpp", "digest": f"sha256:{'a' * 64}"}}


@pytest.fixture
def plan(run_module, tmp_path):
    """Plan for one locked model on gpu1; `signed` is the digest that its signature names, None for a lockfile without one."""
    _private, public = key().write(tmp_path)

    def run(signature: object = "key", signed: str | None = DIGEST, locked: tuple = ("1.0.0",), **arguments) -> dict:
        entry = {
            "asked": SOURCE, "source": SOURCE, "format": "gguf",
            "files": [{"path": "tiny.gguf", "size": len(BODY), "sha256": DIGEST}],
        }
        if signed:
            text = key().sign({"tiny.gguf": signed, "README.md": "cd" * 32})
            entry["signature"] = {
                "signer": key().fingerprint, "sha256": hashlib.sha256(text.encode()).hexdigest(),
                "left_out": ["README.md"], "content": text,
            }
        (tmp_path / "models.lock.yml").write_text(render_lockfile({"images": IMAGE, "models": {"tiny": dict.fromkeys(locked, entry)}}))
        model = {
            "name": "tiny", "version": "1.0.0", "versions": {"1.0.0": {"source": SOURCE}}, "engine": "llamacpp",
            "placement": {"hosts": ["gpu1"]},
        }
        if signature:
            model["signature"] = {"key": str(public)} if signature == "key" else signature
        return run_module(
            "fleet_plan", models=[model], clients=[], profiles=read_profiles([BUILT_IN])[0],
            lockfile=str(tmp_path / "models.lock.yml"), gateways=["gw1"], nodes=["gpu1", "gpu2"], depots=["depot1"],
            asked=["gw1", "gpu1", "gpu2", "depot1"], hosts=[host("gw1"), *NODES, host("depot1")],
            **{"ca_dir": str(tmp_path), **arguments},
        )

    return run


def test_a_signed_version_is_planned_and_depots_get_what_verifies_it(plan):
    result = plan(require_signatures=True)
    assert not result.get("failed"), result
    on_depot, on_node = (result["artifacts"][name][0] for name in ("depot1", "gpu1"))
    assert "signature" not in on_node
    assert on_depot["signature"]["trust"] == key().public and on_depot["signature"]["left_out"] == ["README.md"]
    assert all("signature" not in each for each in result["supply"]["artifacts"])


def test_what_nobody_demands_is_handed_to_nobody(plan):
    result = plan(signature=None)
    assert not result.get("failed") and "signature" not in json.dumps(result["artifacts"])


@pytest.mark.parametrize(
    ("arguments", "clue"),
    [
        ({"signed": "ab" * 32}, "changed since they were signed: tiny.gguf"),
        ({"signed": None}, "without the signature"),
        ({"signature": None, "require_signatures": True}, "llm_fleet_require_signatures"),
        ({"signature": {"key": "/gone.pub"}}, "/gone.pub cannot be read"),
    ],
)
def test_what_is_not_signed_as_it_should_be_is_a_fault(plan, arguments, clue):
    result = plan(**arguments)
    assert result["failed"] and len(result["faults"]) == 1 and clue in result["faults"][0]["what"]


@pytest.mark.parametrize(
    ("arguments", "clue"),
    [
        # With README.md left out: the catalog has no source that would say so.
        ({}, "the catalog does not have this version"),
        ({"signature": None, "require_signatures": True}, "llm_fleet_require_signatures"),
    ],
)
def test_a_version_that_only_the_lockfile_has_is_held_against_the_model_s_demand(plan, arguments, clue):
    """A rollout may go to it."""
    result = plan(locked=("1.0.0", "0.9.0"), **arguments)
    assert result["failed"] and clue in result["faults"][-1]["what"] and "0.9.0" in result["msg"] and "lock again" in result["msg"]
    assert not plan(locked=("1.0.0", "0.9.0"), signature=None).get("failed")


def test_all_that_is_wrong_is_told_at_once(plan):
    result = plan(signature={"sigstore": True}, require_signatures=True, ca_dir="relative")
    said = " ".join(fault["what"] for fault in result["faults"])
    assert "'sigstore' is not for a fleet" in said and "relative" in said


def test_a_report_that_is_not_strict_still_comes(plan):
    result = plan(signed="ab" * 32, strict=False)
    assert result["faults"] and all("signature" not in each for each in result["artifacts"].get("depot1", []))
