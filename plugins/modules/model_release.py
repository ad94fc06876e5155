#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: model_release
short_description: Switches a replica on this host to another release, or back, and remembers it
version_added: 0.1.0
description:
  - Runs on a GPU node, for one replica. The containers of both releases stand there already, made by the role
    C(localfirst.llm_fleet.engine); this module starts and stops them, and never makes or removes one.
  - With O(state=present), stops O(other) if there is one, once its engine says that it works at nothing any more, then starts O(instance)
    and waits until it is ready. Drain O(other) at the gateways first.
  - With O(state=rolled_back), does the same the other way round, O(instance) being the one to return to. Where it is not named, it is the
    last release that was noted as good for this replica.
  - Each switch is a line in O(history_file), with who, when, why, from what, how it ended and what the gates measured.
options:
  state:
    description: Whether the replica goes forward or back.
    type: str
    choices: [present, rolled_back]
    default: present
  model:
    description: Name of the model.
    type: str
    required: true
  replica:
    description: Number of the replica.
    type: int
    required: true
  instance:
    description: The instance of the plan that is to run, with its release under C(record). Required with O(state=present).
    type: dict
  instances:
    description: All instances of the replica that the plan has, with C(record), among which O(state=rolled_back) finds its own.
    type: list
    elements: dict
    default: []
  other:
    description: The instance of the same replica that is to stop first. Left out, nothing is stopped.
    type: dict
  interfaces:
    description: The plan's C(engines).
    type: dict
    default: {}
  key:
    description: The engines' API key.
    type: str
    default: ""
  address:
    description: The address that engines are published on.
    type: str
    required: true
  ready_timeout:
    description: Seconds until the instance has to be ready.
    type: int
    default: 900
  idle_timeout:
    description: Seconds that the engine which is to stop gets to finish what it still works at.
    type: int
    default: 60
  outcome:
    description:
      - What to note. By default C(switched) or C(rolled back), and only where something was started or stopped.
      - Given by hand, it is noted once for each rollout; C(good) makes the release one to return to.
    type: str
  rollout:
    description: Id of the rollout.
    type: str
    default: ""
  why:
    description: Why it is done, in words.
    type: str
    default: ""
  gates:
    description: What the gates measured.
    type: dict
    default: {}
  actor:
    description: Who it is, from the lookup P(localfirst.llm_fleet.actor#lookup).
    type: dict
    required: true
  history_file:
    description: Where the host remembers what it ran.
    type: path
    default: /var/lib/llm_fleet/releases.jsonl
  audit_file:
    description: The audit trail.
    type: path
    default: /var/log/llm_fleet/audit.jsonl
author:
  - localfirst.llm_fleet contributors (@localfirst)
attributes:
  check_mode:
    description: Says what would be done, and neither does it nor waits.
    support: full
  diff_mode:
    description: Shows what the replica ran before and after.
    support: full
  idempotent:
    description: Calling it twice has the effect of calling it once.
    support: full
"""

EXAMPLES = r"""
- name: Put the new release in the place of the old one
  localfirst.llm_fleet.model_release:
    model: tiny
    replica: 0
    instance: "{{ new }}"
    other: "{{ old }}"
    interfaces: "{{ llm_fleet_plan.engines }}"
    key: "{{ llm_fleet_engine_keys.tiny }}"
    address: 10.0.20.21
    rollout: r-20261128-140212-3f9a
    actor: "{{ lookup('localfirst.llm_fleet.actor') }}"

- name: Return to what was good
  localfirst.llm_fleet.model_release:
    state: rolled_back
    model: tiny
    replica: 0
    instances: "{{ both }}"
    other: "{{ new }}"
    interfaces: "{{ llm_fleet_plan.engines }}"
    address: 10.0.20.21
    why: "smoke[0] failed"
    actor: "{{ lookup('localfirst.llm_fleet.actor') }}"
"""

RETURN = r"""
actions:
  description: What was done or would be done.
  type: list
  elements: str
  returned: always
  sample: ["stop tiny-0-a", "start tiny-0-b"]
instance:
  description: The instance that runs now.
  type: str
  returned: always
  sample: tiny-0-b
stopping_seconds:
  description: How long the other engine took to finish and to stop.
  type: float
  returned: always
  sample: 1.2
loading_seconds:
  description: How long it took from the start of the container until the engine was ready.
  type: float
  returned: always
  sample: 41.5
busy:
  description: Requests that the other engine still had when its time was over.
  type: int
  returned: always
  sample: 0
"""

import time
from datetime import datetime, timezone

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import audit, release_history
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.client_registry import stamp
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.docker_containers import ContainerFailure, Containers
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.engine_idle import wait_idle
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.engine_probe import Target, Waiter, make_target

OUTCOMES = {"present": "switched", "rolled_back": "rolled back"}
VERBS = {"present": "switch", "rolled_back": "roll back"}


class ReplicaSwitch:
    """One replica of one model on this host."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.containers = Containers(module)
        self.instance = self.params["instance"] or self.last_good()
        self.other = self.params["other"]
        self.actions: list[str] = []
        self.result = {"stopping_seconds": 0.0, "loading_seconds": 0.0, "busy": 0, "instance": self.instance["id"]}

    def last_good(self) -> dict:
        """The instance of the plan that runs what was good last."""
        if self.params["state"] == "present":
            self.module.fail_json(msg="Say which instance is to run: `instance` is missing.")
        entries = release_history.read(self.params["history_file"])
        leaving = (self.params["other"] or {}).get("release", "")
        good = release_history.last_good(entries, self.params["model"], self.params["replica"], leaving)
        for instance in self.params["instances"]:
            if good and instance["release"] == good["release"]:
                return instance
        known = f"release {good['release']} ({good['version']}), of which the plan has no instance" if good else "none"
        self.module.fail_json(
            msg=f"{self.params['model']}, replica {self.params['replica']}: the last release noted as good in "
            f"{self.params['history_file']} is {known}. Name `instance`, or roll out a version with rollout.yml.",
        )
        return {}

    def run(self) -> dict:
        before = self.running()
        self.refuse_another_release()
        self.stop_other()
        self.start()
        outcome = self.params["outcome"] or OUTCOMES[self.params["state"]]
        if not self.noted(outcome):
            self.actions.append(f"note {self.instance['id']}, release {self.instance['release']}, as {outcome}")
            self.note(outcome)
        return {
            **self.result,
            "changed": bool(self.actions),
            "actions": self.actions,
            "diff": {"before": before, "after": {**before, **self.planned()}},
        }

    def names(self) -> list[str]:
        return [one["id"] for one in (self.instance, self.other) if one]

    def running(self) -> dict:
        return {name: container.state for name, container in self.containers.look(self.names()).items()}

    def planned(self) -> dict:
        stopped = {self.other["id"]: "exited"} if self.other and any(self.other["id"] in action for action in self.actions) else {}
        return {**stopped, self.instance["id"]: "running"}

    def refuse_another_release(self) -> None:
        """A container keeps its name when its release changes: what stands here may be left over from another run."""
        found = self.containers.label(self.instance["id"], "release")
        if found == self.instance["release"] or (self.module.check_mode and not found):
            return
        name, wanted = self.instance["id"], self.instance["release"]
        what = f"runs release {found}" if found else "is not there"
        self.fail(f"the container {name} {what}, and release {wanted} is to start. Run site.yml, then this again")

    def target(self, instance: dict) -> Target:
        key = {instance["model"]: self.params["key"]}
        return make_target(instance, self.params["interfaces"], key, self.params["address"])

    def stop_other(self) -> None:
        if not self.other or self.containers.look([self.other["id"]])[self.other["id"]].state not in ("running", "restarting", "paused"):
            return
        self.actions.append(f"stop {self.other['id']}")
        if self.module.check_mode:
            return
        begin = time.monotonic()
        interface = self.params["interfaces"].get(self.other["record"]["engine"], {})
        busy = wait_idle([(self.target(self.other), interface)], self.params["idle_timeout"])
        self.result["busy"] = busy.get(self.other["id"], 0)
        if busy:
            self.module.warn(f"{self.other['id']} still worked at {self.result['busy']} requests when it was stopped.")
        try:
            self.containers.stop(self.other["id"])
        except ContainerFailure as failure:
            self.fail(str(failure))
        self.result["stopping_seconds"] = round(time.monotonic() - begin, 2)

    def start(self) -> None:
        """Start the container unless it runs, and in any case see that it is ready."""
        name = self.instance["id"]
        if self.containers.look([name])[name].state not in ("running", "restarting"):
            self.actions.append(f"start {name}")
        if self.module.check_mode:
            return
        begin = time.monotonic()
        try:
            if f"start {name}" in self.actions:
                self.containers.start(name)
        except ContainerFailure as failure:
            self.fail(str(failure))
        unready = Waiter(self.containers.look).wait([self.target(self.instance)], self.params["ready_timeout"])
        if unready:
            self.fail(f"{name} is not ready: {unready[name]}", f".\n{self.containers.log(name)}")
        self.result["loading_seconds"] = round(time.monotonic() - begin, 2)

    def noted(self, outcome: str) -> bool:
        """Whether there is nothing to note: nothing was done, or it was noted in this rollout."""
        if not self.params["outcome"]:
            return not self.actions
        keys = {"rollout": self.params["rollout"], "replica": self.params["replica"], "outcome": outcome, "model": self.params["model"]}
        entries = release_history.read(self.params["history_file"])
        return any(keys.items() <= entry.items() for entry in entries)

    def note(self, outcome: str, result: str = "ok") -> None:
        if self.module.check_mode:
            return
        actor, params = self.params["actor"], self.params
        details = {
            "rollout": params["rollout"],
            "model": params["model"],
            "replica": params["replica"],
            "instance": self.instance["id"],
            "release": self.instance["release"],
            "version": self.instance["version"],
            "from_release": (self.other or {}).get("release"),
            "why": params["why"],
        }
        who = f"{actor['user']}@{actor['host']}" + (f" job {actor['job']}" if actor.get("job") else "")
        entry = {**details, "at": stamp(datetime.now(timezone.utc)), "who": who, "outcome": outcome, "gates": params["gates"]}
        try:
            release_history.append(params["history_file"], entry)
        except OSError as error:
            # A full disk must not keep a replica from going back.
            self.module.warn(f"{params['history_file']} lacks an entry: {error}")
        audit.tell(self.module, actor, [(VERBS[params["state"]], self.instance["id"], result, details)], params["audit_file"])

    def fail(self, why: str, more: str = "") -> None:
        self.note(f"failed: {why}", f"failed: {why}")
        self.module.fail_json(msg=f"{why}{more}", **self.result, actions=self.actions)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "rolled_back"], "default": "present"},
            "model": {"type": "str", "required": True},
            "replica": {"type": "int", "required": True},
            "instance": {"type": "dict"},
            "instances": {"type": "list", "elements": "dict", "default": []},
            "other": {"type": "dict"},
            "interfaces": {"type": "dict", "default": {}},
            "key": {"type": "str", "default": "", "no_log": True},
            "address": {"type": "str", "required": True},
            "ready_timeout": {"type": "int", "default": 900},
            "idle_timeout": {"type": "int", "default": 60},
            "outcome": {"type": "str"},
            "rollout": {"type": "str", "default": ""},
            "why": {"type": "str", "default": ""},
            "gates": {"type": "dict", "default": {}},
            "actor": {"type": "dict", "required": True},
            "history_file": {"type": "path", "default": "/var/lib/llm_fleet/releases.jsonl"},
            "audit_file": {"type": "path", "default": "/var/log/llm_fleet/audit.jsonl"},
        },
        supports_check_mode=True,
    )
    module.exit_json(**ReplicaSwitch(module).run())


if __name__ == "__main__":
    main()
