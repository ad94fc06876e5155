# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Locking the images of engines, from a real registry: with the names by which archives of them are known."""

from __future__ import annotations

import json

import pytest
import yaml

from ansible_collections.localfirst.llm_fleet.tests.unit.support import docker_registry, oci_artifacts
from ansible_collections.localfirst.llm_fleet.tests.unit.support.docker_registry import DockerRegistry
from ansible_collections.localfirst.llm_fleet.tests.unit.support.lock_builders import lock, model
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import digest

pytestmark = pytest.mark.skipif(docker_registry.PROGRAM is None, reason=docker_registry.MISSING)

KIND = "application/vnd.oci.image.config.v1+json"


def config(number: int) -> bytes:
    return json.dumps({"os": "linux", "architecture": "amd64", "number": number}).encode()


@pytest.fixture
def registry(tmp_path):
    with DockerRegistry(tmp_path / "registry", tmp_path / "storage") as running:
        yield running.address


NOBODY = "127.0.0.1:1"  # where no registry is


@pytest.fixture
def lock_image(tmp_path, registry):
    """Lock a model with this image; returns what came of it, and the image's entry."""
    weights = tmp_path / "tiny.gguf"
    weights.write_bytes(b"weights")

    def run(reference: str, text: str | None = None, **options):
        settings = {f"oci://{host}/": {"plain_http": True, "retries": 0} for host in (registry, NOBODY)}
        wanted = [model("tiny", {"1.0.0": f"file://{weights}"})]
        before = [text] if text else []
        found = lock(wanted, *before, store=tmp_path / "store", settings=settings, images={"llamacpp": reference}, **options)
        assert found.faults == []
        return found, yaml.safe_load(found.text)["images"]["llamacpp"]

    return run


def push(registry: str, number: int) -> str:
    return oci_artifacts.push_layers(registry, "engines/echo:1", [], (KIND, config(number)))


def test_an_image_is_locked_with_what_docker_calls_it(lock_image, registry):
    pushed = push(registry, 1)
    first, entry = lock_image(f"{registry}/engines/echo:1")
    assert entry["digest"] == pushed and entry["ids"] == {"linux/amd64": f"sha256:{digest(config(1))}"}
    again, _entry = lock_image(f"{registry}/engines/echo:1", first.text)
    assert again.text == first.text and again.actions == []
    push(registry, 2)
    told, _entry = lock_image(f"{registry}/engines/echo:1", first.text)
    assert told.text == first.text and len(told.drift) == 1
    _taken, entry = lock_image(f"{registry}/engines/echo:1", first.text, update=["llamacpp"])
    assert entry["ids"] == {"linux/amd64": f"sha256:{digest(config(2))}"}


def test_an_image_named_by_its_digest_is_asked_for_when_somebody_wants_that(lock_image, registry):
    reference = f"{registry}/engines/echo@{push(registry, 1)}"
    first, entry = lock_image(reference)
    assert "ids" not in entry
    taken, entry = lock_image(reference, first.text, update=["llamacpp"])
    assert entry["ids"] == {"linux/amd64": f"sha256:{digest(config(1))}"}
    kept, entry = lock_image(reference, taken.text)
    assert kept.text == taken.text


def test_what_cannot_be_asked_stays_as_it_is(lock_image):
    reference = f"{NOBODY}/engines/echo@sha256:{'a' * 64}"
    first, _entry = lock_image(reference)
    again, _entry = lock_image(reference, first.text, update=["llamacpp"])
    assert again.text == first.text and len(again.unasked) == 1
