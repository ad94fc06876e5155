# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Locking a branch of the hub: it becomes a commit, and what happens to the branch afterwards is drift."""

from __future__ import annotations

import sys

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.source_url import is_pinned, parse_source
from ansible_collections.localfirst.llm_fleet.tests.unit.conftest import REPO
from ansible_collections.localfirst.llm_fleet.tests.unit.support.lock_builders import lock, locked, model
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import BODY, digest

pytest.importorskip("huggingface_hub")
sys.path.insert(0, str(REPO / "testbed" / "doubles" / "hub"))
from hub import Hub

WEIGHTS = {"model.safetensors": BODY, "config.json": b'{"a": 1}', "tokenizer.json": b"[]"}
# An engine that reads such a directory.
PROFILES = {"reader": {"formats": ["safetensors"], "image": f"registry.example/reader@sha256:{'ab' * 32}"}}


@pytest.fixture
def hub(tmp_path):
    with Hub(tmp_path / "hub") as running:
        yield running


def publish(hub: Hub, revision: str, **changes: bytes) -> None:
    """Another state of the repository, and the branch on it."""
    folder = hub.root / "org/chat"
    for name, body in {**WEIGHTS, **{name.replace("_", "."): body for name, body in changes.items()}}.items():
        (folder / revision).mkdir(parents=True, exist_ok=True)
        (folder / revision / name).write_bytes(body)
    (folder / "main").unlink(missing_ok=True)
    (folder / "main").symlink_to(revision)


def test_a_branch_is_locked_as_a_commit_and_its_moves_are_told(hub, tmp_path):
    publish(hub, "v1")
    wanted = [model("chat", {"1.0.0": "hf://org/chat@main"}, engine="reader")]
    options = {"store": tmp_path / "store", "settings": {"hf://": {"endpoint": hub.url, "retries": 0}}, "profiles": PROFILES}
    first = lock(wanted, **options)
    entry = locked(first.text)["chat", "1.0.0"]
    assert is_pinned(parse_source(entry["source"])) and entry["asked"] == "hf://org/chat@main"
    assert {file["path"]: file["sha256"] for file in entry["files"]} == {name: digest(body) for name, body in WEIGHTS.items()}
    assert first.downloaded == len(WEIGHTS["config.json"]) + len(WEIGHTS["tokenizer.json"])
    assert lock(wanted, first.text, **options).drift == []

    publish(hub, "v2", config_json=b'{"a": 2}')
    told = lock(wanted, first.text, **options)
    assert told.text == first.text
    assert [(drift["locked"], drift["changes"]) for drift in told.drift] == [
        (entry["source"], "another revision; its small files may differ")
    ]
    taken = lock(wanted, first.text, update=["chat"], **options)
    assert {file["path"]: file["sha256"] for file in locked(taken.text)["chat", "1.0.0"]["files"]} == {
        **{name: digest(body) for name, body in WEIGHTS.items()},
        "config.json": digest(b'{"a": 2}'),
    }

    publish(hub, "v3", model_safetensors=BODY[::-1])
    assert [drift["changes"] for drift in lock(wanted, taken.text, **options).drift] == ["1 changed (model.safetensors)"]


def test_a_commit_is_not_asked_for_again(hub, tmp_path):
    publish(hub, "v1")
    options = {"store": tmp_path / "store", "settings": {"hf://": {"endpoint": hub.url, "retries": 0}}, "profiles": PROFILES}
    first = lock([model("chat", {"1.0.0": "hf://org/chat@main"}, engine="reader")], **options)
    commit = locked(first.text)["chat", "1.0.0"]["source"]
    pinned = [model("chat", {"1.0.0": commit}, engine="reader")]
    second = lock(pinned, first.text, **options)
    assert second.actions == [f"chat 1.0.0: same files, other particulars ({commit})"] and second.downloaded == 0
    hub.stop()
    again = lock(pinned, second.text, **options)
    assert again.faults == again.unasked == [] and again.text == second.text
