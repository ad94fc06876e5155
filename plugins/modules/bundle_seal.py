#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: bundle_seal
short_description: Writes the manifest of a bundle and signs it
version_added: 0.1.0
description:
  - Names every file of the bundle by size and SHA-256 in C(manifest.json). What O(base) has is named there, and not kept in the bundle.
  - With O(key), signs that file in the format of OpenSSF Model Signing; C(model_signing verify) reads it, too. A bundle that has not
    changed keeps its manifest and its signature.
  - Runs on the controller. Files that nobody wanted are left alone, and not named.
options:
  bundle:
    description: Directory of the bundle.
    type: path
    required: true
  wanted:
    description: Paths in the bundle that it is for.
    type: list
    elements: str
    required: true
  models:
    description: The model versions in it, with their files, as M(localfirst.llm_fleet.bundle_plan) returns them.
    type: list
    elements: dict
    default: []
  images:
    description: The images in it, as M(localfirst.llm_fleet.bundle_images) returns them.
    type: list
    elements: dict
    default: []
  distributions:
    description: The distributions whose packages are in it.
    type: list
    elements: str
    default: []
  base:
    description: Another bundle, or its manifest, that was taken across before.
    type: path
  key:
    description: File with the private key in PEM, on the curve P-256, P-384 or P-521.
    type: path
  password:
    description: The key's password. Empty where it has none, or where O(password_file) has it.
    type: str
    default: ""
  password_file:
    description: File whose first line is the key's password.
    type: path
  certificate:
    description: File with the signer's certificate in PEM, and after it those of CAs between. For whoever trusts a CA.
    type: path
author:
  - localfirst.llm_fleet contributors (@localfirst)
attributes:
  check_mode:
    description: Says what would be written. What is still to be fetched is a fault then, too.
    support: full
  diff_mode:
    description: There are no contents to compare.
    support: none
  idempotent:
    description: A second call finds manifest and signature in place.
    support: full
"""

EXAMPLES = r"""
- name: Close the bundle
  localfirst.llm_fleet.bundle_seal:
    bundle: /srv/bundle
    wanted: "{{ planned.wanted }}"
    models: "{{ planned.artifacts }}"
    key: /root/bundle.key
  delegate_to: localhost
"""

RETURN = r"""
actions:
  description: What was or would be done.
  type: list
  elements: str
  returned: success
  sample: ["write manifest.json: 140 files, 0 in earlier bundles"]
manifest:
  description: The manifest's digest.
  type: str
  returned: success
  sample: sha256:0123…
signed:
  description: Whether it has a signature, from this call or from an earlier one.
  type: bool
  returned: success
  sample: true
files:
  description: How many files are in the bundle.
  type: int
  returned: success
  sample: 140
kinds:
  description: Bytes in the bundle by kind of file.
  type: dict
  returned: success
  sample: {"artifact": 6012345, "package": 109000000}
faults:
  description: What is wrong, where, and what to do about it.
  type: list
  elements: dict
  returned: failure
  sample:
    - what: the signing key has a password
      where: sign_key
      fix: give it with sign_password_file, or sign_password from a vault
"""

import datetime
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.bundle_manifest import MANIFEST
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.bundle_reader import read_manifest
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.bundle_writer import BundleWriter
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault, listing
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lock_models import TOOL
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_key import SigningKey, open_key, read_key_files

CONTENT = ("path", "size", "sha256")


class BundleSeal:
    """One call of the module."""

    def __init__(self, params: dict, change: bool) -> None:
        self.params = params
        self.change = change
        self.faults: list[Fault] = []

    def run(self) -> dict:
        folder, key = Path(self.params["bundle"]), self._key()
        base, digest = None, ""
        if self.params["base"]:
            base, digest, faults = read_manifest(Path(self.params["base"]))
            self.faults += faults
        if self.faults:
            return {}
        writer = BundleWriter(folder, base, digest)
        manifest = writer.close(self.params["wanted"], self._about(), key, self.change)
        self.faults += writer.faults
        if manifest is None:
            return {}
        kinds: dict[str, int] = {}
        for entry in manifest.files:
            kinds[entry.kind] = kinds.get(entry.kind, 0) + entry.size
        written = read_manifest(folder)[1] if (folder / MANIFEST).is_file() else ""
        return {
            "changed": bool(writer.actions), "actions": writer.actions, "manifest": written, "signed": writer.signed,
            "files": len(manifest.files), "kinds": kinds,
        }

    def _about(self) -> dict:
        now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
        models = [
            {
                **{name: each[name] for name in ("model", "version", "source")},
                "files": [{name: file[name] for name in CONTENT} for file in each["files"]],
            }
            for each in self.params["models"]
        ]
        return {
            "created": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "tool": TOOL,
            "models": models,
            "images": self.params["images"],
            "distributions": self.params["distributions"],
        }

    def _key(self) -> SigningKey | None:
        """The private key. Whatever is wrong with it, its contents are in no message."""
        if not self.params["key"]:
            return None
        read = read_key_files(self.params, self.faults)
        if self.faults:
            return None
        return open_key(read, self.params["password"], self.faults)


def main() -> None:
    dicts = {"type": "list", "elements": "dict", "default": []}
    module = AnsibleModule(
        argument_spec={
            "bundle": {"type": "path", "required": True},
            "wanted": {"type": "list", "elements": "str", "required": True},
            "models": dicts,
            "images": dicts,
            "distributions": {"type": "list", "elements": "str", "default": []},
            "base": {"type": "path"},
            # A path, and no key.
            "key": {"type": "path", "no_log": False},
            "password": {"type": "str", "default": "", "no_log": True},
            "password_file": {"type": "path", "no_log": False},
            "certificate": {"type": "path"},
        },
        supports_check_mode=True,
    )
    seal = BundleSeal(module.params, not module.check_mode)
    try:
        result = seal.run()
    except OSError as error:
        seal.faults.append(ArtifactError.from_os_error(error, module.params["bundle"]).fault)
    if seal.faults:
        module.fail_json(msg=f"The bundle is not closed:\n{listing(seal.faults)}", faults=[fault.as_dict() for fault in seal.faults])
    module.exit_json(**result)


if __name__ == "__main__":
    main()
