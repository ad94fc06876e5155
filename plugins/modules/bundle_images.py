#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: bundle_images
short_description: Brings images into a bundle, as archives
version_added: 0.1.0
description:
  - Asks each image's registry for it, by digest, and writes C(images/<name>-<digest>.tar), which C(docker load) and
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
      by_digest:
        description: Whether hosts know it by O(images[].digest) and not by O(images[].id), so that the archive has to hold what that names.
        type: bool
        default: false
  archives:
    description: Directories with images as C(*.tar) that are there already.
    type: list
    elements: path
    default: []
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

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import whole_files
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.bundle_reader import read_manifest
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault, listing
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.image_archive import ArchivedImage, read_archives
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.image_download import ImageDownload
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
        self.base = self._base()

    def run(self) -> list[dict]:
        """Bring all of them; what is wrong with one keeps nobody from bringing the others."""
        archived, found = self._archived(), []
        for wanted in self.params["images"]:
            image = ImageDownload(wanted, self.sources)
            try:
                identity, path = self._known(image) or self._bring(image, archived)
                found.append({"image": wanted["image"], "platform": wanted["platform"], "id": identity, "path": path})
            except ArtifactError as error:
                self.faults.append(error.fault)
        return found

    def _bring(self, image: ImageDownload, archived: list[tuple[str, ArchivedImage]]) -> tuple[str, str]:
        """(its id, the archive's path in the bundle)."""
        path = f"images/{image.name}"
        if identity := image.held_by(self.folder / path):
            return identity, path
        self.actions.append(f"write {path}")
        source, identity = next(((file, found) for file, each in archived if (found := image.is_in([each]))), ("", ""))
        identity = identity or image.identity
        if not self.change:
            return identity, path
        (self.folder / "images").mkdir(parents=True, exist_ok=True)
        if source:
            with whole_files.draft_of(self.folder / path) as draft:
                shutil.copyfile(source, draft)
                draft.replace(self.folder / path)
        else:
            image.write(self.folder / path, self.folder / ".images" / image.name, self.params["reserve"])
        return identity, path

    def _archived(self) -> list[tuple[str, ArchivedImage]]:
        """What lies here already. A broken archive is no reason not to ask the registry."""
        archives, _faults = read_archives(folder for path in self.params["archives"] if (folder := Path(path)).is_dir())
        # One that holds others beside it would carry them along.
        return [(each["path"], ArchivedImage(**each["images"][0])) for each in archives if len(each["images"]) == 1]

    def _base(self) -> list[dict]:
        if not self.params["base"]:
            return []
        manifest, _digest, faults = read_manifest(Path(self.params["base"]))
        self.faults += faults
        return manifest.images if manifest else []

    def _known(self, image: ImageDownload) -> tuple[str, str] | None:
        """(its id, the archive's path) where the base has it. An archive that proves a digest has that in its name."""
        for each in self.base:
            if each["path"] == f"images/{image.name}" if image.by_digest else each["id"] == image.identity:
                return each["id"], each["path"]
        return None


def main() -> None:
    text = {"type": "str", "required": True}
    module = AnsibleModule(
        argument_spec={
            "bundle": {"type": "path", "required": True},
            "images": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "image": text, "digest": text, "platform": text, "id": {"type": "str", "default": ""},
                    "by_digest": {"type": "bool", "default": False},
                },
            },
            "archives": {"type": "list", "elements": "path", "default": []},
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
