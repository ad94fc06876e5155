#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: model_sign
short_description: Signs model versions of a lockfile
version_added: 0.1.0
description:
  - Signs the files that a lockfile names for a version, in the format of OpenSSF Model Signing 1.0, and returns the lockfile's text
    with the signatures in it. Writes no file.
  - Only digests are signed, so it needs none of the model's files.
  - Runs on the controller, where the private key is. Neither the key nor its password appears in what it returns.
  - Each signature is verified against the catalog before it is returned. A key that the catalog does not name is a fault.
  - Needs the Python package C(cryptography) on this host.
options:
  text:
    description: Text of the lockfile, as M(localfirst.llm_fleet.model_lock) returns it.
    type: str
    required: true
  unsigned:
    description: The versions to sign, as M(localfirst.llm_fleet.model_lock) returns them.
    type: list
    elements: dict
    required: true
    suboptions:
      model:
        description: Name of the model.
        type: str
        required: true
      version:
        description: The version.
        type: str
        required: true
  models:
    description: The catalog as the operator wrote it, see docs/catalog.md.
    type: raw
    required: true
  profiles:
    description: Engine profiles by name, from the lookup P(localfirst.llm_fleet.engine_profiles#lookup).
    type: dict
    required: true
  key:
    description: File with the private key in PEM, on the curve P-256, P-384 or P-521.
    type: path
    required: true
  password:
    description: The key's password. Empty where it has none, or where O(password_file) has it.
    type: str
    default: ""
  password_file:
    description: File whose first line is the key's password.
    type: path
  certificate:
    description: File with the signer's certificate in PEM, and after it those of CAs between. For catalogs that name a CA.
    type: path
author:
  - localfirst.llm_fleet contributors (@localfirst)
seealso:
  - module: localfirst.llm_fleet.model_lock
attributes:
  check_mode:
    description: Returns the same. It changes nothing in any case.
    support: full
  diff_mode:
    description: Whoever writes the lockfile shows it.
    support: none
  idempotent:
    description: What is signed already is not in O(unsigned). Two signatures of the same files differ.
    support: full
"""

EXAMPLES = r"""
- name: Sign what the lock has left to be signed
  localfirst.llm_fleet.model_sign:
    text: "{{ locked.text }}"
    unsigned: "{{ locked.unsigned }}"
    models: "{{ llm_fleet_models }}"
    profiles: "{{ lookup('localfirst.llm_fleet.engine_profiles') }}"
    key: /root/models.key
    password_file: /root/models.password
  register: signed
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
text:
  description: Text of the lockfile with the signatures.
  type: str
  returned: success
  sample: "---\n# Written by localfirst.llm_fleet.lock. …\nlockfile: 1\n…"
actions:
  description: What was signed, a line each.
  type: list
  elements: str
  returned: success
  sample: ["chat 1.0.0: sign it with sha256:777ad0794d5a8c03"]
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

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.catalog import check_catalog
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault, listing
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lock_changes import signed_by
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile import parse_lockfile
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile_text import render_lockfile
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_bundle import DEFAULT_NAME, SignatureError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_check import read_files, trust_of, verify
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_demand import (
    Demand,
    demands,
    named_paths,
    where_of,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_files import signed_names
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_key import SigningKey, open_key, read_key_files


class ModelSign:
    """One call of the module."""

    def __init__(self, params: dict) -> None:
        self.params = params
        self.faults: list[Fault] = []
        self.actions: list[str] = []

    def run(self) -> str:
        """The lockfile's text with the signatures; empty where there are faults."""
        lock, self.faults = parse_lockfile(self.params["text"], "models.lock.yml")
        key = self._key()
        demanded = demands(self._models())
        files = read_files(named_paths(self.params["models"]))
        for each in self.params["unsigned"] if key and not self.faults else []:
            model, version = each["model"], each["version"]
            entry = lock["models"][model][version]
            try:
                signature = self._sign(key, model, version, entry, demanded[model, version], files)
            except SignatureError as error:
                self.faults.append(error.fault(where_of(model, version)))
                continue
            entry["signature"] = signature
            self.actions.append(f"{model} {version}: sign it with {signed_by(signature)}")
        return "" if self.faults else render_lockfile(lock)

    @staticmethod
    def _sign(key: SigningKey, model: str, version: str, entry: dict, demand: Demand, files: dict) -> dict:
        trust = trust_of(demand, files)
        ignored = DEFAULT_NAME if demand.file.startswith("/") else demand.file
        text = key.sign(f"{model}-{version}", signed_names(model, entry), [ignored])
        return verify(model, entry, text, demand, trust, lambda _name: False)

    def _key(self) -> SigningKey | None:
        """The private key. Whatever is wrong with it, its contents are in no message."""
        read = read_key_files(self.params, self.faults)
        if self.faults:
            return None
        if self.params["password"] and self.params["password"] in self.params["text"]:
            # Ansible would mask it there too, and so spoil the lockfile.
            what = "the password is a part of the lockfile's own text"
            self.faults.append(Fault(what, "sign_password", "choose a longer one, or give it with sign_password_file"))
            return None
        return open_key(read, self.params["password"], self.faults)

    def _models(self) -> list[dict]:
        # The lock has checked the catalog; this only fills in what was left out.
        return check_catalog(self.params["models"], [], self.params["profiles"], [])[0]


def main() -> None:
    name = {"type": "str", "required": True}
    module = AnsibleModule(
        argument_spec={
            "text": {"type": "str", "required": True},
            "unsigned": {"type": "list", "elements": "dict", "required": True, "options": {"model": name, "version": name}},
            "models": {"type": "raw", "required": True},
            "profiles": {"type": "dict", "required": True},
            # A path, and no key.
            "key": {"type": "path", "required": True, "no_log": False},
            "password": {"type": "str", "default": "", "no_log": True},
            "password_file": {"type": "path", "no_log": False},
            "certificate": {"type": "path"},
        },
        supports_check_mode=True,
    )
    signing = ModelSign(module.params)
    text = signing.run()
    if signing.faults:
        module.fail_json(msg=listing(signing.faults), faults=[fault.as_dict() for fault in signing.faults])
    module.exit_json(changed=text != module.params["text"], text=text, actions=signing.actions)


if __name__ == "__main__":
    main()
