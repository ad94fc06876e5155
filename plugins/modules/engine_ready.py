#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: engine_ready
short_description: Waits until engine instances answer
version_added: 0.1.0
description:
  - Runs on the node and asks each instance what its engine's profile says (C(http.ready)), at the address that gateways use.
  - Where an engine loads its model on request only (C(http.preload)), it is asked to, once it answers.
  - Gives up early on an instance that is gone, keeps stopping, serves other files than those that were locked, or refuses
    to load its model; and shows the end of its log.
  - Changes nothing on the host.
options:
  instances:
    description:
      - Instances of the plan, each with its release under C(record), from the filter
        P(localfirst.llm_fleet.host_instances#filter).
      - An instance may have checks of its own under C(ready), which then replace those of its engine.
    type: list
    elements: dict
    required: true
  interfaces:
    description:
      - The plan's C(engines), of which C(ready) and C(preload) are read.
      - For an engine that has no checks here, Docker's health check decides.
    type: dict
    default: {}
  keys:
    description: The API key of each model, for engines that have one.
    type: dict
    default: {}
  address:
    description: The address that the instances are published on.
    type: str
    required: true
  timeout:
    description: Seconds until all of them have to be ready.
    type: int
    default: 900
author:
  - localfirst.llm_fleet contributors (@localfirst)
attributes:
  check_mode:
    description: Waits for nothing in check mode, because nothing was started.
    support: full
  diff_mode:
    description: There is never a difference to show.
    support: none
  idempotent:
    description: Calling it twice has the effect of calling it once.
    support: full
"""

EXAMPLES = r"""
- name: Wait until the instances of this host answer
  localfirst.llm_fleet.engine_ready:
    instances: "{{ llm_fleet_plan | localfirst.llm_fleet.host_instances(inventory_hostname) }}"
    interfaces: "{{ llm_fleet_plan.engines }}"
    keys: "{{ llm_fleet_engine_keys }}"
    address: "{{ llm_fleet_address }}"
"""

RETURN = r"""
ready:
  description: Names of the instances that are ready.
  type: list
  elements: str
  returned: always
  sample: [tiny-0-a]
unready:
  description: Why each of the others is not.
  type: dict
  returned: failure
  sample: {"tiny-1-a": "it stopped 5 times (exit code 1)"}
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.docker_containers import Containers
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.engine_probe import Waiter, make_target


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "instances": {"type": "list", "elements": "dict", "required": True},
            "interfaces": {"type": "dict", "default": {}},
            "keys": {"type": "dict", "default": {}, "no_log": True},
            "address": {"type": "str", "required": True},
            "timeout": {"type": "int", "default": 900},
        },
        supports_check_mode=True,
    )
    instances, interfaces = module.params["instances"], module.params["interfaces"]
    if module.check_mode:
        module.exit_json(changed=False, ready=[])
    targets = [make_target(one, interfaces, module.params["keys"], module.params["address"]) for one in instances]
    docker = Containers(module)
    unready = Waiter(docker.look).wait(targets, module.params["timeout"])
    ready = [target.id for target in targets if target.id not in unready]
    if unready:
        texts = [f"{name} is not ready: {why}.\n{docker.log(name)}" for name, why in sorted(unready.items())]
        module.fail_json(msg="\n".join(texts), ready=ready, unready=unready)
    module.exit_json(changed=False, ready=ready)


if __name__ == "__main__":
    main()
