#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: gateway_route
short_description: Sends a share of a model's requests to its new release
version_added: 0.1.0
description:
  - While a rollout of a model is open, a gateway sends a share of its requests to the new release, and the rest to the one that the
    plan names. Clients that are named always get the new one. Who asks for C(model@version) gets that version in any case.
  - A release without a usable server gives way to the other one.
  - Keeps all routes of a gateway in one file, which is written first. Then comes HAProxy's map, and then the memory of the running
    HAProxy, old processes after a reload included. The share is another from then on, without a reload.
options:
  state:
    description:
      - With V(present), the model has this route and no other.
      - With V(absent), all requests go where the plan says.
      - With V(pruned), only the routes of O(keep) stay. This is for the time after a reload, when HAProxy's configuration itself leads to
        the new release. In processes that the reload left behind routes stay, because their configuration leads to the drained one.
      - With V(synced), no route comes or goes, and HAProxy's map and memory are made to agree with the file.
    type: str
    choices: [present, absent, pruned, synced]
    default: present
  model:
    description: The model. Needed with O(state=present) and O(state=absent).
    type: str
  backend:
    description: HAProxy's backend of the new release. Needed with O(state=present).
    type: str
  share:
    description: Whole per cent of the model's requests that go to the new release. Needed with O(state=present).
    type: int
  clients:
    description: Clients whose requests all go to the new release.
    type: list
    elements: str
    default: []
  progress:
    description: What whoever goes on with the rollout has to know. It is kept as it is.
    type: dict
    default: {}
  keep:
    description: The models whose routes stay with O(state=pruned). Needed with it.
    type: list
    elements: str
  state_file:
    description: The gateway's routes.
    type: path
    default: /var/lib/llm_fleet/routes.json
  map_file:
    description: HAProxy's map of routes.
    type: path
    default: /etc/haproxy/llm_fleet/routes.map
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
author:
  - localfirst.llm_fleet contributors (@localfirst)
attributes:
  check_mode:
    description: Says what would be done, and does none of it.
    support: full
  diff_mode:
    description: Shows models, backends, shares and clients before and after.
    support: full
  idempotent:
    description: Calling it twice has the effect of calling it once.
    support: full
"""

EXAMPLES = r"""
- name: Send five per cent of the requests, and all of the testers', to the new release
  localfirst.llm_fleet.gateway_route:
    model: tiny
    backend: be_tiny_0f3a5c7e9b1d
    share: 5
    clients: [testers]
  become: true

- name: Go back to where the plan leads
  localfirst.llm_fleet.gateway_route:
    model: tiny
    state: absent
  become: true

- name: Forget the routes of all rollouts that are closed
  localfirst.llm_fleet.gateway_route:
    state: pruned
    keep: []
  become: true
"""

RETURN = r"""
actions:
  description: What was done or would be done.
  type: list
  elements: str
  returned: always
  sample: ["write /var/lib/llm_fleet/routes.json", "write /etc/haproxy/llm_fleet/routes.map", "exchange the routes in HAProxy's memory"]
route:
  description: The route that the model has now; null where it has none, and with O(state=pruned) and O(state=synced).
  type: dict
  returned: always
  sample: {"backend": "be_tiny_0f3a5c7e9b1d", "share": 5, "clients": ["testers"], "progress": {}}
routes:
  description: All routes of the gateway, by model.
  type: dict
  returned: always
