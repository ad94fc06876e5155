# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The gateway's own templates on a real HAProxy on loopback, as an ordinary user, with small engines behind it."""

from __future__ import annotations

import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_engine import Engine

ROLE = Path(__file__).resolve().parents[3] / "roles" / "gateway"
# HAPROXY in the environment names another program, such as one of another distribution in a chroot.
HAPROXY = os.environ.get("HAPROXY") or shutil.which("haproxy", path="/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
MAPS = ("models", "access", "paths", "lists", "limits", "keys")
PATHS = ("POST /v1/chat/completions", "POST /v1/embeddings")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def wait_until(condition, seconds: float = 60):
    """The first true answer of `condition`."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)
    return answer


@dataclass
class Served:
    """A model on the bench: its engines, and what the gateway is told of it."""

    name: str
    engines: list[Engine]
    access: list[str]
    release: str = "aaaaaaaaaaaa"
    version: str = "1.0.0"
    slots: int = 4
    queue: int = 16
    paths: tuple = PATHS
    key: str = "engine-key"

    @property
    def backend(self) -> str:
        return f"be_{self.name}_{self.release}"

    def as_backend(self) -> dict:
        servers = [
            {"name": f"{self.name}-{n}-a", "address": "127.0.0.1", "port": engine.port, "maxconn": self.slots}
            for n, engine in enumerate(self.engines)
        ]
        ready = [{"path": "/health", "status": 200}, {"path": "/v1/models", "contains": f'"id":"{self.name}"'}]
        return {
            "name": self.backend,
            "model": self.name,
            "version": self.version,
            "release": self.release,
            "queue": self.queue,
            "ready": ready,
            "api_key": bool(self.key),
            "servers": servers,
        }


def view(models: list[Served], limits: dict) -> dict:
    """What filter gateway_view makes of a plan with these models. limits: {client: (a minute, at once)}."""
    names = {}
    for model in models:
        names[model.name] = names[f"{model.name}@{model.version}"] = model.backend
    lists = {}
    for client in limits:
        data = [
            {"id": m.name, "object": "model", "created": 0, "owned_by": "llm_fleet"}
            for m in models
            if client in m.access
        ]
        lists[client] = json.dumps({"object": "list", "data": data}, separators=(",", ":"))
    return {
        "backends": [model.as_backend() for model in models],
        "models": names,
        "access": [f"{client}|{model.name}" for model in models for client in model.access],
        "paths": {model.name: list(model.paths) for model in models},
        "model_lists": lists,
        "limits": {client: {"requests_per_minute": a, "concurrent": b} for client, (a, b) in limits.items()},
    }


@functools.cache
def of_the_role(part: str) -> dict:
    """Its defaults or its vars."""
    return DataLoader().load_from_file(str(ROLE / part / "main.yml"), trusted_as_template=True)


def render(template: str, variables: dict) -> str:
    """The text that the role would write."""
    loader = DataLoader()
    loader.set_basedir(str(ROLE))
    values = {
        **of_the_role("defaults"),
        **of_the_role("vars"),
        "ansible_search_path": [str(ROLE)],
        **variables,
    }
    templar = Templar(loader=loader, variables=values)
    return templar.evaluate_expression(trust_as_template(f"lookup('template', '{template}')"))


@dataclass
class Bench:
    """One HAProxy in a directory of its own."""

    root: Path
    settings: dict = field(default_factory=dict)
    process: subprocess.Popen | None = None

    def __post_init__(self) -> None:
        self.port = free_port()
        self.log_port = free_port()
        self.config = self.root / "haproxy.cfg"
        self.maps = self.root / "llm_fleet" / "maps"
        self.maps.mkdir(parents=True)
        # A Unix socket's path has room for 107 bytes only.
        self.socket = self.root / "a.sock"
        self.master_socket = self.root / "m.sock"
        self.state = self.root / "state"
        self.registry = self.root / "clients.json"
        self.tokens = self.maps / "tokens.map"
        self.tokens.touch()
        self.routes = self.maps / "routes.map"
        self.routes.touch()
        tls = self.root / "llm_fleet" / "tls"
        tls.mkdir()
        subject = ["-subj", "/CN=bench", "-addext", "subjectAltName=IP:127.0.0.1"]
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{tls}/gateway.pem.key"]
        subprocess.run(
            ["openssl", "req", "-x509", *key, "-days", "2", *subject, "-out", f"{tls}/gateway.pem"],
            check=True,
            capture_output=True,
        )
        self.log = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.log.bind(("127.0.0.1", self.log_port))
        self.log.settimeout(5)

    @property
    def variables(self) -> dict:
        return {
            "gateway_address": "127.0.0.1",
            "gateway_port": self.port,
            "gateway_log": f"127.0.0.1:{self.log_port}",
            "gateway_check_interval": 1,
            "__gateway_jail": "",
            "__gateway_maps": str(self.maps),
            "__gateway_tls": str(self.root / "llm_fleet" / "tls"),
            "__gateway_refuse": str(ROLE / "files" / "refuse.lua"),
            "__gateway_socket": str(self.socket),
            "__gateway_server_state": str(self.state),
            **self.settings,
        }

    def write(self, models: list[Served], limits: dict) -> None:
        """Configuration and maps, as the role renders them."""
        keys = {model.name: model.key for model in models if model.key}
        values = {**self.variables, "gateway_view": view(models, limits), "gateway_engine_keys": keys}
        for name in MAPS:
            (self.maps / f"{name}.map").write_text(render(f"maps/{name}.map.j2", values))
        # Five checks a second, so that no test waits long for a server to come up or go down.
        text = render("haproxy.cfg.j2", values).replace("inter 1s", "inter 200ms").replace("agent-inter 10s", "agent-inter 200ms")
        self.config.write_text(text)

    def check(self) -> subprocess.CompletedProcess:
        return subprocess.run([HAPROXY, "-c", "-f", self.config], capture_output=True, text=True, check=False)

    def tool(self, *args: str) -> subprocess.CompletedProcess:
        """Run the role's haproxy-state on this bench."""
        paths = ["--config", self.config, "--socket", self.socket, "--state", self.state]
        command = [sys.executable, ROLE / "files" / "haproxy_state.py", *args, *paths]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def start(self) -> None:
        """Start HAProxy; without a state file all servers are taken for up, as a plain HAProxy does."""
        if not self.state.exists():
            self.state.write_text("1\n# empty\n")
        checked = self.check()
        assert checked.returncode == 0, checked.stderr
        warnings = [line for line in checked.stderr.splitlines() if "WARNING" in line and "config : Server" not in line]
        assert not warnings, warnings
        command = [HAPROXY, "-W", "-f", self.config, "-S", f"{self.master_socket},level,admin"]
        self.process = subprocess.Popen(command, stderr=(self.root / "stderr").open("a"), stdout=subprocess.DEVNULL)
        wait_until(lambda: self.socket.exists() and "Uptime" in self.ask("show info"))

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait()
        self.log.close()

    def ask(self, command: str) -> str:
        """What HAProxy answers on its runtime socket."""
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.connect(str(self.socket))
            except OSError:
                return ""
            sock.sendall(f"{command}\n".encode())
            answer = b""
            while piece := sock.recv(65536):
                answer += piece
        return answer.decode()

    def status(self, backend: str, server: str) -> str:
        rows = (line.split(",") for line in self.ask("show stat").splitlines())
        return next((row[17] for row in rows if row[:2] == [backend, server]), "")

    def logged(self, request: str) -> dict:
        """The log entry of a request."""
        while True:
            line = self.log.recv(65536).decode()
            if request in line:
                return json.loads(line[line.index("{") :])
