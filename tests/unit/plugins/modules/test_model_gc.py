# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The modules that look after a store, as Ansible runs them, beside a docker of a few lines."""

from __future__ import annotations

import json
import os

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_fetch import Fetcher
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_staging import Staging
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_store import Store
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import Places, artifact, digest, entry, tree_of

VERSIONS = {"1.0.0": {"tiny.gguf": b"one"}, "2.0.0": {"tiny.gguf": b"two two"}}


def known(version: str, **more) -> dict:
    return {"model": "tiny", "version": version, "files": [entry(*item) for item in VERSIONS[version].items()], **more}


@pytest.fixture
def store(tmp_path):
    """A store with two versions."""
    for version, contents in VERSIONS.items():
        for path, body in contents.items():
            (tmp_path / version).mkdir()
            (tmp_path / version / path).write_bytes(body)
    made = Store(tmp_path / "store")
    artifacts = [artifact(f"file://{tmp_path}/{version}", contents, version) for version, contents in VERSIONS.items()]
    Staging(made, artifacts).run(Fetcher([Places()]))
    return made


@pytest.fixture
def call(run_module, tmp_path, store):
    """Run a module on the store, on a host whose docker has these containers or fails with this error."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def run(name: str, inspected: list | None = None, error: str = "", **arguments) -> dict:
        (tmp_path / "inspected.json").write_text(json.dumps(inspected or []))
        identifiers = " ".join(str(number) for number in range(len(inspected or [])))
        told = f"case $1 in ps) echo {identifiers};; inspect) cat {tmp_path}/inspected.json;; esac"
        answer = f"echo '{error}' >&2; exit 1" if error else told
        docker = folder / "docker"
        docker.write_text(f"#!/bin/sh\n{answer}\n")
        docker.chmod(0o755)
        return run_module(name, path=folder, store=str(store.root), **arguments)

    return run


def engine(store: Store, version: str) -> dict:
    labels = {"llm_fleet.instance": "tiny-0-a", "llm_fleet.model": "tiny", "llm_fleet.version": version}
    return {"Name": "/tiny-0-a", "Config": {"Labels": labels}, "Mounts": [{"Source": f"{store.root}/models/tiny/{version}"}]}


def test_check_mode_tells_what_a_run_then_frees(call, store):
    asked = {"keep": [known("2.0.0", reasons=["current"])], "diff": True}
    announced = call("model_gc", check_mode=True, **asked)
    assert announced["changed"] and tree_of(store.root, "1.0.0") == VERSIONS["1.0.0"]
    done = call("model_gc", **asked)
    for key in ("changed", "actions", "freed", "freed_bytes", "kept", "diff"):
        assert announced[key] == done[key]
    assert done["actions"] == ["remove tiny 1.0.0 (3 bytes)"] and done["freed_bytes"] == 3
    assert done["kept"][0]["reasons"] == ["current"]
    assert tree_of(store.root, "1.0.0") is None and tree_of(store.root, "2.0.0") == VERSIONS["2.0.0"]
    assert not call("model_gc", **asked)["changed"]


def test_what_a_container_has_stays(call, store):
    result = call("model_gc", [engine(store, "1.0.0")], keep=[known("2.0.0")])
    assert not result["changed"] and result["kept"][0]["reasons"] == ["used by tiny-0-a"]


def test_nothing_goes_where_docker_does_not_tell(call, store):
    result = call("model_gc", error="Cannot connect to the Docker daemon", keep=[known("2.0.0")])
    assert result["failed"] and "Cannot connect" in result["fault"]["what"] and "start Docker" in result["fault"]["fix"]
    assert tree_of(store.root, "1.0.0") == VERSIONS["1.0.0"]
    assert call("model_gc", error="no", containers=False, keep=[known("2.0.0")])["changed"]


def test_to_keep_nothing_is_refused(call, store):
    result = call("model_gc", keep=[])
    assert result["failed"] and "model_store_state: absent" in result["fault"]["fix"]
    assert tree_of(store.root, "1.0.0") == VERSIONS["1.0.0"]


def test_info_tells_size_users_and_what_it_is_known_as(call, store):
    result = call("model_artifact_info", [engine(store, "1.0.0")], known=[known("1.0.0", reasons=["current"])])
    assert not result["changed"]
    shown = [(row["version"], row["size"], row["complete"], row["used_by"], row["reasons"]) for row in result["artifacts"]]
    assert shown == [("1.0.0", 3, True, ["tiny-0-a"], ["current"]), ("2.0.0", 7, True, [], [])]


def test_a_damaged_file_is_told_and_set_aside_once(call, store):
    blob = store.blobs / digest(b"one")
    status = blob.stat()
    blob.chmod(0o600)
    blob.write_bytes(b"onE")
    os.utime(blob, ns=(status.st_atime_ns, status.st_mtime_ns))
    expected = [{"model": "tiny", "version": "1.0.0", "file": "tiny.gguf", "expected": digest(b"one"), "actual": digest(b"onE")}]
    known_ones = [known(version) for version in VERSIONS]
    looked = call("model_verify", check_mode=True, known=known_ones)
    assert looked["damaged"] == expected and not looked["changed"] and blob.exists()
    result = call("model_verify", known=known_ones, run="verify1")
    assert result["damaged"] == expected and result["set_aside"] == [digest(b"one")] and result["changed"]
    told = call("model_stage_info", run="verify1")
    assert (told["state"], told["done_bytes"]) == ("done", 10)
    assert call("model_artifact_info", known=known_ones)["artifacts"][0]["missing"] == ["tiny.gguf"]


def test_a_host_without_a_store_is_no_error(run_module, tmp_path):
    nowhere = str(tmp_path / "none")
    assert run_module("model_artifact_info", store=nowhere)["artifacts"] == []
    assert not run_module("model_gc", store=nowhere, keep=[known("1.0.0")], containers=False)["changed"]
    assert run_module("model_verify", store=nowhere)["damaged"] == []
    assert not (tmp_path / "none").exists()
