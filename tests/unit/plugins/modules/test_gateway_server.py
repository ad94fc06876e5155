# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Servers of a real HAProxy: let in when they are up, drained until nobody is left, and kept so over reloads and crashes."""

from __future__ import annotations

import contextlib
import http.client
import sys
import threading
import time
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.haproxy_runtime import HAProxyRuntime
from ansible_collections.localfirst.llm_fleet.plugins.modules.gateway_server import PAUSE
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_bench import (
    HAPROXY,
    ROLE,
    Bench,
    Served,
    wait_until,
)
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_client import CHAT, Client, token_line
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_engine import Engine

pytestmark = pytest.mark.skipif(not HAPROXY, reason="there is no haproxy here: apt-get install haproxy")

BACKEND = "be_tiny_aaaaaaaaaaaa"
FIRST, SECOND = f"{BACKEND}/tiny-0-a", f"{BACKEND}/tiny-1-a"


class Fleet:
    """Two engines behind a gateway whose servers have entered drained, as new ones do."""

    def __init__(self, root, run_module) -> None:
        self.bench = Bench(root)
        self.engines = [Engine("tiny"), Engine("tiny")]
        self.model = Served("tiny", self.engines, ["demo"])
        self.bench.write([self.model], {"demo": (1000, 100)})
        self.bench.tokens.write_text(token_line("llmf_demo", "demo"))
        self.client = Client(self.bench.port, "llmf_demo")
        self.run_module = run_module
        assert self.bench.tool("dump").returncode == 0
        self.bench.start()

    def call(self, state: str, *servers: str, timeout: float = 10, **more) -> dict:
        bench = self.bench
        tool = [sys.executable, str(ROLE / "files" / "haproxy_state.py"), "dump"]
        paths = ["--config", str(bench.config), "--socket", str(bench.socket), "--state", str(bench.state)]
        sockets = {"socket": str(bench.socket), "master_socket": str(bench.master_socket)}
        arguments = {"servers": list(servers), "state": state, "timeout": timeout, "dump_command": tool + paths}
        return self.run_module("gateway_server", **{**arguments, **sockets, **more})

    def reload(self) -> None:
        done = self.bench.tool("reload", str(self.bench.process.pid))
        assert done.returncode == 0, done.stderr

    def crash(self) -> None:
        """Kill HAProxy, and start it as the unit does."""
        pid = next(line.split()[1] for line in self.bench.ask("show info").splitlines() if line.startswith("Pid:"))
        self.bench.process.kill()
        self.bench.process.wait()
        wait_until(lambda: not Path(f"/proc/{pid}").exists())
        assert self.bench.tool("dump").returncode == 0
        self.bench.start()

    def status(self, server: str) -> str:
        return self.bench.status(*server.split("/"))

    def ports(self, times: int = 6) -> set:
        """Which engines answer."""
        return {answer.json["port"] for answer in [self.client.chat() for _ in range(times)] if answer.status == 200}

    def stream(self, results: list) -> threading.Thread:
        """A stream that lasts two seconds; its end is put into results."""

        def read():
            connection, response = self.client.stream()
            results.append(response.read()[-8:])
            connection.close()

        for engine in self.engines:
            engine.behaviour = "stream"
        thread = threading.Thread(target=read)
        thread.start()
        wait_until(lambda: any(engine.requests for engine in self.engines))
        return thread


@pytest.fixture
def fleet(tmp_path, run_module):
    fleet = Fleet(tmp_path, run_module)
    yield fleet
    fleet.bench.stop()
    for engine in fleet.engines:
        engine.stop()


def test_a_new_server_gets_nothing_until_it_is_let_in(fleet):
    assert fleet.client.chat().status == 503
    result = fleet.call("ready", FIRST)
    assert (result["changed"], result["actions"]) == (True, [f"set {FIRST} ready"])
    assert result["diff"] == {"before": {FIRST: "drain"}, "after": {FIRST: "ready"}}
    assert fleet.ports() == {fleet.engines[0].port}
    again = fleet.call("ready", FIRST)
    assert (again["changed"], again["actions"]) == (False, [])


