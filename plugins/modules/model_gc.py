#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: model_gc
short_description: Frees what nobody needs of a host's store
version_added: 0.1.0
description:
  - Removes the trees of model versions that O(keep) does not name, then the contents that nothing else has, and what interrupted
    runs left.
  - A version stays, whatever O(keep) says, while a container has it mounted or is an instance of it (running or not), while a
    process has a file of it open, and while a staging brings it.
  - A content stays while O(keep) names it, a tree or anything else links to it, a process has it open, or a staging relies on it.
  - Nothing is removed where Docker is installed and does not tell which containers there are.
  - What a lock has noted about its sources (C(lock) in the store) is left alone.
options:
  store:
    description: Directory of the store. Where there is none, there is nothing to do.
  keep:
    description:
      - Model versions to keep, as the filter P(localfirst.llm_fleet.known_artifacts#filter) tells them. It may not be empty.
      - With their files, contents are kept also where there is no tree, as on a depot.
  containers:
    description: Whether to ask Docker what is in use. Turn it off only on a host that runs no engine.
    type: bool
    default: true
  grace:
    description:
      - Seconds for which unfinished downloads, and contents that no version has, are left alone after they were last written.
      - Somebody may be about to name them.
    type: int
    default: 3600
  lock_timeout:
    description: Seconds to wait for another run on the same store.
    type: int
    default: 60
extends_documentation_fragment:
  - localfirst.llm_fleet.store
  - localfirst.llm_fleet.store.keep
author:
  - localfirst.llm_fleet contributors (@localfirst)
seealso:
  - module: localfirst.llm_fleet.model_artifact_info
attributes:
  check_mode:
    description: Says what would be removed, and how many bytes that frees, and changes nothing.
    support: full
  diff_mode:
    description: Lists the versions of the store before and after.
    support: full
  idempotent:
    description: A second run finds nothing to remove.
    support: full
"""

EXAMPLES = r"""
- name: Free what is neither planned nor locked
  localfirst.llm_fleet.model_gc:
    keep: "{{ llm_fleet_planned | localfirst.llm_fleet.known_artifacts(told, lockfile) }}"
"""

RETURN = r"""
actions:
  description: What was or would be removed.
  type: list
  elements: str
  returned: success
  sample: ["remove tiny 0.9.0 (5.7 MiB)", "remove 2 unfinished downloads (1.2 GiB)"]
freed_bytes:
  description: Bytes that this frees, all together.
  type: int
  returned: success
  sample: 6012345
freed:
  description: The trees that go, and the bytes that go with each. What two of them share is counted for one of them.
  type: list
  elements: dict
  returned: success
  sample:
    - model: tiny
      version: 0.9.0
      path: /var/lib/llm_fleet/store/models/tiny/0.9.0
      bytes: 6012345
kept:
  description: The trees that stay, and why.
  type: list
  elements: dict
  returned: success
  sample:
    - model: tiny
      version: 1.0.0
      path: /var/lib/llm_fleet/store/models/tiny/1.0.0
      reasons: [current, locked, used by tiny-0-a, open]
unnamed:
  description: Contents that go and that no version has, how many and how many bytes.
  type: dict
  returned: success
  sample: {"count": 0, "bytes": 0}
unfinished:
  description: Unfinished downloads that go, how many and how many bytes.
  type: dict
  returned: success
  sample: {"count": 2, "bytes": 1288490188}
diff:
  description: Versions, and contents and downloads without one, before and after.
  type: dict
  returned: success
fault:
  description: What is wrong, where, and what to do about it. Nothing was removed then, or as much as can be removed by running again.
  type: dict
  returned: failure
  sample:
    what: "Docker does not tell which containers there are: Cannot connect to the Docker daemon"
    where: docker
    fix: "start Docker (systemctl start docker), then run again: nothing is removed without knowing what uses it"
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_store import Store
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_arguments import KNOWN, STORE, answer
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_gc import GRACE, Collector
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_report import Known
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_users import containers, docker_of


def collect(module: AnsibleModule) -> dict:
    """Do what the parameters ask for, and return the result."""
    params = module.params
    if not params["keep"]:
        raise ArtifactError(
            "nothing is to be kept, so all of the store would go",
            "keep",
            "name what the fleet runs and has locked; to take a store away, use the role model_store with model_store_state: absent",
        )
    keep = [Known.parse(entry) for entry in params["keep"]]
    docker = docker_of(module) if params["containers"] else None
    collector = Collector(Store(params["store"]), keep, lambda: containers(docker), grace=params["grace"])
    garbage = collector.look() if module.check_mode else collector.run(params["lock_timeout"])
    actions = garbage.actions
    return {"changed": bool(actions), "actions": actions, **garbage.as_dict(), "diff": garbage.diff}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **STORE,
            "keep": {**KNOWN, "required": True},
            "containers": {"type": "bool", "default": True},
            "grace": {"type": "int", "default": GRACE},
            "lock_timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    answer(module, lambda: collect(module))


if __name__ == "__main__":
    main()
