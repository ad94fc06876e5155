#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: gateway_clients
short_description: Brings a gateway's registry of tokens up to date and HAProxy in line with it
version_added: 0.1.0
description:
  - Merges the registries that it is given with the one that the gateway has. The newest wins, revocations are united,
    so nothing that it is given brings a revoked token back.
  - Writes the registry first, then HAProxy's map of tokens, and then exchanges the map in the memory of the running
    HAProxy, old processes after a reload included. A revoked token is refused from then on, without a reload.
  - Without registries it only makes map and memory agree with the gateway's own registry.
  - With O(actor) it notes in the gateway's audit trail each token that it admits, ends or revokes there, by client and id.
options:
  actor:
    description:
      - Who does it, as P(localfirst.llm_fleet.actor#lookup) tells it. Without it nothing is noted.
      - A note that cannot be written is a warning and no error.
    type: dict
  audit_file:
    description: The gateway's audit trail. What is noted is described in M(localfirst.llm_fleet.audit_note).
    type: path
    default: /var/log/llm_fleet/audit.jsonl
  registries:
    description: Registries as M(localfirst.llm_fleet.client_token) returns one, or as other gateways have them. They hold no tokens.
    type: list
    elements: dict
    default: []
  registry_file:
    description: The gateway's registry.
    type: path
    default: /var/lib/llm_fleet/clients.json
  map_file:
    description: HAProxy's map of tokens.
    type: path
    default: /etc/haproxy/llm_fleet/tokens.map
  socket:
    description: HAProxy's runtime socket.
    type: path
    default: /run/haproxy/admin.sock
  master_socket:
    description: The runtime socket of HAProxy's master process.
    type: path
    default: /run/haproxy-master.sock
author:
  - localfirst.llm_fleet contributors (@localfirst)
attributes:
  check_mode:
    description: Says what would be done, and does none of it.
    support: full
  diff_mode:
    description: Shows clients, ids and dates, never a hash.
    support: full
  idempotent:
    description: Calling it twice has the effect of calling it once.
    support: full
"""

EXAMPLES = r"""
- name: Bring a new registry to a gateway
  localfirst.llm_fleet.gateway_clients:
    registries: ["{{ issued.registry }}"]
    actor: "{{ lookup('localfirst.llm_fleet.actor') }}"
  become: true

- name: Make HAProxy agree with the registry that is there
  localfirst.llm_fleet.gateway_clients:
  become: true
"""

RETURN = r"""
actions:
  description: What was done or would be done.
  type: list
  elements: str
  returned: always
  sample: ["write /var/lib/llm_fleet/clients.json (generation 7)", "exchange the tokens in HAProxy's memory"]
generation:
  description: The generation of the gateway's registry.
  type: int
  returned: always
  sample: 7
registry:
  description: The gateway's registry. It holds hashes, no tokens.
  type: dict
  returned: always
"""

import json
import os

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import actor, audit, client_registry, haproxy_maps, whole_files
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.haproxy_runtime import (
    HAProxyRuntime,
    RuntimeFailure,
)

COMMENT = "sha256 of a token -> client|end in seconds since 1970|id of the token. Written from clients.json."


class GatewayClients:
    """One gateway's registry, map and memory."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.path = module.params["registry_file"]
        self.map = module.params["map_file"]
        self.runtime = HAProxyRuntime(module.params["socket"], module.params["master_socket"])
        self.actions: list = []
        self.actor = self.checked(module.params["actor"])
        self.noted: list = []

    def run(self) -> dict:
        text = whole_files.read(self.path)
        current = self.load(text)
        given = self.module.params["registries"]
        for registry in given:
            if why := client_registry.defects(registry):
                self.module.fail_json(msg=f"This is not a registry of tokens: {why}.")
        wanted = client_registry.merge([current, *given])
        if wanted != current or (given and not text):
            self.do(f"write {self.path} (generation {wanted['generation']})", self.write_registry, wanted)
            self.noted = token_changes(current, wanted)
        entries = client_registry.map_entries(wanted)
        if haproxy_maps.entries_of(whole_files.read(self.map)) != entries or not os.path.exists(self.map):
            self.do(f"write {self.map}", whole_files.write, self.map, haproxy_maps.map_text(entries, COMMENT), 0o600)
        self.commit(entries)
        self.note("ok")
        return {
            "changed": bool(self.actions),
            "actions": self.actions,
            "generation": wanted["generation"],
            "registry": wanted,
            "diff": {"before": self.shown(current), "after": self.shown(wanted)},
        }

    def load(self, text: str) -> dict:
        try:
            registry = json.loads(text) if text else client_registry.empty()
        except ValueError as error:
            self.module.fail_json(msg=f"{self.path} is not JSON: {error}. Copy it from another gateway, or restore it.")
        if why := client_registry.defects(registry):
            self.module.fail_json(
                msg=f"{self.path} is no registry of tokens: {why}. Copy it from another gateway, or restore it."
            )
        return registry

    def write_registry(self, registry: dict) -> None:
        whole_files.write(self.path, json.dumps(registry, indent=1, sort_keys=True) + "\n", 0o640)

    def commit(self, entries: dict) -> None:
        """Exchange the map in memory, where HAProxy runs and has it."""
        try:
            for pid in self.runtime.outdated(self.map, entries) if self.runtime.runs() else []:
                worker = f"old process {pid}" if pid else "HAProxy's memory"
                self.do(f"exchange the tokens in {worker}", self.runtime.replace_map, self.map, entries, pid)
        except RuntimeFailure as failure:
            self.note(f"failed: the registry is written, but not in HAProxy's memory: {failure}")
            self.module.fail_json(
                msg=f"Registry and map are written, but the running HAProxy did not take them over: {failure}. "
                "Run this again, or reload HAProxy.",
                actions=self.actions,
            )

    def checked(self, given: dict | None) -> dict | None:
        try:
            return actor.checked(given) if given else None
        except ValueError as error:
            self.module.fail_json(msg=f"actor: this is nobody: {error}.")

    def note(self, result: str) -> None:
        notes = [(what, client, result, details) for what, client, details in self.noted]
        audit.tell(self.module, self.actor, notes, self.module.params["audit_file"])

    def do(self, action: str, function, *args) -> None:
        self.actions.append(action)
        if not self.module.check_mode:
            function(*args)

    @staticmethod
    def shown(registry: dict) -> str:
        rows = (f"{e['client']} {e['id']} {e['issued']} {e['expires'] or 'never'}" for e in registry["tokens"])
        return "".join(f"{row}\n" for row in [f"generation {registry['generation']}", *rows])


def token_changes(before: dict, after: dict) -> list:
    """What one registry in place of another does to each token: (what, client, id and more), never a hash."""
    old, new = ({entry["sha256"]: entry for entry in registry["tokens"]} for registry in (before, after))
    changes = []
    for digest, entry in new.items():
        if digest not in old:
            changes.append(("admit token", entry, {"expires": entry["expires"] or "never"}))
        elif entry["expires"] != old[digest]["expires"]:
            changes.append(("end token", entry, {"expires": entry["expires"] or "never", "replaced_by": entry.get("replaced_by")}))
    for digest, entry in old.items():
        if digest not in new:
            revoked = digest in after["revoked"]
            changes.append(("revoke token" if revoked else "forget token", entry, {} if revoked else {"expired": entry["expires"]}))
    return [(what, entry["client"], {"id": entry["id"], **more}) for what, entry, more in changes]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "actor": {"type": "dict"},
            "audit_file": {"type": "path", "default": "/var/log/llm_fleet/audit.jsonl"},
            "registries": {"type": "list", "elements": "dict", "default": []},
            "registry_file": {"type": "path", "default": "/var/lib/llm_fleet/clients.json"},
            "map_file": {"type": "path", "default": "/etc/haproxy/llm_fleet/tokens.map"},
            "socket": {"type": "path", "default": "/run/haproxy/admin.sock"},
            "master_socket": {"type": "path", "default": "/run/haproxy-master.sock"},
        },
        supports_check_mode=True,
    )
    module.exit_json(**GatewayClients(module).run())


if __name__ == "__main__":
    main()
