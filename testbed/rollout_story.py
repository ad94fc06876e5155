# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A rollout as a few plain sentences, while it happens: for somebody who watches it and does not read Ansible's output."""
from __future__ import annotations

import dataclasses

# What the plays around the switching do; the others of the same playbooks are too quick or too dull to be told.
PLAYS = {
    "Check everything and plan": "catalog, lockfile and hosts are checked",
    "Bring the models to the nodes": "the nodes get the files that they lack",
    "Take the rollout's lock, look once more, and plan": "the rollout takes its lock on every gateway",
    "Put the new release beside the old one on the nodes": "each node gets the new container beside the old one, not started yet",
    "Look once more, and plan without the rollout": "the rollout ends: what is no longer needed goes",
}


@dataclasses.dataclass
class Story:
    """Is told the events of testbed/callbacks/run_events.py, and makes sentences of them."""

    rollout: dict = dataclasses.field(default_factory=dict)
    share: float = 0
    back: str = ""
    plays: set = dataclasses.field(default_factory=set)

    def tell(self, event: dict) -> list[str]:
        if "play" in event:
            return self._play(event["play"])
        if "rollout" in event:
            self.rollout = event["rollout"]
            return [self._plan()]
        if "back" in event:
            self.back = event["back"]
            return []
        if "gate" in event:
            return [self._gate(event["gate"])]
        return self._mark(event.get("mark", {}))

    def _play(self, name: str) -> list[str]:
        if name not in PLAYS or name in self.plays:
            return []
        self.plays.add(name)
        return [PLAYS[name]]

    def _plan(self) -> str:
        batches = self.rollout["batches"]
        where = ", then ".join(" and ".join(batch["hosts"]) for batch in batches)
        verb = "goes back" if self.rollout["undo"] else "goes"
        return f"{self.rollout['model']} {verb} from {self.old} to {self.new}, {self.rollout['strategy']}: {where}"

    @property
    def old(self) -> str:
        return self.rollout["from_version"]

    @property
    def new(self) -> str:
        return self.rollout["to_version"]

    def _batch(self, number: int) -> str:
        return f"batch {number} of {len(self.rollout['batches'])}"

    def _hosts(self, number: int) -> str:
        return " and ".join(next((batch["hosts"] for batch in self.rollout["batches"] if batch["number"] == number), []))

    def _mark(self, mark: dict) -> list[str]:
        what, _, figures = mark.get("what", "").partition(" ")
        number = mark.get("batch", 0)
        if what == "loaded":
            seconds = float(figures.split()[0])
            return [f"{self._batch(number)}: {self._hosts(number)} has loaded {self.new}, in {seconds:.1f} s"]
        if what == "drained" and not self.back:
            return [f"{self._batch(number)}: {self._hosts(number)} has ended its last stream of {self.old}, after {float(figures):.1f} s"]
        if what == "share":
            return self._share(float(figures), number)
        if what == "back":
            return [f"it goes back: {self.back}"]
        return []

    def _share(self, share: float, number: int) -> list[str]:
        # A share is set again where only what is noted beside it changes.
        if share == self.share:
            return []
        self.share = share
        if self.back:
            return [f"{share:g} % of the requests go to {self.new}"]
        canary = self.rollout["canary"]
        if canary and number == 1 and share == canary["share"]:
            return [f"canary: {share:g} % of the requests go to {self.new}, and are watched for {canary['bake']} s"]
        return [f"{self._batch(number)}: {share:g} % of the requests go to {self.new}"]

    def _gate(self, gate: dict) -> str:
        if gate["failures"]:
            return f"gate failed: {'; '.join(gate['failures'])}"
        if gate["gate"] == "canary":
            return f"canary: gate passed: {self._traffic(gate['summary']['traffic'])}{_made_up(gate['summary'].get('probes') or {})}"
        return f"{self._batch(gate['batch'])}: gate passed: {self._probes(gate['summary'])}"

    def _probes(self, summary: dict) -> str:
        new, old = summary["new"], summary["old"]
        first = f", first token after {_ms(new['ttft_p95_s'])} (p95)" if new["ttft_p95_s"] is not None else ""
        beside = f", with {self.old} {_ms(old['ttft_p95_s'])}" if first and old["ttft_p95_s"] is not None else ""
        return f"{new['requests']} probes, {new['errors']} errors{first}{beside}"

    def _traffic(self, traffic: dict) -> str:
        new, old = traffic["new"], traffic["old"]
        if new["latency_ms"] is None or old["latency_ms"] is None:
            return f"{new['requests']} requests of clients, {new['errors']} errors"
        beside = f"first byte after {new['latency_ms']:.0f} ms, with {self.old} {old['latency_ms']:.0f} ms"
        return f"{new['requests']} requests of clients, {new['errors']} errors, {beside}"


def _made_up(probes: dict) -> str:
    """Probes make up the requests that clients did not send."""
    return f"; and {probes['new']['requests']} probes" if probes.get("new") else ""


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"
