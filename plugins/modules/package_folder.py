#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: package_folder
short_description: Makes a folder of .deb packages a repository that apt can read
version_added: 0.1.0
description:
  - Writes C(Packages) and C(Release) for the C(.deb) files in a folder, for sites that bring packages on a disk.
  - Needs nothing but C(dpkg-deb). A folder with C(InRelease) is a signed repository already and is left alone.
  - What it writes is not signed, so apt has to be told to trust the folder.
options:
  path:
    description: The folder, on the host.
    type: path
    required: true
author:
  - localfirst.llm_fleet contributors (@localfirst)
attributes:
  check_mode:
    description: Says whether it would write, and does not.
    support: full
  diff_mode:
    description: Shows the list of packages before and after.
    support: full
  idempotent:
    description: Calling it twice has the effect of calling it once.
    support: full
"""

EXAMPLES = r"""
- name: Let apt install from a folder
  localfirst.llm_fleet.package_folder:
    path: /srv/nvidia
  become: true
"""

RETURN = r"""
packages:
  description: Packages in the folder, each with its version.
  type: list
  elements: str
  returned: success
  sample: ["nvidia-driver-cuda 580.95.05-1"]
"""

import hashlib
import re
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import regular_files, whole_files
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.apt_index import INDEX, RELEASE, index_bytes, release_text
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_arguments import answer


class PackageFolder:
    """The folder and its index."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.path = Path(module.params["path"])

    def apply(self) -> dict:
        files = sorted(self.path.glob("*.deb")) if self.path.is_dir() else []
        if not files:
            fix = "Put the driver's packages there, with all that they depend on and the host lacks."
            self.module.fail_json(msg=f"there is no .deb file in {self.path}. {fix}")
        before = self.read(INDEX)
        if (self.path / "InRelease").exists():
            return {"changed": False, "packages": self.names(before)}
        text = "\n".join(self.entry(file) for file in files)
        release = release_text(text, "folder of packages")
        # Both are compared: a run that broke off between them left a new index with an old digest, or none, and apt takes neither.
        changed = (text, release) != (before, self.read(RELEASE))
        if changed and not self.module.check_mode:
            whole_files.write(self.path / INDEX, index_bytes(text), 0o644)
            whole_files.write(self.path / RELEASE, index_bytes(release), 0o644)
        names = self.names(text)
        diff = {"before": "".join(f"{name}\n" for name in self.names(before)), "after": "".join(f"{name}\n" for name in names)}
        return {"changed": changed, "packages": names, "diff": diff}

    def read(self, name: str) -> str:
        try:
            return regular_files.read(self.path / name).decode(errors="surrogateescape")
        except FileNotFoundError:
            return ""

    def entry(self, file: Path) -> str:
        if not file.is_file():
            self.module.fail_json(msg=f"{file} is no regular file. Copy it again; nothing was written.")
        dpkg_deb = self.module.get_bin_path("dpkg-deb", required=True)
        code, fields, errors = self.module.run_command([dpkg_deb, "--field", str(file)])
        if code != 0:
            what = f"{file} is no package that dpkg-deb can read: {errors.strip()}"
            self.module.fail_json(msg=f"{what}. Copy it again; nothing was written.")
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while part := stream.read(2**20):
                digest.update(part)
        return f"{fields.rstrip()}\nFilename: ./{file.name}\nSize: {file.stat().st_size}\nSHA256: {digest.hexdigest()}\n"

    @staticmethod
    def names(index: str) -> list[str]:
        return sorted(" ".join(found) for found in re.findall(r"^Package: (\S+)$.*?^Version: (\S+)$", index, re.M | re.S))


def main() -> None:
    module = AnsibleModule(argument_spec={"path": {"type": "path", "required": True}}, supports_check_mode=True)
    answer(module, lambda: PackageFolder(module).apply(), place="path")


if __name__ == "__main__":
    main()
