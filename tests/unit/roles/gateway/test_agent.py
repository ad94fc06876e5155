# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A node that says that its GPUs are ill: what a real HAProxy makes of it, and what it makes of a node that says nothing."""

from __future__ import annotations

import contextlib
import re
import socket
import threading

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.gpu_health import agent_word
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_bench import Bench, Served, wait_until
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_client import Client, token_line
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_engine import Engine

ILL, WELL = agent_word({"drain": True}), agent_word({"drain": False})
BACKEND = "be_tiny_aaaaaaaaaaaa"
FIRST, SECOND = f"{BACKEND}/tiny-0-a", f"{BACKEND}/tiny-1-a"
LIMITS = {"demo": (100000, 1000)}


class Agent:
    """What systemd does for a node: each connection gets one word, and is closed."""

    def __init__(self, address: str = "127.0.0.1", port: int = 0) -> None:
        self.word: str | None = WELL
        self.asked = 0
        self.silent: list[socket.socket] = []
        self.open(address, port)
        self.port = self.server.getsockname()[1]

    def open(self, address: str, port: int) -> None:
        self.server = socket.create_server((address, port))
        threading.Thread(target=self.serve, args=(self.server,), daemon=True).start()

    def serve(self, server: socket.socket) -> None:
        while True:
            try:
                connection, _peer = server.accept()
            except OSError:
                return
            self.asked += 1
            if self.word is None:
                self.silent.append(connection)  # accepted and never answered
                continue
            with contextlib.suppress(OSError):
                connection.sendall(self.word.encode())
            connection.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        for connection in self.silent:
            connection.close()


class Asked:
    """A gateway with a model on as many nodes, whose agents have the same port on addresses of their own."""

    def __init__(self, root, nodes: int = 2) -> None:
        self.engines = [Engine("tiny") for _ in range(nodes)]
        self.agents = [Agent()]
        if nodes == 2:
            self.agents.append(Agent("127.0.0.2", self.agents[0].port))
        self.bench = Bench(root, {"gateway_agent_port": self.agents[0].port})
        self.model = Served("tiny", self.engines, ["demo"])
        self.write()
        self.bench.tokens.write_text(token_line("llmf_demo", "demo"))
        self.bench.start()
        self.client = Client(self.bench.port, "llmf_demo")
        self.wait_up()

    def write(self) -> None:
        self.bench.write([self.model], LIMITS)
        # Both engines are on one address here, so the second node's agent has to be named.
        text = re.sub("(?m)^( *server tiny-1-a .*)$", r"\1 agent-addr 127.0.0.2", self.bench.config.read_text())
        self.bench.config.write_text(text)

    def wait_up(self) -> None:
        for number in range(len(self.engines)):
            wait_until(lambda number=number: self.bench.status(BACKEND, f"tiny-{number}-a").startswith("UP"))

    def weight(self, server: str = FIRST) -> str:
        """The share that HAProxy gives to a server now, of the one that it has by its configuration."""
        return self.bench.ask(f"get weight {server}").strip()

    def heard(self, times: int = 3) -> None:
        """Wait until all agents were asked again, and the answer has come."""
        before = [agent.asked for agent in self.agents]
        wait_until(lambda: all(agent.asked >= asked + times for agent, asked in zip(self.agents, before, strict=True)))

    def say(self, word: str | None, *numbers: int) -> None:
        for number in numbers or range(len(self.agents)):
            self.agents[number].word = word
        if word is not None:
            self.heard()

    def reload(self) -> None:
        done = self.bench.tool("reload", str(self.bench.process.pid))
        assert done.returncode == 0, done.stderr

    def stop(self) -> None:
        self.bench.stop()
        for one in self.engines:
            one.stop()
        for agent in self.agents:
            agent.close()


@pytest.fixture
def asked(tmp_path):
    benches = []

    def make(nodes: int = 2) -> Asked:
        benches.append(Asked(tmp_path, nodes))
        return benches[-1]

    yield make
    for bench in benches:
        bench.stop()


def test_an_ill_node_gets_no_new_request_and_ends_those_it_has(asked):
    bench = asked()
    bench.say(ILL, 1)
    bench.engines[0].behaviour = "stream"
    connection, response = bench.client.stream()
    first = response.read1()
    bench.say(WELL, 1)
    bench.say(ILL, 0)
    assert bench.weight(FIRST).startswith("0 ") and bench.weight(SECOND).startswith("100 ")
    answers = [bench.client.chat() for _ in range(6)]
    assert {(answer.status, answer.json["port"]) for answer in answers} == {(200, bench.engines[1].port)}
    rest = b""
    while piece := response.read1():
        rest += piece
    connection.close()
    assert first.startswith(b"data: 0") and rest.endswith(b"data: [DONE]\n\n"), "the stream went on to its end"


