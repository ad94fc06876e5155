#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: bundle_import
short_description: Takes over what a verified bundle has for the controller
version_added: 0.1.0
description:
  - Copies images, packages, wheels, collections and the lockfile of a bundle into a directory of the controller. Each file is verified once
    more while it is copied. Files of models are not copied - see M(localfirst.llm_fleet.model_stage).
  - The bundle is the one that M(localfirst.llm_fleet.bundle_info) has verified, by the digest of its manifest.
options:
  bundle:
    description: Directory of the bundle.
    type: path
    required: true
  manifest:
    description: Digest of the bundle's manifest, as it was verified.
    type: str
    required: true
  into:
    description: Directory that gets the files. It is made.
    type: path
    required: true
  note:
    description:
      - Copy nothing, and note that the whole bundle is here now, files of models too. Incremental bundles count on what is noted.
    type: bool
    default: false
author:
  - localfirst.llm_fleet contributors (@localfirst)
seealso:
  - module: localfirst.llm_fleet.bundle_info
attributes:
  check_mode:
    description: Says what would be taken.
    support: full
  diff_mode:
    description: There are no contents to compare.
    support: none
  idempotent:
    description: What is there already is left alone.
    support: full
"""

EXAMPLES = r"""
- name: Take over what is not for depots
  localfirst.llm_fleet.bundle_import:
    bundle: /mnt/stick/bundle
    manifest: "{{ bundle.manifest }}"
    into: /srv/fleet/bundle
  delegate_to: localhost
"""

RETURN = r"""
actions:
  description: What was or would be done.
  type: list
  elements: str
  returned: success
  sample: ["take 2 files of the kind image"]
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import directory_lock
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.bundle_import import Imports
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.bundle_manifest import Manifest
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.bundle_reader import read_manifest
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_arguments import answer


def run(module: AnsibleModule) -> dict:
    params = module.params
    bundle, into, change = Path(params["bundle"]), Path(params["into"]), not module.check_mode
    manifest, digest, faults = read_manifest(bundle)
    if manifest is None or digest != params["manifest"]:
        what = faults[0].what if faults else f"its manifest has the digest {digest}, and {params['manifest']} was verified"
        raise ArtifactError(what, str(bundle), "run bundle.yml again, which verifies it first")
    if not change:
        return _import(params, manifest, False)
    into.mkdir(parents=True, exist_ok=True)
    with directory_lock.locked(into):  # two imports at once would take files from under each other, and notes
        return _import(params, manifest, True)


def _import(params: dict, manifest: Manifest, change: bool) -> dict:
    bundle, imports = Path(params["bundle"]), Imports(Path(params["into"]))
    for fault in imports.faults:
        raise ArtifactError(*fault)
    if params["note"]:
        noted = imports.remember(manifest, change)
        return {"changed": noted, "actions": ["note that the bundle is here"] if noted else []}
    actions = imports.take(bundle, manifest, change)
    return {"changed": bool(actions), "actions": actions}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "bundle": {"type": "path", "required": True},
            "manifest": {"type": "str", "required": True},
            "into": {"type": "path", "required": True},
            "note": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    answer(module, lambda: run(module), place="into")


if __name__ == "__main__":
    main()
