#!/usr/bin/env python3
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What a run of site.yml with nothing to do takes, with 1, 2 and 4 nodes, beside `ansible -m setup` on the same hosts.

The yardstick is one `ansible -m setup`: start Ansible, connect to each host, run one module there. The ratio says how
many of those a run is worth, on any machine.
"""
from __future__ import annotations

import argparse
import re
import statistics
import sys

from harness import (
    HERE,
    REPO,
    BenchError,
    ansible,
    ansible_version,
    fleet,
    main,
    playbook,
    report,
    rounds,
    run,
    say,
    seconds,
)

INVENTORY = HERE / "inventory" / "site.yml"
SITE = REPO / "playbooks" / "site.yml"
NODES = (1, 2, 4)
RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)


def hosts(nodes: int) -> list[str]:
    return ["gw1", *(f"gpu{n}" for n in range(1, nodes + 1))]


def no_op(nodes: int) -> float:
    """Seconds of a run that finds nothing to do; one that finds something is not what is measured."""
    output = ""

    def site() -> None:
        nonlocal output
        output = playbook(SITE, INVENTORY, "--limit", ",".join(hosts(nodes)))

    took = seconds(site)
    recap = {host: [int(n) for n in numbers] for host, *numbers in RECAP.findall(output)}
    missing = set(hosts(nodes)) - set(recap)
    if missing or any(changed or unreachable or failed for _, changed, unreachable, failed in recap.values()):
        raise BenchError(f"this run was no no-op: {recap}")
    return took


def setup(nodes: int) -> float:
    return seconds(lambda: ansible("ansible", ",".join(hosts(nodes)), "-i", INVENTORY, "-m", "ansible.builtin.setup"))


def measure(nodes: int) -> dict:
    # Connections stay open for two minutes (ansible.cfg). Opened here, they are open for both.
    setup(nodes)
    return {"setup_s": setup(nodes), "site_s": no_op(nodes)}


def bench() -> None:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("--rounds", type=int, default=2, help="how often each size is measured, in turn")
    cli.add_argument("--keep", action="store_true", help="leave the fleet for another run")
    options = cli.parse_args()
    with fleet(INVENTORY, options.keep):
        say("supplying model, engine image and lockfile")
        run(sys.executable, REPO / "testbed" / "supply.py", "--inventory", INVENTORY)
        playbook(REPO / "playbooks" / "lock.yml", INVENTORY)
        took = seconds(lambda: playbook(SITE, INVENTORY))
        say(f"first site.yml on {len(hosts(max(NODES)))} hosts: {took:.0f} s")
        cases = {str(n): lambda n=n: measure(n) for n in NODES}
        found = rounds(options.rounds, cases)
    rows = [
        {
            "nodes": int(nodes),
            "hosts": len(hosts(int(nodes))),
            "site_s": round(figures["site_s"], 2),
            "setup_s": round(figures["setup_s"], 2),
            "ratio": round(statistics.median(r["site_s"] / r["setup_s"] for r in figures["rounds"]), 2),
            "rounds": figures["rounds"],
        }
        for nodes, figures in found.items()
    ]
    report(
        "site",
        {"nodes": "nodes", "hosts": "hosts", "site_s": "site.yml s", "setup_s": "setup s", "ratio": "ratio"},
        rows,
        {"ansible": ansible_version()},
        [
            "site.yml with nothing to do (changed=0) on one gateway and so many nodes",
            "setup: one `ansible -m setup` on the same hosts; ssh connections are warm for both",
            f"medians of {options.rounds} rounds, compared within each round; the controller and all hosts share one machine",
        ],
    )


if __name__ == "__main__":
    raise SystemExit(main(bench))
