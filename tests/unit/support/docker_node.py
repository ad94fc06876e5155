# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""A double: stands for Docker's command line on a node, where a test needs containers that really start, answer and stop.

A container is a process with llama-server's /health, /v1/models and /metrics, on its port. `inspect`, `start`, `stop` and `logs` say
and do what Docker's do, as far as the modules look. It leaves out images, networks, restart policies and everything else. Each
container has a folder; files in it say what goes wrong: `loading` (not ready while it is there), `broken` (ends at once), `refused`
(Docker itself does not do it), `busy` (how many requests it says that it works at). What Docker was told is in `told`, a line each,
with how busy the engine was.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

KEY = "geheim"
BROKEN = 3


class Node:
    """A node with containers, as a test sees it. `programs` goes before the programs of the system."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "containers"
        self.programs = folder / "programs"
        self.folder.mkdir()
        self.programs.mkdir()
        program = self.programs / "docker"
        program.write_text(f"#!/bin/sh\nexec {sys.executable} {__file__} {self.folder} \"$@\"\n")
        program.chmod(0o755)

    def add(self, name: str, release: str, model: str = "tiny") -> int:
        """A container that was created and never ran; returns its port."""
        with socket.socket() as chosen:
            chosen.bind(("127.0.0.1", 0))
            port = chosen.getsockname()[1]
        (self.folder / name).mkdir()
        about = {"port": port, "model": model, "labels": {"llm_fleet.instance": name, "llm_fleet.release": release}}
        (self.folder / name / "about.json").write_text(json.dumps(about))
        return port

    def set(self, name: str, what: str, value: object = "") -> None:
        # As a whole: the engine may read it at any moment.
        written = self.folder / name / f".{what}"
        written.write_text(str(value))
        written.replace(self.folder / name / what)

    def clear(self, name: str, what: str) -> None:
        (self.folder / name / what).unlink()

    def docker(self, *arguments: str) -> None:
        subprocess.run([self.programs / "docker", *arguments], check=True, capture_output=True)

    def state(self, name: str) -> str:
        return Container(self.folder / name).state

    def told(self) -> list[str]:
        told = self.folder / "told"
        return told.read_text().splitlines() if told.exists() else []

    def forget(self) -> None:
        (self.folder / "told").unlink(missing_ok=True)

    def was_asked(self, name: str, path: str) -> bool:
        asked = self.folder / name / "asked"
        return asked.exists() and path in asked.read_text().splitlines()

    def wait_until_asked(self, name: str, path: str) -> None:
        """Until an engine has answered for a path: what happens next, happens while somebody waits."""
        for _attempt in range(3000):
            if self.was_asked(name, path):
                return
            time.sleep(0.01)
        raise AssertionError(f"{name} was never asked for {path}")

    def wait_until_answering(self, name: str) -> None:
        port = Container(self.folder / name).about["port"]
        for _attempt in range(3000):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.01)
        raise AssertionError(f"{name} never answered on port {port}")

    def stop(self) -> None:
        for folder in self.folder.iterdir():
            if folder.is_dir():
                Container(folder).end()


class Container:
    """A container, as Docker sees it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.about = json.loads((folder / "about.json").read_text())

    @property
    def running(self) -> bool:
        pid = self.folder / "pid"
        if not pid.exists():
            return False
        try:
            # A dead process stays in the table until somebody has asked for its end, which may be never.
            return Path(f"/proc/{pid.read_text()}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    @property
    def state(self) -> str:
        return "running" if self.running else "exited" if (self.folder / "pid").exists() else "created"

    def inspected(self) -> dict:
        code = self.folder / "code"
        return {
            "Name": f"/{self.folder.name}",
            "RestartCount": 0,
            "Config": {"Labels": self.about["labels"]},
            "State": {"Status": self.state, "ExitCode": int(code.read_text()) if code.exists() else 0, "OOMKilled": False},
        }

    def start(self) -> None:
        if self.running:
            return
        with open(self.folder / "log", "a") as log:
            command = [sys.executable, __file__, "--engine", self.folder]
            engine = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        (self.folder / "pid").write_text(str(engine.pid))

    def end(self) -> None:
        if self.running:
            os.kill(int((self.folder / "pid").read_text()), signal.SIGTERM)
        while self.running:
            time.sleep(0.01)


def docker(folder: Path, verb: str, arguments: list[str]) -> int:
    """What Docker does when it is told; its exit status."""
    names = [argument for argument in arguments if (folder / argument / "about.json").exists()]
    if verb == "inspect":
        print(json.dumps([Container(folder / name).inspected() for name in names]))
        return 0 if names == arguments[2:] else 1
    if not names:
        sys.stderr.write(f"Error response from daemon: No such container: {arguments[-1]}\n")
        return 1
    container = Container(folder / names[0])
    if verb == "logs":
        lines = (container.folder / "log").read_text().splitlines() if (container.folder / "log").exists() else []
        sys.stderr.write("".join(f"{line}\n" for line in lines[-int(arguments[1]) :]))
        return 0
    with open(folder / "told", "a") as told:
        told.write(f"{verb} {names[0]}{f' at {busy(container.folder)}' if verb == 'stop' else ''}\n")
    if (container.folder / "refused").exists():
        sys.stderr.write(f"Error response from daemon: cannot {verb} it\n")
        return 1
    container.start() if verb == "start" else container.end()
    return 0


def busy(folder: Path) -> int:
    return int((folder / "busy").read_text()) if (folder / "busy").exists() else 0


def engine(folder: Path) -> int:
    """What runs in a container; its exit status."""
    about = json.loads((folder / "about.json").read_text())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers = {
                "/health": "{}",
                "/v1/models": json.dumps({"data": [{"id": about["model"]}]}, separators=(",", ":")),
                "/metrics": f"# TYPE llamacpp:requests_processing gauge\nllamacpp:requests_processing {busy(folder)}\n",
            }
            allowed = self.path == "/health" or self.headers["Authorization"] == f"Bearer {KEY}"
            status = 503 if (folder / "loading").exists() else 401 if not allowed else 200
            data = answers[self.path].encode() if status == 200 else b""
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            with open(folder / "asked", "a") as asked:
                asked.write(f"{self.path}\n")

        def log_message(self, *_arguments) -> None:
            pass

    print("loading the weights", flush=True)
    if (folder / "broken").exists():
        print("no such tensor", flush=True)
        (folder / "code").write_text(str(BROKEN))
        return BROKEN
    signal.signal(signal.SIGTERM, lambda *_signal: sys.exit(0))
    (folder / "code").write_text("0")
    ThreadingHTTPServer(("127.0.0.1", about["port"]), Handler).serve_forever(0.05)
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "--engine":
        sys.exit(engine(Path(sys.argv[2])))
    sys.exit(docker(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
