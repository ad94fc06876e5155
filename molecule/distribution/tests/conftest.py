# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""An operator as in scenario models, whose hosts bring each other files; and those hosts' peer programs, looked at from outside."""

from __future__ import annotations

import json
import os
import signal

import pytest

from ansible_collections.localfirst.llm_fleet.molecule.models.tests.conftest import STORE, bare, operator, outside, stores

__all__ = ["bare", "operator", "outside", "stores"]

P2P = ("-e", "llm_fleet_distribution=p2p")
LIMIT = 4_000_000  # bytes a second: 32 MB take eight seconds
SLOW = ("-e", f"llm_fleet_stage_bandwidth={LIMIT}")
UNIT = "llm-fleet-peer"
ASK = """
import json, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect("/run/llm_fleet_peer/control")
s.sendall(b'{"do": "status"}\\n')
print(s.makefile().readline())
"""


class Peers:
    """The peer programs of the fleet."""

    def __init__(self, fleet) -> None:
        self.fleet = fleet

    def contents(self, host: str) -> dict:
        """What a host brings or hands on, by digest; nothing where no program runs."""
        told = self.fleet.shell(host, f"python3 - <<'END' 2>/dev/null || true\n{ASK}\nEND")
        return json.loads(told)["contents"] if told else {}

    def status(self, host: str, digest: str) -> dict:
        return self.contents(host).get(digest, {"state": "none", "done": 0, "received": 0, "sent": 0})

    def there(self, host: str) -> list[str]:
        """What is there of the program while nobody stages: nothing."""
        return self.fleet.shell(host, f"""
            systemctl is-active --quiet {UNIT} && echo running
            ls /run/systemd/system/{UNIT}.service /run/llm-fleet-peer.json /run/llm_fleet_peer 2>/dev/null || true
        """).split()

    def kill(self, host: str) -> None:
        self.fleet.shell(host, f"systemctl kill -s KILL {UNIT}")

    def end(self, host: str) -> None:
        """Killed, and not started again."""
        self.fleet.shell(host, f"systemctl kill -s KILL {UNIT}; systemctl stop {UNIT}")


@pytest.fixture(scope="session")
def peers(fleet) -> Peers:
    return Peers(fleet)


@pytest.fixture
def underway(operator, peers, wait_until):
    """Start to stage and wait until peers have brought half a megabyte to a host; what still runs in the end is ended."""
    started = []

    def until_bytes(models, host: str, digest: str, *arguments: str):
        run, output = operator.start("stage", models, *P2P, *SLOW, *arguments)
        started.append(run)

        def moving() -> bool:
            assert run.poll() is None, output.read_text()[-3000:]
            return peers.status(host, digest)["done"] > 500_000

        wait_until(moving, 180, 0.1)
        return run, output

    yield until_bytes
    for run in started:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()


@pytest.fixture
def gone(fleet, peers):
    """Afterwards no program is there, whatever a test has killed."""
    yield
    for host in (*fleet.hosts("gpu_nodes"), *fleet.hosts("depots")):
        files = f"/run/systemd/system/{UNIT}.service /run/llm-fleet-peer.json /run/llm_fleet_peer"
        script = f"systemctl stop {UNIT} 2>/dev/null; rm -f {files}; systemctl daemon-reload"
        fleet.shell(host, script, check=False)


@pytest.fixture
def small_disk(fleet):
    """`small_disk("gpu2", 8)`: the host's store is on a disk of its own, of so many MB, and empty."""
    hosts = []

    def mount(host: str, megabytes: int) -> None:
        fleet.shell(host, f"mount -t tmpfs -o size={megabytes}m,mode=0750 tmpfs {STORE}")
        hosts.append(host)

    yield mount
    for host in hosts:
        fleet.shell(host, f"umount -l {STORE}")


@pytest.fixture
def guarded(fleet):
    """`guarded("depot1", "gpu1", "gpu2")`: the first host's firewall lets the others bring files from it, and nobody else."""
    hosts = []

    def load(host: str, *peers: str) -> None:
        hosts.append(host)
        addresses = ", ".join(fleet.address(peer) for peer in peers)
        fleet.shell(host, f"""
            nft list table inet llm_fleet > /tmp/llm_fleet.nft 2>/dev/null || true
            nft -f - <<'END'
            add table inet llm_fleet
            add set inet llm_fleet peers_v4 {{ type ipv4_addr; }}
            add element inet llm_fleet peers_v4 {{ {addresses} }}
            add chain inet llm_fleet guard {{ type filter hook input priority -6; }}
            add rule inet llm_fleet guard tcp dport 8446 ip saddr != @peers_v4 ct direction original drop
END
        """)

    yield load
    for host in hosts:
        fleet.shell(host, "nft delete table inet llm_fleet; nft -f /tmp/llm_fleet.nft; rm /tmp/llm_fleet.nft")
