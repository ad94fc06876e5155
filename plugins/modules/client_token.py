#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: client_token
short_description: Issues, rotates, revokes and lists the tokens of clients
version_added: 0.1.0
description:
  - Runs on the controller, once, with what the gateways know of tokens, and returns what they are to know.
  - Writes nothing. Give RV(registry) to M(localfirst.llm_fleet.gateway_clients) on every gateway, and only then RV(token) to the client.
  - Register the result with C(no_log), because it may hold a token.
options:
  action:
    description:
      - V(issue) gives a client one more token.
      - V(rotate) gives a client a new token and lets the old one end after O(overlap).
      - V(revoke) refuses a token, or all tokens of a client, for ever.
      - V(list) shows names and dates.
    type: str
    required: true
  registries:
    description: What each gateway that answered knows of tokens; nothing for a gateway that knows of none.
    type: list
    elements: raw
    required: true
  silent:
    description: Names of gateways that did not answer and are not declared out. There must be none.
    type: list
    elements: str
    default: []
  clients:
    description: Names of the clients in the inventory.
    type: list
    elements: str
    required: true
  client:
    description: Name of the client.
    type: str
    default: ""
  id:
    description: Id of one token, for V(rotate) and V(revoke).
    type: str
    default: ""
  expires:
    description:
      - End of the new token, a date (C(2027-01-31)), a time in UTC (C(2027-01-31T12:00:00Z)) or a duration (C(90d)).
      - Empty means no end.
    type: str
    default: ""
  overlap:
    description: How long an old token is still valid after V(rotate), a duration such as C(24h); C(0s) revokes it at once.
    type: str
    default: 24h
  token_file:
    description: Where the caller will write the token, an absolute path on the controller. Empty means that it prints it.
    type: str
    default: ""
  print_allowed:
    description: Whether a token may be printed. False where the output is kept, as AWX does.
    type: bool
    default: true
author:
  - localfirst.llm_fleet contributors (@localfirst)
attributes:
  check_mode:
    description: Returns the same, but no token.
    support: full
  diff_mode:
    description: What changes is in RV(actions).
    support: none
  idempotent:
    description: V(issue) and V(rotate) make another token with each call.
    support: none
"""

EXAMPLES = r"""
- name: Give a client a token
  localfirst.llm_fleet.client_token:
    action: issue
    client: website
    expires: 90d
    clients: "{{ llm_fleet_clients | map(attribute='name') }}"
    registries: "{{ groups['gateways'] | map('extract', hostvars, ['llm_fleet_host', 'clients']) }}"
  delegate_to: localhost
  run_once: true
  no_log: true
  register: tokens
"""

RETURN = r"""
actions:
  description: What was or would be done.
  type: list
  elements: str
  returned: success
  sample: ["issue token 5f3a9c01 to website, valid until 2027-02-21T12:00:00Z"]
registry:
  description: What all gateways are to know, with digests of tokens only.
  type: dict
  returned: success
token:
  description: The new token. It is nowhere else.
  type: str
  returned: when O(action) is V(issue) or V(rotate), and not in check mode
tokens:
  description: All tokens by client, id and dates.
  type: list
  elements: dict
  returned: success
  sample: [{"client": "website", "id": "5f3a9c01", "issued": "2026-11-23T12:00:00Z", "expires": "never", "state": "valid"}]
faults:
  description: What is wrong, where, and what to do about it.
  type: list
  elements: dict
  returned: failure
