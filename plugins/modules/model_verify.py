#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: model_verify
short_description: Reads all of a host's store again, and names what is damaged
version_added: 0.1.0
description:
  - Reads each content of the store once, however many versions share it, and compares it with its digest.
  - A damaged content loses its name in the store, so that the next staging brings it again, and only it. A tree keeps its damaged file
    until then, because an engine may have it open.
  - Returns what is damaged, and does not fail for it, so that a playbook can read all hosts before it fails.
  - It takes as long as the disk takes. Run it with C(async), and watch it with M(localfirst.llm_fleet.model_stage_info).
options:
  store:
    description: Directory of the store. Where there is none, there is nothing to read.
  known:
    description:
      - Model versions that the fleet knows, as the filter P(localfirst.llm_fleet.known_artifacts#filter) tells them.
      - They give names to contents that no tree has, and tell which files of a tree are missing.
  run:
    description: A name for this run, by which M(localfirst.llm_fleet.model_stage_info) tells how far it is.
    type: str
  lock_timeout:
    description: Seconds to wait for another run on the same store, where a damaged content is set aside.
    type: int
    default: 60
extends_documentation_fragment:
  - localfirst.llm_fleet.store
  - localfirst.llm_fleet.store.known
author:
  - localfirst.llm_fleet contributors (@localfirst)
seealso:
  - module: localfirst.llm_fleet.model_artifact
  - module: localfirst.llm_fleet.model_stage_info
attributes:
  check_mode:
    description: It reads all the same, sets nothing aside and marks nothing as verified.
    support: full
  diff_mode:
    description: What is set aside is in the result.
    support: none
  idempotent:
    description: What was set aside once is not set aside again. A tree with a damaged file is named until it is staged again.
    support: full
"""

EXAMPLES = r"""
- name: Read all of the store
  localfirst.llm_fleet.model_verify:
    known: "{{ llm_fleet_planned | localfirst.llm_fleet.known_artifacts(told, lockfile) }}"
    run: verify1
  async: 86400
  poll: 0
  register: job

- name: See how far it is
  localfirst.llm_fleet.model_stage_info:
    run: verify1
"""

RETURN = r"""
damaged:
  description:
    - Files that are not what they should be. C(actual) may also be V(missing), V(present) or C(unreadable) with a reason.
    - A content that no version has goes by its path in the store.
  type: list
  elements: dict
  returned: success
  sample:
    - model: tiny
      version: 1.0.0
      file: tiny.gguf
      expected: 1f0e3dad99908345f7439f8ffabdffc4b1f0e3dad99908345f7439f8ffabdffc
      actual: 77ab3dad99908345f7439f8ffabdffc4b1f0e3dad99908345f7439f8ffabd000
set_aside:
  description: Digests of the contents that have lost their name.
  type: list
  elements: str
  returned: success
  sample: ["1f0e3dad99908345f7439f8ffabdffc4b1f0e3dad99908345f7439f8ffabdffc"]
actions:
  description: What was done.
  type: list
  elements: str
  returned: success
  sample: ["set content sha256:1f0e3dad99908345f7439f8ffabdffc4b1f0e3dad99908345f7439f8ffabdffc aside"]
contents:
  description: How many contents the store has.
  type: int
  returned: success
  sample: 12
bytes_read:
  description: Bytes that were read, each content once.
  type: int
  returned: success
  sample: 16060522240
seconds:
  description: How long it took.
  type: float
  returned: success
  sample: 10.7
rate:
  description: Bytes a second.
  type: int
  returned: success
  sample: 1500983386
fault:
  description: What is wrong, where, and what to do about it.
  type: dict
  returned: failure
"""

import contextlib

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_store import Store
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.progress import RUN, Progress
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_arguments import KNOWN, STORE, answer
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_report import Known
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_signatures import StoreSignatures
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_verify import Verification


def verify(params: dict, check_mode: bool) -> dict:
    """Read the store, and return what was found."""
    if params["run"] and not RUN.fullmatch(params["run"]):
        raise ArtifactError("this is no name for a run", "run", "write up to 64 letters, digits, '-' and '_'")
    store = Store(params["store"])
    progress = Progress(store.incoming, params["run"])
    known = [Known.parse(entry) for entry in params["known"]]
    with contextlib.nullcontext() if check_mode else progress.written():
        verification = Verification(
            store, known, keep_marks=not check_mode, lock_timeout=params["lock_timeout"], progress=progress
        )
        found = verification.run()
        found.damaged += StoreSignatures(store).damaged(params["known"])
    actions = [f"set content sha256:{digest} aside" for digest in found.set_aside]
    return {"changed": bool(actions), "actions": actions, **found.as_dict()}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **STORE,
            "known": {**KNOWN, "default": []},
            "run": {"type": "str"},
            "lock_timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    answer(module, lambda: verify(module.params, module.check_mode))


if __name__ == "__main__":
    main()
