# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Passes on what a rollout's coordinator notes, while it runs.

Its report has the same at the end, and whoever watches does not want to wait for it.
"""

from __future__ import annotations

import json
import os
import time

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: rollout_events
type: notification
short_description: writes the steps of a rollout to a file, while they happen
description:
  - Appends a line of JSON for each play, and for each mark and gate of the report when the coordinator notes it.
  - Passes on nothing else. Facts that hold secrets are not among those that it knows.
requirements:
  - E(LLM_FLEET_EVENTS) names the file.
"""

# Of a rollout, what a watcher needs: not the settings of its engines.
TOLD = ("model", "strategy", "from_version", "to_version", "undo", "canary")


def steps(facts: dict) -> list[dict]:
    """What the coordinator has just noted in its facts."""
    found = []
    if facts.get("rollout"):
        rollout = facts["rollout"]
        batches = [{"number": batch["number"], "hosts": [new["host"] for new in batch["new"]]} for batch in rollout["batches"]]
        found.append({"rollout": {**{key: rollout[key] for key in TOLD}, "batches": batches}})
    if facts.get("rollout_back"):
        found.append({"back": facts["rollout_back"]})
    for key, name in (("rollout_gates", "gate"), ("rollout_marks", "mark")):
        if facts.get(key):
            found.append({name: facts[key][-1]})
    return found


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "rollout_events"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._file = os.environ["LLM_FLEET_EVENTS"]

    def _write(self, event: dict) -> None:
        with open(self._file, "a", encoding="utf-8") as handle:
            handle.write(json.dumps({"at": time.time(), **event}) + "\n")

    def v2_playbook_on_play_start(self, play) -> None:
        self._write({"play": play.get_name()})

    def v2_runner_on_ok(self, result) -> None:
        if result.task.action in ("set_fact", "ansible.builtin.set_fact"):
            for step in steps(result.result.get("ansible_facts", {})):
                self._write(step)
