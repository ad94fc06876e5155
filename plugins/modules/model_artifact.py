#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: model_artifact
short_description: Brings the files of a model version into a host's store, verified
version_added: 0.1.0
description:
  - Fetches what is missing over HTTP, continues where an earlier run was interrupted, and hashes on the way.
  - Nothing is linked before its size and SHA-256 are what the lockfile says. A file with a wrong digest leaves
    nothing behind.
  - Each content is kept once, under its digest. A model version is a tree of hard links that appears as a whole.
  - A version never changes what it holds. Other contents under the same version are refused.
  - Two runs on one host wait for each other.
options:
  state:
    description:
      - V(present) brings, verifies and links what is missing.
      - V(absent) removes the tree, and then the contents that no other tree links to, unfinished downloads included.
      - V(verified) reads every file again, and fails with a list of the damaged ones. Damaged contents lose their
        name in the store, so that the next V(present) brings them again. In check mode it only reads.
    type: str
    choices: [present, absent, verified]
    default: present
  store:
    description: Directory of the store. All of it has to be on one file system.
    type: path
    default: /var/lib/llm_fleet/store
  model:
    description: Name of the model.
    type: str
    required: true
  version:
    description: Version of the model.
    type: str
    required: true
  source:
    description:
      - Where the files come from, as the lockfile says. A URL that begins with V(http://) or V(https://), or V(file://)
        and an absolute path on the controller.
      - The source itself is the file when there is one file only and the source ends with its path; otherwise
        the path of each file is added to it.
      - A file of a V(file://) source has to be brought to C(<store>/incoming/<sha256>) before.
    type: str
    default: ""
  files:
    description: The files as the lockfile names them. Required unless O(state=absent).
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Path of the file in the tree, relative and without C(..).
        type: str
        required: true
      size:
        description: Size in bytes.
        type: int
        required: true
      sha256:
        description: SHA-256 of the contents, 64 lower-case hexadecimal digits.
        type: str
        required: true
  owner:
    description: User that owns files and directories. The user who runs the module if not set.
    type: str
  group:
    description: Group that may read files and directories. Left as it is if not set.
    type: str
  headers:
    description:
      - "HTTP headers for the source, C(Name: value), one a line."
      - They are not passed on when the server redirects to another one.
    type: str
  ca_path:
    description: File with CA certificates (PEM) on the host. The host's own ones if not set.
    type: path
  validate_certs:
    description: Whether to check the certificate of the source.
    type: bool
    default: true
  timeout:
    description: Seconds that a server may stay silent before the attempt counts as failed.
    type: int
    default: 30
  retries:
    description: How many attempts in a row may fail without a byte before the module gives up.
    type: int
    default: 5
  lock_timeout:
    description: Seconds to wait for another run on the same store.
    type: int
    default: 3600
  reserve:
    description: Bytes that have to stay free on the file system of the store.
    type: int
    default: 1073741824
author:
  - localfirst.llm_fleet contributors (@localfirst)
attributes:
  check_mode:
    description: Says what would be fetched, and how many bytes, and changes nothing.
    support: full
  diff_mode:
    description: Lists the files of the tree before and after.
    support: full
  idempotent:
    description: A second run finds everything in place and changes nothing.
    support: full
"""

EXAMPLES = r"""
- name: Bring a model version
  localfirst.llm_fleet.model_artifact:
    model: tiny
    version: 1.0.0
    source: https://models.example/tiny/1.0.0/tiny.gguf
    files:
      - path: tiny.gguf
        size: 6012345
        sha256: 1f0e3dad99908345f7439f8ffabdffc4b1f0e3dad99908345f7439f8ffabdffc
    owner: root
    group: llm-fleet
    headers: "{{ 'Authorization: Bearer ' ~ models_example_token }}"

- name: Read it again
  localfirst.llm_fleet.model_artifact:
    state: verified
    model: tiny
    version: 1.0.0
    files: "{{ lockfile.models.tiny['1.0.0'].files }}"

- name: Remove it
  localfirst.llm_fleet.model_artifact:
    state: absent
    model: tiny
    version: 1.0.0
"""

RETURN = r"""
actions:
  description: What was or would be done.
  type: list
  elements: str
  returned: success
  sample:
    - fetch tiny.gguf (5.7 MiB) from https://models.example/tiny/1.0.0/tiny.gguf
    - "link into /var/lib/llm_fleet/store/models/tiny/1.0.0: tiny.gguf"
path:
  description: Directory of the tree.
  type: str
  returned: success
  sample: /var/lib/llm_fleet/store/models/tiny/1.0.0
bytes_moved:
  description: Bytes that came into the store, or would. What an earlier, interrupted run brought is not counted.
  type: int
  returned: success
  sample: 6012345
missing:
  description: Files that were in the store neither verified nor waiting for it, and where each comes from.
  type: list
  elements: dict
  returned: success
  sample:
    - path: tiny.gguf
      size: 6012345
      sha256: 1f0e3dad99908345f7439f8ffabdffc4b1f0e3dad99908345f7439f8ffabdffc
      from: https://models.example/tiny/1.0.0/tiny.gguf
diff:
  description: Files of the tree before and after, a line each with path, size and digest.
  type: dict
  returned: success
fault:
  description: What is wrong, where, and what to do about it.
  type: dict
  returned: failure
  sample:
    what: "tiny.gguf has the wrong digest: expected sha256:1f0e…, actual sha256:77ab…"
    where: https://models.example/tiny/1.0.0/tiny.gguf
    fix: find out who changed the file; if the change is meant, lock it as a new version. Nothing of the file was kept
file:
  description: Path of the file that is at fault.
  type: str
  returned: when one file is at fault
expected:
  description: The digest that the lockfile asks for.
  type: str
  returned: when a digest is wrong
actual:
  description: The digest that was found.
  type: str
  returned: when a digest is wrong
damaged:
  description: Files whose contents are not what they should be, with expected and actual digest.
  type: list
  elements: dict
  returned: when O(state=verified) finds any
  sample: [{"path": "tiny.gguf", "expected": "1f0e…", "actual": "77ab…"}]
"""

import contextlib

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import (
    LOCKFILE_FIX,
    Artifact,
    ArtifactError,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_fetch import Fetcher
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_store import Store, Survey


class ModelArtifact:
    """One call of the module."""

    def __init__(self, params: dict, check_mode: bool) -> None:
        self.params = params
        self.check_mode = check_mode
        self.store = Store(params["store"], params["owner"], params["group"])
        self.artifact = Artifact.parse(params["model"], params["version"], params["source"], params["files"])

    def run(self) -> dict:
        """Do what the state asks for and return the result."""
        if self.params["state"] != "absent" and not self.artifact.files:
            raise ArtifactError(f"{self.artifact.title} has no files", "files", LOCKFILE_FIX)
        # A look changes nothing, not even a lock file; and there is nothing to lock where there is no store.
        nothing_to_lock = self.params["state"] != "present" and not self.store.root.is_dir()
        unlocked = self.check_mode or nothing_to_lock
        with contextlib.nullcontext() if unlocked else self.store.locked(self.params["lock_timeout"]):
            return self._result(getattr(self, self.params["state"])())

    def present(self) -> Survey:
        found = self.store.survey(self.artifact)
        self.store.check_space(self.artifact, found, self.params["reserve"])
        if found.actions and not self.check_mode:
            fetcher = Fetcher(
                ca_path=self.params["ca_path"],
                validate_certs=self.params["validate_certs"],
                headers=parse_headers(self.params["headers"]),
                timeout=self.params["timeout"],
                retries=self.params["retries"],
            )
            self.store.place(self.artifact, found, fetcher)
        return found

    def absent(self) -> Survey:
        found = self.store.survey_removal(self.artifact)
        if found.actions and not self.check_mode:
            self.store.remove(self.artifact)
        return found

    def verified(self) -> Survey:
        damaged = self.store.verify(self.artifact, set_aside=not self.check_mode)
        if damaged:
            entries = [f"{file['path']} (expected {file['expected']}, actual {file['actual']})" for file in damaged]
            raise ArtifactError(
                f"{self.artifact.title} is damaged: {', '.join(entries)}",
                str(self.store.tree(self.artifact)),
                "run with state: present, which brings damaged files again, and look at the disk's health",
                damaged=damaged,
            )
        return Survey(str(self.store.tree(self.artifact)))

    def _result(self, found: Survey) -> dict:
        return {
            "changed": bool(found.actions),
            "actions": found.actions,
            "path": found.path,
            "bytes_moved": found.bytes_moved,
            "missing": [{**file.as_dict(), "from": self.artifact.origin(file)} for file in found.missing],
            "diff": found.diff,
        }


def parse_headers(text: str | None) -> dict[str, str]:
    """Headers as a dictionary; a message never repeats what is in them."""
    headers = {}
    for number, line in enumerate((text or "").splitlines(), start=1):
        name, colon, value = line.partition(":")
        if line.strip() and not (colon and name.strip()):
            raise ArtifactError(f"line {number} is no HTTP header", "headers", "write 'Name: value', one a line")
        if colon:
            headers[name.strip()] = value.strip()
    return headers


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent", "verified"], "default": "present"},
            "store": {"type": "path", "default": "/var/lib/llm_fleet/store"},
            "model": {"type": "str", "required": True},
            "version": {"type": "str", "required": True},
            "source": {"type": "str", "default": ""},
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "str", "required": True},
                    "size": {"type": "int", "required": True},
                    "sha256": {"type": "str", "required": True},
                },
            },
            "owner": {"type": "str"},
            "group": {"type": "str"},
            "headers": {"type": "str", "no_log": True},
            "ca_path": {"type": "path"},
            "validate_certs": {"type": "bool", "default": True},
            "timeout": {"type": "int", "default": 30},
            "retries": {"type": "int", "default": 5},
            "lock_timeout": {"type": "int", "default": 3600},
            "reserve": {"type": "int", "default": 1024**3},
        },
        required_if=[("state", "present", ["source"])],
        supports_check_mode=True,
    )
    try:
        result = ModelArtifact(module.params, module.check_mode).run()
    except ArtifactError as error:
        module.fail_json(msg=str(error), fault=error.fault.as_dict(), **error.details)
    except OSError as error:
        error = ArtifactError.from_os_error(error, module.params["store"])
        module.fail_json(msg=str(error), fault=error.fault.as_dict())
    module.exit_json(**result)


if __name__ == "__main__":
    main()
