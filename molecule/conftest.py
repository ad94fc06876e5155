# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What the tests of all scenarios use: the fleet, its gateways as a client meets them, and its playbooks."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import http.client
import io
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import pytest
import testinfra

from ansible_collections.localfirst.llm_fleet.tests.load.report import Report

REPO = Path(__file__).resolve().parent.parent
INVENTORY = REPO / "molecule" / "inventory"
STATE = REPO / ".testbed" / "molecule"
BIN = Path(sys.executable).parent
QUESTION = [{"role": "user", "content": "What is a fleet?"}]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came back for one request."""

    status: int
    headers: dict
    body: bytes

    @property
    def json(self) -> dict:
        return json.loads(self.body)

    @property
    def error(self) -> dict:
        return self.json["error"]


@dataclasses.dataclass
class Gateway:
    """A gateway, seen from outside: TLS that is verified against the fleet's CA, nothing else known."""

    name: str
    address: str
    port: int = 443
    ca: Path = STATE / "ca" / "ca.pem"

    def connect(self, timeout: float = 30, alpn: tuple = ("http/1.1",)) -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=str(self.ca))
        context.set_alpn_protocols(list(alpn))
        plain = socket.create_connection((self.address, self.port), timeout=timeout)
        return context.wrap_socket(plain, server_hostname=self.address)

    def open(self, method: str, path: str, token: str | None = None, body: object = None, headers: dict | None = None,
             timeout: float = 30) -> http.client.HTTPResponse:
        """Send a request and return the response, its body still to be read."""
        connection = http.client.HTTPConnection(self.address, self.port, timeout=timeout)
        connection.sock = self.connect(timeout)
        sent = dict(headers or {})
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        # The path goes out as it stands here: these tests are about odd ones.
        connection.putrequest(method, path, skip_accept_encoding=True)
        if body is not None:
            sent["Content-Length"] = str(len(body))
        for name, value in sent.items():
            connection.putheader(name, value)
        # A refusal may come before all of the body is sent: like httpx and curl, read it all the same.
        with contextlib.suppress(ssl.SSLEOFError, ConnectionError):
            connection.endheaders(body)
        return connection.getresponse()

    def ask(self, method: str, path: str, token: str | None = None, body: object = None, **options) -> Answer:
        response = self.open(method, path, token, body, **options)
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def raw(self, request: bytes, timeout: float = 15) -> bytes:
        """Send bytes and return all that comes back until the gateway closes or falls silent."""
        received = b""
        with self.connect(timeout) as connection, contextlib.suppress(TimeoutError, ssl.SSLEOFError, ConnectionResetError):
            connection.sendall(request)
            while chunk := connection.recv(65536):
                received += chunk
        return received

    def chat(self, token: str, model: str = "tiny", max_tokens: int = 8, by_path: bool = False, timeout: float = 30) -> Answer:
        path = f"/m/{model}/v1/chat/completions" if by_path else "/v1/chat/completions"
        return self.ask("POST", path, token, {"model": model, "messages": QUESTION, "max_tokens": max_tokens}, timeout=timeout)

    def stream(self, token: str, model: str = "tiny", max_tokens: int = 32, timeout: float = 60, **more) -> Iterator[tuple]:
        """Yield (seconds since the request was sent, event) for each event of a streamed answer, `[DONE]` included."""
        body = {"model": model, "messages": QUESTION, "max_tokens": max_tokens, "stream": True, **more}
        start = time.monotonic()
        response = self.open("POST", "/v1/chat/completions", token, body, timeout=timeout)
        assert response.status == 200, response.read()
        while line := response.readline():
            # The space after the colon is up to the engine.
            if line.startswith(b"data:"):
                yield time.monotonic() - start, line[5:].strip().decode()


