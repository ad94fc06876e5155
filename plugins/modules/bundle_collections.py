#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: bundle_collections
short_description: Brings collections into a bundle, as this controller has them
version_added: 0.1.0
description:
  - Packs collections that are installed here, with all that they depend on, into archives that C(ansible-galaxy collection install) takes
    without a network. So the other side runs exactly what this one runs. No server is asked.
options:
  bundle:
    description: Directory of the bundle.
    type: path
    required: true
  collections:
    description: Names of collections.
    type: list
    elements: str
    required: true
  paths:
    description: Where Ansible looks for collections. Those that come with this Python's Ansible are found as well.
    type: list
    elements: path
    default: []
author:
  - localfirst.llm_fleet contributors (@localfirst)
attributes:
  check_mode:
    description: Says what would be written.
    support: full
  diff_mode:
    description: There are no contents to compare.
    support: none
  idempotent:
    description: What is there already is left alone.
    support: full
"""

EXAMPLES = r"""
- name: Bring the collections
  localfirst.llm_fleet.bundle_collections:
    bundle: /srv/bundle
    collections: [localfirst.llm_fleet]
    paths: "{{ lookup('ansible.builtin.config', 'COLLECTIONS_PATHS') }}"
  delegate_to: localhost
"""

RETURN = r"""
paths:
  description: Paths in the bundle.
  type: list
  elements: str
  returned: success
  sample: [collections/localfirst-llm_fleet-0.1.0.tar.gz]
actions:
  description: What was or would be done.
  type: list
  elements: str
  returned: success
  sample: [write collections/localfirst-llm_fleet-0.1.0.tar.gz]
fault:
  description: What is wrong, where, and what to do about it.
  type: dict
  returned: failure
"""

import sysconfig
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.collection_pack import Collections
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_arguments import answer


def run(module: AnsibleModule) -> dict:
    params = module.params
    collections = Collections([*map(Path, params["paths"]), Path(sysconfig.get_path("purelib"))])
    paths, actions = [], []
    for name in collections.closure(params["collections"]):
        path = f"collections/{collections.archive_name(name)}"
        file, body = Path(params["bundle"]) / path, collections.pack(name)
        paths.append(path)
        if file.is_file() and file.read_bytes() == body:
            continue
        actions.append(f"write {path}")
        if not module.check_mode:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(body)
    return {"changed": bool(actions), "actions": actions, "paths": paths}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "bundle": {"type": "path", "required": True},
            "collections": {"type": "list", "elements": "str", "required": True},
            "paths": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    answer(module, lambda: run(module), place="bundle")


if __name__ == "__main__":
    main()