def test_a_node_that_is_well_again_gets_requests_again(asked):
    bench = asked()
    bench.say(ILL, 0)
    bench.say(WELL, 0)
    ports = {bench.client.chat().json["port"] for _ in range(6)}
    assert ports == {engine.port for engine in bench.engines}


def test_a_gateway_whose_only_node_is_ill_answers_as_if_none_were_up(asked):
    bench = asked(nodes=1)
    bench.say(ILL)
    message = bench.client.chat().refused(503, "no_instance")
    bench.say(WELL)
    assert bench.client.chat().status == 200
    bench.engines[0].healthy = False
    wait_until(lambda: bench.bench.status(BACKEND, "tiny-0-a") == "DOWN")
    assert bench.client.chat().refused(503, "no_instance") == message


@pytest.mark.parametrize("word", [ILL, WELL])
@pytest.mark.parametrize("silence", ["refused", "closed", "hanging"])
def test_an_agent_that_says_nothing_changes_nothing(asked, word, silence):
    """Its host is down, it has no word yet, or it hangs: what was said last counts, and the health check decides as always."""
    bench = asked(nodes=1)
    bench.say(word)
    before, agent = bench.weight(), bench.agents[0]
    if silence == "refused":
        agent.close()
    else:
        agent.word = {"closed": "", "hanging": None}[silence]
    wait_until(lambda: agent_status(bench) in {"refused": ("L4CON",), "closed": ("L7RSP",), "hanging": ("L7TOUT",)}[silence])
    assert bench.weight() == before and bench.bench.status(BACKEND, "tiny-0-a").startswith("UP")
    bench.engines[0].healthy = False
    wait_until(lambda: bench.bench.status(BACKEND, "tiny-0-a") == "DOWN")
    bench.engines[0].healthy = True
    bench.wait_up()
    assert bench.weight() == before
    assert bench.client.chat().status == (503 if word == ILL else 200)


def agent_status(bench: Asked) -> str:
    lines = [line.split(",") for line in bench.bench.ask("show stat").splitlines()]
    column = lines[0].index("agent_status")
    return next(line[column].lstrip("* ") for line in lines if line[1] == "tiny-0-a")


def test_an_agent_undoes_no_drain_and_no_maintenance(asked):
    """Rollouts and operators set the administrative state; a word of the node's changes the weight only."""
    bench = asked()
    for state in ("drain", "maint"):
        bench.bench.ask(f"set server {FIRST} state {state}")
        bench.say(ILL, 0)
        bench.say(WELL, 0)
        assert {bench.client.chat().json["port"] for _ in range(4)} == {bench.engines[1].port}, state
        assert admin_state(bench) != "0"
        bench.bench.ask(f"set server {FIRST} state ready")
        assert admin_state(bench) == "0"
        bench.wait_up()


def test_an_ill_node_that_a_rollout_makes_ready_stays_without_requests(asked):
    bench = asked()
    bench.bench.ask(f"set server {FIRST} state drain")
    bench.say(ILL, 0)
    bench.bench.ask(f"set server {FIRST} state ready")
    assert {bench.client.chat().json["port"] for _ in range(4)} == {bench.engines[1].port}


def admin_state(bench: Asked) -> str:
    lines = [line.split() for line in bench.bench.ask("show servers state").splitlines()]
    return next(words[6] for words in lines if words[3:4] == ["tiny-0-a"])


def test_what_a_node_has_said_survives_reloads(asked):
    bench = asked(nodes=1)
    bench.say(ILL)
    bench.agents[0].word = ""
    bench.heard()
    for _ in range(2):
        bench.reload()
        bench.client.chat().refused(503, "no_instance")
    bench.say(WELL)
    wait_until(lambda: bench.client.chat().status == 200)


def test_agents_are_asked_or_not_as_of_the_next_reload(asked):
    bench = asked(nodes=1)
    bench.say(ILL)
    bench.bench.settings["gateway_agent_port"] = 0
    bench.write()
    bench.reload()
    wait_until(lambda: bench.client.chat().status == 200)
    assert "agent-check" not in bench.bench.config.read_text()
    bench.bench.settings["gateway_agent_port"] = bench.agents[0].port
    bench.write()
    bench.reload()
    wait_until(lambda: bench.client.chat().status == 503)


def test_a_server_that_is_new_still_enters_drained(asked):
    bench = asked(nodes=1)
    bench.engines.append(Engine("tiny"))
    bench.agents.append(Agent("127.0.0.2", bench.agents[0].port))
    bench.write()
    bench.reload()
    bench.say(WELL)
    wait_until(lambda: "DRAIN" in bench.bench.status(BACKEND, "tiny-1-a"))
    assert {bench.client.chat().json["port"] for _ in range(4)} == {bench.engines[0].port}