@dataclasses.dataclass
class Fleet:
    """The fleet of containers behind an inventory."""

    path: Path = INVENTORY
    state: Path = STATE

    @property
    def ca(self) -> Path:
        return self.state / "ca" / "ca.pem"

    @cached_property
    def inventory(self) -> dict:
        done = subprocess.run(
            [BIN / "ansible-inventory", "-i", self.path, "--list"], cwd=REPO, check=True, capture_output=True, text=True
        )
        return json.loads(done.stdout)

    def hosts(self, group: str) -> list:
        return self.inventory[group]["hosts"]

    def address(self, host: str) -> str:
        return self.inventory["_meta"]["hostvars"][host]["ansible_host"]

    def container(self, host: str) -> str:
        return f"{self.inventory['_meta']['hostvars'][host]['testbed_network']['name']}-{host}"

    def gateway(self, name: str = "gw1") -> Gateway:
        return Gateway(name, self.address(name), ca=self.ca)

    def shell(self, host: str, script: str, check: bool = True) -> str:
        """Run a script on a host, past Ansible and ssh, and return what it prints."""
        done = subprocess.run(
            ["docker", "exec", "-i", self.container(host), "sh", "-s"],
            input=script, check=False, capture_output=True, text=True, timeout=120,
        )
        assert not check or done.returncode == 0, f"{host}: {script}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    @staticmethod
    def python(script: str) -> subprocess.CompletedProcess:
        """Run a few lines on this machine, in a process of their own."""
        return subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=60)

    def haproxy(self, gateway: str, command: str) -> str:
        """What HAProxy on a gateway answers on its runtime socket."""
        script = (
            "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/haproxy/admin.sock'); "
            f"s.sendall(b'{command}\\n'); print(s.makefile().read())"
        )
        return self.shell(gateway, f'python3 -c "{script}"')

    def servers(self, gateway: str) -> dict:
        """The servers that HAProxy on a gateway knows, by name: its rows of `show stat`."""
        rows = csv.DictReader(io.StringIO(self.haproxy(gateway, "show stat").lstrip("# ")))
        return {row["svname"]: row for row in rows if row["type"] == "2"}

    def playbook(
        self, name: str, *arguments: str, check: bool = True, inventory: Path | None = None, cwd: Path = REPO, timeout: float = 900
    ) -> subprocess.CompletedProcess:
        """Run one of the collection's playbooks as an operator would."""
        command = self._playbook(name, arguments, inventory or self.path, cwd)
        done = subprocess.run(**command, check=False, capture_output=True, timeout=timeout)
        assert not check or done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
        return done

    def start(self, name: str, *arguments: str, output: Path, inventory: Path | None = None) -> subprocess.Popen:
        """Start one in a session of its own: its process group is all of it, workers and connections too."""
        with output.open("w") as handle:
            command = self._playbook(name, arguments, inventory or self.path, REPO)
            return subprocess.Popen(**command, stdout=handle, stderr=subprocess.STDOUT, start_new_session=True)

    def _playbook(self, name: str, arguments: tuple, inventory: Path, cwd: Path) -> dict:
        environment = {
            # That log is of molecule's own steps; a failure that a test asks for has no place in it.
            **{name: value for name, value in os.environ.items() if name != "ANSIBLE_LOG_PATH"},
            "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(REPO / ".venv" / "collections"),
            # Molecule forces colours, and they would stick to what a test reads.
            "ANSIBLE_FORCE_COLOR": "0",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(self.state / "facts"),
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }
        command = [BIN / "ansible-playbook", REPO / "playbooks" / f"{name}.yml", "-i", inventory, *arguments]
        return {"args": command, "cwd": cwd, "env": environment, "text": True}

    def token(self, client: str, *arguments: str, file: Path) -> str:
        self.playbook("tokens", "-e", "do=issue", "-e", f"client={client}", "-e", f"token_file={file}", *arguments)
        return file.read_text().strip()

    def plan(self, host: str = "gw1") -> dict:
        return json.loads(self.shell(host, "cat /var/lib/llm_fleet/plan.json"))

    def instances(self, **wanted) -> list:
        return [i for i in self.plan()["instances"] if all(i[key] == value for key, value in wanted.items())]


def until(true, seconds: float = 60, every: float = 0.5):
    """Wait until `true()` returns something true, and return it; a deadline ends the test, nothing else does."""
    deadline = time.monotonic() + seconds
    while not (result := true()):
        assert time.monotonic() < deadline, f"not so within {seconds} s: {getattr(true, '__name__', true)}"
        time.sleep(every)
    return result


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("long") and not os.environ.get("LLM_FLEET_LONG"):
            item.add_marker(pytest.mark.skip(reason="LLM_FLEET_LONG=1, or make test-long, runs it"))


def pytest_runtest_logreport(report):
    """Keep what failed, in few words, for `make` to say again at the very end: logs of CI are read from there."""
    if report.failed:
        lines = [line for line in report.longreprtext.splitlines() if line.startswith("E ")] or report.longreprtext.splitlines()
        told = [line for line in lines[3:-8] if re.search(r"fatal|ERROR|FAILED|error:", line)]
        shown = [line[:400] for line in (*lines[:3], *told[-8:], *lines[3:][-8:])]
        STATE.mkdir(parents=True, exist_ok=True)
        with (STATE / "failures.txt").open("a") as handle:
            handle.write("\n".join((f"FAILED {report.nodeid} ({report.when})", *shown, "")))


def unharmed(report: Report) -> None:
    """Nobody noticed: every answer came, whole and in time."""
    assert report.requests > 50, "too few requests to say anything"
    assert report.failed == 0, report.faults[:10]


@pytest.fixture(scope="session")
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture(scope="session")
def gateway(fleet) -> Gateway:
    return fleet.gateway()


@pytest.fixture(scope="session")
def wait_until():
    return until


@pytest.fixture(scope="session")
def tokens(fleet, tmp_path_factory) -> dict:
    """A token for each client of the inventory."""
    folder = tmp_path_factory.mktemp("tokens")
    return {client: fleet.token(client, file=folder / client) for client in ("alice", "bob")}


@pytest.fixture(scope="session")
def on(fleet):
    """`on("gw1")` is testinfra's view of that host, as root."""

    def connect(name: str):
        return testinfra.get_host(f"docker://{fleet.container(name)}")

    return connect
