# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What the role's variables change, on a HAProxy of its own for each."""

from __future__ import annotations

import http.client
import threading

import pytest

from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_bench import (
    Bench,
    Served,
    free_port,
    wait_until,
)
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_client import CHAT, Client, token_line
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_engine import Engine


@pytest.fixture
def start(tmp_path):
    """`start(model, **settings)` returns a gateway that serves it to the client demo, and a client."""
    benches = []

    def run(model: Served, **settings) -> tuple:
        bench = Bench(tmp_path, settings)
        benches.append(bench)
        bench.write([model], {"demo": (1000, 100)})
        bench.tokens.write_text(token_line("llmf_demo", "demo"))
        bench.start()
        return bench, Client(bench.port, "llmf_demo")

    yield run
    for bench in benches:
        bench.stop()


@pytest.fixture
def engine():
    engine = Engine("tiny")
    yield engine
    engine.stop()


def test_nobody_waits_where_the_queue_is_zero(start, engine):
    bench, client = start(Served("tiny", [engine], ["demo"], slots=1, queue=0))
    engine.go.clear()
    first = threading.Thread(target=client.chat)
    first.start()
    wait_until(lambda: engine.requests)
    client.chat().refused(429, "queue_full")
    engine.go.set()
    first.join()
    assert client.chat().status == 200
    bench.ask("set server be_tiny_aaaaaaaaaaaa/tiny-0-a state drain")
    client.chat().refused(503, "no_instance")


def test_an_engine_without_a_key_gets_none(start, engine):
    engine.key = ""
    _bench, client = start(Served("tiny", [engine], ["demo"], key=""))
    assert client.chat().status == 200
    assert "authorization" not in engine.requests[0]["headers"]


def test_metrics_are_served_where_they_are_asked_for(start, engine):
    port = free_port()
    _bench, client = start(Served("tiny", [engine], ["demo"]), gateway_monitor=f"127.0.0.1:{port}")
    client.chat()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    assert 'haproxy_backend_http_requests_total{proxy="be_tiny_aaaaaaaaaaaa"} 1' in text
    connection.request("GET", CHAT)
    assert connection.getresponse().status == 404


def test_a_small_buffer_refuses_earlier(start, engine):
    _bench, client = start(Served("tiny", [engine], ["demo"]), gateway_buffer_size=16384)
    body = f'{{"padding":"{"x" * 20_000}","model":"tiny"}}'.encode()
    client.ask("POST", CHAT, body).refused(413, "body_too_large")
    assert client.ask("POST", f"/m/tiny{CHAT}", body).status == 200


def test_a_probe_may_hold_quotes(start, engine, monkeypatch):
    model = Served("tiny", [engine], ["demo"])
    backend = {**model.as_backend(), "ready": [{"path": "/v1/models", "contains": 'it\'s "tiny" # 100%'}]}
    monkeypatch.setattr(model, "as_backend", lambda: backend, raising=False)
    bench, _client = start(model)
    wait_until(lambda: bench.status("be_tiny_aaaaaaaaaaaa", "tiny-0-a") == "DOWN", seconds=20)


def test_a_gateway_without_models_starts(start):
    _bench, client = start(Served("tiny", [], ["demo"], key=""))
    assert client.ask("GET", "/v1/models").json["data"][0]["id"] == "tiny"
    client.chat().refused(503, "no_instance")
