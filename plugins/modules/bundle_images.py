#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: bundle_images
short_description: Brings images into a bundle, as archives
version_added: 0.1.0
description:
  - Asks each image's registry for it, by digest, and writes C(images/<name>-<id>.tar), which C(docker load) and
    M(localfirst.llm_fleet.image_archive_info) read. Every blob is verified. Docker is not needed.
  - Images that lie in O(archives) already are copied from there. Those of O(base) are left out.
  - Runs on the controller. A download that was cut off goes on where it stopped.
options:
  bundle:
    description: Directory of the bundle.
    type: path
    required: true
  images:
    description: The images, as M(localfirst.llm_fleet.bundle_plan) returns them.
    type: list
    elements: dict
    required: true
    suboptions:
      image:
        description: C(registry/repository).
        type: str
        required: true
      digest:
        description: Digest of its manifest, or of the list for several platforms.
        type: str
        required: true
      platform:
        description: The platform.
        type: str
        required: true
      id:
        description: Digest of its configuration, as the lockfile has it. Empty where nobody has said.
        type: str
        default: ""
  archives:
    description: Directory with images as C(*.tar) that are there already.
    type: path
  sources:
    description:
      - How registries are asked, the variable C(llm_fleet_sources) as JSON.
      - Its secrets appear in no output.
    type: str
  base:
    description: Another bundle, or its manifest, that was taken across before.
    type: path
  reserve:
    description: Bytes that have to stay free on the file system of the bundle.
    type: int
    default: 1073741824
author:
  - localfirst.llm_fleet contributors (@localfirst)
seealso:
  - module: localfirst.llm_fleet.image_archive_info
attributes:
  check_mode:
    description: Says what would be written. Registries are asked for what nobody has said.
    support: full
  diff_mode:
    description: There are no contents to compare.
    support: none
  idempotent:
    description: What is there already is left alone.
    support: full
"""

EXAMPLES = r"""
- name: Bring the images
  localfirst.llm_fleet.bundle_images:
    bundle: /srv/bundle
    images: "{{ planned.images }}"
    sources: "{{ llm_fleet_sources | to_json }}"
  delegate_to: localhost
"""

RETURN = r"""
images:
  description: The images, with the paths of their archives in the bundle.
  type: list
  elements: dict
  returned: success
  sample:
    - image: ghcr.io/ggml-org/llama.cpp
      platform: linux/amd64
      id: sha256:…
      path: images/llama.cpp-0123456789abcdef.tar
actions:
  description: What was or would be done.
  type: list
  elements: str
  returned: success
  sample: ["write images/llama.cpp-0123456789abcdef.tar"]
faults:
  description: What is wrong, where, and what to do about it.
  type: list
  elements: dict
  returned: failure
  sample: [{"what": "the image is not to be had for linux/arm64", "where": "ghcr.io/…", "fix": "name another platform, or another image"}]
"""

import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.bundle_reader import read_manifest
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault, listing
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.image_archive import read_archives
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.image_download import ImageDownload, holds
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.origins import read_sources


class BundleImages:
    """One call of the module."""

    def __init__(self, params: dict, sources: dict, change: bool) -> None:
        self.params = params
        self.sources = sources
        self.change = change
        self.folder = Path(params["bundle"])
        self.actions: list[str] = []
        self.faults: list[Fault] = []

    def run(self) -> list[dict]:
        """Bring all of them; what is wrong with one keeps nobody from bringing the others."""
        archived, known, found = self._archived(), self._known(), []
        for wanted in self.params["images"]:
            image = ImageDownload(wanted, self.sources)
            try:
                path = known.get(image.identity) or self._bring(image, archived)
                found.append({"image": wanted["image"], "platform": wanted["platform"], "id": image.identity, "path": path})
            except ArtifactError as error:
                self.faults.append(error.fault)
        return found

    def _bring(self, image: ImageDownload, archived: dict[str, str]) -> str:
        path = f"images/{image.name}"
        if holds(self.folder / path, image.identity):
            return path
        self.actions.append(f"write {path}")
        if not self.change:
            return path
        (self.folder / "images").mkdir(parents=True, exist_ok=True)
        if image.identity in archived:
            draft = self.folder / "images" / f".{image.name}.new"
            shutil.copyfile(archived[image.identity], draft)
            draft.replace(self.folder / path)
        else:
            image.write(self.folder / path, self.folder / ".images" / image.name, self.params["reserve"])
        return path

    def _archived(self) -> dict[str, str]:
        """{id: archive} of what lies here already. A broken archive is no reason not to ask the registry."""
        folder = Path(self.params["archives"] or "")
        archives = read_archives(folder)[0] if self.params["archives"] and folder.is_dir() else []
        # One that holds others beside it would carry them along.
        return {each["images"][0]["id"]: each["path"] for each in archives if len(each["images"]) == 1}

    def _known(self) -> dict[str, str]:
        if not self.params["base"]:
            return {}
        manifest, _digest, faults = read_manifest(Path(self.params["base"]))
        self.faults += faults
        return {image["id"]: image["path"] for image in manifest.images} if manifest else {}


def main() -> None:
    text = {"type": "str", "required": True}
    module = AnsibleModule(
        argument_spec={
            "bundle": {"type": "path", "required": True},
            "images": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {"image": text, "digest": text, "platform": text, "id": {"type": "str", "default": ""}},
            },
            "archives": {"type": "path"},
            "sources": {"type": "str", "no_log": True},
            "base": {"type": "path"},
            "reserve": {"type": "int", "default": 1024**3},
        },
        supports_check_mode=True,
    )
    try:
        call = BundleImages(module.params, read_sources(module) or {}, not module.check_mode)
        images = call.run()
    except ArtifactError as error:
        module.fail_json(msg=str(error), faults=[error.fault.as_dict()])
    except OSError as error:
        found = ArtifactError.from_os_error(error, module.params["bundle"])
        module.fail_json(msg=str(found), faults=[found.fault.as_dict()])
    if call.faults:
        msg = f"Images that cannot be brought:\n{listing(call.faults)}"
        module.fail_json(msg=msg, faults=[fault.as_dict() for fault in call.faults], actions=call.actions)
    module.exit_json(changed=bool(call.actions), images=images, actions=call.actions)


if __name__ == "__main__":
    main()
