#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: engine_idle
short_description: Waits until engines work at no request any more, by their own count
version_added: 0.1.0
description:
  - Runs on the node, before an engine is told to stop. Gateways have drained it; what came past them, an engine alone knows.
  - An engine whose profile names no C(busy) metric, or which does not answer, is not waited for.
options:
  instances:
    description:
      - Instances with their release under C(record), as the filter P(localfirst.llm_fleet.host_instances#filter) gives them, or
        leaving ones as M(localfirst.llm_fleet.fleet_plan) returns them.
      - One whose release nobody knows is not waited for.
    type: list
    elements: dict
    required: true
  interfaces:
    description: The plan's C(engines). A leaving instance brings its own.
    type: dict
    default: {}
  keys:
    description: API keys by model.
    type: dict
    default: {}
  address:
    description: The address that engines are published on.
    type: str
    required: true
  timeout:
    description: Seconds to wait for all of them together.
    type: int
    default: 60
author:
  - localfirst.llm_fleet contributors (@localfirst)
attributes:
  check_mode:
    description: The module changes nothing; in check mode it does not wait.
    support: full
  diff_mode:
    description: There is never a difference to show.
    support: none
  idempotent:
    description: Calling it twice has the effect of calling it once.
    support: full
"""

EXAMPLES = r"""
- name: Ask the engines whether they are done
  localfirst.llm_fleet.engine_idle:
    instances: "{{ llm_fleet_planned.leaving | selectattr('host', 'equalto', inventory_hostname) }}"
    keys: "{{ llm_fleet_engine_keys }}"
    address: 10.0.20.21
  register: idle
"""

RETURN = r"""
busy:
  description: Requests of each instance that still had some when the time was over.
  type: dict
  returned: always
  sample: {"tiny-0-a": 1}
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.engine_idle import wait_idle
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.engine_probe import make_target


def interface(instance: dict, interfaces: dict) -> dict:
    """What is known of the engine of an instance."""
    return instance.get("engine_record") or interfaces.get(instance["record"]["engine"], {})


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "instances": {"type": "list", "elements": "dict", "required": True},
            "interfaces": {"type": "dict", "default": {}},
            "keys": {"type": "dict", "default": {}, "no_log": True},
            "address": {"type": "str", "required": True},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    params = module.params
    known = [{**one, "record": one.get("record") or one.get("release_record")} for one in params["instances"]]
    targets = [
        (make_target(one, params["interfaces"], params["keys"], params["address"]), interface(one, params["interfaces"]))
        for one in known
        if one["record"]
    ]
    busy = {} if module.check_mode else wait_idle(targets, params["timeout"])
    if busy:
        who = ", ".join(f"{name} ({count})" for name, count in sorted(busy.items()))
        module.warn(f"Engines still work at requests after {params['timeout']} s, and are stopped all the same: {who}")
    module.exit_json(changed=False, busy=busy)


if __name__ == "__main__":
    main()