def test_ready_waits_for_haproxys_own_check(fleet):
    fleet.engines[1].healthy = False
    result = fleet.call("ready", FIRST, SECOND, timeout=2)
    assert result["failed"] and SECOND in result["msg"] and FIRST not in result["msg"]
    assert "503" in result["msg"] or "L7" in result["msg"]
    assert result["actions"] == [f"set {FIRST} ready"]
    assert fleet.ports() == {fleet.engines[0].port}
    threading.Timer(1, setattr, (fleet.engines[1], "healthy", True)).start()
    assert fleet.call("ready", FIRST, SECOND)["actions"] == [f"set {SECOND} ready"]
    assert fleet.ports() == {engine.port for engine in fleet.engines}


def test_a_wrong_model_or_a_refused_key_is_not_let_in(fleet):
    fleet.engines[0].model = "other"
    fleet.engines[1].key = "changed"
    time.sleep(1.5)  # what was found good before that is forgotten after three checks
    assert fleet.call("ready", FIRST, SECOND, timeout=2)["failed"]
    assert fleet.client.chat().status == 503


def test_ready_leaves_alone_what_is_ready_and_down(fleet):
    fleet.call("ready", FIRST, SECOND)
    fleet.engines[1].healthy = False
    wait_until(lambda: fleet.status(SECOND).startswith("DOWN"))
    assert fleet.call("ready", FIRST, SECOND, timeout=1)["changed"] is False


def test_ready_from_maintenance(fleet):
    fleet.call("ready", FIRST)
    assert fleet.call("maint", FIRST)["actions"] == [f"set {FIRST} maint"]
    assert fleet.status(FIRST) == "MAINT"
    assert fleet.call("maint", FIRST)["changed"] is False
    assert fleet.call("ready", FIRST)["changed"] is True
    assert fleet.status(FIRST).startswith("UP")


def test_drain_waits_for_the_stream_and_lets_no_new_request_in(fleet):
    fleet.call("ready", FIRST)
    ends: list = []
    stream = fleet.stream(ends)
    result = fleet.call("drain", FIRST)
    assert ends or not stream.join(1)
    assert result["changed"] and result["left"] == [] and result["seconds"] > 0.5
    assert ends == [b"[DONE]\n\n"]
    assert fleet.client.chat().status == 503
    assert fleet.call("drain", FIRST)["changed"] is False


def test_drain_says_who_is_left(fleet):
    fleet.call("ready", FIRST)
    fleet.engines[0].go.clear()
    asking = threading.Thread(target=fleet.client.chat)
    asking.start()
    wait_until(lambda: fleet.engines[0].requests)
    result = fleet.call("drain", FIRST, SECOND, timeout=1)
    assert result["left"] == [{"server": FIRST, "requests": 1}]
    assert FIRST in str(result["warnings"])
    fleet.engines[0].go.set()
    asking.join()


def test_drain_waits_for_a_process_that_a_reload_left_behind(fleet):
    fleet.call("ready", FIRST)
    ends: list = []
    stream = fleet.stream(ends)
    fleet.reload()
    assert not ends
    assert fleet.call("drain", FIRST, timeout=0)["left"] == [{"server": FIRST, "requests": 1}]
    assert fleet.call("drain", FIRST)["left"] == []
    stream.join(1)
    assert ends == [b"[DONE]\n\n"]


def drain_meanwhile(fleet, results: list, **more) -> threading.Thread:
    thread = threading.Thread(target=lambda: results.append(fleet.call("drain", FIRST, **more)))
    thread.start()
    wait_until(lambda: fleet.status(FIRST).startswith("DRAIN"))
    return thread


def test_a_reload_while_a_drain_waits(fleet):
    fleet.call("ready", FIRST)
    ends, results = [], []
    stream = fleet.stream(ends)
    draining = drain_meanwhile(fleet, results)
    fleet.reload()
    assert not ends and not results
    draining.join()
    assert ends and results[0]["left"] == [], results
    stream.join(1)
    assert ends == [b"[DONE]\n\n"]


