# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""A gateway in the middle of a rollout: a model with an old release, which the plan names, and a new one, on an engine each."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_bench import Bench, Served
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_client import CHAT, Client, token_line
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_engine import Engine

CLIENTS = ("demo", "testers", "stranger")
OLD, NEW = "be_tiny_aaaaaaaaaaaa", "be_tiny_bbbbbbbbbbbb"


class Rollout:
    """tiny 1.0.0 and 1.1.0 for the clients demo and testers. What modules are asked for goes to this gateway."""

    def __init__(self, root: Path, run_module, **settings) -> None:
        self.bench = Bench(root, settings)
        self.old = Served("tiny", [Engine("tiny")], ["demo", "testers"])
        self.new = Served("tiny", [Engine("tiny")], ["demo", "testers"], "bbbbbbbbbbbb", "1.1.0")
        self.routes = root / "routes.json"
        self.run_module = run_module
        self.bench.tokens.write_text("".join(token_line(f"llmf_{client}", client) for client in CLIENTS))
        self.write()

    def write(self, *models: Served) -> None:
        """Configuration and maps; the last model is the one that the plan names."""
        self.bench.write(list(models or (self.new, self.old)), dict.fromkeys(CLIENTS, (100000, 1000)))

    def stop(self) -> None:
        self.bench.stop()
        for engine in (self.old.engines[0], self.new.engines[0]):
            engine.stop()

    def __getitem__(self, client: str) -> Client:
        return Client(self.bench.port, f"llmf_{client}")

    def call(self, module: str, **arguments) -> dict:
        sockets = {"socket": str(self.bench.socket), "master_socket": str(self.bench.master_socket)}
        return self.run_module(module, **{**sockets, **arguments})

    def route(self, share: int | None = None, **more) -> dict:
        """Call gateway_route; with a share, for a route to the new release."""
        files = {"state_file": str(self.routes), "map_file": str(self.bench.routes)}
        route = {} if share is None else {"model": "tiny", "backend": NEW, "share": share}
        return self.call("gateway_route", **{**files, **route, **more})

    def drain(self, *models: Served) -> None:
        for model in models:
            self.bench.ask(f"set server {model.backend}/tiny-0-a state drain")

    def reload(self) -> None:
        done = self.bench.tool("reload", str(self.bench.process.pid))
        assert done.returncode == 0, done.stderr

    def who(self, answer) -> str:
        """Which release has answered, or the code of a refusal."""
        names = {self.old.engines[0].port: "old", self.new.engines[0].port: "new"}
        return names[answer.json["port"]] if answer.status == 200 else answer.json["error"]["code"]

    def ask(self, client: str = "demo", name: str = "tiny") -> str:
        return self.who(self[client].ask("POST", f"/m/{name}{CHAT}", b"{}"))

    def asks(self, client: str = "demo", times: int = 12) -> Counter:
        """Who answers, half of the times by the path, half by the body."""
        return Counter([self.ask(client) for _ in range(times // 2)] + [self.who(self[client].chat()) for _ in range(times // 2)])

    def waiting(self, client: str = "demo"):
        """A connection on which nothing was asked yet. Over a reload it stays with the process that accepted it."""
        connection = self[client].open()
        connection.connect()
        return connection

    def ask_on(self, connection, client: str = "demo") -> tuple:
        """(status, which release) of a request on such a connection."""
        connection.request("POST", f"/m/tiny{CHAT}", b"{}", self[client].headers())
        response = connection.getresponse()
        names = {str(self.old.engines[0].port): "old", str(self.new.engines[0].port): "new"}
        body = response.read().decode()
        return response.status, next((name for port, name in names.items() if port in body), None)
