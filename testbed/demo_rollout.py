#!/usr/bin/env python3
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A rollout on the demo's fleet, while clients stream from it.

From 1.0.0 to 1.1.0, and when called again back. Brings the demo up where it does not run. Broken off, the next call goes on from there.
"""
from __future__ import annotations

import dataclasses
import json
import sys

import yaml

import demo
import fleet as testbed
import watch
from rollout_story import Story
from watch import Outcome, Watch

MODEL, FIRST, SECOND = demo.MODEL, "1.0.0", "1.1.0"
REPORT = demo.STATE / "rollout.json"


@dataclasses.dataclass(frozen=True)
class Move:
    """What to do next: a playbook, and what it is told."""

    playbook: str
    old: str
    new: str
    variables: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        given = (f"model={MODEL}", *self.variables)
        return [f"playbooks/{self.playbook}.yml", "-i", "inventories/demo", *(part for one in given for part in ("-e", one))]


def next_move(plan: dict) -> Move:
    """To the second version, or back; and first to the end of what was begun."""
    entry, begun = plan["models"][MODEL], plan["rollouts"].get(MODEL)
    if begun:
        name = "rollback" if begun["undo"] else "rollout"
        return Move(name, begun["from_version"], begun["to_version"], () if begun["undo"] else (f"version={begun['to_version']}",))
    old = entry["version"]
    new = SECOND if old == FIRST else FIRST
    if new == FIRST and (entry.get("previous") or {}).get("version") == FIRST:
        return Move("rollback", old, new)
    # What was rolled back is rejected: the fleet wants to be told that somebody means it.
    retry = ("retry_rejected=true",) if any(one["version"] == new for one in entry.get("rejected") or []) else ()
    return Move("rollout", old, new, (f"version={new}", *retry))


def has_both() -> bool:
    """Whether both versions are in the demo's lockfile."""
    lockfile = demo.STATE / "models.lock.yml"
    return lockfile.exists() and {FIRST, SECOND} <= set(yaml.safe_load(lockfile.read_text())["models"].get(MODEL, {}))


def named(now: dict, move: Move) -> dict:
    """The figures with versions by name: what does not answer as the old one does is the new one."""
    old = now["shares"].get(move.old, 0)
    shares = {move.old: old, move.new: 1 - old} if now["shares"] else {}
    return {**now, "shares": {name: shares[name] for name in sorted(shares)}}


def told_outcome() -> str:
    return json.loads(REPORT.read_text())["outcome"] if REPORT.exists() else "it ended without a report"


def roll(move: Move, watching: Watch) -> Outcome:
    REPORT.unlink(missing_ok=True)
    load = watch.clients([MODEL], tell={move.old: watch.beginning_of_answers(f"{MODEL}@{move.old}")})
    return watching.run(move.arguments, load, told_outcome, own=("-e", f"report_file={REPORT}"))


def show_way_on(move: Move) -> None:
    if move.playbook == "rollout":
        print(f"""
Back to {move.old}, from {demo.REPO}:

.venv/bin/ansible-playbook playbooks/rollback.yml -i inventories/demo -e model={MODEL} -e "reason='just a try'"

or `make demo-rollout` once more.""")
    else:
        print("\n`make demo-rollout` once more goes forward again.")


def demo_rollout() -> int:
    fleet = testbed.read_fleet(demo.INVENTORY)
    if not (demo.serves(fleet) and has_both()):
        demo.bring_up()
    move = next_move(demo.read_plan(fleet))
    demo.step(f"{MODEL} from {move.old} to {move.new}, while clients stream")
    watching = Watch("rollout", Story(), lambda now: named(now, move))
    outcome = roll(move, watching)
    watch.show_table(f"{MODEL} {move.old} -> {move.new}", outcome)
    if watch.show_fault(outcome, f"playbooks/{move.playbook}.yml", watching.log):
        return 1
    show_way_on(move)
    return 0


if __name__ == "__main__":
    sys.exit(watch.run(demo_rollout, "demo-rollout"))
