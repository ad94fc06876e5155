# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The module as Ansible runs it, before engines that say over HTTP what they work at."""

from __future__ import annotations

import json
import threading

import pytest
import yaml

from ansible_collections.localfirst.llm_fleet.tests.unit.conftest import REPO
from ansible_collections.localfirst.llm_fleet.tests.unit.support.docker_node import KEY, Node

INTERFACE = yaml.safe_load((REPO / "plugins/module_utils/engine_profiles/llamacpp.yml").read_text())["http"]
RECORD = {
    "model": "tiny",
    "version": "1.0.0",
    "engine": "llamacpp",
    "context": 1,
    "parallel": 1,
    "files": [{"path": "f"}],
    "container": {"port": 8080, "api_key_environment": "KEY"},
}


@pytest.fixture
def node(tmp_path):
    made = Node(tmp_path)
    made.ports = {name: made.add(name, "aaaaaaaaaaaa") for name in ("tiny-0-a", "tiny-1-a")}
    for name in made.ports:
        # Ready for requests: an engine that does not answer yet would not be waited for.
        made.docker("start", name)
        made.wait_until_answering(name)
    yield made
    made.stop()


@pytest.fixture
def ask(run_module, node):
    def call(instances=None, **arguments) -> dict:
        known = [{"id": name, "model": "tiny", "port": port, "record": RECORD} for name, port in node.ports.items()]
        given = {"instances": known if instances is None else instances, "interfaces": {"llamacpp": INTERFACE}, "keys": {"tiny": KEY}}
        result = run_module("engine_idle", **{**given, "address": "127.0.0.1", "timeout": 20, **arguments})
        assert KEY not in json.dumps(result)
        return result

    return call


def test_it_waits_until_no_engine_has_a_request(node, ask):
    node.set("tiny-1-a", "busy", 2)
    results: list[dict] = []
    thread = threading.Thread(target=lambda: results.append(ask()))
    thread.start()
    node.wait_until_asked("tiny-1-a", "/metrics")
    assert thread.is_alive()
    node.set("tiny-1-a", "busy", 0)
    thread.join()
    assert results[0]["busy"] == {} and not results[0]["changed"] and "warnings" not in results[0]


def test_when_the_time_is_over_it_says_who_is_busy(node, ask):
    node.set("tiny-1-a", "busy", 2)
    result = ask(timeout=1)
    assert "failed" not in result and not result["changed"] and result["busy"] == {"tiny-1-a": 2}
    warned = str(result["warnings"])
    assert "after 1 s" in warned and "tiny-1-a (2)" in warned and "tiny-0-a" not in warned


def test_a_leaving_instance_brings_its_release_and_what_is_known_of_its_engine(node, ask):
    node.set("tiny-0-a", "busy", 1)
    leaving = {"id": "tiny-0-a", "model": "tiny", "port": node.ports["tiny-0-a"], "release_record": RECORD, "engine_record": INTERFACE}
    assert ask([leaving], interfaces={}, timeout=0)["busy"] == {"tiny-0-a": 1}


def test_what_cannot_say_is_not_waited_for(node, ask):
    unknown = {"id": "tiny-2-a", "model": "tiny", "port": node.ports["tiny-0-a"], "release_record": None}
    assert ask([unknown], timeout=600)["busy"] == {}
    node.set("tiny-0-a", "busy", 1)
    assert ask(keys={}, timeout=600)["busy"] == {}
    assert ask(interfaces={"llamacpp": {}}, timeout=600)["busy"] == {}
    node.docker("stop", "tiny-0-a")
    assert ask(timeout=600)["busy"] == {}
    assert ask([], timeout=600)["busy"] == {}


def test_check_mode_asks_nobody(node, ask):
    node.set("tiny-1-a", "busy", 2)
    assert ask(check_mode=True, timeout=600)["busy"] == {}
    assert not node.was_asked("tiny-1-a", "/metrics")
