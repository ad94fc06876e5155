#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: client_token
short_description: Issues, rotates, revokes and lists clients' tokens
version_added: 0.1.0
description:
  - Runs on the controller. Takes the registries that gateways have, and returns the one that they should have.
  - Writes nothing. M(localfirst.llm_fleet.gateway_clients) brings the result to the gateways.
  - Says all that is wrong with its arguments at once.
options:
  action:
    description:
      - V(issue) makes a token for O(client).
      - V(rotate) makes one in place of all living tokens of O(client), or of the one with O(id). Those end after O(overlap).
      - V(revoke) takes all tokens of O(client), or the one with O(id), out of service for good.
      - V(list) and V(sync) change nothing. The registry returned is that of the newest gateway, with the revocations of all.
      - It is checked here, so that a wrong one is reported together with all else that is wrong.
    type: str
    required: true
  client:
    description: Name of the client.
    type: str
    default: ""
  id:
    description: Id of one token, as V(list) shows it.
    type: str
    default: ""
  expires:
    description:
      - When a new token ends. A date or a moment (UTC unless it says otherwise), a number of days, or V(never).
    type: str
    default: "365"
  overlap:
    description: How long the old tokens go on after a rotation, such as V(30m), V(24h), V(7d) or V(0).
    type: str
    default: 24h
  known_clients:
    description: Names of all clients of the fleet. New tokens are for these only.
    type: list
    elements: str
    default: []
  registries:
    description: The registry of each gateway that has one. They hold no tokens, only hashes.
    type: list
    elements: dict
    default: []
  to_file:
    description: The file on the controller that the token will be written to. It has to be an absolute path in a directory that is there.
    type: str
    default: ""
  file_required:
    description: Whether a new token may only go to a file, because the output of this run is kept.
    type: bool
    default: false
author:
  - localfirst.llm_fleet contributors (@localfirst)
attributes:
  check_mode:
    description: Says what would be done. No token is made.
    support: full
  diff_mode:
    description: M(localfirst.llm_fleet.gateway_clients) shows the difference.
    support: none
  idempotent:
    description: Each V(issue) and V(rotate) makes another token.
    support: partial
"""

EXAMPLES = r"""
- name: Make a token for a client
  localfirst.llm_fleet.client_token:
    action: issue
    client: research
    expires: "2027-01-01"
    known_clients: "{{ llm_fleet_clients | map(attribute='name') }}"
    registries: "{{ registries }}"
  delegate_to: localhost
  run_once: true
  no_log: true
  register: issued
"""

RETURN = r"""
actions:
  description: What was done or would be done.
  type: list
  elements: str
  returned: always
  sample: ["issue token 5f1c09ab for research, valid until 2027-01-01T00:00:00Z"]
registry:
  description: The registry that all gateways should have. It has hashes, no tokens.
  type: dict
  returned: always
token:
  description: The new token. It is nowhere else, and this is the only time it can be seen.
  type: str
  returned: when one was made
tokens:
  description: What may be shown of the registry's tokens.
  type: list
  elements: dict
  returned: always
  sample:
    - client: research
      id: 5f1c09ab
      issued: "2026-01-01T09:30:00Z"
      expires: "2027-01-01T00:00:00Z"
      state: valid
