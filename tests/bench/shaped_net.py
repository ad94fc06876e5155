# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Hosts that are network namespaces of this machine, on one switch, every link shaped to the same rate in both directions."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

from harness import BenchError, run

PREFIX = "llmf-bench"
SUBNET = "10.77.0"
BURST, LATENCY = "256kb", "60ms"


class ShapedNet:
    """`hosts` namespaces, numbered from 0, and the switch between them."""

    def __init__(self, hosts: int, mbit: float) -> None:
        self.hosts = hosts
        self.mbit = mbit
        self.switch = f"{PREFIX}-sw"

    def name(self, host: int) -> str:
        return f"{PREFIX}-h{host}"

    def address(self, host: int) -> str:
        return f"{SUBNET}.{10 + host}"

    def inside(self, host: int, *command: object) -> list[str]:
        """A command as it runs on a host."""
        return ["ip", "netns", "exec", self.name(host), *map(str, command)]

    def sent(self, host: int) -> int:
        """Bytes that a host has sent, all headers included."""
        return int(run(*self.inside(host, "cat", "/sys/class/net/eth0/statistics/tx_bytes")))

    def up(self) -> None:
        run("ip", "netns", "add", self.switch)
        run("ip", "-n", self.switch, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", self.switch, "link", "set", "br0", "up")
        shape = ["root", "tbf", "rate", f"{self.mbit:g}mbit", "burst", BURST, "latency", LATENCY]
        for host in range(self.hosts):
            name, port = self.name(host), f"v{host}"
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
            run("ip", "-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", self.switch)
            run("ip", "-n", self.switch, "link", "set", port, "master", "br0", "up")
            run("ip", "-n", name, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            run("ip", "-n", name, "link", "set", "eth0", "up")
            run("tc", "-n", name, "qdisc", "add", "dev", "eth0", *shape)  # what it sends
            run("tc", "-n", self.switch, "qdisc", "add", "dev", port, *shape)  # what it gets

    def down(self) -> None:
        names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout.split()
        for name in (name for name in names if name.startswith(f"{PREFIX}-")):
            subprocess.run(["ip", "netns", "del", name], check=False)


@contextlib.contextmanager
def shaped_net(hosts: int, mbit: float) -> Iterator[ShapedNet]:
    """Such a network, and nothing of it afterwards."""
    net = ShapedNet(hosts, mbit)
    net.down()  # what a run that was killed has left
    try:
        net.up()
    except BenchError as error:
        net.down()
        raise BenchError(f"network namespaces cannot be made here; this bench needs root on Linux with iproute2: {error}") from error
    try:
        yield net
    finally:
        net.down()
