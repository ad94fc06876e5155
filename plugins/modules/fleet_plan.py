#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_plan
short_description: Checks a fleet's catalog, lockfile and hosts, and plans what runs where
version_added: 0.1.0
description:
  - Runs on the controller, once, with what M(localfirst.llm_fleet.host_info) told of every host that answered.
  - Finds all faults before it fails, so that one run shows everything there is to mend.
  - Changes nothing. The plan is passed on as data and applied by the roles.
options:
  models:
    description: The catalog as the operator wrote it, see docs/catalog.md.
    type: raw
    required: true
  clients:
    description: The clients as the operator wrote them.
    type: raw
    required: true
  profiles:
    description: Engine profiles by name, from the lookup P(localfirst.llm_fleet.engine_profiles#lookup).
    type: dict
    required: true
  lockfile:
    description: Absolute path of the lockfile on the controller.
    type: str
    required: true
  ca_dir:
    description: Absolute path of the directory of the fleet's CA on the controller.
    type: str
    required: true
  gateways:
    description: Names of all gateways.
    type: list
    elements: str
    required: true
  gateways_out:
    description: Names of the gateways that are out of service.
    type: list
    elements: str
    default: []
  nodes:
    description: Names of all GPU nodes.
    type: list
    elements: str
    required: true
  removed:
    description: Names of GPU nodes that are to give everything back.
    type: list
    elements: str
    default: []
  depots:
    description: Names of all depots. Without any, the controller hands out the files of models.
    type: list
    elements: str
    default: []
  asked:
    description: Names of the hosts that this run addresses, whether they answered or not.
    type: list
    elements: str
    required: true
  hosts:
    description:
      - The hosts that answered. To what M(localfirst.llm_fleet.host_info) returned add C(name), C(address) and, for a
        GPU node whose GPUs are not all to be used, C(gpus), a list of UUIDs.
      - C(memory_reserve) and C(gpu_memory_reserve) are bytes of the machine's memory and of each GPU's that are not for engines, by default
        1 GiB and 512 MiB.
      - Without C(gpus), a node has all GPUs that answer. One whose driver does not answer keeps those that its instances have.
    type: list
    elements: dict
    required: true
  inventories:
    description: Directories that Ansible reads inventories from. Secrets must not lie below one, or they become names of hosts.
    type: list
    elements: str
    default: []
  port_range:
    description: First and last port that engines may be published on.
    type: list
    elements: int
    default: [20000, 29999]
  distribution:
    description: How model files get to the nodes, V(http) for each from a depot, V(p2p) for all of them from each other as well.
    type: str
    choices: [http, p2p]
    default: http
  peer_port:
    description: With V(p2p), the TCP port at which hosts reach each other.
    type: int
    default: 8446
  disk_reserve:
    description: Bytes that stay free on the file system of a host's store.
    type: int
    default: 1073741824
  store:
    description:
      - The controller's own store. Depots get from it what was downloaded to be locked, and ask the sources for the rest.
      - Empty if there is none.
    type: str
    default: ""
  engine_images:
    description: The engines' images as the operator names them, by engine. One that was locked from another name is a fault.
    type: dict
    default: {}
  require_signatures:
    description: Whether a version without C(signature) in the catalog is a fault.
    type: bool
    default: false
  allow_empty_catalog:
    description: Whether a fleet that serves models may be planned without any.
    type: bool
    default: false
  rollout:
    description:
      - A rollout to open, or to find open. The plan then changes for this model only; what else the catalog wants waits for C(site.yml).
      - Without it, no model changes its release.
    type: dict
    suboptions:
      model:
        description: Name of the model.
        type: str
        required: true
      version:
        description: Version to go to; by default the one that the catalog wants.
        type: str
      strategy:
        description: In place of the catalog's.
        type: str
        choices: [auto, surge, replace]
      bake:
        description: How long the canary is watched, such as C(10m), in place of the catalog's.
        type: str
      accept_outage:
        description: Whether the model may be without any replica for as long as its engine loads.
        type: bool
        default: false
      retry_rejected:
        description: Whether a release may be tried that was rejected.
        type: bool
        default: false
      undo:
        description: Go back to the release that the model ran before; of an open rollout, to the one that it came from.
        type: bool
        default: false
      who:
        description: Who asks.
        type: str
        required: true
      why:
        description: Why, in words.
        type: str
        default: ""
      only:
        description: Id of the rollout that is meant. Where it is not open any more, nothing is opened.
        type: str
      close:
        description:
          - End the open rollout instead. The new release becomes the model's (V(commit)), or goes (V(abandon)).
          - Where none is open, the plan stays as it is, and what is left of an earlier one leaves.
        type: str
        choices: [commit, abandon, tidy]
      rejected:
        description: With V(abandon), why the release is not to be tried again. Empty if it may be.
        type: str
        default: ""
  maintenance:
    description: Hosts to take out of service, or to bring back. Nothing else of the plan changes then.
    type: dict
    suboptions:
      hosts:
        description: Names of GPU nodes.
        type: list
        elements: str
        required: true
      state:
        description: Take them out (V(begin)) or bring them back (V(end)).
        type: str
        choices: [begin, end]
        required: true
      who:
        description: Who asks.
        type: str
        required: true
      why:
        description: Why, in words.
        type: str
        default: ""
  what_if:
    description:
      - Plan for another fleet than there is. The result is for people to look at, and must not be applied.
      - Nodes are taken away as with O(removed), and new ones are bare.
    type: dict
    suboptions:
      without:
        description: Names and patterns of GPU nodes, comma-separated, that are gone.
        type: str
        default: ""
      with:
        description:
          - GPU nodes that come, comma-separated, each as C(name:node), a node like one that answered, or C(name:8x80g), one with so many
            GPUs of that size, and otherwise like the first that answered.
        type: str
        default: ""
  strict:
    description: Fail when there is a fault; otherwise return the faults, and the plan that was last applied.
    type: bool
    default: true
author:
  - localfirst.llm_fleet contributors (@localfirst)
attributes:
  check_mode:
    description: The module changes nothing, so check mode makes no difference.
    support: full
  diff_mode:
    description: Returns the plan before and after.
    support: full
  idempotent:
    description: The same input leads to the same plan.
    support: full
"""

EXAMPLES = r"""
- name: Check everything and plan
  localfirst.llm_fleet.fleet_plan:
    models: "{{ llm_fleet_models }}"
    clients: "{{ llm_fleet_clients }}"
    profiles: "{{ lookup('localfirst.llm_fleet.engine_profiles') }}"
    lockfile: "{{ llm_fleet_lockfile }}"
    ca_dir: "{{ llm_fleet_ca_dir }}"
    gateways: "{{ groups['gateways'] }}"
    nodes: "{{ groups['gpu_nodes'] }}"
    asked: "{{ ansible_play_hosts_all }}"
    hosts: "{{ ansible_play_hosts | map('extract', hostvars, 'llm_fleet_host') }}"
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
faults:
  description: What is wrong, where, and what to do about it.
  type: list
  elements: dict
  returned: always
  sample: [{"what": "unknown engine 'llamacp'", "where": "llm_fleet_models[tiny].engine", "fix": "did you mean 'llamacpp'?"}]
plan:
  description: The plan; see docs/architecture.md.
  type: dict
  returned: always
leaving:
  description: Instances that still run somewhere and are no longer wanted.
  type: list
  elements: dict
  returned: always
actions:
  description: What applying the plan does, a line each.
  type: list
  elements: str
  returned: always
  sample: ["gpu1: create tiny-0-a (tiny 1.0.0, port 20000)"]
pending:
  description: Models whose wanted release differs from the one that runs.
  type: list
  elements: str
  returned: always
memory_warnings:
  description:
    - What runs although by the estimate it does not fit, what fits with little to spare, and of what it is not known, a line each.
    - What cannot fit, and does not run yet, is a fault. See docs/fit.md.
  type: list
  elements: str
  returned: always
  sample: ["tiny: memory not checked, because the lockfile does not have its shape: lock again"]
artifacts:
  description:
    - The model versions whose files each host needs, by host, for what it runs and for what it is to run.
    - A depot needs those of all hosts. Files are as the lockfile has them.
  type: dict
  returned: always
  sample: {"gpu1": [{"model": "tiny", "version": "1.0.0", "source": "file:///m/tiny.gguf", "size": 6012345, "files": []}]}
bringing:
  description: What hosts that answered lack of their files, a line each.
  type: list
  elements: str
  returned: always
  sample: ["gpu1: bring 5.7 MiB of tiny 1.0.0"]
supply:
  description:
    - What the controller has to hand out, because hosts that answered lack it. With depots these are the files of the
      controller itself and what its store has from locking, otherwise all that nodes lack.
    - C(artifacts) as above, with the lacking files only; C(fetch), those that the controller has to fetch first;
      C(files), paths on the controller by digest;
      C(bytes) of all together; C(towards), the address of a host that fetches.
  type: dict
  returned: always
suppliers:
  description: Depots that hosts can fetch from. One that this run asked, and that did not answer, is left out.
  type: list
  elements: str
  returned: always
nodes:
  description:
    - The GPU nodes that were planned for, as P(localfirst.llm_fleet.plan_picture#filter) takes them. Memory is in bytes, null where nobody
      knows.
  type: list
  elements: dict
  returned: always
  sample:
    - name: gpu1
      memory_bytes: 540431953920
      gpus: [{"uuid": GPU-4f1b2c3d-0000-0000-0000-000000000000, "name": NVIDIA H100 80GB HBM3, "memory": 85520809984}]
      note: ""
clients:
  description: The clients, with defaults filled in.
  type: list
  elements: dict
  returned: always
frozen:
  description: The run does not address every gateway, so the plan stays as it was last applied.
  type: bool
  returned: always
rollout:
  description:
    - The open rollout as its coordinator goes through it. C(batches) have the instances to start (C(new)) and to drain (C(old)),
      and the C(share) of requests that goes to the new release after each; C(progress) says what has happened already, C(lines)
      all of it for people.
    - None where O(rollout) is not given, or the model runs that release already.
  type: dict
  returned: always
unsettled:
  description: With O(rollout), where there is nothing to roll out, whether an earlier run was broken off while it closed its rollout.
  type: bool
  returned: always
probes:
  description: With O(maintenance), the gates and golden prompts of each model of the catalog.
  type: dict
  returned: always
  sample: {"tiny": {"gates": {"samples": 20}, "smoke": []}}
gpu_problems:
  description: What is wrong with the GPUs of nodes that answered, a line each; these are warnings too.
  type: list
  elements: str
  returned: always
engine_warnings:
  description: Engines in use that are on their way out, a line each, with the way to another; these are warnings too.
  type: list
  elements: str
  returned: always
status:
  description: What should run and what does, a row for each instance.
  type: list
  elements: dict
  returned: always
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import listing
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.fleet_planner import FleetPlanner
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.maintenance import MAINTENANCE
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.rollout_request import ASKED
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.what_if import WHAT_IF


def main() -> None:
    names = {"type": "list", "elements": "str"}
    module = AnsibleModule(
        argument_spec={
            "models": {"type": "raw", "required": True},
            "clients": {"type": "raw", "required": True},
            "profiles": {"type": "dict", "required": True},
            "lockfile": {"type": "str", "required": True},
            "ca_dir": {"type": "str", "required": True},
            "inventories": {"type": "list", "elements": "str", "default": []},
            "gateways": {**names, "required": True},
            "gateways_out": {**names, "default": []},
            "nodes": {**names, "required": True},
            "removed": {**names, "default": []},
            "depots": {**names, "default": []},
            "asked": {**names, "required": True},
            "hosts": {"type": "list", "elements": "dict", "required": True},
            "port_range": {"type": "list", "elements": "int", "default": [20000, 29999]},
            "distribution": {"type": "str", "choices": ["http", "p2p"], "default": "http"},
            "peer_port": {"type": "int", "default": 8446},
            "disk_reserve": {"type": "int", "default": 1024**3},
            "store": {"type": "str", "default": ""},
            "engine_images": {"type": "dict", "default": {}},
            "require_signatures": {"type": "bool", "default": False},
            "allow_empty_catalog": {"type": "bool", "default": False},
            "rollout": {"type": "dict", "options": ASKED},
            "maintenance": {"type": "dict", "options": MAINTENANCE},
            "what_if": {"type": "dict", "options": WHAT_IF},
            "strict": {"type": "bool", "default": True},
        },
        mutually_exclusive=[("rollout", "maintenance", "what_if")],
        supports_check_mode=True,
    )
    planner = FleetPlanner(module.params)
    result = planner.run()
    for line in [*result["gpu_problems"], *result["engine_warnings"]]:
        module.warn(line)
    faults = [fault.as_dict() for fault in planner.faults]
    if faults and module.params["strict"]:
        module.fail_json(msg=listing(planner.faults), faults=faults)
    module.exit_json(changed=False, faults=faults, **result)


if __name__ == "__main__":
    main()
