# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Who reaches exporters: the rendered rules, checked by nft, and then in force between network namespaces with real connections.

A namespace stands for a node, one for the network with a monitor, a gateway and somebody else on it, one for a container whose port is
published by Docker's kind of rule.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.tests.unit.support.role_template import Role

# NFT in the environment names another program.
NFT = os.environ.get("NFT") or shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin:/bin")
NODE, MONITOR, GATEWAY, SOMEBODY = "10.9.0.1", "10.9.0.21", "10.9.0.11", "10.9.0.31"
CONTAINER, BRIDGE_ADDRESS = "172.31.9.2", "172.31.9.1"
ADDRESSES = {"firewall_gateways": [GATEWAY, "fd09::11"], "firewall_monitors": [MONITOR, "fd09::21"]}
EXPORTERS = {"firewall_exporter_ports": [9400, 9100]}

needs_nft = pytest.mark.skipif(not NFT, reason="there is no nft here: apt-get install nftables")
needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("ip") or subprocess.run(["unshare", "-n", "true"], check=False).returncode != 0,
    reason="no network namespaces can be made here",
)


def rules(**variables) -> str:
    return Role("firewall", **{**ADDRESSES, **variables}).render("firewall.nft.j2")


def chain(text: str, name: str) -> str:
    return text.split(f"chain {name} {{")[1].split("\n  }\n")[0]


def test_the_ports_are_closed_where_packets_are_forwarded_and_where_they_arrive():
    text = rules(**EXPORTERS)
    assert "tcp dport { 9100, 9400 } ct direction original goto to_exporter" in chain(text, "input")
    # Published ports have been rewritten by then: only the connection still knows which port was asked for.
    assert "ct status dnat meta l4proto tcp ct original proto-dst { 9100, 9400 }" in chain(text, "forward")


def test_gateways_are_not_let_in():
    assert "@gateways" not in chain(rules(**EXPORTERS), "to_exporter")
    assert "ip saddr @monitors_v4 accept" in chain(rules(**EXPORTERS), "to_exporter")


def test_without_ports_nothing_of_the_hosts_own_is_closed():
    assert "9100" not in rules()
    assert "dport" not in rules(firewall_port_range=[])


def test_without_exporters_there_is_no_chain_for_them():
    assert "to_exporter" not in rules(firewall_exporter_bridge="")


@pytest.mark.parametrize("settings, fits", [
    ({}, True),
    (EXPORTERS, True),
    ({"firewall_port_range": []}, True),
    ({"firewall_port_range": [20000]}, False),
    ({"firewall_port_range": [30000, 20000]}, False),
    ({"firewall_exporter_ports": [0]}, False),
    ({"firewall_exporter_ports": [9100, 70000]}, False),
    ({"firewall_exporter_bridge": ""}, True),
    ({"firewall_exporter_bridge": "llmf0"}, False),
    ({"firewall_exporter_bridge": 'x" accept'}, False),
    ({"firewall_monitors": ["monitor1"]}, False),
])
def test_what_is_no_address_or_port_is_refused(settings, fits):
    role = Role("firewall", **{**ADDRESSES, **settings})
    conditions = role.tasks("present.yml")[0]["ansible.builtin.assert"]["that"]
    assert all(role.evaluate(condition) for condition in conditions) is fits


