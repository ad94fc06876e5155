#!/usr/bin/env python3
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""An upgrade of the driver and the container toolkit on the nodes of the demo's fleet, while clients stream from it.

To the newer driver, and when called again back. Brings the demo up where it does not run. Broken off, the next call goes on from there.
The drivers are doubles of NVIDIA's packages, and so are the GPUs; the drained nodes, reboots, gates and requests are real.
"""
from __future__ import annotations

import dataclasses
import re
import sys

import demo
import fleet as testbed
import watch
from upgrade_story import Story
from watch import Watch

# The container toolkit that comes with each driver.
FIRST, SECOND = "580.95.05", "580.105.08"
TOOLKITS = {FIRST: "1.17.8-1", SECOND: "1.18.0-1"}
MODELS = [demo.MODEL, demo.OTHER]


@dataclasses.dataclass(frozen=True)
class Move:
    """What to do next: from which driver on the nodes, and to which."""

    old: str
    new: str

    @property
    def reason(self) -> str:
        """Is kept in the plan until the nodes are back, and so tells the next call what was begun."""
        return f"driver-{self.new}"

    @property
    def arguments(self) -> list[str]:
        given = {
            "upgrade": "all",
            "nvidia_driver_version": self.new,
            "container_runtime_nvidia_version": TOOLKITS[self.new],
            "reason": self.reason,
        }
        return ["playbooks/hosts.yml", "-i", "inventories/demo", *(part for name in given for part in ("-e", f"{name}={given[name]}"))]


def next_move(drivers: dict[str, str], maintenance: dict[str, dict]) -> Move:
    """To the second driver, or back; and first to the end of what was begun. drivers: of each node."""
    forward, back = Move(FIRST, SECOND), Move(SECOND, FIRST)
    begun = {entry["why"] for entry in maintenance.values()}
    for move in (forward, back):
        if move.reason in begun:
            return move
    return back if set(drivers.values()) == {SECOND} else forward


def read_drivers(fleet: testbed.Fleet) -> dict[str, str]:
    """The driver that each node has loaded; nothing of a node where none is."""
    drivers = {}
    for host in fleet.hosts:
        said = testbed.docker("exec", fleet.container(host), "cat", "/proc/driver/nvidia/version", check=False) if host.gpus else ""
        if found := re.search(r"\d+\.\d+\.\d+", said):
            drivers[host.name] = found[0]
    return drivers


def without_versions(now: dict) -> dict:
    """The figures without the models' versions: they stay what they are."""
    return {name: value for name, value in now.items() if name != "shares"}


def demo_upgrade() -> int:
    fleet = testbed.read_fleet(demo.INVENTORY)
    if not (demo.serves(fleet) and read_drivers(fleet)):
        demo.bring_up()
    move = next_move(read_drivers(fleet), demo.read_plan(fleet)["maintenance"])
    demo.step(f"The nodes from driver {move.old} to {move.new}, while clients stream")
    demo.say_what_is_double()
    story = Story()
    watching = Watch("upgrade", story, without_versions)
    outcome = watching.run(move.arguments, watch.clients(MODELS), lambda: story.conclusion)
    title = f"driver {move.old} -> {move.new}, container toolkit {TOOLKITS[move.old]} -> {TOOLKITS[move.new]}"
    watch.show_table(title, outcome, reboots=story.reboots)
    if watch.show_fault(outcome, "playbooks/hosts.yml", watching.log):
        return 1
    print(f"\n`make demo-upgrade` once more goes {'back' if move.new == SECOND else 'forward again'}.")
    return 0


if __name__ == "__main__":
    sys.exit(watch.run(demo_upgrade, "demo-upgrade"))
