# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""A gateway with two models: tiny on two engines for demo, private on one engine with one slot for vip."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_bench import (
    HAPROXY,
    Bench,
    Served,
    wait_until,
)
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_client import Client, token_line
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_engine import Engine

TOKENS = {"demo": "llmf_demo", "vip": "llmf_vip", "few": "llmf_few", "busy": "llmf_busy", "gone": "llmf_gone"}


@dataclass
class Gateway:
    bench: Bench
    tiny: list
    private: Engine
    clients: dict

    def __getitem__(self, client: str) -> Client:
        return self.clients[client]

    def engines(self) -> list:
        return [*self.tiny, self.private]


def pytest_collection_modifyitems(items):
    if not HAPROXY:
        for item in items:
            if "roles/gateway" in str(item.path):
                item.add_marker(pytest.mark.skip(reason="there is no haproxy here: apt-get install haproxy"))


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    bench = Bench(
        tmp_path_factory.mktemp("gw"),
        {
            "gateway_timeout_body": 2,
            "gateway_timeout_headers": 2,
            "gateway_timeout_queue": 2,
            "gateway_timeout_engine": 3,
        },
    )
    tiny, private = [Engine("tiny"), Engine("tiny")], Engine("private", "other-key")
    models = [
        Served("tiny", tiny, ["demo", "vip", "few", "busy"]),
        Served(
            "private",
            [private],
            ["vip"],
            "bbbbbbbbbbbb",
            "2.0.0-rc.1",
            slots=1,
            queue=1,
            paths=("POST /v1/embeddings", "POST /v1/chat/completions", "POST /v1/rerank"),
            key="other-key",
        ),
        Served("absent", [], ["demo"], "cccccccccccc", key=""),
    ]
    bench.write(models, {"demo": (100000, 1000), "vip": (100000, 1000), "few": (3, 100), "busy": (100000, 2)})
    lines = [token_line(token, client) for client, token in TOKENS.items()]
    bench.tokens.write_text("".join([*lines, token_line("llmf_old", "demo", ends_in=-1)]))
    bench.start()
    clients = {name: Client(bench.port, token) for name, token in {**TOKENS, "old": "llmf_old", "nobody": None}.items()}
    yield Gateway(bench, tiny, private, clients)
    bench.stop()
    for engine in [*tiny, private]:
        engine.stop()


@pytest.fixture
def gateway(running):
    """The running gateway with all engines well and nothing noted of earlier requests."""
    for engine in running.engines():
        engine.behaviour = "answer"
        engine.go.set()
        engine.requests.clear()
    wait_until(
        lambda: all(running.bench.status("be_tiny_aaaaaaaaaaaa", f"tiny-{n}-a").startswith("UP") for n in (0, 1))
    )
    wait_until(lambda: running.bench.status("be_private_bbbbbbbbbbbb", "private-0-a").startswith("UP"))
    return running
