# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Which files go to which host, and which of them the controller hands out."""

from __future__ import annotations

import hashlib

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.local_supply import local_files
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.staging import bringing, fleet_artifacts, missing, supply
from ansible_collections.localfirst.llm_fleet.tests.unit.plugins.module_utils.fleet_builders import (
    host,
    model,
    plan,
    record,
)

HOSTS = [host("gpu1"), host("gpu2")]


def file(path: str, text: str = "", **other) -> dict:
    return {"path": path, "size": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest(), **other}


def locked(version: str, *files: dict, source: str = "https://models.example/tiny") -> dict:
    return {"source": source, "format": "gguf", "size": sum(each["size"] for each in files), "files": list(files)}


def lock(**models) -> dict:
    return {"models": models}


def names(artifacts: list) -> list:
    return [f"{each['model']} {each['version']}" for each in artifacts]


def held(*files: dict) -> dict:
    return {each["sha256"]: each["size"] for each in files}


# Which


def test_a_host_needs_what_its_instances_run_and_others_need_nothing():
    planned = plan([model("tiny"), model("other", placement={"hosts": ["gpu2"]})], HOSTS).plan
    artifacts = fleet_artifacts(planned, lock())
    assert {name: names(each) for name, each in artifacts.items()} == {"gpu1": ["tiny 1.0.0"], "gpu2": ["other 1.0.0"]}
    assert artifacts["gpu1"][0]["files"] == record("tiny")["files"]
    assert set(artifacts["gpu1"][0]) == {"model", "version", "source", "format", "size", "files"}


def test_a_version_that_waits_for_its_rollout_is_staged_beside_the_one_that_runs():
    running = plan([model("tiny", 2)], HOSTS).plan
    pending = plan([model("tiny", 2, version="1.1.0")], HOSTS, running).plan
    known = lock(tiny={"1.1.0": locked("1.1.0", file("tiny.gguf", "new"))})
    assert names(fleet_artifacts(pending, known)["gpu2"]) == ["tiny 1.0.0", "tiny 1.1.0"]


def test_the_lockfile_says_where_a_file_is_and_holds_small_ones():
    [release] = record("tiny")["files"]
    planned = plan([model("tiny")], HOSTS).plan
    known = lock(tiny={"1.0.0": locked("1.0.0", {**release, "from": "sub/tiny.gguf"}, source="oci://registry.example/tiny")})
    [artifact] = fleet_artifacts(planned, known)["gpu1"]
    assert artifact["source"] == "oci://registry.example/tiny" and artifact["files"][0]["from"] == "sub/tiny.gguf"


def test_what_runs_is_known_by_its_release_even_when_the_lockfile_says_something_else():
    planned = plan([model("tiny")], HOSTS).plan
    [artifact] = fleet_artifacts(planned, lock(tiny={"1.0.0": locked("1.0.0", file("tiny.gguf", "other"))}))["gpu1"]
    assert artifact["files"] == record("tiny")["files"]


def test_a_depot_needs_what_all_others_need():
    planned = plan([model("tiny"), model("other", placement={"hosts": ["gpu2"]})], HOSTS).plan
    artifacts = fleet_artifacts(planned, lock(), ["depot1", "gpu1"])
    assert names(artifacts["depot1"]) == names(artifacts["gpu1"]) == ["other 1.0.0", "tiny 1.0.0"]
    assert fleet_artifacts({"instances": [], "models": {}}, lock(), ["depot1"]) == {}


# How much

SHARED, OLD, NEW = file("shared.bin", "shared"), file("old.bin", "old"), file("new.bin", "newer")
SMALL = file("manifest", "{}", content="{}")
WEB = {"model": "tiny", "version": "1.0.0", **locked("1.0.0", SHARED, OLD)}
WEB2 = {"model": "tiny", "version": "2.0.0", **locked("2.0.0", SHARED, NEW, SMALL)}
FILES = {"model": "local", "version": "1.0.0", **locked("1.0.0", file("local.bin", "local"), source="file:///models/local.bin")}


def test_what_a_host_has_by_digest_and_size_is_not_missing():
    assert list(missing([WEB, WEB2], held(SHARED, OLD, SMALL)).values()) == [NEW]
    assert list(missing([WEB], {SHARED["sha256"]: 1, OLD["sha256"]: OLD["size"]}).values()) == [SHARED]


def test_the_controller_hands_out_what_some_host_lacks_and_each_content_once():
    wanted = {"gpu1": [WEB, WEB2], "gpu2": [WEB]}
    handed = supply(wanted, {"gpu1": held(SHARED), "gpu2": {}})
    assert [(each["version"], [f["path"] for f in each["files"]]) for each in handed] == [
        ("1.0.0", ["shared.bin", "old.bin"]),
        ("2.0.0", ["new.bin"]),
    ]
    assert sum(each["size"] for each in handed) == SHARED["size"] + OLD["size"] + NEW["size"]
    assert supply(wanted, {"gpu1": held(SHARED, OLD, NEW), "gpu2": held(SHARED, OLD)}) == []


def test_who_lacks_what_is_told_host_by_host():
    wanted = {"gpu1": [WEB, WEB2], "gpu2": [WEB]}
    told = bringing(wanted, {"gpu1": held(SHARED, OLD, SMALL), "gpu2": held(SHARED, OLD), "gw1": {}})
    assert told == ["gpu1: bring 5 bytes of tiny 2.0.0"]


def test_hosts_that_did_not_answer_are_handed_nothing():
    assert supply({"gpu1": [WEB]}, {}) == []


def test_depots_get_from_the_controller_only_what_it_has():
    handed = supply({"depot1": [WEB, FILES]}, {"depot1": {}}, here=set())
    assert names(handed) == ["local 1.0.0"]
    handed = supply({"depot1": [WEB, FILES]}, {"depot1": {}}, here={OLD["sha256"]})
    assert names(handed) == ["local 1.0.0", "tiny 1.0.0"]
    assert handed[1]["files"] == [OLD]


# Files of the controller


def test_files_of_the_controller_are_served_where_they_lie(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old.bin").write_text("old")
    (tmp_path / "tiny.gguf").write_text("newer")
    folder = {"model": "a", "version": "1.0.0", "source": f"file://{tmp_path}/model", "files": [OLD]}
    single = {"model": "b", "version": "1.0.0", "source": f"file://{tmp_path}/tiny.gguf", "files": [{**NEW, "path": "tiny.gguf"}]}
    found, faults = local_files([folder, single, WEB])
    assert faults == []
    assert found == {OLD["sha256"]: f"{tmp_path}/model/old.bin", NEW["sha256"]: f"{tmp_path}/tiny.gguf"}


def test_a_file_that_is_gone_or_has_changed_is_a_fault_before_anything_moves(tmp_path):
    (tmp_path / "changed").write_text("of another length")
    gone = {"model": "a", "version": "1.0.0", "source": f"file://{tmp_path}/gone", "files": [OLD]}
    changed = {"model": "b", "version": "1.0.0", "source": f"file://{tmp_path}/changed", "files": [NEW]}
    found, faults = local_files([gone, changed])
    assert found == {} and [fault.where for fault in faults] == [f"{tmp_path}/{name} on the controller" for name in ("gone", "changed")]
    assert "no such file" in faults[0].what and f"{NEW['size']} were locked" in faults[1].what
