#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: bundle_packages
short_description: Brings packages for hosts into a bundle, with all that they depend on
version_added: 0.1.0
description:
  - Resolves the packages as apt would on a machine that has none, fetches them, and writes the index by which apt installs from the folder
    C(packages/<distribution>).
  - apt's state is private. Neither this machine's packages nor its lists are touched, and no root is needed.
  - Recommended packages are left out, unless O(sets) names them.
  - Runs on a controller with Debian or Ubuntu. For other releases than its own, name O(sources).
options:
  bundle:
    description: Directory of the bundle.
    type: path
    required: true
  distribution:
    description: Name, version and architecture, as V(debian-12-amd64).
    type: str
    required: true
  sets:
    description:
      - Names of packages, also C(name=version), one list for each that is installed together.
      - What is in different lists need not fit together.
    type: list
    elements: list
    required: true
  sources:
    description:
      - Package sources, as in a C(.sources) or a C(.list) file. Those of this machine if empty, and then only for its own distribution.
    type: str
    default: ""
  base:
    description: Another bundle, or its manifest, that was taken across before. What it has is not fetched.
    type: path
author:
  - localfirst.llm_fleet contributors (@localfirst)
seealso:
  - module: localfirst.llm_fleet.package_folder
attributes:
  check_mode:
    description: Reads the lists and says what would be fetched.
    support: full
  diff_mode:
    description: There are no contents to compare.
    support: none
  idempotent:
    description: What is there already is left alone.
    support: full
"""

EXAMPLES = r"""
- name: Bring the packages of a distribution
  localfirst.llm_fleet.bundle_packages:
    bundle: /srv/bundle
    distribution: debian-13-amd64
    sets: [[haproxy, openssl], [docker.io, docker-cli]]
    sources: |
      deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main
  delegate_to: localhost
"""

RETURN = r"""
paths:
  description: Paths in the bundle.
  type: list
  elements: str
  returned: success
  sample: [packages/debian-12-amd64/Packages, packages/debian-12-amd64/haproxy_2.6.12-1+deb12u3_amd64.deb]
bytes:
  description: Size of all packages.
  type: int
  returned: success
  sample: 110196532
actions:
  description: What was or would be done.
  type: list
  elements: str
  returned: success
  sample: ["fetch 125 packages for debian-12-amd64"]
fault:
  description: What is wrong, where, and what to do about it.
  type: dict
  returned: failure
"""

import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.apt_closure import AptClosure
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.apt_index import INDEX, RELEASE, Deb, listed, release_text
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_files import digest_of
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.bundle_manifest import DISTRIBUTION
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.bundle_reader import read_manifest
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_arguments import answer


class BundlePackages:
    """One distribution of a bundle."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.name = module.params["distribution"]
        self.place = f"packages/{self.name}"
        self.folder = Path(module.params["bundle"]) / self.place
        self.actions: list[str] = []

    def run(self) -> dict:
        faults: list = []
        if DISTRIBUTION(self.name, "distribution", faults) is None:
            raise ArtifactError(*faults[0])
        for program in ("apt-get", "apt-cache", "apt-config"):
            if self.module.get_bin_path(program) is None:
                fix = "write the bundle on Debian or Ubuntu, or without packages (llm_fleet_bundle_distributions: {})"
                raise ArtifactError(f"there is no {program} on this machine", self.name, fix)
        with tempfile.TemporaryDirectory(dir=self.module.tmpdir) as folder:
            apt = AptClosure(Path(folder), self.name.rpartition("-")[2], self.module.params["sources"], self.module.run_command)
            apt.prepare()
            debs = sorted({deb for names in self.module.params["sets"] if names for deb in apt.resolve(names)})
            index = apt.index(debs) if debs else ""
            self.bring(apt, debs, listed(index))
        self.write({INDEX: index, RELEASE: release_text(index, self.name)})
        paths = [f"{self.place}/{name}" for name in (INDEX, RELEASE, *(deb.file for deb in debs))]
        return {
            "changed": bool(self.actions), "actions": self.actions, "paths": paths, "bytes": sum(deb.size for deb in debs),
        }

    def bring(self, apt: AptClosure, debs: list[Deb], digests: dict[str, str]) -> None:
        """Fetch what neither the folder nor the base has."""
        known: dict[str, str] = {}
        if self.module.params["base"]:
            manifest, _digest, faults = read_manifest(Path(self.module.params["base"]))
            if manifest is None:
                raise ArtifactError(*faults[0])
            known = {path: entry.sha256 for path, entry in manifest.entries().items()}
        missing = [
            deb for deb in debs
            if known.get(f"{self.place}/{deb.file}") != digests[deb.file] and not self.has(self.folder / deb.file, digests[deb.file])
        ]
        if missing:
            self.actions.append(f"fetch {len(missing)} packages for {self.name}")
            if not self.module.check_mode:
                apt.fetch(missing, self.folder)

    @staticmethod
    def has(path: Path, sha256: str) -> bool:
        return path.is_file() and digest_of(path) == sha256

    def write(self, texts: dict[str, str]) -> None:
        for name, text in texts.items():
            path = self.folder / name
            if path.is_file() and path.read_text(encoding="utf-8") == text:
                continue
            self.actions.append(f"write {self.place}/{name}")
            if not self.module.check_mode:
                self.folder.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "bundle": {"type": "path", "required": True},
            "distribution": {"type": "str", "required": True},
            "sets": {"type": "list", "elements": "list", "required": True},
            "sources": {"type": "str", "default": ""},
            "base": {"type": "path"},
        },
        supports_check_mode=True,
    )
    answer(module, lambda: BundlePackages(module).run(), place="bundle")


if __name__ == "__main__":
    main()
