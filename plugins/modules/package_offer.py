#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: package_offer
short_description: Tells which versions of packages apt could install, also from a repository that is not configured yet
version_added: 0.1.0
description:
  - Asks the host's package lists, and the repository of O(url) with lists that are read into a temporary directory.
  - So it is known before anything is changed whether a repository can be reached, whether its signature fits the key, and
    whether it has what is wanted. Changes nothing on the host, and works in check mode.
  - For the apt family.
options:
  packages:
    description: Names of packages.
    type: list
    elements: str
    required: true
  url:
    description: Address of a repository to ask too (C(https:), C(http:) or C(file:)). Empty for none.
    type: str
    default: ""
  suite:
    description: Suite of that repository. One that ends in C(/) is a path, and has no components.
    type: str
    default: /
  components:
    description: Components of that repository.
    type: list
    elements: str
    default: []
  key:
    description: Address or absolute path (on the host) of the repository's key, or the armoured key itself.
    type: str
    default: ""
  trusted:
    description: Whether that repository is taken without a signature. For a folder on the host itself.
    type: bool
    default: false
  timeout:
    description: How many seconds a transfer may stand still.
    type: int
    default: 30
author:
  - localfirst.llm_fleet contributors (@localfirst)
attributes:
  check_mode:
    description: The module changes nothing, so check mode makes no difference.
    support: full
  diff_mode:
    description: There is never a difference to show.
    support: none
  idempotent:
    description: Calling it twice has the effect of calling it once.
    support: full
"""

EXAMPLES = r"""
- name: See which drivers there are before the repository is configured
  localfirst.llm_fleet.package_offer:
    packages: [nvidia-driver-cuda, nvidia-kernel-open-dkms]
    url: https://mirror.example/cuda/debian12/x86_64/
    key: /etc/apt/keyrings/mirror.asc
  register: offer
"""

RETURN = r"""
offered:
  description: The versions of each package, in apt's order. Packages that nobody has are left out.
  type: dict
  returned: always
  sample: {"nvidia-driver-cuda": ["590.48.01-1", "580.105.08-1"]}
trouble:
  description: Why the repository could not be read, and what to do; an empty string if it could.
  type: str
  returned: always
  sample: "https://mirror.example/cuda/debian12/x86_64 is signed with a key that this host does not have (NO_PUBKEY A4B469963BF863CC)."
"""

import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import apt_key, apt_packages, apt_sources
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.apt_system import AptSystem


class PackageOffer:
    """The host's lists, and those of one more repository."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.apt = AptSystem(module, 300, lambda message: module.fail_json(msg=f"{message}."))

    def ask(self) -> dict:
        wish = self.module.params
        offered, trouble = self.apt.offered(wish["packages"]), ""
        if wish["url"]:
            with tempfile.TemporaryDirectory(dir=self.module.tmpdir) as folder:
                more, trouble = self.ask_repository(Path(folder))
            for name, versions in more.items():
                offered[name] = versions + [version for version in offered.get(name, []) if version not in versions]
        return {"offered": offered, "trouble": trouble}

    def ask_repository(self, folder: Path) -> tuple[dict, str]:
        wish = self.module.params
        try:
            key = self.key(folder)
        except apt_key.KeyTrouble as trouble:
            return {}, str(trouble)
        for name in ("lists/partial", "sources"):
            (folder / name).mkdir(parents=True)
        # Without a key, apt takes those that the host trusts anyhow.
        trust = {"Trusted": "yes"} if wish["trusted"] else {}
        text = apt_sources.render(wish["url"], wish["suite"], wish["components"], key, trust)
        (folder / "sources/asked.sources").write_text(text)
        options = [
            f"--option=Dir::State::lists={folder}/lists", "--option=Dir::Etc::sourcelist=/dev/null",
            f"--option=Dir::Etc::sourceparts={folder}/sources", f"--option=Dir::Cache::pkgcache={folder}/pkgcache.bin",
            f"--option=Dir::Cache::srcpkgcache={folder}/srcpkgcache.bin", "--option=APT::Sandbox::User=root",
            f"--option=Acquire::http::Timeout={wish['timeout']}", f"--option=Acquire::https::Timeout={wish['timeout']}",
            "--option=Acquire::Retries=2",
        ]
        code, output, errors = self.apt.run(["apt-get", "--quiet", *options, "update", "--error-on=any"])
        if code != 0:
            said = apt_packages.explain(output + errors)
            return {}, f"{said}." if wish["url"].rstrip("/") in said else f"{wish['url']}: {said}."
        listed = self.apt.run(["apt-cache", *options, "madison", *wish["packages"]])[1]
        return apt_packages.parse_versions(listed), ""

    def key(self, folder: Path) -> str:
        """The path of a file that apt can read."""
        key = self.module.params["key"].strip()
        if not key:
            return ""
        content = apt_key.read(self.module, key, self.module.params["timeout"])
        if apt_key.is_path(key):
            return key
        path = folder / f"key{apt_key.suffix(content)}"
        path.write_bytes(content)
        return str(path)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "packages": {"type": "list", "elements": "str", "required": True},
            "url": {"type": "str", "default": ""},
            "suite": {"type": "str", "default": "/"},
            "components": {"type": "list", "elements": "str", "default": []},
            # The public half.
            "key": {"type": "str", "default": "", "no_log": False},
            "trusted": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    module.exit_json(changed=False, **PackageOffer(module).ask())


if __name__ == "__main__":
    main()