"""

import os
from datetime import datetime, timezone

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import client_registry
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault, listing, suggestion

ACTIONS = ("issue", "rotate", "revoke", "list", "sync")


class ClientToken:
    """One call: what is asked for, and the registry it is asked of."""

    def __init__(self, params: dict, now: datetime) -> None:
        self.params = params
        self.now = now
        self.action = params["action"]
        self.makes_token = self.action in ("issue", "rotate")
        self.faults: list = []
        self.registry = self.merged()
        self.expires = self.parsed("expires", client_registry.parse_end, now)
        self.overlap = self.parsed("overlap", client_registry.parse_duration)
        self.chosen = self.choose()
        self.check_file()

    def fault(self, what: str, where: str, fix: str) -> None:
        self.faults.append(Fault(what, where, fix))

    def merged(self) -> dict:
        if self.action not in ACTIONS:
            self.fault(f"'{self.action}' is no action", "do", suggestion(self.action, ACTIONS, "actions"))
        good = []
        for number, registry in enumerate(self.params["registries"]):
            why = client_registry.defects(registry)
            if why:
                self.fault(
                    f"it is no registry of tokens: {why}",
                    f"registries[{number}]",
                    "restore that gateway's clients.json",
                )
            else:
                good.append(registry)
        return client_registry.merge(good)

    def parsed(self, option: str, parse, *args):
        try:
            return parse(self.params[option], *args)
        except (ValueError, OverflowError) as error:
            forms = {"expires": "2027-01-01, 90 (days) or never", "overlap": "30m, 24h, 7d or 0"}[option]
            self.fault(f"'{self.params[option]}' is not understood: {error}", option, f"write it like {forms}")
            return None

    def choose(self) -> list:
        """The tokens that rotate and revoke are about."""
        client, token_id = self.params["client"], self.params["id"]
        known = self.params["known_clients"]
        # Who has left the fleet may still lose a token. A misspelt action may have meant any.
        if client and client not in known and self.action not in ("revoke", "list", "sync"):
            self.fault(f"there is no client '{client}'", "llm_fleet_clients", suggestion(client, known, "clients"))
        if self.action == "issue" and not client:
            self.fault("it is not said for whom", "client", "name a client of llm_fleet_clients")
        if self.action not in ("rotate", "revoke"):
            return []
        if not client and not token_id:
            self.fault(
                "it is not said which tokens",
                "client",
                "name a client, or one token by its id (do=list shows them)",
            )
            return []
        found = client_registry.select(self.registry, client or None, token_id or None)
        if self.action == "rotate":
            found = client_registry.living(found, self.now)
        if not found and (self.action == "rotate" or not self.revoked_before()):
            of = " and ".join(filter(None, [client and f"client '{client}'", token_id and f"id '{token_id}'"]))
            self.fault(
                f"there is no {'living ' if self.action == 'rotate' else ''}token of {of}",
                "client" if client else "id",
                "see do=list",
            )
        for owner in {entry["client"] for entry in found} - {*known} - {client} if self.makes_token else ():
            self.fault(f"there is no client '{owner}' any more", "llm_fleet_clients", "revoke its tokens instead")
        return found

    def revoked_before(self) -> bool:
        """Whether there is nothing left to revoke of a client that is known."""
        return not self.params["id"] and self.params["client"] in self.params["known_clients"]

    def check_file(self) -> None:
        path = self.params["to_file"]
        if self.makes_token and self.params["file_required"] and not path:
            self.fault(
                "a job's output is kept, so the token must not be printed",
                "token_file",
                "give -e token_file=/absolute/path",
            )
        if path and not self.makes_token:
            self.fault("there is no token to write", "token_file", "leave it out")
        elif path and not os.path.isabs(path):
            self.fault(
                f"'{path}' is not an absolute path",
                "token_file",
                "write it from the root, because it is the controller that writes it",
            )
        elif path and not os.access(os.path.dirname(path), os.W_OK | os.X_OK):
            self.fault(
                f"'{os.path.dirname(path)}' is no directory that can be written to",
                "token_file",
                "make it, or name another",
            )

    def run(self, check_mode: bool) -> dict:
        token, actions, registry = None, [], self.registry
        end = f"valid until {client_registry.stamp(self.expires)}" if self.expires else "that never ends"
        if self.makes_token:
            client = self.params["client"] or self.chosen[0]["client"]
            actions = [f"{self.action} a token for {client}, {end}"]
            actions += [f"end token {entry['id']} of {client} after {self.params['overlap']}" for entry in self.chosen]
            if not check_mode and self.action == "issue":
                registry, token, _entry = client_registry.issue(registry, client, self.now, self.expires)
            elif not check_mode:
                registry, token, _entry = client_registry.rotate(
                    registry, self.chosen, self.now, self.overlap, self.expires
                )
        elif self.chosen:
            actions = [f"revoke token {entry['id']} of {entry['client']}" for entry in self.chosen]
            registry = client_registry.revoke(registry, self.chosen, self.now)
        result = {"changed": bool(actions), "actions": actions, "registry": registry}
        result["tokens"] = client_registry.listing(registry, self.now)
        return {**result, "token": token} if token else result


def main() -> None:
    text = {"type": "str", "default": ""}
    module = AnsibleModule(
        argument_spec={
            "action": {"type": "str", "required": True},
            "client": text,
            "id": text,
            "expires": {"type": "str", "default": "365"},
            "overlap": {"type": "str", "default": "24h"},
            "known_clients": {"type": "list", "elements": "str", "default": []},
            "registries": {"type": "list", "elements": "dict", "default": []},
            "to_file": text,
            "file_required": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    call = ClientToken(module.params, datetime.now(timezone.utc))
    if call.faults:
        module.fail_json(msg=listing(call.faults), faults=[fault.as_dict() for fault in call.faults])
    module.exit_json(**call.run(module.check_mode))


if __name__ == "__main__":
    main()
