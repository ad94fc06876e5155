# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Passes on what a rollout or an upgrade does, while it runs.

Its report has the same at the end, and whoever watches does not want to wait for it.
"""

from __future__ import annotations

import json
import os
import time

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: run_events
type: notification
short_description: writes the steps of a rollout or an upgrade to a file, while they happen
description:
  - Appends a line of JSON for each play, each task that begins on a host, each reboot, and what the playbooks note of their progress.
  - Of tasks it passes on the names, which Ansible's output has, too, and of facts those that it knows. None of them holds a secret.
requirements:
  - E(LLM_FLEET_EVENTS) names the file.
"""

# Of a rollout, what a watcher needs: not the settings of its engines.
TOLD = ("model", "strategy", "from_version", "to_version", "undo", "canary")
# Facts that are passed on as they are, the newest of a list, and what they are called here.
WHOLE = {
    "rollout_back": "back",
    "upgrade_batches": "batches",
    "upgrade_wanted": "lacks",
    "nvidia_driver_reboot_reasons": "reboot",
    "upgrade_done": "done",
    "upgrade_failure": "failure",
}
NEWEST = {"rollout_gates": "gate", "rollout_marks": "mark"}


def steps(facts: dict) -> list[dict]:
    """What a playbook has just noted in its facts."""
    found = []
    if facts.get("rollout"):
        rollout = facts["rollout"]
        batches = [{"number": batch["number"], "hosts": [new["host"] for new in batch["new"]]} for batch in rollout["batches"]]
        found.append({"rollout": {**{key: rollout[key] for key in TOLD}, "batches": batches}})
    found += [{name: facts[key]} for key, name in WHOLE.items() if facts.get(key)]
    found += [{name: facts[key][-1]} for key, name in NEWEST.items() if facts.get(key)]
    return found


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "run_events"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._file = os.environ["LLM_FLEET_EVENTS"]

    def _write(self, event: dict) -> None:
        with open(self._file, "a", encoding="utf-8") as handle:
            handle.write(json.dumps({"at": time.time(), **event}) + "\n")

    def v2_playbook_on_play_start(self, play) -> None:
        self._write({"play": play.get_name()})

    def v2_runner_on_start(self, host, task) -> None:
        self._write({"task": task.name, "host": host.get_name()})

    def v2_runner_on_ok(self, result) -> None:
        action, host = result.task.action.removeprefix("ansible.builtin."), result.host.get_name()
        if action == "set_fact":
            for step in steps(result.result.get("ansible_facts", {})):
                self._write({**step, "host": host})
        elif action == "reboot" and result.result.get("rebooted"):
            self._write({"rebooted": result.result["elapsed"], "host": host})
