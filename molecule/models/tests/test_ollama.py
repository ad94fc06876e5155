# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Models for Ollama, from its own registry and from a GGUF file: locked, staged, served, and refused when tampered with."""

from __future__ import annotations

import hashlib
import os
import subprocess

import pytest

from ansible_collections.localfirst.llm_fleet.molecule.models.tests.conftest import STORE, changed, model, said
from ansible_collections.localfirst.llm_fleet.molecule.models.tests.outside import REPO, digest

SERVED, CONVERTED = "served", "converted"


@pytest.fixture(scope="module")
def models(operator, outside) -> list[dict]:
    outside.image("ollama")
    outside.ollama_put("library/served:latest", outside.gguf(401))
    models = [
        model(SERVED, "ollama://served", engine="ollama", access=["alice"]),
        model(CONVERTED, f"file://{outside.gguf(402)}", engine="ollama", host="gpu2"),
    ]
    operator.lock(models)
    return models


@pytest.fixture(scope="module")
def deployed(operator, fleet, models) -> list[dict]:
    """Both are served, until the tests of this file are over."""
    operator.run("site", models)
    yield models
    fleet.playbook("site")


def manifest(operator, name: str) -> dict:
    """The one file of Ollama's store that names all others; the lockfile holds it."""
    (found,) = (file for file in operator.locked(name)["files"] if file["path"].startswith("manifests/"))
    return found


def test_both_are_staged_as_stores_that_ollama_reads(operator, outside, stores, models, bare):
    operator.stage(models)
    for name, seed, host in ((SERVED, 401, "gpu1"), (CONVERTED, 402, "gpu2")):
        tree = stores.trees(host)
        weights = digest(outside.gguf(seed))
        assert tree[f"{name}/1.0.0/blobs/sha256-{weights}"] == weights
        assert tree[f"{name}/1.0.0/manifests/registry.ollama.ai/library/{name}/latest"] == manifest(operator, name)["sha256"]


# In short form, scenario `engines` serves with Ollama.
@pytest.mark.long
def test_they_answer_through_the_gateway(operator, gateway, tokens, deployed):
    for name in (SERVED, CONVERTED):
        events = [event for _seconds, event in gateway.stream(tokens["alice"], model=name, max_tokens=16)]
        assert events[-1] == "[DONE]" and len(events) > 8
    assert gateway.chat(tokens["bob"], model=SERVED).status in (403, 404)
    assert gateway.chat(tokens["bob"], model=CONVERTED).status == 200
    assert set(changed(operator.run("site", deployed)).values()) == {0}


@pytest.mark.long
def test_a_manifest_that_was_tampered_with_is_noticed_and_repaired(operator, fleet, stores, deployed, gateway, tokens):
    """Same size, same time: neither the next run nor Ollama itself would look at it."""
    (instance,) = fleet.instances(model=SERVED)
    locked = manifest(operator, SERVED)
    path = f"{STORE}/models/{SERVED}/1.0.0/{locked['path']}"
    fleet.shell("gpu1", f"docker stop -t 5 {instance['id']}")
    fleet.shell("gpu1", f"""
        touch -r {path} /tmp/time; sed 's/image.params/image.paramz/' {path} > /tmp/manifest
        cat /tmp/manifest > {path}; touch -r /tmp/time {path}
    """)
    found = hashlib.sha256(locked["content"].replace("image.params", "image.paramz").encode()).hexdigest()
    assert stores.trees("gpu1")[path.removeprefix(f"{STORE}/models/")] == found != locked["sha256"]
    done = operator.run("site", deployed, check=False)
    assert done.returncode != 0
    assert locked["sha256"] in said(done) and found in said(done), said(done)[-3000:]

    operator.run("verify", deployed, "-e", "repair=true")
    fleet.shell("gpu1", f"docker restart {instance['id']}")
    operator.run("site", deployed)
    assert gateway.chat(tokens["alice"], model=SERVED).status == 200


@pytest.mark.long
def test_another_image_takes_the_place_of_the_double_by_one_variable(fleet):
    """The tag in the registry is what the variable names, whatever it is: here, something that is surely not Ollama."""
    push = [REPO / ".venv" / "bin" / "python", REPO / "testbed" / "fleet.py", "push-image", "-i", REPO / "molecule" / "inventory"]

    def pushed(name: str, **environment: str) -> str:
        done = subprocess.run(
            [*push, f"llm-fleet-testbed/{name}"], env={**os.environ, **environment}, check=True, capture_output=True, text=True
        )
        return done.stdout.strip().splitlines()[-1]

    llamacpp = pushed("llamacpp")
    mine = pushed("ollama")
    try:
        assert pushed("ollama", LLM_FLEET_IMAGE_OLLAMA="llm-fleet-testbed/llamacpp") == llamacpp != mine
    finally:
        pushed("ollama")
