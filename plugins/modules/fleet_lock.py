#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_lock
short_description: Takes, renews and releases a lock on a gateway, and asks its owner to stop
version_added: 0.1.0
description:
  - A lock ends by itself when its owner does not renew it in time, measured by the gateway's own clock.
  - It is no error that another run holds it. RV(taken) is V(false) then, and RV(holder) says who it is.
  - Runs on each gateway. The filters P(localfirst.llm_fleet.lock_held#filter) and P(localfirst.llm_fleet.lock_refusal#filter) say what the
    answers of all of them amount to.
options:
  name:
    description: What is locked, for example V(rollout-tiny) or V(plan). Letters, digits, dots, C(_) and C(-), 128 characters at most.
    type: str
    required: true
  state:
    description:
      - V(taken) takes it, or renews it where it is this O(owner)'s.
      - V(released) gives it up. One that is not there, or another's, is left alone.
      - V(stop_asked) leaves its owner a request to stop. A new owner does not see it.
    type: str
    choices: [taken, released, stop_asked]
    default: taken
  owner:
    description:
      - Who asks. What P(localfirst.llm_fleet.actor#lookup) returns, and C(purpose), a text that tells others what the lock is for.
      - It is one owner where the process is the same, or the job of AWX.
    type: dict
    required: true
  lease:
    description: Seconds after which the lock ends unless it is renewed.
    type: int
    default: 300
  wait:
    description: Seconds to wait for another run that holds it. With V(0) the answer comes at once, as it always does in check mode.
    type: int
    default: 0
  gone:
    description:
      - Owners whose runs are known to have ended, as P(localfirst.llm_fleet.lock_gone#filter) tells them.
      - Their locks are no obstacle.
    type: list
    elements: dict
    default: []
  take_over:
    description: Whether to disregard that another run holds it. That run finds out when it renews.
    type: bool
    default: false
  dir:
    description: Directory of the locks.
    type: path
    default: /var/lib/llm_fleet/locks
author:
  - localfirst.llm_fleet contributors (@localfirst)
attributes:
  check_mode:
    description: Says what would be, and does none of it.
    support: full
  diff_mode:
    description: Shows who held it and who holds it.
    support: full
  idempotent:
    description: Taking it again renews it, which counts as no change.
    support: full
"""

EXAMPLES = r"""
- name: Take the lock on every gateway
  localfirst.llm_fleet.fleet_lock:
    name: rollout-tiny
    owner: "{{ lookup('localfirst.llm_fleet.actor') | combine({'purpose': 'rollout of tiny 1.1.0'}) }}"
  delegate_to: "{{ item }}"
  loop: "{{ groups['gateways'] | sort }}"
  register: locks

- name: Stop unless a majority has given it
  ansible.builtin.assert:
    that: locks.results | localfirst.llm_fleet.lock_held
    fail_msg: "{{ locks.results | localfirst.llm_fleet.lock_refusal(lookup('localfirst.llm_fleet.actor')) }}"
"""

RETURN = r"""
actions:
  description: What was done or would be done. Renewing is not in it.
  type: list
  elements: str
  returned: always
  sample: ["take rollout-tiny"]
name:
  description: O(name).
  type: str
  returned: always
  sample: rollout-tiny
taken:
  description: Whether O(owner) has it now. Always V(false) unless O(state=taken).
  type: bool
  returned: always
renewed:
  description: Whether O(owner) had it before.
  type: bool
  returned: always
holder:
  description: Who has it now; nothing where it is free.
  type: dict
  returned: always
  sample:
    user: alice
    job: ""
    host: controller
    place: "a3ce31ce-af72-4f27-93aa-27cdf52f17b1:4026531836"
    process: "3241:912345"
    purpose: rollout of tiny 1.1.0
    since: "2026-01-01T09:30:00Z"
    seconds_left: 287
taken_from:
  description: Who had it before, where it was taken over. As RV(holder).
  type: dict
  returned: always
stop:
  description: Who has asked the owner to stop, and when; nothing where nobody has.
  type: dict
  returned: always
  sample: {"user": "bob", "job": "", "host": "laptop", "since": "2026-01-01T09:31:00Z"}
"""

import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import actor
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lease import NAME, Damaged, Lease

PAUSE = 0.5  # seconds between two looks at another's lock


class FleetLock:
    """One call about one lock."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        if not NAME.fullmatch(self.params["name"]):
            self.fail(
                f"'{self.params['name']}' cannot be the name of a lock",
                "name",
                "use letters, digits, '.', '_' and '-', 128 at most, the first one a letter or digit",
            )
        if self.params["lease"] < 1:
            self.fail(f"{self.params['lease']} seconds are no lease", "lease", "write 300, for example")
        self.owner = {**self.checked(self.params["owner"], "owner"), "purpose": str(self.params["owner"].get("purpose") or "")}
        if self.params["state"] != "stop_asked" and not actor.identified(self.owner):
            self.fail(
                "this run cannot be told from others, as it has neither a process nor a job", "owner", "run from Linux or from AWX"
            )
        self.gone = [self.checked(owner, f"gone[{number}]") for number, owner in enumerate(self.params["gone"])]

    def run(self) -> dict:
        lease = Lease(self.params["dir"], self.params["name"], dry=self.module.check_mode)
        breaking = {"gone": self.gone, "force": self.params["take_over"]}
        try:
            if self.params["state"] == "taken":
                return self.take(lease, **breaking)
            if self.params["state"] == "released":
                return lease.release(self.owner, **breaking)
            return lease.ask_to_stop(self.owner)
        except Damaged as damage:
            return self.module.fail_json(msg=f"{damage}")
        except OSError as error:
            return self.module.fail_json(msg=f"The lock in {self.params['dir']} cannot be kept: {error}. Make it a directory with space.")

    def take(self, lease: Lease, **breaking) -> dict:
        end = time.monotonic() + (0 if self.module.check_mode else self.params["wait"])
        while True:
            result = lease.take(self.owner, self.params["lease"], **breaking)
            left = end - time.monotonic()
            if result["taken"] or left <= 0:
                return result
            time.sleep(min(PAUSE, left))

    def checked(self, owner: dict, where: str) -> dict:
        try:
            return actor.checked(owner)
        except ValueError as error:
            return self.module.fail_json(msg=f"{where}: this is nobody: {error}.")

    def fail(self, what: str, where: str, fix: str) -> None:
        self.module.fail_json(msg=f"{where}: {what}; {fix}.")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["taken", "released", "stop_asked"], "default": "taken"},
            "owner": {"type": "dict", "required": True},
            "lease": {"type": "int", "default": 300},
            "wait": {"type": "int", "default": 0},
            "gone": {"type": "list", "elements": "dict", "default": []},
            "take_over": {"type": "bool", "default": False},
            "dir": {"type": "path", "default": "/var/lib/llm_fleet/locks"},
        },
        supports_check_mode=True,
    )
    module.exit_json(**FleetLock(module).run())


if __name__ == "__main__":
    main()