"""

import contextlib
import os

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import audit, haproxy_maps, routes, whole_files
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.haproxy_runtime import (
    HAProxyRuntime,
    RuntimeFailure,
)

COMMENT = "model -> backend of the new release|per cent of the requests, client|model -> that backend. Written from routes.json."


class GatewayRoutes:
    """One gateway's routes, map and memory."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.path = module.params["state_file"]
        self.map = module.params["map_file"]
        self.runtime = HAProxyRuntime(module.params["socket"], module.params["master_socket"])
        self.actions: list = []

    def run(self) -> dict:
        with contextlib.nullcontext() if self.module.check_mode else routes.locked(self.path):
            current = self.load()
            wanted = self.wanted(current)
            if wanted != current:
                self.do(f"write {self.path}", routes.write_routes, self.path, wanted)
            entries = routes.map_entries(wanted)
            if haproxy_maps.entries_of(whole_files.read(self.map)) != entries or not os.path.exists(self.map):
                self.do(f"write {self.map}", whole_files.write, self.map, haproxy_maps.map_text(entries, COMMENT), 0o600)
            changed = self.commit(wanted, entries)
        self.audit(current, wanted)
        return {
            "changed": changed,
            "actions": self.actions,
            "route": wanted.get(self.params["model"]),
            "routes": wanted,
            "diff": {"before": routes.shown(current), "after": routes.shown(wanted)},
        }

    def audit(self, current: dict, wanted: dict) -> None:
        notes = [
            ("route", model, "ok", {key: wanted.get(model, {}).get(key) for key in ("backend", "share", "clients")})
            for model in sorted({*current, *wanted})
            if current.get(model) != wanted.get(model)
        ]
        audit.tell(self.module, self.params["actor"], notes, self.params["audit_file"])

    def load(self) -> dict:
        try:
            return routes.read_routes(self.path)
        except ValueError as why:
            self.module.fail_json(
                msg=f"{self.path} is damaged: {why}. Copy it from another gateway. Where no rollout is open, remove it."
            )

    def wanted(self, current: dict) -> dict:
        """All routes as they should be."""
        model, state = self.params["model"], self.params["state"]
        try:
            if state == "present":
                asked = (self.params[name] for name in ("model", "backend", "share", "clients", "progress"))
                return {**current, **routes.route(*asked)}
            # A name with another meaning in a map is no model's.
            routes.check_models([model] if state == "absent" else self.params["keep"] or [])
        except ValueError as why:
            self.module.fail_json(msg=f"This is no route: {why}.")
        if state == "absent":
            return {name: route for name, route in current.items() if name != model}
        if state == "pruned":
            return {name: route for name, route in current.items() if name in self.params["keep"]}
        return current

    def commit(self, wanted: dict, entries: dict) -> bool:
        """Exchange the map in memory, where HAProxy runs and has it. Returns whether anything was done, here or before."""
        try:
            runs = self.runtime.runs()
            maps = self.runtime.maps(self.map) if runs else {}
            for pid, held in maps.items():
                new = self.left_behind(pid, held, wanted) if pid else entries
                if held != new:
                    worker = f"old process {pid}" if pid else "HAProxy's memory"
                    self.do(f"exchange the routes in {worker}", self.runtime.replace_map, self.map, new, pid)
        except RuntimeFailure as failure:
            self.module.fail_json(
                msg=f"{self.path} and {self.map} are written, but the running HAProxy did not take them over: {failure}. "
                "Run this again, or reload HAProxy.",
                actions=self.actions,
            )
        changed = bool(self.actions)
        if changed and "" not in maps:
            self.actions.append(
                "leave memory alone: HAProxy's configuration has no such map before the next reload"
                if runs
                else "leave memory alone: HAProxy does not run, and reads the map when it starts"
            )
        return changed

    def left_behind(self, pid: str, held: dict, wanted: dict) -> dict:
        """The map of a process that a reload left behind.

        A release whose servers were not there or not ready when the reload came never gets ready there. And without its route, the
        model of a rollout that is closed by now would lead to servers that are drained.
        """
        usable = self.runtime.usable(pid)
        known = {*wanted, self.params["model"]}
        stays = {key: value for key, value in held.items() if routes.model_of(key) not in known}
        return {**stays, **routes.map_entries({model: it for model, it in wanted.items() if it["backend"] in usable})}

    def do(self, action: str, function, *args) -> None:
        self.actions.append(action)
        if not self.module.check_mode:
            function(*args)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent", "pruned", "synced"], "default": "present"},
            "model": {"type": "str"},
            "backend": {"type": "str"},
            "share": {"type": "int"},
            "clients": {"type": "list", "elements": "str", "default": []},
            "progress": {"type": "dict", "default": {}},
            "keep": {"type": "list", "elements": "str"},
            "state_file": {"type": "path", "default": "/var/lib/llm_fleet/routes.json"},
            "map_file": {"type": "path", "default": "/etc/haproxy/llm_fleet/routes.map"},
            "socket": {"type": "path", "default": "/run/haproxy/admin.sock"},
            "master_socket": {"type": "path", "default": "/run/haproxy-master.sock"},
            "actor": {"type": "dict"},
            "audit_file": {"type": "path", "default": audit.FILE},
        },
        required_if=[
            ("state", "present", ["model", "backend", "share"]),
            ("state", "absent", ["model"]),
            ("state", "pruned", ["keep"]),
        ],
        supports_check_mode=True,
    )
    module.exit_json(**GatewayRoutes(module).run())


if __name__ == "__main__":
    main()
