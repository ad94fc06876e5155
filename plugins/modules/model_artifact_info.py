#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: model_artifact_info
short_description: Tells what is in a host's store
version_added: 0.1.0
description:
  - For each model version its size, whether it is complete, since when it is known to be right, which instances use it, and
    what the fleet knows it as.
  - It only looks. Nothing is read but names, sizes and times; for a reading of all contents there is
    M(localfirst.llm_fleet.model_verify).
options:
  store:
    description: Directory of the store. Where there is none, nothing is found.
  known:
    description:
      - Model versions that the fleet knows, as the filter P(localfirst.llm_fleet.known_artifacts#filter) tells them.
      - A version without a tree, as depots have them, is found only if it is among these.
  containers:
    description: Whether to ask Docker which instances use what. Without Docker on the host, none does.
    type: bool
    default: true
extends_documentation_fragment:
  - localfirst.llm_fleet.store
  - localfirst.llm_fleet.store.known
author:
  - localfirst.llm_fleet contributors (@localfirst)
seealso:
  - module: localfirst.llm_fleet.model_gc
  - module: localfirst.llm_fleet.model_verify
attributes:
  check_mode:
    description: It only looks.
    support: full
  diff_mode:
    description: It changes nothing.
    support: none
  idempotent:
    description: It only looks.
    support: full
"""

EXAMPLES = r"""
- name: See what the host has
  localfirst.llm_fleet.model_artifact_info:
    known: "{{ llm_fleet_planned | localfirst.llm_fleet.known_artifacts(told, lockfile) }}"
  register: store

- name: Show it
  ansible.builtin.debug:
    msg: "{{ store.artifacts | localfirst.llm_fleet.table(['model', 'version', 'size', 'complete', 'verified', 'used_by', 'reasons']) }}"
"""

RETURN = r"""
artifacts:
  description: The model versions of which there is anything, by name.
  type: list
  elements: dict
  returned: success
  contains:
    model:
      description: Name of the model.
      type: str
      returned: always
    version:
      description: Version of the model.
      type: str
      returned: always
    path:
      description: Directory of its tree.
      type: str
      returned: always
    linked:
      description: Whether the tree is there. On a depot there is none.
      type: bool
      returned: always
    files:
      description: How many files are here.
      type: int
      returned: always
    size:
      description: Bytes of its contents that are here, each content counted once. Other versions may share them.
      type: int
      returned: always
    complete:
      description:
        - Whether all files are there and are what O(known) says.
        - For a version that is not in O(known), whether each file is a content of the store.
      type: bool
      returned: always
    missing:
      description: Paths of files that are missing, or whose content is not what it should be.
      type: list
      elements: str
      returned: always
    verified:
      description:
        - Since when all of it is known to be right. The oldest of its contents counts.
        - Null where one was written to since, or never read.
      type: str
      returned: always
    used_by:
      description: Containers that have it mounted, or are instances of it, running or not.
      type: list
      elements: str
      returned: always
    reasons:
      description: What it is known as. Empty for a version that nobody knows.
      type: list
      elements: str
      returned: always
  sample:
    - model: tiny
      version: 1.0.0
      path: /var/lib/llm_fleet/store/models/tiny/1.0.0
      linked: true
      files: 1
      size: 6012345
      complete: true
      missing: []
      verified: "2026-11-23T15:04:05+00:00"
      used_by: [tiny-0-a]
      reasons: [current, locked]
contents:
  description: How many contents the store has, and their bytes.
  type: dict
  returned: success
  sample: {"count": 12, "bytes": 16060522240}
unnamed:
  description: Contents that no version has, neither here nor in O(known).
  type: dict
  returned: success
  sample: {"count": 0, "bytes": 0}
unfinished:
  description: Downloads that are under way or were interrupted.
  type: dict
  returned: success
  sample: {"count": 1, "bytes": 1048576}
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_store import Store
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_arguments import KNOWN, STORE, answer
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_report import Known, Report
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_users import containers, docker_of


def report(module: AnsibleModule) -> dict:
    """What the store holds."""
    params = module.params
    known = [Known.parse(entry) for entry in params["known"]]
    used_by = containers(docker_of(module)) if params["containers"] else []
    return {"changed": False, **Report(Store(params["store"]), known, used_by).as_dict()}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **STORE,
            "known": {**KNOWN, "default": []},
            "containers": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    answer(module, lambda: report(module))


if __name__ == "__main__":
    main()