@pytest.mark.parametrize("kept", [True, False])
def test_a_restart_while_a_drain_waits(fleet, kept):
    """What was in flight is lost with the process; the drain is not, even if it was killed before it could be kept on disk."""
    fleet.call("ready", FIRST)
    before = fleet.bench.state.read_text()
    fleet.engines[0].go.clear()

    def ask():
        with contextlib.suppress(OSError, http.client.HTTPException):
            fleet.client.chat()

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(lambda: fleet.engines[0].requests)
    results: list = []
    draining = drain_meanwhile(fleet, results)
    if not kept:
        wait_until(lambda: fleet.bench.state.read_text() != before)
        fleet.bench.state.write_text(before)
    fleet.crash()
    draining.join()
    assert not results[0].get("failed") and results[0]["left"] == [], results
    assert fleet.status(FIRST).startswith("DRAIN") and fleet.client.chat().status == 503
    fleet.engines[0].go.set()
    asking.join()


def test_a_drain_ends_when_an_old_process_can_bring_no_request_any_more(fleet):
    """A connection that was opened before the reload, and nothing asked on it: that process does not know of the drain."""
    fleet.call("ready", FIRST)
    waiting = fleet.client.open()
    waiting.connect()
    fleet.reload()
    results: list = []
    draining = drain_meanwhile(fleet, results, settle=60, timeout=30)
    time.sleep(1)
    assert not results
    waiting.request("POST", f"/m/tiny{CHAT}", b"{}", fleet.client.headers())
    assert waiting.getresponse().read()
    waiting.close()
    draining.join()
    assert results[0]["left"] == [] and len(fleet.engines[0].requests) == 1


def test_a_reload_during_a_count_hides_no_request(fleet):
    fleet.call("ready", FIRST)
    stream = fleet.stream([])
    runtime = HAProxyRuntime(str(fleet.bench.socket), str(fleet.bench.master_socket))
    looks = []

    def look(pid: str = "") -> dict:
        looks.append(pid)
        if len(looks) == 1:
            fleet.reload()
        return HAProxyRuntime.servers(runtime, pid)

    runtime.servers = look
    assert runtime.in_flight([tuple(FIRST.split("/"))]) == {tuple(FIRST.split("/")): 1}
    stream.join()


def test_force_lets_a_server_in_before_its_check_has_passed(fleet):
    fleet.call("ready", FIRST)
    fleet.call("drain", FIRST)
    fleet.crash()
    result = fleet.call("ready", FIRST, force=True)
    assert result["actions"] == [f"set {FIRST} ready"] and result["seconds"] < PAUSE
    assert fleet.ports() == {fleet.engines[0].port}
    assert fleet.call("ready", FIRST, force=True)["changed"] is False


def test_force_makes_no_server_healthy(fleet):
    fleet.call("ready", FIRST, SECOND)
    fleet.engines[0].healthy = False
    wait_until(lambda: fleet.status(FIRST).startswith("DOWN"))
    fleet.call("drain", FIRST)
    assert fleet.call("ready", FIRST, force=True)["changed"] is True
    assert fleet.ports() == {fleet.engines[1].port}
    fleet.engines[0].healthy = True
    wait_until(lambda: fleet.status(FIRST).startswith("UP"))
    assert fleet.call("ready", f"{BACKEND}/tiny-9-a", force=True)["failed"]


def test_unknown_servers(fleet):
    unknown = f"{BACKEND}/tiny-9-a"
    assert fleet.call("drain", unknown, "be_gone_x/gone-0-a", FIRST)["changed"] is False
    assert fleet.call("maint", unknown)["changed"] is False
    result = fleet.call("ready", FIRST, unknown)
    assert result["failed"] and unknown in result["msg"]
    assert not fleet.status(FIRST).startswith("UP"), "nothing changes where something is wrong"
    for bad in ("tiny", "a/b/c d", "x/", f"{FIRST};show info"):
        assert "no server" in fleet.call("drain", bad)["msg"]


