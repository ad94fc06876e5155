# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The double of Ollama on a store as the fleet writes it, with a stand-in for llama-server."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import yaml

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.engine_probe import Container, Waiter, make_target
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.ollama_store import from_gguf

REPO = Path(__file__).resolve().parents[3]
DOUBLE = REPO / "testbed/doubles/ollama/ollama.py"
STANDIN = Path(__file__).with_name("llama_server.py")
PROFILE = yaml.safe_load((REPO / "plugins/module_utils/engine_profiles/ollama.yml").read_text(encoding="utf-8"))
RUNNING = Container("running")


def wait_until(condition, seconds: float = 60):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return found


class Ollama:
    """One instance. `files` are what the lockfile would say of its model."""

    def __init__(self, folder: Path, weights: bytes = b"GGUF tiny") -> None:
        self.folder, self.models, self.home = folder, folder / "models", folder / "home"
        self.control, self.bin = folder / "control", folder / "bin"
        for path in (self.home, self.control, self.bin):
            path.mkdir()
        (self.bin / "ollama").symlink_to(DOUBLE)
        digest = hashlib.sha256(weights).hexdigest()
        self.files = from_gguf("tiny", [{"path": "tiny.gguf", "size": len(weights), "sha256": digest}])
        self.weights = self.models / "blobs" / f"sha256-{digest}"
        for file in self.files:
            path = self.models / file["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file["content"].encode() if "content" in file else weights)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process: subprocess.Popen | None = None

    @property
    def manifest(self) -> dict:
        return next(file for file in self.files if file["path"].startswith("manifests/"))

    def environment(self, **variables: str) -> dict:
        return {
            **os.environ,
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "OLLAMA_HOST": f"127.0.0.1:{self.port}",
            "OLLAMA_MODELS": str(self.models),
            "OLLAMA_KEEP_ALIVE": "-1",
            "HOME": str(self.home),
            "LLAMA_SERVER": f"{sys.executable} {STANDIN}",
            "STANDIN": str(self.control),
            "PYTHONDONTWRITEBYTECODE": "1",
            **variables,
        }

    def start(self, *command: str, **variables: str) -> Ollama:
        log = (self.folder / "log").open("wb")
        command = command or (sys.executable, str(DOUBLE), "serve")
        self.process = subprocess.Popen(command, env=self.environment(**variables), stdout=log, stderr=subprocess.STDOUT)
        wait_until(self.answers)
        return self

    def answers(self) -> bool:
        assert self.process.poll() is None, (self.folder / "log").read_text()
        try:
            return self.ask("GET", "/")[0] == 200
        except OSError:
            return False

    def command(self, *words: str, **variables: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(DOUBLE), *words]
        environment = self.environment(**variables)
        return subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, text=True, capture_output=True, check=False)

    def ask(self, method: str, path: str, body: dict | None = None, **headers: str) -> tuple[int, str]:
        connection = self.send(method, path, body, **headers)
        try:
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def send(self, method: str, path: str, body: dict | None = None, **headers: str) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        return connection

    def loaded(self) -> list[str]:
        return [model["name"] for model in json.loads(self.ask("GET", "/api/ps")[1])["models"]]

    def wait_ready(self, seconds: float = 20) -> dict:
        """Wait as the role does, with the profile's own checks and preload; return why it is not ready."""
        record = {
            "engine": "ollama",
            "model": "tiny",
            "version": "1.0.0",
            "context": 512,
            "parallel": 2,
            "files": self.files,
            "container": {"port": self.port, "api_key_environment": None},
        }
        interfaces = {"ollama": {key: PROFILE["http"][key] for key in ("ready", "preload")}}
        target = make_target({"id": "tiny-0-a", "model": "tiny", "port": self.port, "record": record}, interfaces, {}, "127.0.0.1")
        waiter = Waiter(lambda names: dict.fromkeys(names, RUNNING), pause=lambda _seconds: time.sleep(0.05))
        return waiter.wait([target], seconds)

    def runner_pid(self) -> int:
        return int((self.control / "pid").read_text())

    def runner_arguments(self) -> list[str]:
        return json.loads((self.control / "arguments.json").read_text())

    def stop(self) -> None:
        for name in ("hold", "loading"):
            (self.control / name).unlink(missing_ok=True)
        if self.process and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(10)
        shutil.rmtree(self.models, ignore_errors=True)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
