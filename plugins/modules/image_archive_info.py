#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: image_archive_info
short_description: Tells what container images archives hold
version_added: 0.1.0
description:
  - Reads the tables of contents of all C(*.tar) files in some directories, as C(docker save) and C(skopeo copy) write them.
  - Names of images are not believed. An image is known by the digest of its configuration, made of the bytes in the archive.
  - Runs on the controller. Neither Docker nor a registry is needed.
options:
  directories:
    description: The directories, by absolute path.
    type: list
    elements: path
    required: true
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
- name: See which images lie here
  localfirst.llm_fleet.image_archive_info:
    directories: [/srv/fleet/images]
  delegate_to: localhost
"""

RETURN = r"""
archives:
  description: The archives, by directory and name.
  type: list
  elements: dict
  returned: success
  contains:
    path:
      description: The file.
      type: str
      returned: always
    images:
      description:
        - The images in it. C(id) is the digest of the configuration, Docker's id of the image; C(manifest) is the digest by which
          Docker knows it where containerd keeps its images, and empty where the archive does not say.
        - C(digests) are those of manifests, and of lists for several platforms, by which registries name it and of which the archive
          has the bytes. C(platform) is the one that its configuration names.
      type: list
      elements: dict
      returned: always
  sample:
    - path: /srv/fleet/images/llamacpp.tar
      images: [{"id": "sha256:0123…", "manifest": "sha256:4567…", "platform": "linux/amd64", "digests": ["sha256:4567…"]}]
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import listing
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.image_archive import read_archives


def main() -> None:
    module = AnsibleModule(argument_spec={"directories": {"type": "list", "elements": "path", "required": True}}, supports_check_mode=True)
    folders = [Path(folder) for folder in module.params["directories"]]
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        module.fail_json(msg=f"There is no directory {', '.join(missing)}. Make it, or take it out of llm_fleet_image_archives.")
    archives, faults = read_archives(folders)
    if faults:
        module.fail_json(msg=f"Archives of images that cannot be used:\n{listing(faults)}")
    module.exit_json(changed=False, archives=archives)


if __name__ == "__main__":
    main()
