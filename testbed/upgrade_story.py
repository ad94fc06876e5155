# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""An upgrade of nodes as a few plain sentences, while it happens: for somebody who watches it and does not read Ansible's output."""
from __future__ import annotations

import dataclasses

PLAYS = {
    "Look at the fleet, and say who goes out of service when": "hosts.yml looks at what each node lacks",
    "Take the nodes out of service in the plan, so that nobody else starts what is to be stopped":
        "the upgrade takes its lock, and the plan notes that the nodes are in maintenance",
    "Bring back into service what serves again, and release the lock": "the plan has the nodes back in service, and the lock is given back",
}
# Steps of a node, by the names of their tasks; the others are too quick or too dull to be told.
TASKS = {
    "Drain its instances": "is drained: no gateway sends it anything new",
    "Stop its engines": "stops its engines",
    "Upgrade the driver": "sees to its driver",
    "Upgrade Docker and the container toolkit, and describe the GPUs to them": "sees to Docker and the container toolkit",
    "See that it is well": "is checked: every GPU has to be there again",
    "Start its engines": "starts its engines",
    "Have them pass their gates before any client meets them": "is gated: its engines have to answer probes before any client meets them",
}


@dataclasses.dataclass
class Story:
    """Is told the events of testbed/callbacks/run_events.py, and makes sentences of them."""

    reboots: int = 0
    lacks: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    # When each node was drained.
    begun: dict[str, float] = dataclasses.field(default_factory=dict)
    done: list[str] = dataclasses.field(default_factory=list)
    failed: list[str] = dataclasses.field(default_factory=list)
    told: set = dataclasses.field(default_factory=set)

    def tell(self, event: dict) -> list[str]:
        for kind in ("play", "task", "lacks", "batches", "mark", "reboot", "rebooted", "done", "failure"):
            if kind in event:
                return getattr(self, f"_{kind}")(event)
        return []

    @property
    def conclusion(self) -> str:
        if self.failed:
            return f"{' and '.join(self.failed)} stays out of service"
        return f"{' and '.join(self.done)} serve again" if self.done else "nothing was upgraded"

    def _once(self, *what: str, sentence: str) -> list[str]:
        """Some names are those of two tasks, one of which includes the other."""
        if what in self.told:
            return []
        self.told.add(what)
        return [sentence]

    def _play(self, event: dict) -> list[str]:
        name = event["play"]
        return self._once(name, sentence=PLAYS[name]) if name in PLAYS else []

    def _task(self, event: dict) -> list[str]:
        name, host = event["task"], event["host"]
        if name not in TASKS:
            return []
        self.begun.setdefault(host, event["at"])
        return self._once(host, name, sentence=f"{host} {TASKS[name]}")

    def _lacks(self, event: dict) -> list[str]:
        self.lacks[event["host"]] = event["lacks"]
        return []

    def _batches(self, event: dict) -> list[str]:
        # Those that lack the same are told of together.
        alike: dict[str, list[str]] = {}
        for host in (host for hosts in event["batches"] for host in hosts):
            alike.setdefault("; ".join(self.lacks[host]), []).append(host)
        lines = [f"{' and '.join(hosts)} {'lack' if len(hosts) > 1 else 'lacks'}: {what}" for what, hosts in alike.items()]
        return [*lines, f"they go out of service in this order: {', then '.join(' and '.join(hosts) for hosts in event['batches'])}"]

    def _mark(self, event: dict) -> list[str]:
        what, _, figures = event["mark"]["what"].partition(" ")
        return [f"{event['host']} has ended its last stream, after {float(figures):.1f} s"] if what == "drained" else []

    def _reboot(self, event: dict) -> list[str]:
        return [f"{event['host']} has to be rebooted: {'; '.join(event['reboot'])}"]

    def _rebooted(self, event: dict) -> list[str]:
        self.reboots += 1
        return [f"{event['host']} is back from its reboot, after {event['rebooted']} s"]

    def _done(self, event: dict) -> list[str]:
        host = event["host"]
        self.done.append(host)
        return [f"{host} serves again, {event['at'] - self.begun[host]:.0f} s after it was drained"]

    def _failure(self, event: dict) -> list[str]:
        self.failed.append(event["host"])
        return [f"{event['host']} stays drained: {event['failure']}"]
