# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Hosts with the real peer program, each at an address of its own on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Callable

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.swarm_client import Peer, PeerGone, PeerRefused
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.swarm_torrent import NAME, make_torrent
from ansible_collections.localfirst.llm_fleet.tests.unit.support.fleet_ca import FleetCa

PROGRAM = Path(__file__).resolve().parents[3] / "roles/model_peer/files/peer"
PYTHON = "/usr/bin/python3"
PORT = 8446


def has_libtorrent() -> bool:
    return subprocess.run([PYTHON, "-c", "import libtorrent"], capture_output=True).returncode == 0


class SwarmHost:
    """One host: its program, and a folder."""

    def __init__(self, swarm: SwarmHosts, number: int, ca: FleetCa) -> None:
        self.swarm = swarm
        process = os.getpid()
        self.address = f"127.{10 + process // 250 % 200}.{1 + process % 250}.{number + 1}"
        self.folder = swarm.folder / str(number)
        self.folder.mkdir()
        self.ca = swarm.ca.pem
        self.pair = ca.issue_peer(f"peer{number}", NAME)
        self.process: subprocess.Popen | None = None
        self.settings: dict = {}
        self.peer = Peer(self.folder / "s", timeout=20)

    def start(self, wait: float = 20, **settings) -> SwarmHost:
        self.settings = {**self.settings, **settings}
        config = {
            "address": self.address, "port": PORT, "socket": self.peer.path, "state": str(self.folder / "state"),
            "cert": self.pair.certificate, "key": self.pair.key, "ca": self.ca, **self.settings,
        }
        (self.folder / "config").write_text(json.dumps(config))
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen([PYTHON, "-I", str(PROGRAM), str(self.folder / "config")], stdout=log, stderr=log)
        self.peer.wait(wait)
        return self

    def meet(self, *others: SwarmHost, lease: str = "test") -> SwarmHost:
        self.peer.join(lease, [(other.address, PORT) for other in others])
        return self

    def seed(self, body: bytes, torrent: bytes) -> None:
        path = self.folder / hashlib.sha256(body).hexdigest()
        path.write_bytes(body)
        path.chmod(0o440)
        self.peer.seed(path.name, torrent, path)

    def want(self, digest: str, torrent: bytes, here=()) -> Path:
        path = self.folder / f"{digest}.part"
        path.touch()
        self.peer.want(digest, torrent, path, here)
        return path

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def until(self, digest: str, right: Callable[[dict], bool], seconds: float = 60) -> dict:
        """The first status that is right."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                status = self.peer.status(digest)
                if right(status):
                    return status
            except (PeerGone, PeerRefused) as error:
                status = {"said": str(error), "log": (self.folder / "log").read_text()}
            assert time.monotonic() < deadline, status
            time.sleep(0.1)


class SwarmHosts:
    """Some hosts of one fleet, and strangers."""

    def __init__(self) -> None:
        # A socket's path has to be short.
        self.folder = Path(tempfile.mkdtemp(prefix="swarm"))
        self.ca = FleetCa(self.folder)
        self.hosts: list[SwarmHost] = []

    def __enter__(self) -> SwarmHosts:
        return self

    def __exit__(self, *_error) -> None:
        for host in self.hosts:
            host.stop()
        shutil.rmtree(self.folder)

    def add(self, count: int = 1, ca: FleetCa | None = None) -> list[SwarmHost]:
        """Hosts whose programs run already, and know each other."""
        made = [SwarmHost(self, len(self.hosts) + number, ca or self.ca) for number in range(count)]
        self.hosts += made
        for host in made:
            host.start()
        return made

    def mesh(self) -> None:
        for host in self.hosts:
            host.meet(*(other for other in self.hosts if other is not host))

    def torrent(self, body: bytes, ca: FleetCa | None = None) -> bytes:
        path = self.folder / "body"
        path.write_bytes(body)
        return make_torrent(path, Path((ca or self.ca).pem).read_bytes())