@needs_nft
@needs_namespaces
@pytest.mark.parametrize("settings", [
    {}, EXPORTERS, {"firewall_exporter_bridge": ""}, {**EXPORTERS, "firewall_exporter_bridge": ""}, {"firewall_port_range": []},
    {"firewall_gateways": [], "firewall_monitors": [], **EXPORTERS},
])
def test_nft_accepts_the_rules(settings, tmp_path):
    file = tmp_path / "firewall.nft"
    file.write_text(rules(**settings))
    done = subprocess.run(["unshare", "-n", NFT, "-c", "-f", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Wire:
    """A node with a network of neighbours and a container, as namespaces."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = {place: f"llmf-{os.getpid()}-{place}" for place in ("node", "lan", "box")}
        self.servers: list[subprocess.Popen] = []

    def inside(self, place: str, *command: str) -> list[str]:
        return ["ip", "netns", "exec", self.names[place], *command]

    def run(self, place: str, *command: str) -> None:
        subprocess.run(self.inside(place, *command), check=True, capture_output=True)

    def nft(self, text: str) -> None:
        file = self.folder / "rules.nft"
        file.write_text(text)
        done = subprocess.run(self.inside("node", NFT, "-f", str(file)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def up(self) -> None:
        for name in self.names.values():
            subprocess.run(["ip", "netns", "add", name], check=True)
        for place in self.names:
            self.run(place, "ip", "link", "set", "lo", "up")
        self.run("node", "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", self.names["lan"])
        self.run("node", "ip", "link", "add", "llmf1", "type", "bridge")
        self.run("node", "ip", "link", "add", "veth1", "type", "veth", "peer", "name", "eth0", "netns", self.names["box"])
        self.run("node", "ip", "link", "set", "veth1", "master", "llmf1", "up")
        for place, link, addresses in (
            ("node", "eth0", [NODE]), ("node", "llmf1", [BRIDGE_ADDRESS]), ("lan", "eth0", [MONITOR, GATEWAY, SOMEBODY]),
            ("box", "eth0", [CONTAINER]),
        ):
            for address in addresses:
                self.run(place, "ip", "address", "add", f"{address}/24", "dev", link)
            self.run(place, "ip", "link", "set", link, "up")
        self.run("lan", "ip", "route", "add", "172.31.9.0/24", "via", NODE)
        self.run("box", "ip", "route", "add", "default", "via", BRIDGE_ADDRESS)
        self.run("node", "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        # As Docker does for `--publish 10.9.0.1:9400:9400`.
        self.nft(f"""table ip nat {{
            chain prerouting {{
                type nat hook prerouting priority dstnat;
                ip daddr {NODE} tcp dport 9400 dnat to {CONTAINER}:9401
            }}
        }}
        """)
        self.serve("node", 9100)
        self.serve("box", 9401)
        self.serve("lan", 8000)

    def serve(self, place: str, port: int) -> None:
        server = "import socket, sys; s = socket.create_server(('0.0.0.0', int(sys.argv[1]))); print(flush=True)\nwhile True: s.accept()"
        command = self.inside(place, sys.executable, "-c", server, str(port))
        self.servers.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        self.servers[-1].stdout.readline()

    def reaches(self, place: str, address: str, port: int, source: str = "0.0.0.0") -> bool:
        client = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 0.7, (sys.argv[3], 0))"
        command = self.inside(place, sys.executable, "-c", client, address, str(port), source)
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def down(self) -> None:
        for server in self.servers:
            server.kill()
            server.wait()
        for name in self.names.values():
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.fixture(scope="module")
def wire(tmp_path_factory):
    made = Wire(tmp_path_factory.mktemp("wire"))
    try:
        made.up()
        yield made
    finally:
        made.down()


@needs_nft
@needs_namespaces
def test_who_reaches_what(wire):
    def reached() -> dict:
        found = {}
        for who in (MONITOR, GATEWAY, SOMEBODY):
            found[who] = [
                wire.reaches("lan", NODE, 9100, who),  # on the host
                wire.reaches("lan", NODE, 9400, who),  # published by a container
                wire.reaches("lan", CONTAINER, 9401, who),  # the container's own address, by a route through the node
            ]
        found["container"] = [wire.reaches("box", MONITOR, 8000), wire.reaches("box", BRIDGE_ADDRESS, 9100)]
        found["node"] = [wire.reaches("node", NODE, 9100), wire.reaches("node", CONTAINER, 9401)]
        return found

    everything = reached()
    assert all(all(answers) for answers in everything.values()), "without rules all of it is open"
    wire.nft(rules(**EXPORTERS))
    assert reached() == {
        MONITOR: [True, True, True], GATEWAY: [False, False, False], SOMEBODY: [False, False, False],
        "container": [False, False], "node": [True, True],
    }
    # An exporter that somebody runs on another bridge: its port is closed all the same.
    wire.nft(rules(**EXPORTERS, firewall_exporter_bridge=""))
    assert wire.reaches("lan", NODE, 9400, MONITOR) and not wire.reaches("lan", NODE, 9400, SOMEBODY)
