# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What a bundle has to hold, from catalog and lockfile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.bundle_manifest import blob_path
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.bundle_plan import plan_bundle
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile import parse_lockfile
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile_text import render_lockfile
from ansible_collections.localfirst.llm_fleet.tests.unit.support.bundle_builders import Writer
from ansible_collections.localfirst.llm_fleet.tests.unit.support.lock_builders import PROFILES, lock, model
from ansible_collections.localfirst.llm_fleet.tests.unit.support.signature_builders import key
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import digest

BODIES = {"a": b"one", "b": b"two", "c": b"three"}


@pytest.fixture
def ask(tmp_path, run_module):
    """Two models, one of them in two versions, locked from files of this machine."""
    for name, body in BODIES.items():
        (tmp_path / f"{name}.gguf").write_bytes(body)
    models = [
        model("tiny", {"1.0.0": f"file://{tmp_path}/a.gguf", "1.1.0": f"file://{tmp_path}/b.gguf"}),
        model("other", {"1.0.0": f"file://{tmp_path}/c.gguf"}),
    ]
    (tmp_path / "models.lock.yml").write_text(lock(models).text)

    def run(**arguments) -> dict:
        given = {"models": models, "profiles": PROFILES, "lockfile": str(tmp_path / "models.lock.yml"), **arguments}
        return run_module("bundle_plan", **given)

    return run


def titles(entries: list[dict]) -> list[str]:
    return [f"{each['model']} {each['version']}" for each in entries]


def test_all_locked_versions_of_all_models_are_meant_unless_some_are_named(ask):
    found = ask()
    assert titles(found["artifacts"]) == ["other 1.0.0", "tiny 1.0.0", "tiny 1.1.0"] == titles(found["fetch"])
    assert set(found["wanted"]) == {"models.lock.yml", *(blob_path(digest(body)) for body in BODIES.values())}
    assert found["bytes"] == sum(map(len, BODIES.values()))
    assert titles(ask(select=["tiny"])["artifacts"]) == ["tiny 1.0.0", "tiny 1.1.0"]
    assert titles(ask(select=["tiny@1.1.0", "other"])["artifacts"]) == ["other 1.0.0", "tiny 1.1.0"]


def test_images_come_once_for_each_platform(ask):
    extra = f"registry.example/dcgm@sha256:{'cd' * 32}"
    images = ask(images=[extra], platforms=["linux/amd64", "linux/arm64"])["images"]
    assert [(each["image"], each["platform"]) for each in images] == [
        ("registry.example:5000/llamacpp", "linux/amd64"), ("registry.example:5000/llamacpp", "linux/arm64"),
        ("registry.example/dcgm", "linux/amd64"), ("registry.example/dcgm", "linux/arm64"),
    ]
    assert "registry/repository@sha256" in ask(images=["registry.example/dcgm:latest"])["msg"]


def test_what_no_lockfile_has_an_id_of_is_known_by_its_digest():
    engine = {"image": "hub.example/llamacpp", "digest": f"sha256:{'ab' * 32}", "ids": {"linux/amd64": f"sha256:{'12' * 32}"}}
    chosen, lock = [({"name": "tiny", "engine": "llamacpp"}, "")], {"images": {"llamacpp": engine}}
    locked, more = f"{engine['image']}@{engine['digest']}", f"hub.example/dcgm@sha256:{'cd' * 32}"

    def images(*further: str) -> list[tuple]:
        plan, faults = plan_bundle(chosen, lock, "lock", further, ["linux/amd64", "linux/arm64"], None)
        assert not faults
        return [(each["image"].rpartition("/")[2], each["platform"][6:], bool(each["id"]), each["by_digest"]) for each in plan.images]

    assert images(more) == [
        ("llamacpp", "amd64", True, False), ("llamacpp", "arm64", False, True),
        ("dcgm", "amd64", False, True), ("dcgm", "arm64", False, True),
    ]
    # An engine's image that somebody asks for by its digest as well: one archive for both, with the proof.
    assert images(locked) == [("llamacpp", "amd64", True, True), ("llamacpp", "arm64", False, True)]


def test_what_the_base_has_is_not_fetched(ask, tmp_path, run_module):
    base = Writer(tmp_path, run_module).write("base", {"tiny 1.0.0": {"tiny.gguf": BODIES["a"]}})
    found = ask(base=str(base))
    assert titles(found["fetch"]) == ["other 1.0.0", "tiny 1.1.0"] and len(found["artifacts"]) == 3
    # It is for all of it nevertheless.
    assert blob_path(digest(BODIES["a"])) in found["wanted"]


def test_all_faults_come_at_once(ask, tmp_path):
    said = ask(select=["tinny", "nothing"], base=str(tmp_path / "gone"))["msg"]
    assert "did you mean 'tiny'?" in said and "'nothing'" in said and "there is no manifest" in said
    assert "version 9.0.0 of 'tiny' is not locked" in ask(select=["tiny@9.0.0"])["msg"]
    assert "cannot be read" in ask(lockfile=str(tmp_path / "none.yml"))["msg"]
    assert "the catalog is empty" in ask(models=[])["msg"]
    file = tmp_path / "models.lock.yml"
    file.write_text(file.read_text().replace(digest(BODIES["b"]), digest(b"forged")))
    assert "are not those that were locked" in ask()["msg"]


def test_a_demanded_signature_has_to_hold(ask, tmp_path):
    models = json.loads(json.dumps([model("tiny", {"1.0.0": f"file://{tmp_path}/a.gguf"})]))
    models[0]["signature"] = {"key": str(Path(tmp_path) / "models.pub")}
    assert "without the signature that the catalog demands" in ask(models=models)["msg"]


def test_a_locked_version_that_the_catalog_does_not_have_is_in_no_bundle_without_the_model_s_signature(ask, tmp_path):
    _private, public = key().write(tmp_path)
    lockfile = tmp_path / "models.lock.yml"
    data, _faults = parse_lockfile(lockfile.read_text(), lockfile.name)
    signed = data["models"]["tiny"]["1.0.0"]
    text = key().sign({"a.gguf": digest(BODIES["a"])})
    signed["signature"] = {"signer": key().fingerprint, "sha256": digest(text.encode()), "content": text}
    lockfile.write_text(render_lockfile(data))
    models = [{**model("tiny", {"1.0.0": f"file://{tmp_path}/a.gguf"}), "signature": {"key": str(public)}}]
    (fault,) = ask(models=models)["faults"]
    assert "without the signature" in fault["what"] and "models.tiny.1.1.0.signature" in fault["where"]
    del data["models"]["tiny"]["1.1.0"]
    lockfile.write_text(render_lockfile(data))
    assert titles(ask(models=models)["artifacts"]) == ["tiny 1.0.0"]


def test_a_fleet_that_takes_signed_versions_only_gets_no_others_in_a_bundle(ask):
    assert "failed" not in ask(select=["tiny@1.0.0"], require_signatures=False)
    faults = ask(require_signatures=True)["faults"]
    assert faults and all("llm_fleet_require_signatures" in fault["what"] for fault in faults)
