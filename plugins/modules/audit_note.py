#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: audit_note
short_description: Notes in a host's audit trail who did what
version_added: 0.1.0
description:
  - Adds one line of JSON to a file, and the same line to the system's log under the name C(llm_fleet), facility C(authpriv).
  - The file keeps itself small. Over 10 MiB it is renamed, and nine older ones are kept.
  - A note that cannot be written is a warning and no error, because what it tells of has happened.
  - Never reports a change, because the fleet is what it was.
options:
  actor:
    description: Who it was, as P(localfirst.llm_fleet.actor#lookup) tells it.
    type: dict
    required: true
  what:
    description: What was done, for example V(drain).
    type: str
    required: true
  target:
    description: What it was done to. An instance as backend and server with a slash between, a model, or a client.
    type: str
    required: true
  result:
    description: How it ended, V(ok) or V(failed) with a colon and the reason.
    type: str
    default: ok
  details:
    description:
      - More to be noted.
      - Keys such as C(token), C(key), C(secret) and C(prompt) are left out at any depth, and so are tokens in values, with a warning.
    type: dict
    default: {}
  audit_file:
    description: File of the audit trail.
    type: path
    default: /var/log/llm_fleet/audit.jsonl
author:
  - localfirst.llm_fleet contributors (@localfirst)
attributes:
  check_mode:
    description: Writes nothing.
    support: full
  diff_mode:
    description: There is never a difference to show.
    support: none
  idempotent:
    description: Each call adds a line, because each tells of something that happened.
    support: none
"""

EXAMPLES = r"""
- name: Note that an instance was drained
  localfirst.llm_fleet.audit_note:
    actor: "{{ lookup('localfirst.llm_fleet.actor') }}"
    what: drain
    target: be_tiny_0f3a5c7e9b1d/tiny-0-a
    details:
      model: tiny
      version: 1.1.0
"""

RETURN = r"""
line:
  description: The line as it was, or would be, written. O(target) is C(on) there.
  type: dict
  returned: always
  sample:
    at: "2026-01-01T09:30:00.123Z"
    who: {"user": "alice", "job": "", "process": "3241:912345"}
    from: controller
    what: drain
    "on": be_tiny_0f3a5c7e9b1d/tiny-0-a
    result: ok
    model: tiny
    version: 1.1.0
"""

from datetime import datetime, timezone

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import audit
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.actor import checked


class AuditNote:
    """One note."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module

    def run(self) -> dict:
        params = self.module.params
        entry = audit.entry_of(self.actor(), params["what"], params["target"], params["result"], params["details"])
        line, left_out = audit.compose(entry, datetime.now(timezone.utc))
        unwritten = "" if self.module.check_mode else audit.record(line, params["audit_file"])
        for warning in filter(None, [left_out, unwritten]):
            self.module.warn(warning)
        return {"line": line}

    def actor(self) -> dict:
        try:
            return checked(self.module.params["actor"])
        except ValueError as error:
            return self.module.fail_json(msg=f"actor: this is nobody: {error}.")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "actor": {"type": "dict", "required": True},
            "what": {"type": "str", "required": True},
            "target": {"type": "str", "required": True},
            "result": {"type": "str", "default": "ok"},
            "details": {"type": "dict", "default": {}},
            "audit_file": {"type": "path", "default": "/var/log/llm_fleet/audit.jsonl"},
        },
        supports_check_mode=True,
    )
    module.exit_json(changed=False, **AuditNote(module).run())


if __name__ == "__main__":
    main()
