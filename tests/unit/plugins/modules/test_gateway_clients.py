# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Registry, map and memory of a real HAProxy: a revoked token is refused at once, and never comes back."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import client_registry
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_bench import HAPROXY, Bench, Served
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_client import Client
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_engine import Engine

pytestmark = pytest.mark.skipif(not HAPROXY, reason="there is no haproxy here: apt-get install haproxy")

NOW = datetime.now(timezone.utc)


class Gateway:
    def __init__(self, root, run_module) -> None:
        self.bench = Bench(root)
        self.engine = Engine("tiny")
        self.bench.write([Served("tiny", [self.engine], ["demo"])], {"demo": (1000, 100)})
        self.run_module = run_module

    def call(self, *registries: dict, **more) -> dict:
        bench = self.bench
        paths = {
            "registry_file": bench.registry,
            "map_file": bench.tokens,
            "socket": bench.socket,
            "master_socket": bench.master_socket,
        }
        return self.run_module(
            "gateway_clients", registries=list(registries), **{k: str(v) for k, v in paths.items()}, **more
        )

    def status(self, token: str) -> int:
        return Client(self.bench.port, token).ask("GET", "/v1/models").status

    def reload(self) -> None:
        assert self.bench.tool("reload", str(self.bench.process.pid)).returncode == 0


@pytest.fixture
def gateway(tmp_path, run_module):
    gateway = Gateway(tmp_path, run_module)
    gateway.bench.start()
    yield gateway
    gateway.bench.stop()
    gateway.engine.stop()


@pytest.fixture
def issued():
    """A registry with two tokens of demo's, and the tokens."""
    registry, first, _entry = client_registry.issue(client_registry.empty(), "demo", NOW, NOW + timedelta(days=1))
    registry, second, _entry = client_registry.issue(registry, "demo", NOW, None)
    return registry, first, second


def test_tokens_work_at_once_and_nothing_changes_twice(gateway, issued):
    registry, first, second = issued
    assert gateway.status(first) == 401
    result = gateway.call(registry)
    assert (result["changed"], result["generation"], len(result["actions"])) == (True, 2, 3)
    assert [gateway.status(token) for token in (first, second)] == [200, 200]
    assert json.loads(gateway.bench.registry.read_text()) == registry
    assert gateway.bench.registry.stat().st_mode & 0o777 == 0o640
    assert gateway.bench.tokens.stat().st_mode & 0o777 == 0o600
    assert gateway.call(registry)["actions"] == []


def test_a_revoked_token_is_refused_at_once_and_for_good(gateway, issued):
    registry, first, second = issued
    gateway.call(registry)
    revoked = client_registry.revoke(registry, client_registry.living(registry["tokens"][:1], NOW), NOW)
    gone, stays = (
        (first, second) if revoked["tokens"][0]["sha256"] == registry["tokens"][1]["sha256"] else (second, first)
    )
    if gateway.call(revoked) and gateway.status(gone) == 200:
        gone, stays = stays, gone
    assert (gateway.status(gone), gateway.status(stays)) == (401, 200)
    gateway.reload()
    assert (gateway.status(gone), gateway.status(stays)) == (401, 200)
    # An older registry, and what the role does in each run.
    assert gateway.call(registry)["changed"] is False
    assert gateway.call()["changed"] is False
    assert (gateway.status(gone), gateway.status(stays)) == (401, 200)


def test_old_connections_to_a_process_that_a_reload_left_behind_lose_the_token_too(gateway, issued):
    registry, first, second = issued
    gateway.call(registry)
    gateway.engine.behaviour = "stream"
    stream, response = Client(gateway.bench.port, first).stream()
    waiting = Client(gateway.bench.port, first).open()
    gateway.reload()
    old = gateway.call(client_registry.revoke(registry, registry["tokens"], NOW))
    assert [action for action in old["actions"] if action.startswith("exchange the tokens in old process")], old
    assert response.read().endswith(b"[DONE]\n\n"), "what is in flight goes on"
    assert {gateway.status(first), gateway.status(second)} == {401}
    for connection in (stream, waiting):
        connection.close()


