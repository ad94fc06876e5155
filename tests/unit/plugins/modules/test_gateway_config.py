# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Configuration and maps of a real HAProxy: checked together, replaced together, and reloaded only where that is needed."""

from __future__ import annotations

import os
import time

import pytest

from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_bench import (
    HAPROXY,
    MAPS,
    Bench,
    Served,
    render,
    view,
    wait_until,
)
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_client import Client, token_line
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_engine import Engine

pytestmark = pytest.mark.skipif(not HAPROXY, reason="there is no haproxy here: apt-get install haproxy")

LIMITS = {"demo": (1000, 100), "vip": (1000, 100)}


class Gateway:
    def __init__(self, root, run_module) -> None:
        self.bench = Bench(root)
        self.bench.tokens.write_text("".join(token_line(f"llmf_{client}", client) for client in LIMITS))
        self.engine = Engine("tiny")
        self.model = Served("tiny", [self.engine], ["demo"])
        self.run_module = run_module

    def call(self, key: str = "engine-key", others: list | None = None, **more) -> dict:
        bench = self.bench
        keys = {"gateway_view": view([self.model, *(others or [])], LIMITS), "gateway_engine_keys": {"tiny": key}}
        values = {**bench.variables, **keys}
        texts = {name: render(f"maps/{name}.map.j2", values) for name in MAPS}
        arguments = {
            "config": render("haproxy.cfg.j2", values),
            "config_file": str(bench.config),
            "engine_keys": texts.pop("keys"),
            "maps": texts,
            "maps_dir": str(bench.maps),
            "loaded": [str(bench.root / "llm_fleet" / "tls" / "gateway.pem")],
            "haproxy": HAPROXY,
            "socket": str(bench.socket),
        }
        return self.run_module("gateway_config", **{**arguments, **more})

    def status(self, client: str = "demo") -> int:
        return Client(self.bench.port, f"llmf_{client}").chat().status

    def files(self) -> dict:
        return {
            path.name: path.read_text() for path in [self.bench.config, *self.bench.maps.iterdir()] if path.is_file()
        }


@pytest.fixture
def gateway(tmp_path, run_module):
    gateway = Gateway(tmp_path, run_module)
    assert gateway.call()["reload"] is True
    gateway.bench.start()
    yield gateway
    gateway.bench.stop()
    gateway.engine.stop()


def test_the_second_call_changes_nothing(gateway):
    result = gateway.call()
    assert (result["changed"], result["actions"], result["reload"]) == (False, [], False)
    assert gateway.status() == 200


def test_maps_alone_are_exchanged_without_a_reload(gateway):
    assert gateway.status("vip") == 403
    before = gateway.bench.ask("show info")
    gateway.model.access = ["vip"]
    result = gateway.call()
    assert result["reload"] is False
    assert {action for action in result["actions"] if action.startswith("exchange")} == {
        "exchange access.map in HAProxy's memory",
        "exchange lists.map in HAProxy's memory",
    }
    assert (gateway.status("vip"), gateway.status("demo")) == (200, 403)
    assert Client(gateway.bench.port, "llmf_vip").ask("GET", "/v1/models").json["data"][0]["id"] == "tiny"
    assert gateway.bench.ask("show info").split("Pid: ")[1][:6] == before.split("Pid: ")[1][:6]
    assert gateway.call()["changed"] is False


def test_an_engines_key_is_exchanged_and_never_shown(gateway):
    gateway.engine.key = "another-key"
    result = gateway.call(key="another-key", diff=True)
    assert "exchange keys.map in HAProxy's memory" in result["actions"]
    assert "another-key" not in str({**result, "invocation": None}) and "engine-key" not in str(
        {**result, "invocation": None}
    )
    assert "another-key" not in str(result["invocation"])
    wait_until(lambda: gateway.status() == 200)
    assert gateway.engine.requests[-1]["headers"]["authorization"] == "Bearer another-key"
    assert (gateway.bench.maps / "keys.map").stat().st_mode & 0o777 == 0o600


def test_another_configuration_asks_for_a_reload(gateway):
    gateway.model.queue = 3
    result = gateway.call(diff=True)
    assert result["reload"] is True and f"write {gateway.bench.config}" in result["actions"]
    assert "queue ge 3" in str(result["diff"])


def test_a_reload_that_did_not_happen_is_asked_for_again(gateway):
    time.sleep(1.1)
    gateway.model.queue = 3
    assert gateway.call()["reload"] is True
    result = gateway.call()
    assert (result["changed"], result["reload"], result["actions"]) == (True, True, ["reload HAProxy"])
    assert gateway.bench.tool("reload", str(gateway.bench.process.pid)).returncode == 0
    time.sleep(1.1)
    assert gateway.call()["changed"] is False


def test_a_new_certificate_asks_for_a_reload(gateway):
    later = time.time() + 5
    os.utime(gateway.bench.root / "llm_fleet" / "tls" / "gateway.pem", (later, later))
    assert gateway.call()["reload"] is True


def test_nothing_is_replaced_where_haproxy_refuses_it(gateway):
    before = gateway.files()
    gateway.model.access = ["vip"]
    result = gateway.call(config="frontend broken\n    bind nonsense\n" + gateway.bench.config.read_text())
    assert result["failed"] and "nonsense" in result["msg"] and "untouched" in result["msg"]
    assert gateway.files() == before
    assert gateway.status() == 200


def test_a_map_that_the_configuration_needs_has_to_be_there(gateway):
    before = gateway.files()
    config = gateway.bench.config.read_text().replace("access.map", "missing.map")
    result = gateway.call(config=config)
    assert result["failed"] and "missing.map" in result["msg"]
    assert gateway.files() == before


def test_check_mode_changes_nothing(gateway, tmp_path):
    before = gateway.files()
    gateway.model.access = ["vip"]
    gateway.model.queue = 3
    result = gateway.call(check_mode=True)
    assert result["changed"] and result["reload"] and f"write {gateway.bench.config}" in result["actions"]
    assert gateway.files() == before
    bare = {
        "config_file": str(tmp_path / "x" / "haproxy.cfg"),
        "maps_dir": str(tmp_path / "x"),
        "haproxy": "/nonexistent",
        "socket": "/nonexistent",
    }
    assert len(gateway.call(check_mode=True, **bare)["actions"]) == len(MAPS) + 2


def test_a_list_of_many_models_fits(gateway):
    """HAProxy cuts lines of a map file off at 16 KiB, without a word."""
    others = [Served(f"a-model-with-a-rather-long-name-{n}", [], ["demo"], key="") for n in range(700)]
    assert gateway.call(others=others)["reload"] is True
    assert len((gateway.bench.maps / "lists.map").read_text()) > 60_000
    assert gateway.bench.tool("reload", str(gateway.bench.process.pid)).returncode == 0

    def models() -> list:
        return [model["id"] for model in Client(gateway.bench.port, "llmf_demo").ask("GET", "/v1/models").json["data"]]

    assert models() == ["tiny", *(model.name for model in others)]
    others[0].access = []
    assert gateway.call(others=others)["reload"] is False
    assert models() == ["tiny", *(model.name for model in others[1:])]
