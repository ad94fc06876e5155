#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: release_info
short_description: Reads what a host ran and runs of which release, and on a gateway where requests go and who rolls out
version_added: 0.1.0
description:
  - One call returns what M(localfirst.llm_fleet.model_release) has remembered, and on a gateway the routes of open rollouts, the
    locks, and what HAProxy makes of its servers.
  - Reads only. Works on a bare host, where most of it is simply absent.
options:
  state_dir:
    description: Directory of the fleet's state on the host.
    type: path
    default: /var/lib/llm_fleet
  gateway:
    description: Read also what only a gateway has.
    type: bool
    default: false
  model:
    description: Only the history of this model. By default of all.
    type: str
  entries:
    description: How many entries of the history to return, the newest.
    type: int
    default: 20
  socket:
    description: HAProxy's runtime socket.
    type: path
    default: /run/haproxy/admin.sock
author:
  - localfirst.llm_fleet contributors (@localfirst)
attributes:
  check_mode:
    description: The module changes nothing, so check mode makes no difference.
    support: full
  diff_mode:
    description: There is never a difference to show.
    support: none
  idempotent:
    description: Calling it twice has the effect of calling it once.
    support: full
"""

EXAMPLES = r"""
- name: See what a node ran before
  localfirst.llm_fleet.release_info:
    model: tiny
  become: true
  register: releases
"""

RETURN = r"""
history:
  description: Switches of replicas on this host, oldest first, as M(localfirst.llm_fleet.model_release) wrote them.
  type: list
  elements: dict
  returned: always
  sample: [{"at": "2026-11-28T14:02:12Z", "model": "tiny", "replica": 0, "release": "0f3a5c7e9b1d", "version": "1.1.0", "outcome": "good"}]
routes:
  description: Routes of open rollouts by model, as M(localfirst.llm_fleet.gateway_route) keeps them.
  type: dict
  returned: with O(gateway=true)
locks:
  description: Who holds which lock on this gateway, with C(name), C(user), C(host), C(purpose), C(since) and C(seconds_left).
  type: list
  elements: dict
  returned: with O(gateway=true)
servers:
  description:
    - What HAProxy makes of each server, by C(backend/server). C(state) is C(ready), C(drain) or C(maint), C(up) what the health
      check found, C(requests) those in flight.
  type: dict
  returned: with O(gateway=true)
  sample: {"be_tiny_0f3a5c7e9b1d/tiny-0-a": {"state": "ready", "up": true, "requests": 2}}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import release_history, routes
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.haproxy_runtime import HAProxyRuntime, RuntimeFailure
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lease import Damaged, Lease


class ReleaseInfo:
    """Each part is absent rather than an error; what is damaged is a warning."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.state_dir = Path(module.params["state_dir"])

    def collect(self) -> dict:
        told = {"history": self.history()}
        if self.module.params["gateway"]:
            told.update(routes=self.routes(), locks=self.locks(), servers=self.servers())
        return told

    def history(self) -> list[dict]:
        wanted = self.module.params["model"]
        entries = release_history.read(self.state_dir / "releases.jsonl")
        return [one for one in entries if wanted in (None, one["model"])][-self.module.params["entries"] :]

    def routes(self) -> dict:
        try:
            return routes.read_routes(str(self.state_dir / "routes.json"))
        except ValueError as error:
            self.module.warn(f"The routes cannot be read: {error}")
            return {}

    def locks(self) -> list[dict]:
        found = []
        for path in sorted((self.state_dir / "locks").glob("*.json")):
            try:
                holder = Lease(path.parent, path.stem).holder()
            except Damaged as damage:
                self.module.warn(str(damage))
                continue
            if holder:
                found.append({"name": path.stem, **holder})
        return found

    def servers(self) -> dict:
        runtime = HAProxyRuntime(self.module.params["socket"])
        try:
            states, rows = runtime.states(), runtime.servers()
        except RuntimeFailure:
            return {}
        return {"/".join(key): self.server(state, rows.get(key, {})) for key, state in sorted(states.items())}

    @staticmethod
    def server(state: str, row: dict) -> dict:
        passed = row.get("check_status", "").lstrip("* ") == "L7OK"
        return {
            "state": state,
            "up": passed and not row["status"].startswith("DOWN"),
            "requests": int(row.get("scur") or 0),
        }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state_dir": {"type": "path", "default": "/var/lib/llm_fleet"},
            "gateway": {"type": "bool", "default": False},
            "model": {"type": "str"},
            "entries": {"type": "int", "default": 20},
            "socket": {"type": "path", "default": "/run/haproxy/admin.sock"},
        },
        supports_check_mode=True,
    )
    module.exit_json(changed=False, **ReleaseInfo(module).collect())


if __name__ == "__main__":
    main()