def test_memory_is_repaired(gateway, issued):
    registry, first, _second = issued
    gateway.call(registry)
    gateway.bench.ask(f"clear map {gateway.bench.tokens}")
    assert gateway.status(first) == 401
    assert gateway.call()["actions"] == ["exchange the tokens in HAProxy's memory"]
    assert gateway.status(first) == 200
    gateway.bench.tokens.write_text("")
    assert gateway.call()["actions"] == [f"write {gateway.bench.tokens}"]
    gateway.reload()
    assert gateway.status(first) == 200


def test_many_tokens(gateway):
    registry = client_registry.empty()
    for _number in range(300):
        registry, token, _entry = client_registry.issue(registry, "demo", NOW, None)
    gateway.call(registry)
    assert gateway.status(token) == 200
    assert gateway.call()["changed"] is False


def test_check_mode_and_diff(gateway, issued):
    registry, first, _second = issued
    result = gateway.call(registry, check_mode=True, diff=True)
    assert result["changed"] and len(result["actions"]) == 3
    assert gateway.status(first) == 401 and not gateway.bench.registry.exists()
    assert "demo" in result["diff"]["after"]
    assert registry["tokens"][0]["sha256"] not in json.dumps(result["diff"])


def test_without_haproxy_the_files_are_written(gateway, issued, tmp_path):
    registry, first, _second = issued
    gateway.bench.process.terminate()
    gateway.bench.process.wait()
    assert len(gateway.call(registry)["actions"]) == 2
    gateway.bench.start()
    assert gateway.status(first) == 200


def test_a_fresh_gateway_gets_an_empty_map(gateway):
    gateway.bench.tokens.unlink()
    assert gateway.call()["actions"] == [f"write {gateway.bench.tokens}"]
    assert gateway.bench.tokens.exists() and not gateway.bench.registry.exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"generation": 1}'])
def test_a_damaged_registry_is_an_error_and_not_overwritten(gateway, issued, text):
    gateway.bench.registry.write_text(text)
    result = gateway.call(issued[0])
    assert result["failed"] and str(gateway.bench.registry) in result["msg"]
    assert gateway.bench.registry.read_text() == text
    assert gateway.call({"generation": "x"})["failed"]


ANN = {"user": "ann", "job": "17", "host": "ctl", "place": "boot:1", "process": "1:1"}


@pytest.fixture
def trail(tmp_path):
    """The gateway's audit trail: what is in it."""

    def read() -> list:
        return [json.loads(line) for line in read.path.read_text().splitlines()] if read.path.exists() else []

    read.path = tmp_path / "log" / "audit.jsonl"
    return read


def test_the_audit_trail_says_who_did_what_to_which_token_and_never_the_token_or_its_hash(gateway, trail):
    def bring(registry, **more):
        return gateway.call(registry, actor=ANN, audit_file=str(trail.path), **more)

    issued, first, old = client_registry.issue(client_registry.empty(), "demo", NOW, NOW + timedelta(days=1))
    assert bring(issued, check_mode=True)["changed"] and trail() == []
    for _twice in range(2):
        bring(issued)
    rotated, second, new = client_registry.rotate(issued, issued["tokens"], NOW, timedelta(hours=1), None)
    bring(rotated)
    bring(client_registry.revoke(rotated, [new], NOW))
    told = [(line["what"], line["on"], line["id"], line["result"]) for line in trail()]
    admitted, *rotation, gone = told
    assert admitted == ("admit token", "demo", old["id"], "ok") and gone == ("revoke token", "demo", new["id"], "ok")
    assert sorted(rotation) == [("admit token", "demo", new["id"], "ok"), ("end token", "demo", old["id"], "ok")]
    assert {line["who"]["user"] for line in trail()} == {"ann"} and {line["who"]["job"] for line in trail()} == {"17"}
    text = trail.path.read_text()
    for secret in (first, second, old["sha256"], new["sha256"]):
        assert secret not in text


def test_a_gateway_that_cannot_note_it_revokes_all_the_same(gateway, issued, trail):
    registry, first, _second = issued
    gateway.call(registry)
    assert trail() == [], "nobody was named"
    trail.path.parent.write_text("")
    result = gateway.call(client_registry.revoke(registry, registry["tokens"], NOW), actor=ANN, audit_file=str(trail.path))
    assert "failed" not in result and str(trail.path) in str(result["warnings"])
    assert gateway.status(first) == 401


def test_nobody_is_an_error_and_changes_nothing(gateway, issued):
    assert "actor" in gateway.call(issued[0], actor={"user": ""})["msg"]
    assert not gateway.bench.registry.exists()
