#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: gateway_server
short_description: Lets HAProxy's servers take requests, or drains them
version_added: 0.1.0
description:
  - With O(state=ready), waits until HAProxy's own health check has found a server up, and only then lets requests reach it.
    A server that may take requests already is left alone, up or down.
  - Where HAProxy is restarted meanwhile, it goes on waiting as soon as the new one answers.
  - With O(state=drain), no new request reaches a server. Waits until those in flight have ended by themselves, in processes
    that only finish their work after a reload too, or until O(timeout), and says who is left then.
  - With O(state=maint), no request reaches a server and its health check stops. What is in flight goes on.
  - After a change the state of all servers is written to disk, so that neither a reload nor a crash brings the old one back.
options:
  servers:
    description:
      - Servers as C(backend/server).
      - One that HAProxy does not have is an error with O(state=ready), and done already with the other states.
    type: list
    elements: str
    required: true
  state:
    description: What the servers should be.
    type: str
    choices: [ready, drain, maint]
    required: true
  force:
    description:
      - With O(state=ready), let servers in at once, without a health check that has passed meanwhile.
      - This is the way back to servers that were healthy when they were drained. One that HAProxy knows to be down gets no request even so.
    type: bool
    default: false
  timeout:
    description: How long to wait for all servers together, in seconds.
    type: int
    default: 120
  settle:
    description:
      - How long after a reload the process that it left behind may still get a request, in seconds. It knows nothing of a drain.
      - It is the C(timeout http-request) of HAProxy's configuration. With O(state=drain) this time has passed at the end, where
        there still is such a process.
    type: int
    default: 10
  socket:
    description: HAProxy's runtime socket.
    type: path
    default: /run/haproxy/admin.sock
  master_socket:
    description: The runtime socket of HAProxy's master process.
    type: path
    default: /run/haproxy-master.sock
  actor:
    description: Who does it, as P(localfirst.llm_fleet.actor#lookup) tells it. What changes is noted in O(audit_file) then.
    type: dict
  audit_file:
    description: The audit trail of the host.
    type: path
    default: /var/log/llm_fleet/audit.jsonl
  dump_command:
    description: The command that writes the state of all servers to disk.
    type: list
    elements: str
    default: [/usr/local/lib/llm_fleet/haproxy-state, dump]
author:
  - localfirst.llm_fleet contributors (@localfirst)
attributes:
  check_mode:
    description: Says what would be done, and neither does it nor waits. Where HAProxy does not run yet, all of it would be done.
    support: full
  diff_mode:
    description: Shows the state of the servers before and after.
    support: full
  idempotent:
    description: Calling it twice has the effect of calling it once.
    support: full
"""

EXAMPLES = r"""
- name: Let a new instance in as soon as it answers
  localfirst.llm_fleet.gateway_server:
    servers: [be_tiny_0f3a5c7e9b1d/tiny-0-b]
    state: ready
    timeout: 300

- name: Go back at once to the one that was drained a moment ago
  localfirst.llm_fleet.gateway_server:
    servers: [be_tiny_8b2d4f6a1c3e/tiny-0-a]
    state: ready
    force: true

- name: Drain the old one, for ten minutes at most
  localfirst.llm_fleet.gateway_server:
    servers: [be_tiny_8b2d4f6a1c3e/tiny-0-a]
    state: drain
    timeout: 600
  register: drained

- name: Stop unless all requests have ended
  ansible.builtin.assert:
    that: drained.left | length == 0
"""

RETURN = r"""
actions:
  description: What was done or would be done.
  type: list
  elements: str
  returned: always
  sample: ["set be_tiny_0f3a5c7e9b1d/tiny-0-b ready"]
ended:
  description: With O(state=drain), whether all requests had ended and no more can come.
  type: bool
  returned: always
left:
  description: With O(state=drain), the servers that still had requests when the time was over.
  type: list
  elements: dict
  returned: always
  sample: [{"server": "be_tiny_8b2d4f6a1c3e/tiny-0-a", "requests": 2}]
seconds:
  description: How long it waited.
  type: float
  returned: always
  sample: 12.5
"""

import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import audit
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.haproxy_runtime import (
    HAProxyRuntime,
    RuntimeFailure,
)

PAUSE = 0.5
# Seconds that HAProxy may be silent while it is waited for: a restart takes less.
SILENCE = 10


class GatewayServers:
    """The servers that one call is about."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.state = module.params["state"]
        self.force = module.params["force"]
        self.names = {self.key(name): name for name in module.params["servers"]}
        self.runtime = HAProxyRuntime(module.params["socket"], module.params["master_socket"])
        self.begin = time.monotonic()
        self.actions: list = []
        self.left: list = []
        self.ended = False
        self.before: dict = {}
        self.after: dict = {}

    def key(self, name: str) -> tuple:
        backend, slash, server = name.partition("/")
        if not (backend and slash and server) or set(name) & set(" ;\n\\"):
            self.module.fail_json(msg=f"'{name}' is no server: write backend/server.")
        return backend, server

    def run(self) -> dict:
        if self.module.check_mode and not self.runtime.runs():
            self.actions = [f"set {name} {self.state}" for name in self.names.values()]
            return self.result()
        states = self.runtime.states()
        self.before = {name: states[key] for key, name in self.names.items() if key in states}
        self.after = dict(self.before)
        unknown = [key for key, name in self.names.items() if name not in self.before] if self.state == "ready" else []
        wrong = [key for key, name in self.names.items() if self.before.get(name, self.state) != self.state]
        if self.module.check_mode:
            # Unknown ones come with the configuration that this run would write.
            for key in unknown + wrong:
                self.note(key)
            return self.result()
        if unknown:
            names = ", ".join(self.names[key] for key in unknown)
            self.module.fail_json(msg=f"HAProxy has no server {names}. Is its configuration from an older plan?")
        try:
            self.let_in(wrong) if self.state == "ready" else self.shut_out(wrong)
        finally:
            self.dump()
            self.audit()
        if self.state == "drain":
            self.wait_for_the_end()
        return self.result()

    def let_in(self, waiting: list) -> None:
        """Make each server ready as soon as its health check has passed."""
        for key in waiting:
            # In maintenance there are no health checks; drained, there are.
            if self.before[self.names[key]] == "maint":
                self.runtime.set_state(key, "drain")
        while waiting:
            rows = self.patiently(self.runtime.servers)
            for key in [key for key in waiting if self.force or is_up(rows.get(key, {}))]:
                self.runtime.set_state(key, "ready")
                self.note(key)
                waiting = [other for other in waiting if other != key]
            if waiting and not self.time_is_left():
                why = "; ".join(f"{self.names[key]}: {check(rows.get(key, {}))}" for key in waiting)
                self.module.fail_json(
                    msg=f"Not up after {self.module.params['timeout']} s, and still without requests: {why}. "
                    "Look at the engine's log on its node.",
                    **self.result(),
                )

    def shut_out(self, servers: list) -> None:
        for key in servers:
            self.runtime.set_state(key, self.state)
            self.note(key)

    def wait_for_the_end(self) -> None:
        """Wait for the requests in flight."""
        while True:
            # Before the count: a request that came in between is in it.
            more = self.patiently(self.runtime.may_come, self.names, self.module.params["settle"])
            counts = self.patiently(self.runtime.in_flight, self.names)
            forgotten = self.forgotten()
            self.shut_out(forgotten)
            if forgotten:
                self.dump()
            self.ended = not (more or forgotten or any(counts.values()))
            if self.ended or not self.time_is_left():
                break
        self.left = [{"server": self.names[key], "requests": count} for key, count in counts.items() if count]
        # Without a time to wait nobody expects them to be over.
        if self.left and self.module.params["timeout"]:
            who = ", ".join(f"{one['server']} ({one['requests']})" for one in self.left)
            self.module.warn(f"Requests are still in flight after {self.module.params['timeout']} s: {who}")

    def forgotten(self) -> list:
        """The servers that are no longer drained: HAProxy was killed before their state was on disk."""
        states = self.patiently(self.runtime.states)
        return [key for key in self.names if states.get(key, self.state) != self.state]

    def patiently(self, look, *args):
        """What HAProxy says, once it answers again where it is being restarted."""
        end = time.monotonic() + SILENCE
        while True:
            try:
                return look(*args)
            except RuntimeFailure:
                if time.monotonic() > end:
                    raise
                time.sleep(PAUSE)

    def time_is_left(self) -> bool:
        """Pause, unless the time is over."""
        if time.monotonic() - self.begin > self.module.params["timeout"]:
            return False
        time.sleep(PAUSE)
        return True

    def note(self, key: tuple) -> None:
        action = f"set {self.names[key]} {self.state}"
        if action not in self.actions:
            self.actions.append(action)
        self.after[self.names[key]] = self.state

    def dump(self) -> None:
        if self.actions:
            code, _out, errors = self.module.run_command(self.module.params["dump_command"])
            if code != 0:
                self.module.fail_json(
                    msg=f"The state is set, but could not be kept for the next start: {errors.strip()}",
                    **self.result(),
                )

    def audit(self) -> None:
        changed = [name for name in self.after if self.after[name] != self.before.get(name)]
        notes = [(self.state, name, "ok", {"before": self.before.get(name)}) for name in changed]
        audit.tell(self.module, self.module.params["actor"], notes, self.module.params["audit_file"])

    def result(self) -> dict:
        return {
            "changed": bool(self.actions),
            "actions": self.actions,
            "left": self.left,
            "ended": self.ended,
            "seconds": round(time.monotonic() - self.begin, 1),
            "diff": {"before": self.before, "after": self.after},
        }


def is_up(row: dict) -> bool:
    """Whether a health check of this process has passed: what a state file said of an earlier one does not count."""
    return check(row).startswith("L7OK") and not row["status"].startswith("DOWN")


def check(row: dict) -> str:
    """The result of the last health check; a star in front means that the next one is under way."""
    return f"{row.get('check_status', '').lstrip('* ')} {row.get('check_desc', '')}".strip() or "not checked yet"


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "servers": {"type": "list", "elements": "str", "required": True},
            "state": {"type": "str", "choices": ["ready", "drain", "maint"], "required": True},
            "force": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 120},
            "settle": {"type": "int", "default": 10},
            "socket": {"type": "path", "default": "/run/haproxy/admin.sock"},
            "master_socket": {"type": "path", "default": "/run/haproxy-master.sock"},
            "actor": {"type": "dict"},
            "audit_file": {"type": "path", "default": audit.FILE},
            "dump_command": {
                "type": "list",
                "elements": "str",
                "default": ["/usr/local/lib/llm_fleet/haproxy-state", "dump"],
            },
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**GatewayServers(module).run())
    except RuntimeFailure as failure:
        module.fail_json(msg=str(failure))


if __name__ == "__main__":
    main()
