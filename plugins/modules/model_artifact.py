#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: model_artifact
short_description: Brings the files of a model version into a host's store, verified
version_added: 0.1.0
description:
  - Fetches what is missing, continues where an earlier run was interrupted, and hashes on the way.
  - Contents come from hosts of the fleet that serve them by digest (O(suppliers)), or from the source that the lockfile
    names (O(sources)). With both, suppliers are asked first. Where one place fails, the next one goes on where it stopped.
  - Nothing is linked before its size and SHA-256 are what the lockfile says. A file with a wrong digest leaves
    nothing behind.
  - Each content is kept once, under its digest. A model version is a tree of hard links that appears as a whole.
  - A version never changes what it holds. Other contents under the same version are refused.
  - Several runs on one store share the work. What one fetches, the others wait for.
  - This is for one version. For all versions of a host use M(localfirst.llm_fleet.model_stage).
options:
  state:
    description:
      - V(present) brings, verifies and links what is missing.
      - V(absent) removes the tree, and then the contents that no other tree links to and no run relies on. With O(files),
        their unfinished downloads go too.
      - V(verified) reads every file again, and fails with a list of the damaged ones. Damaged contents lose their
        name in the store, so that the next V(present) brings them again, and only them. In check mode it only reads.
    type: str
    choices: [present, absent, verified]
    default: present
  files:
    description: The files as the lockfile names them. Required unless O(state=absent).
    default: []
  link:
    description: Whether there is a tree, for V(present) and V(verified). A host that only hands contents on needs none.
extends_documentation_fragment:
  - localfirst.llm_fleet.store
  - localfirst.llm_fleet.store.version
  - localfirst.llm_fleet.store.transfer
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
- name: Bring a model version from its source
  localfirst.llm_fleet.model_artifact:
    model: tiny
    version: 1.0.0
    source: https://models.example/tiny/1.0.0/tiny.gguf
    sources: "{{ llm_fleet_sources | to_json }}"
    files:
      - path: tiny.gguf
        size: 6012345
        sha256: 1f0e3dad99908345f7439f8ffabdffc4b1f0e3dad99908345f7439f8ffabdffc
    owner: root
    group: llm-fleet

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
    - fetch tiny.gguf (5.7 MiB)
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
  description: Files whose contents the store did not have when the module began.
  type: list
  elements: dict
  returned: success
  sample:
    - path: tiny.gguf
      size: 6012345
      sha256: 1f0e3dad99908345f7439f8ffabdffc4b1f0e3dad99908345f7439f8ffabdffc
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
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_fetch import Fetcher, Limiter
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_staging import Staging
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_store import Store
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_survey import Survey
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.origins import origins_of, read_sources
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_arguments import STORE, TRANSFER, VERSION, answer


class ModelArtifact:
    """One call of the module."""

    def __init__(self, params: dict, sources: dict | None, check_mode: bool) -> None:
        self.params = params
        self.sources = sources
        self.check_mode = check_mode
        self.store = Store(params["store"], params["owner"], params["group"])
        self.artifact = Artifact.parse(params["model"], params["version"], params["source"], params["files"])

    def run(self) -> dict:
        """Do what the state asks for and return the result."""
        if self.params["state"] != "absent" and not self.artifact.files:
            raise ArtifactError(f"{self.artifact.title} has no files", "files", LOCKFILE_FIX)
        found = getattr(self, self.params["state"])()
        return {
            "changed": bool(found.actions),
            "actions": found.actions,
            "path": found.path,
            "bytes_moved": found.bytes_moved,
            "missing": [file.as_dict() for file in found.missing],
            "diff": found.diff,
        }

    def present(self) -> Survey:
        staging = Staging(
            self.store,
            [self.artifact],
            link=self.params["link"],
            reserve=self.params["reserve"],
            lock_timeout=self.params["lock_timeout"],
        )
        if self.check_mode:
            return staging.look()[0]
        fetcher = Fetcher(origins_of(self.params, self.sources), Limiter(self.params["bandwidth"]))
        return staging.run(fetcher)[0]

    def absent(self) -> Survey:
        # A look changes nothing, not even a lock file; and there is nothing to lock where there is no store.
        unlocked = self.check_mode or not self.store.root.is_dir()
        with contextlib.nullcontext() if unlocked else self.store.locked(self.params["lock_timeout"]):
            found = self.store.survey_removal(self.artifact)
            if found.actions and not self.check_mode:
                self.store.remove(self.artifact)
        return found

    def verified(self) -> Survey:
        link = self.params["link"]
        damaged = self.store.verify(self.artifact, not self.check_mode, link, self.params["lock_timeout"])
        if damaged:
            entries = [f"{file['path']} (expected {file['expected']}, actual {file['actual']})" for file in damaged]
            raise ArtifactError(
                f"{self.artifact.title} is damaged: {', '.join(entries)}",
                str(self.store.tree(self.artifact) if link else self.store.blobs),
                "run with state: present, which brings damaged files again, and look at the disk's health",
                damaged=damaged,
            )
        return Survey(str(self.store.tree(self.artifact) if link else self.store.blobs))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent", "verified"], "default": "present"},
            **STORE,
            **VERSION,
            **TRANSFER,
        },
        supports_check_mode=True,
    )
    answer(module, lambda: ModelArtifact(module.params, read_sources(module), module.check_mode).run())


if __name__ == "__main__":
    main()
