#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: bundle_info
short_description: Verifies a bundle and tells what it holds
version_added: 0.1.0
description:
  - Verifies the signature of a bundle's manifest, and then the size and SHA-256 of every file that it names. All faults come at once.
  - Of an incremental bundle it also says which files it counts on that no earlier import has brought (O(into)).
  - Runs on the controller, and changes nothing. Files that the manifest does not name are not looked at, and never imported.
options:
  bundle:
    description: Directory of the bundle.
    type: path
    required: true
  signature:
    description:
      - Whose signature counts. C(key) is a file with a public key in PEM; or C(ca) is one with a CA's certificate, and C(identity) the
        name in the signer's certificate; left out, any name will do. None of them may be empty.
        As the variable C(llm_fleet_bundle_signature).
    type: dict
    default: {}
  unsigned:
    description: Whether to do without a signature. Then only damage is found, and no forgery.
    type: bool
    default: false
  into:
    description: Directory of what was imported before.
    type: path
author:
  - localfirst.llm_fleet contributors (@localfirst)
seealso:
  - module: localfirst.llm_fleet.bundle_import
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
- name: See whether the bundle is whole and from whom it should be
  localfirst.llm_fleet.bundle_info:
    bundle: /mnt/stick/bundle
    signature: {key: /srv/fleet/bundle.pub}
    into: /srv/fleet/bundle
  delegate_to: localhost
"""

RETURN = r"""
manifest:
  description: The manifest's digest.
  type: str
  returned: success
  sample: sha256:0123…
signer:
  description: Fingerprint of the key that signed it. Empty with O(unsigned).
  type: str
  returned: success
  sample: sha256:4567…
created:
  description: When it was written.
  type: str
  returned: success
  sample: "2026-11-29T14:00:00Z"
base:
  description: Digest of the manifest that it goes on from; empty where it is whole.
  type: str
  returned: success
  sample: ""
bytes:
  description: Size of the files in it.
  type: int
  returned: success
  sample: 123456789
models:
  description: The model versions, as M(localfirst.llm_fleet.model_stage) takes them.
  type: list
  elements: dict
  returned: success
  sample: [{"model": "tiny", "version": "1.0.0", "source": "file:///srv/tiny.gguf", "files": []}]
distributions:
  description: The distributions whose packages it has.
  type: list
  elements: str
  returned: success
  sample: [debian-12-amd64]
faults:
  description: What is wrong, where, and what to do about it.
  type: list
  elements: dict
  returned: failure
  sample:
    - what: the bundle is not signed
      where: /mnt/stick/bundle/manifest.json.sig
      fix: have it written with -e sign_key=…
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.bundle_import import Imports
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.bundle_reader import read_bundle
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import listing


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "bundle": {"type": "path", "required": True},
            "signature": {"type": "dict", "default": {}},
            "unsigned": {"type": "bool", "default": False},
            "into": {"type": "path"},
        },
        supports_check_mode=True,
    )
    params = module.params
    found = read_bundle(Path(params["bundle"]), params["signature"], params["unsigned"])
    faults, manifest = list(found.faults), found.manifest
    try:
        if manifest and params["into"]:
            imports = Imports(Path(params["into"]))
            faults += imports.faults + imports.check(manifest)
    except OSError as error:
        faults.append(ArtifactError.from_os_error(error, params["into"]).fault)
    if faults:
        msg = f"This bundle cannot be taken; nothing was changed:\n{listing(faults)}"
        module.fail_json(msg=msg, faults=[fault.as_dict() for fault in faults])
    module.exit_json(
        changed=False,
        manifest=found.digest,
        signer=found.signer,
        created=manifest.created,
        base=manifest.base,
        bytes=sum(entry.size for entry in manifest.files),
        models=manifest.models,
        distributions=manifest.distributions,
    )


if __name__ == "__main__":
    main()
