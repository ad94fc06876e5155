# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""An Ollama instance behind the gateway: the profile's checks on HAProxy, against the double and its real store."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.release import build_release, engine_interfaces
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.views import gateway_view
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_bench import Bench, Served, wait_until
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_client import CHAT, Client, token_line
from ansible_collections.localfirst.llm_fleet.tests.unit.support.ollama_bench import PROFILE, Ollama


def backend(ollama: Ollama) -> dict:
    """What the gateway is told of an instance by a plan that was made from profile, catalog and lockfile."""
    size = sum(file["size"] for file in ollama.files)
    locked = {"source": "ollama://tiny", "format": "ollama", "size": size, "files": ollama.files}
    model = {"name": "tiny", "context": 512, "parallel": 2}
    record = build_release(PROFILE, model, "1.0.0", locked, f"registry.example/ollama@sha256:{'e' * 64}")
    place = {"host": "gpu1", "address": "127.0.0.1", "port": ollama.port, "release": record["release"]}
    release = {"release": record["release"], "wanted_release": record["release"], "version": "1.0.0"}
    view = gateway_view(
        {
            "models": {"tiny": {**release, "engine": "ollama", "access": ["demo"], "queue": 16}},
            "engines": engine_interfaces({"ollama": PROFILE}, ["ollama"]),
            "releases": {record["release"]: record},
            "instances": [{"id": "tiny-0-a", "model": "tiny", "version": "1.0.0", **place}],
        },
        [{"name": "demo"}],
    )
    return view["backends"][0]


@pytest.fixture
def ollama(tmp_path):
    (tmp_path / "o").mkdir()
    made = Ollama(tmp_path / "o")
    yield made
    made.stop()


@pytest.fixture
def gateway(tmp_path, ollama, monkeypatch):
    """A gateway with this instance, a client of it, and the state of its one server."""
    told = backend(ollama)
    model = Served("tiny", [ollama], ["demo"], release=told["release"], key="", paths=tuple(r for r in PROFILE["http"]["public"]))
    monkeypatch.setattr(model, "as_backend", lambda: told, raising=False)
    bench = Bench(tmp_path)
    bench.write([model], {"demo": (1000, 100)})
    bench.tokens.write_text(token_line("llmf_demo", "demo"))
    bench.start()
    yield Client(bench.port, "llmf_demo"), lambda: bench.status(model.backend, "tiny-0-a").split(" ")[0]
    bench.stop()


def test_it_is_up_while_the_locked_model_is_in_memory(ollama, gateway):
    client, state = gateway
    ollama.start(OLLAMA_CONTEXT_LENGTH="512", OLLAMA_NUM_PARALLEL="2")
    wait_until(lambda: state() == "DOWN")
    assert ollama.wait_ready() == {}
    wait_until(lambda: state() == "UP")
    assert client.chat().status == 200
    client.ask("POST", "/m/tiny/api/generate", b'{"model":"tiny","keep_alive":0}').refused(404, "unknown_path")
    ollama.ask("POST", "/api/generate", {"model": "tiny", "keep_alive": 0})
    wait_until(lambda: state() == "DOWN")


def test_another_manifest_is_down_even_if_it_is_loaded(ollama, gateway):
    _client, state = gateway
    path = ollama.models / ollama.manifest["path"]
    path.write_text(path.read_text() + " ")
    ollama.start().ask("POST", "/api/generate", {"model": "tiny"})
    assert ollama.loaded() == ["tiny:latest"]
    wait_until(lambda: state() == "DOWN")


def test_the_path_decides_and_the_body_names_the_model(ollama, gateway):
    client, state = gateway
    ollama.start()
    assert ollama.wait_ready() == {}
    wait_until(lambda: state() == "UP")
    body = b'{"model":"%b","messages":[{"role":"user","content":"x"}]}'
    assert client.ask("POST", f"/m/tiny@1.0.0{CHAT}", body % b"tiny").status == 200
    assert client.ask("POST", f"/m/tiny{CHAT}", body % b"other").status == 404