"""

import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import client_registry
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault, listing, suggestion

ACTIONS = ("issue", "rotate", "revoke", "list")


class ClientToken:
    """One action on the registry that all gateways share."""

    def __init__(self, params: dict, now: int) -> None:
        self.params = params
        self.now = now
        self.registry = client_registry.merge(params["registries"])
        self.chosen: list[dict] = []
        self.faults = self.check()

    def check(self) -> list[Fault]:
        """Everything that is wrong with what was asked, before anything is done."""
        action, client = self.params["action"], self.params["client"]
        faults = [
            Fault(f"gateway {name} does not answer", f"host {name}", f"Bring it back, or set llm_fleet_gateways_out: [{name}]")
            for name in self.params["silent"]
        ]
        if action not in ACTIONS:
            faults.append(Fault(f"unknown action {action!r}", "do", suggestion(action, ACTIONS, "actions")))
        if client and client not in self.params["clients"] and action != "revoke":
            fix = suggestion(client, self.params["clients"], "clients")
            faults.append(Fault(f"unknown client {client!r}", "client", f"{fix} Clients are written into llm_fleet_clients"))
        if action == "issue" and not client:
            faults.append(Fault("no client is named", "client", "Add -e client=<name>"))
        if action in ("rotate", "revoke") and not faults:
            self.chosen, missing = client_registry.choose(self.registry, client, self.params["id"], self.now)
            faults += missing
        return faults + self.check_times() + self.check_delivery()

    def check_times(self) -> list[Fault]:
        faults = []
        if self.params["expires"]:
            end = client_registry.read_end(self.params["expires"], self.now)
            if end is None:
                fix = "Write a date (2027-01-31), a time in UTC (2027-01-31T12:00:00Z) or a duration (90d)"
                faults.append(Fault(f"{self.params['expires']!r} is no time", "expires", fix))
            elif end <= self.now:
                faults.append(Fault(f"{self.params['expires']!r} is over", "expires", "Write a time to come"))
        if client_registry.read_duration(self.params["overlap"]) is None:
            faults.append(Fault(f"{self.params['overlap']!r} is no duration", "overlap", "Write for instance 24h, 30m or 0s"))
        return faults

    def check_delivery(self) -> list[Fault]:
        file = self.params["token_file"]
        if self.params["action"] not in ("issue", "rotate"):
            return []
        if file and not file.startswith("/"):
            return [Fault(f"the path {file!r} is relative", "token_file", "Make it absolute")]
        if not file and not self.params["print_allowed"]:
            fix = "Add -e token_file=<absolute path on storage that outlives this job>"
            return [Fault("the output of this run is kept, so the token is not printed", "token_file", fix)]
        return []

    def run(self) -> client_registry.Change:
        expires = client_registry.read_end(self.params["expires"], self.now) if self.params["expires"] else None
        if self.params["action"] == "issue":
            return client_registry.issue(self.registry, self.params["client"], self.now, expires)
        if self.params["action"] == "rotate":
            overlap = client_registry.read_duration(self.params["overlap"])
            return client_registry.rotate(self.registry, self.chosen, self.now, expires, overlap)
        if self.params["action"] == "revoke":
            return client_registry.revoke(self.registry, self.chosen)
        return client_registry.Change(self.registry)


def main() -> None:
    text = {"type": "str", "default": ""}
    module = AnsibleModule(
        argument_spec={
            "action": {"type": "str", "required": True},
            "registries": {"type": "list", "elements": "raw", "required": True},
            "silent": {"type": "list", "elements": "str", "default": []},
            "clients": {"type": "list", "elements": "str", "required": True},
            "client": text,
            "id": text,
            "expires": text,
            "overlap": {"type": "str", "default": "24h"},
            # The path of a file, and a yes or no: neither is a secret.
            "token_file": {**text, "no_log": False},
            "print_allowed": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    now = int(time.time())
    tokens = ClientToken(module.params, now)
    if tokens.faults:
        module.fail_json(msg=listing(tokens.faults), faults=[fault.as_dict() for fault in tokens.faults])
    change = tokens.run()
    result = {"registry": change.registry, "tokens": client_registry.listing(change.registry, now)}
    if change.token and not module.check_mode:
        result["token"] = change.token
    module.exit_json(changed=bool(change.actions), actions=list(change.actions), **result)


if __name__ == "__main__":
    main()
