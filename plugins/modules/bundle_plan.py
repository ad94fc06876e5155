#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: bundle_plan
short_description: Says what a bundle for some models has to hold
version_added: 0.1.0
description:
  - Takes the locked versions of the models, with their files, and the images of their engines, from catalog and lockfile. Both are checked,
    and so are the signatures of versions that demand one. All faults come at once.
  - What another bundle's manifest has (O(base)) is not fetched again.
  - Runs on the controller, asks nobody, and changes nothing.
options:
  models:
    description: The catalog as the operator wrote it, see docs/catalog.md.
    type: raw
    required: true
  clients:
    description: The clients as the operator wrote them.
    type: raw
    default: []
  profiles:
    description: Engine profiles by name, from the lookup P(localfirst.llm_fleet.engine_profiles#lookup).
    type: dict
    required: true
  nodes:
    description: Names of the GPU nodes, for the catalog's C(placement).
    type: list
    elements: str
    default: []
  lockfile:
    description: The lockfile.
    type: path
    required: true
  engine_images:
    description: The variable C(llm_fleet_engine_images).
    type: dict
    default: {}
  select:
    description:
      - The models that are meant, each as C(name) or C(name@version). All of the catalog if empty.
      - Without a version, all versions that are locked.
    type: list
    elements: str
    default: []
  images:
    description: Further images, as C(registry/repository@sha256:…).
    type: list
    elements: str
    default: []
  platforms:
    description: Platforms that images are wanted for.
    type: list
    elements: str
    default: [linux/amd64]
  base:
    description: Another bundle, or its manifest, that was taken across before.
    type: path
  bundle:
    description: >-
      Directory that the bundle is to be written into. One that holds another bundle already would lose what O(base) has, and is refused.
    type: path
  require_signatures:
    description: Whether to refuse versions of which nothing says who signs them. The variable C(llm_fleet_require_signatures).
    type: bool
    default: false
author:
  - localfirst.llm_fleet contributors (@localfirst)
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
- name: Say what is to be brought
  localfirst.llm_fleet.bundle_plan:
    models: "{{ llm_fleet_models }}"
    profiles: "{{ lookup('localfirst.llm_fleet.engine_profiles') }}"
    lockfile: "{{ llm_fleet_lockfile }}"
    select: [chat-small]
  delegate_to: localhost
"""

RETURN = r"""
artifacts:
  description: The model versions with their files, as M(localfirst.llm_fleet.model_stage) takes them.
  type: list
  elements: dict
  returned: success
  sample: [{"model": "tiny", "version": "1.0.0", "source": "file:///srv/tiny.gguf", "files": []}]
fetch:
  description: The same, with the files only that O(base) does not have.
  type: list
  elements: dict
  returned: success
  sample: []
images:
  description: The images, one entry for each platform. C(by_digest) says that hosts know it by that, and not by an id.
  type: list
  elements: dict
  returned: success
  sample: [{"image": "ghcr.io/ggml-org/llama.cpp", "digest": "sha256:…", "platform": "linux/amd64", "id": "sha256:…", "by_digest": false}]
wanted:
  description: Paths in the bundle that follow from this.
  type: list
  elements: str
  returned: success
  sample: [models.lock.yml]
bytes:
  description: How much is to be fetched of files of models.
  type: int
  returned: success
  sample: 6012345
faults:
  description: What is wrong, where, and what to do about it.
  type: list
  elements: dict
  returned: failure
  sample: [{"what": "the catalog has no model 'tinny'", "where": "-e models", "fix": "did you mean 'tiny'?"}]
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import regular_files
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.bundle_plan import BundlePlan, choose, plan_bundle
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.bundle_reader import base_faults, read_manifest
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.catalog import check_catalog
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault, listing
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile import LOCK_AGAIN, check_locked, parse_lockfile
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_check import check_signatures, read_files
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_demand import named_paths, unsigned_faults


def find(params: dict) -> tuple[BundlePlan | None, list[Fault]]:
    """The plan, or everything that is wrong."""
    models, _clients, faults = check_catalog(params["models"], params["clients"], params["profiles"], params["nodes"])
    file = Path(params["lockfile"])
    try:
        lock, lock_faults = parse_lockfile(regular_files.text_of(file), file.name)
    except (OSError, UnicodeDecodeError) as error:
        said = (getattr(error, "strerror", None) or "it is no text").lower()
        return None, [*faults, Fault(f"the lockfile cannot be read: {said}", str(file), LOCK_AGAIN)]
    faults += lock_faults
    base, wrong_base = None, []
    if params["base"]:
        base, digest, wrong_base = read_manifest(Path(params["base"]))
        wrong_base += base_faults(Path(params["bundle"]), digest) if params["bundle"] and base else []
    chosen, chosen_faults = choose(models, params["select"])
    faults += [*wrong_base, *chosen_faults]
    if faults:
        return None, faults
    mine = [model for model, _version in chosen]
    if params["require_signatures"]:
        faults += unsigned_faults(mine, lock)
    faults += check_locked(mine, lock, file.name, params["profiles"], params["engine_images"])
    faults += check_signatures(mine, lock, file.name, read_files(named_paths(params["models"])))
    plan, plan_faults = plan_bundle(chosen, lock, file.name, params["images"], params["platforms"], base)
    return plan, faults + plan_faults


def main() -> None:
    texts = {"type": "list", "elements": "str"}
    module = AnsibleModule(
        argument_spec={
            "models": {"type": "raw", "required": True},
            "clients": {"type": "raw", "default": []},
            "profiles": {"type": "dict", "required": True},
            "nodes": {**texts, "default": []},
            "lockfile": {"type": "path", "required": True},
            "engine_images": {"type": "dict", "default": {}},
            "select": {**texts, "default": []},
            "images": {**texts, "default": []},
            "platforms": {**texts, "default": ["linux/amd64"]},
            "base": {"type": "path"},
            "bundle": {"type": "path"},
            "require_signatures": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    plan, faults = find(module.params)
    if faults:
        module.fail_json(msg=f"No bundle can be written:\n{listing(faults)}", faults=[fault.as_dict() for fault in faults])
    module.exit_json(changed=False, **plan._asdict(), bytes=sum(each["size"] for each in plan.fetch))


if __name__ == "__main__":
    main()