def test_a_server_that_is_down_can_be_drained(fleet):
    fleet.call("ready", FIRST, SECOND)
    fleet.engines[0].healthy = False
    wait_until(lambda: fleet.status(FIRST).startswith("DOWN"))
    assert fleet.call("drain", FIRST)["changed"] is True
    assert fleet.call("drain", FIRST)["changed"] is False
    fleet.engines[0].healthy = True
    time.sleep(1)
    assert fleet.ports() == {fleet.engines[1].port}, "it came up again, but nobody let it in"


@pytest.mark.parametrize("what", ["reload", "crash"])
def test_states_outlive(fleet, what):
    fleet.call("ready", FIRST, SECOND)
    fleet.call("drain", FIRST)
    getattr(fleet, what)()
    assert fleet.status(FIRST).startswith("DRAIN") and fleet.status(SECOND).startswith("UP")
    assert fleet.ports() == {fleet.engines[1].port}
    fleet.call("ready", FIRST)
    getattr(fleet, what)()
    assert fleet.ports() == {engine.port for engine in fleet.engines}


def test_a_server_with_a_new_address_is_a_new_server(fleet):
    fleet.call("ready", FIRST, SECOND)
    moved = Engine("tiny")
    fleet.model.engines = [moved, fleet.engines[1]]
    fleet.bench.write([fleet.model], {"demo": (1000, 100)})
    fleet.reload()
    assert not fleet.status(FIRST).startswith("UP") and fleet.ports() == {fleet.engines[1].port}
    fleet.call("ready", FIRST)
    assert fleet.ports() == {moved.port, fleet.engines[1].port}
    moved.stop()


def test_a_reload_cuts_no_stream_and_refuses_no_connection(fleet):
    fleet.call("ready", FIRST, SECOND)
    ends: list = []
    stream = fleet.stream(ends)
    statuses: list = []
    done = threading.Event()

    def ask():
        while not done.is_set():
            statuses.append(fleet.client.ask("GET", "/v1/models").status)

    asking = threading.Thread(target=ask)
    asking.start()
    for _ in range(3):
        fleet.reload()
    done.set()
    asking.join()
    stream.join()
    assert set(statuses) == {200} and len(statuses) > 20
    assert ends == [b"[DONE]\n\n"]


def test_a_reload_that_haproxy_refuses_is_an_error(fleet):
    fleet.call("ready", FIRST)
    fleet.bench.config.write_text("nonsense\n")
    done = fleet.bench.tool("reload", str(fleet.bench.process.pid), "--timeout", "3")
    assert done.returncode == 1 and "journalctl" in done.stderr
    assert fleet.ports() == {fleet.engines[0].port}


def test_check_mode_changes_nothing_and_works_without_haproxy(fleet, tmp_path):
    result = fleet.call("ready", FIRST, check_mode=True)
    assert (result["changed"], result["actions"]) == (True, [f"set {FIRST} ready"])
    assert not fleet.status(FIRST).startswith("UP")
    coming = f"{BACKEND}/tiny-2-a"
    assert fleet.call("ready", coming, check_mode=True)["actions"] == [f"set {coming} ready"]
    nowhere = {"socket": str(tmp_path / "none"), "check_mode": True}
    assert fleet.call("ready", FIRST, SECOND, **nowhere)["actions"] == [f"set {FIRST} ready", f"set {SECOND} ready"]
    assert "does not answer" in fleet.call("ready", FIRST, socket=str(tmp_path / "none"))["msg"]


def test_a_master_that_does_not_answer_is_no_proof_that_all_requests_have_ended(fleet, tmp_path):
    fleet.call("ready", FIRST)
    result = fleet.call("drain", FIRST, master_socket=str(tmp_path / "none"))
    assert result["failed"] and str(tmp_path / "none") in result["msg"]
