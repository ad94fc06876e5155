# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The module as Ansible runs it, with a stand-in for Docker's command line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.tests.unit.support import module_process
from ansible_collections.localfirst.llm_fleet.tests.unit.support.range_server import RangeServer

REPO = Path(__file__).resolve().parents[4]
MODULE = REPO / "plugins/modules/engine_ready.py"
COLLECTIONS = REPO / ".venv/collections"

# Knows the containers in containers.json, and prints the same log for all of them.
DOCKER = """#!/bin/sh
case $1 in
  inspect) cat "$(dirname "$0")/containers.json"; exit 1 ;;
  logs) echo "out: loading $4"; echo "err: no such flag, key geheim" >&2 ;;
esac
"""


class Node:
    """A node with Docker and one engine."""

    def __init__(self, engine: RangeServer, folder: Path) -> None:
        self.engine = engine
        self.folder = folder
        (folder / "docker").write_text(DOCKER)
        (folder / "docker").chmod(0o755)

    def runs(self, **states) -> None:
        entries = [
            {
                "Name": f"/{name}",
                "RestartCount": 0,
                "State": {"Status": state, "ExitCode": 1, "OOMKilled": False, "Health": {"Status": "starting"}},
            }
            for name, state in states.items()
        ]
        (self.folder / "containers.json").write_text(json.dumps(entries))

    def call(self, *names, **arguments) -> dict:
        record = {
            "model": "tiny",
            "version": "1.0.0",
            "engine": "llamacpp",
            "context": 1,
            "parallel": 1,
            "files": [{"path": "f"}],
            "container": {"port": 8080, "api_key_environment": "KEY"},
        }
        port = self.engine.httpd.server_port
        arguments = {
            "instances": [{"id": name, "model": "tiny", "port": port, "record": record} for name in names],
            "interfaces": {"llamacpp": {"ready": [{"path": "/health"}]}},
            "keys": {"tiny": "geheim"},
            "address": "127.0.0.1",
            "timeout": 1,
            "_ansible_remote_tmp": str(self.folder / "tmp"),
            **arguments,
        }
        environment = {**os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}"}
        result = module_process.call("engine_ready", arguments, environment)
        assert "geheim" not in json.dumps(result)
        return result


@pytest.fixture
def node(tmp_path):
    with RangeServer() as engine:
        engine.add("/health", b"{}")
        yield Node(engine, tmp_path)


def test_ready_instances_change_nothing(node):
    node.runs(one="running", two="running")
    result = node.call("one", "two")
    assert not result["changed"] and result["ready"] == ["one", "two"]
    assert node.engine.requests[0][1]["authorization"] == "Bearer geheim"


def test_one_that_stopped_is_named_with_the_end_of_its_log(node):
    node.runs(one="running", two="exited")
    result = node.call("one", "two", timeout=600)
    assert result["failed"] and result["ready"] == ["one"]
    assert "exit code 1" in result["unready"]["two"]
    assert "two is not ready" in result["msg"] and "loading two" in result["msg"] and "no such flag" in result["msg"]


def test_one_that_nobody_created_is_gone(node):
    node.runs(one="running")
    assert "gone" in node.call("one", "two", timeout=600)["unready"]["two"]


def test_time_runs_out(node):
    node.runs(one="running")
    node.engine.resources["/health"].statuses = [503] * 99
    result = node.call("one")
    assert "503" in result["unready"]["one"] and "1 seconds" in result["unready"]["one"]


def test_check_mode_waits_for_nothing(node):
    result = node.call("one", timeout=600, _ansible_check_mode=True)
    assert not result["changed"] and not node.engine.requests
