# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What the module says of files: who needs which, from whom they come, and what is in the way."""

from __future__ import annotations

import hashlib

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.lookup.engine_profiles import BUILT_IN, read_profiles
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile_text import render_lockfile
from ansible_collections.localfirst.llm_fleet.tests.unit.support.host_answers import BARE_HOST

BODY = b"weights of a model"
DIGEST = hashlib.sha256(BODY).hexdigest()
GIB = 1024**3


def host(name: str, **other) -> dict:
    """A host as host_info describes it."""
    return {
        "name": name,
        "address": f"10.0.0.{sum(name.encode()) % 250}",
        **BARE_HOST,
        "store": {"path": "/var/lib/llm_fleet/store", "total_bytes": 100 * GIB, "free_bytes": 50 * GIB},
        "gpus": [],
        **other,
    }


@pytest.fixture
def plan(run_module, tmp_path):
    """Plan for one model on gpu1 with the hosts that answered; its file is on the web, or on this machine (`local`)."""
    (tmp_path / "tiny.gguf").write_bytes(BODY)

    def run(*nodes: dict, local: bool = False, asked=("gw1", "gpu1", "gpu2"), **arguments) -> dict:
        source = f"file://{tmp_path}/tiny.gguf" if local else "https://models.example/tiny.gguf"
        files = [{"path": "tiny.gguf", "size": len(BODY), "sha256": DIGEST}]
        locked = {"1.0.0": {"asked": source, "source": source, "format": "gguf", "files": files}}
        images = {"llamacpp": {"image": "registry.example/llamacpp", "digest": f"sha256:{'a' * 64}"}}
        (tmp_path / "models.lock.yml").write_text(render_lockfile({"images": images, "models": {"tiny": locked}}))
        model = {"name": "tiny", "version": "1.0.0", "versions": {"1.0.0": {"source": source}}, "engine": "llamacpp"}
        return run_module(
            "fleet_plan",
            models=[{**model, "placement": {"hosts": ["gpu1"]}}],
            clients=[],
            profiles=read_profiles([BUILT_IN])[0],
            lockfile=str(tmp_path / "models.lock.yml"),
            ca_dir=str(tmp_path),
            gateways=["gw1"],
            nodes=["gpu1", "gpu2"],
            asked=[*asked, *arguments.get("depots", [])],
            hosts=[host("gw1"), *nodes],
            **arguments,
        )

    return run


NODES = (host("gpu1"), host("gpu2"))
FULL = {"blobs": {DIGEST: len(BODY)}}


def test_without_depots_the_controller_hands_out_what_nodes_lack(plan):
    result = plan(*NODES)
    assert set(result["artifacts"]) == {"gpu1"}
    [artifact] = result["supply"]["artifacts"]
    assert [file["sha256"] for file in artifact["files"]] == [DIGEST] and result["supply"]["files"] == {}
    assert result["supply"]["towards"] == host("gpu1")["address"]
    assert len(result["bringing"]) == 1 and result["bringing"][0].startswith("gpu1: ")
    assert result["suppliers"] == []


def test_where_all_have_what_they_need_nothing_is_handed_out(plan):
    result = plan(host("gpu1", **FULL), host("gpu2"))
    assert result["supply"]["artifacts"] == [] and result["bringing"] == []
    assert set(result["artifacts"]) == {"gpu1"}


def test_depots_fetch_for_all_and_take_only_local_files_from_the_controller(plan, tmp_path):
    result = plan(*NODES, host("depot1"), depots=["depot1"])
    assert result["suppliers"] == ["depot1"] and result["supply"]["artifacts"] == []
    assert result["artifacts"]["depot1"] == result["artifacts"]["gpu1"]
    result = plan(*NODES, host("depot1"), depots=["depot1"], local=True)
    assert result["supply"]["files"] == {DIGEST: f"{tmp_path}/tiny.gguf"}
    assert result["supply"]["towards"] == host("depot1")["address"]


def test_what_only_a_node_lacks_does_not_come_from_the_controller_when_there_are_depots(plan):
    result = plan(*NODES, host("depot1", **FULL), depots=["depot1"], local=True)
    assert result["supply"]["artifacts"] == []


def test_a_depot_that_does_not_answer_is_not_asked_for_files(plan):
    assert plan(*NODES, host("depot2"), depots=["depot1", "depot2"])["suppliers"] == ["depot2"]


def test_no_depot_at_all_is_a_fault_only_when_something_has_to_come_from_one(plan):
    failed = plan(*NODES, depots=["depot1"])
    assert failed["failed"] and "depot1" in failed["faults"][0]["what"]
    assert plan(host("gpu1", **FULL), host("gpu2"), depots=["depot1"])["faults"] == []


def test_a_local_file_that_is_gone_is_a_fault_before_anything_moves(plan, tmp_path):
    (tmp_path / "tiny.gguf").unlink()
    [fault] = plan(*NODES, local=True)["faults"]
    assert fault["where"] == f"{tmp_path}/tiny.gguf on the controller"
    # Nobody needs it where all have it already.
    assert plan(host("gpu1", **FULL), host("gpu2"), local=True)["faults"] == []


def test_a_disk_without_room_is_a_fault_of_nodes_and_of_depots(plan):
    small = {"store": {"path": "/store", "total_bytes": GIB, "free_bytes": GIB}}
    faults = plan(host("gpu1", **small), host("gpu2", **small), host("depot1", **small), depots=["depot1"])["faults"]
    assert [fault["where"] for fault in faults] == ["host depot1", "host gpu1"]


def test_a_certificate_of_another_ca_is_a_fault_on_every_host(plan, tmp_path):
    (tmp_path / "ca.pem").write_text("PEM A")
    [fault] = plan(host("gpu1", fleet_ca="PEM B"), host("gpu2", fleet_ca="PEM A\n"))["faults"]
    assert fault["where"] == "host gpu1"


def test_a_local_file_that_a_bundle_brought_is_handed_out_from_the_store(plan, tmp_path):
    """On the other side of an air gap nothing lies where the source says."""
    blobs = tmp_path / "store" / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (blobs / DIGEST).write_bytes(BODY)
    for depots in ([], ["depot1"]):
        hosts = [*NODES, *(host(name) for name in depots)]
        result = plan(*hosts, local=True, store=str(tmp_path / "store"), depots=depots)
        assert result["supply"]["files"] == {} and result["supply"]["fetch"] == []
        assert [file["sha256"] for file in result["supply"]["artifacts"][0]["files"]] == [DIGEST]
    (tmp_path / "tiny.gguf").rename(tmp_path / "elsewhere")
    assert "failed" not in plan(*NODES, local=True, store=str(tmp_path / "store"))
