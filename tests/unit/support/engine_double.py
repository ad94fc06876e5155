# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""A double of an engine that serves a transformers directory, with a stand-in for llama-server."""

from __future__ import annotations

import functools
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[3]
DOUBLES = REPO / "testbed" / "doubles"
STANDIN = Path(__file__).with_name("llama_server.py")
SMALL = ("--layers=1", "--dim=32", "--ffn=32", "--heads=2", "--kv-heads=1", "--words=40", "--context=64")


def wait_until(condition, seconds: float = 60):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return found


def make_model(folder: Path, *options: str) -> Path:
    command = [sys.executable, str(REPO / "testbed" / "make_tiny_safetensors.py"), *SMALL, *options, str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@functools.cache
def template() -> tempfile.TemporaryDirectory:
    """A model that is made once for all tests of a run."""
    made = tempfile.TemporaryDirectory(prefix="tiny-")
    make_model(Path(made.name) / "model")
    return made


class Double:
    """One instance. `program` is how it is called, `options` are what each call of it has."""

    def __init__(self, folder: Path, program: list[str], options: list[str]) -> None:
        self.folder, self.program, self.options = folder, program, options
        self.model = folder / "model"
        shutil.copytree(Path(template().name) / "model", self.model)
        self.control = folder / "control"
        self.control.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process: subprocess.Popen | None = None

    def command(self, *options: str) -> list[str]:
        filled = [word.format(model=self.model, port=self.port) for word in self.options]
        return [sys.executable, *self.program, *filled, *options]

    def environment(self, **variables: str) -> dict:
        return {
            **os.environ,
            "PYTHONPATH": str(DOUBLES),
            "PYTHONDONTWRITEBYTECODE": "1",
            # Where a double is killed, its files stay.
            "TMPDIR": str(self.control),
            # Of SGLang's: it would take its time to end.
            "DOUBLE_WATCH": "0.1",
            "LLAMA_SERVER": f"{sys.executable} {STANDIN}",
            "STANDIN": str(self.control),
            **variables,
        }

    def launch(self, *options: str, **variables: str) -> Double:
        log = (self.folder / "log").open("wb")
        self.process = subprocess.Popen(self.command(*options), env=self.environment(**variables), stdout=log, stderr=subprocess.STDOUT)
        return self

    def start(self, *options: str, **variables: str) -> Double:
        self.launch(*options, **variables)
        wait_until(lambda: self.status("/v1/models") in (200, 401))
        return self

    def fails(self, *options: str, **variables: str) -> tuple[int, str]:
        """How it ends where it cannot start, and what it says."""
        command = self.command(*options)
        done = subprocess.run(command, env=self.environment(**variables), text=True, capture_output=True, timeout=20, check=False)
        return done.returncode, done.stdout + done.stderr

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def status(self, path: str) -> int | None:
        """What a path answers, or None where nobody does."""
        assert self.process.poll() is None, self.log()
        try:
            return self.ask("GET", path)[0]
        except OSError:
            return None

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, str]:
        connection = self.send(method, path, body, **headers)
        try:
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def get(self, path: str) -> dict:
        return json.loads(self.ask("GET", path)[1])

    def send(self, method: str, path: str, body: object = None, **headers: str) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        content = body if isinstance(body, bytes) or body is None else json.dumps(body)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, content, {"Content-Type": "application/json", **given})
        return connection

    def events(self, path: str, body: dict) -> list[str]:
        """The lines of a stream that say something."""
        status, text = self.ask("POST", path, {**body, "stream": True})
        assert status == 200, text
        return [line for line in text.split("\n\n") if line]

    def hold(self) -> Path:
        path = self.control / "hold"
        path.touch()
        return path

    def runner_arguments(self) -> list[str]:
        return json.loads((self.control / "arguments.json").read_text())

    def runner_pid(self) -> int:
        return int((self.control / "pid").read_text())

    def stop(self) -> None:
        for name in ("hold", "loading"):
            (self.control / name).unlink(missing_ok=True)
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def damage(folder: Path, how: str) -> None:
    """Take from a model what an engine needs of it."""
    weights = folder / "model.safetensors"
    if how == "no config":
        (folder / "config.json").unlink()
    elif how == "no weights":
        weights.unlink()
    elif how == "no header":
        weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:-1])
