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
  elsewhere:
    description:
      - Sets of packages with a repository beside O(sources), which only that set sees.
      - What two sources have in one version counts as the first of them has it.
    type: list
    elements: dict
    default: []
    suboptions:
      packages:
        description: Names of packages that are installed together.
        type: list
        elements: str
        required: true
      version:
        description:
          - Version that all of O(elsewhere[].packages) get, as for M(localfirst.llm_fleet.held_packages). It is the newest that all have.
          - Empty for the newest of each.
        type: str
        default: ""
      companions:
        description: Patterns of names that get the same version where they come along.
        type: list
        elements: str
        default: []
      beside:
        description: Names of packages that are installed with them and have versions of their own.
        type: list
        elements: str
        default: []
      optional:
        description: The same, left out where the sources do not have them.
        type: list
        elements: str
        default: []
      repository:
        description: The repository. Without C(url) there is none beside O(sources).
        type: dict
        default: {}
        suboptions:
          url:
            description: Its address. apt puts the distribution's architecture in the place of V($(ARCH\)).
            type: str
            default: ""
          suite:
            description: Its suite. One that ends in C(/) is a path, and has no components.
            type: str
            default: /
          components:
            description: Its components.
            type: list
            elements: str
            default: []
          key:
            description: Its key, by address, by absolute path on this machine, or as armoured text.
            type: str
            default: ""
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
from collections.abc import Iterator
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import apt_key
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.apt_closure import AptClosure, Repository
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.apt_index import INDEX, RELEASE, Deb, index_text, listed, release_text
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
        entries: dict[str, tuple[Deb, str]] = {}
        sources: list[tuple[AptClosure, list[Deb]]] = []
        with tempfile.TemporaryDirectory(dir=self.module.tmpdir) as folder:
            for apt, debs in self.resolved(Path(folder)):
                fresh = [deb for deb in debs if deb.file not in entries]
                entries |= {deb.file: (deb, text) for deb, text in apt.entries(fresh).items()} if fresh else {}
                sources.append((apt, fresh))
            index = index_text(dict(entries.values()))
            self.bring(sources, listed(index))
        self.write({INDEX: index, RELEASE: release_text(index, self.name)})
        paths = [f"{self.place}/{name}" for name in (INDEX, RELEASE, *sorted(entries))]
        return {
            "changed": bool(self.actions), "actions": self.actions, "paths": paths,
            "bytes": sum(deb.size for deb, _text in entries.values()),
        }

    def resolved(self, folder: Path) -> Iterator[tuple[AptClosure, list[Deb]]]:
        """Each apt with what is to come from it: the one that has the sources only, and one for each set from elsewhere."""
        architecture, sources = self.name.rpartition("-")[2], self.module.params["sources"]
        plain = AptClosure(folder / "plain", architecture, sources, self.module.run_command)
        plain.prepare()
        yield plain, sorted({deb for names in self.module.params["sets"] if names for deb in plain.resolve(names)})
        for number, wish in enumerate(self.module.params["elsewhere"]):
            url = wish["repository"]["url"] if wish["repository"] else ""
            try:
                apt = AptClosure(folder / str(number), architecture, sources, self.module.run_command, self.repository(wish["repository"]))
                apt.prepare(like=plain)
                names = apt.bind(wish["packages"], wish["companions"], wish["version"]) if wish["version"] else wish["packages"]
                yield apt, sorted(apt.resolve([*names, *wish["beside"], *apt.offered(wish["optional"])]))
            except ArtifactError as error:
                fix = "let this machine reach it, name a mirror of it, ask for what it has, or leave it out (llm_fleet_bundle_nvidia)"
                where = f"{url or 'the sources'} for {self.name}, {', '.join(wish['packages'])}"
                raise ArtifactError(error.fault.what, where, fix) from error

    def repository(self, wish: dict | None) -> Repository | None:
        if not wish or not wish["url"]:
            return None
        try:
            key = apt_key.read(self.module, wish["key"].strip(), 30) if wish["key"].strip() else b""
        except apt_key.KeyTrouble as trouble:
            raise ArtifactError(str(trouble), wish["url"], "") from None
        return Repository(wish["url"], wish["suite"] or "/", [name for name in wish["components"] if name], key)

    def bring(self, sources: list[tuple[AptClosure, list[Deb]]], digests: dict[str, str]) -> None:
        """Fetch what neither the folder nor the base has."""
        known: dict[str, str] = {}
        if self.module.params["base"]:
            manifest, _digest, faults = read_manifest(Path(self.module.params["base"]))
            if manifest is None:
                raise ArtifactError(*faults[0])
            known = {path: entry.sha256 for path, entry in manifest.entries().items()}
        missing = {
            file for file, digest in digests.items()
            if known.get(f"{self.place}/{file}") != digest and not self.has(self.folder / file, digest)
        }
        if missing:
            self.actions.append(f"fetch {len(missing)} packages for {self.name}")
        for apt, debs in sources if missing and not self.module.check_mode else ():
            if wanted := [deb for deb in debs if deb.file in missing]:
                apt.fetch(wanted, self.folder)

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
    texts = {"type": "list", "elements": "str"}
    module = AnsibleModule(
        argument_spec={
            "bundle": {"type": "path", "required": True},
            "distribution": {"type": "str", "required": True},
            "sets": {"type": "list", "elements": "list", "required": True},
            "elsewhere": {
                "type": "list", "elements": "dict", "default": [],
                "options": {
                    "packages": {**texts, "required": True},
                    "version": {"type": "str", "default": ""},
                    "companions": {**texts, "default": []},
                    "beside": {**texts, "default": []},
                    "optional": {**texts, "default": []},
                    "repository": {
                        "type": "dict", "default": {},
                        "options": {
                            "url": {"type": "str", "default": ""},
                            "suite": {"type": "str", "default": "/"},
                            "components": {**texts, "default": []},
                            # The public half.
                            "key": {"type": "str", "default": "", "no_log": False},
                        },
                    },
                },
            },
            "sources": {"type": "str", "default": ""},
            "base": {"type": "path"},
        },
        supports_check_mode=True,
    )
    answer(module, lambda: BundlePackages(module).run(), place="bundle")


if __name__ == "__main__":
    main()
