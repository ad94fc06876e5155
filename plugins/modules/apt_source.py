#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: apt_source
short_description: Describes a package repository to apt so that it agrees with what other files say of the same one
version_added: 0.1.0
description:
  - Writes C(/etc/apt/sources.list.d/<name>.sources), and the repository's key to C(/etc/apt/keyrings/<name>.asc) (or C(.gpg)).
  - apt reads no source at all where two describe the same place and name different keys (C(Conflicting values set for option
    Signed-By)). So where another file describes it already - C(sources.list), a C(.list) or a C(.sources) - this one takes that
    file's C(Signed-By), and the other options that apt compares, word for word. The key is then that file's; O(key) and
    O(trusted) are not used.
  - Entries that are commented out or not enabled do not count. An entry without C(Signed-By) counts where apt reads it after ours;
    before ours, apt puts up with it.
  - Where the other file is one of this collection's (see O(name)), both share its key. It stays until the last of them is gone.
  - A file that says the same already, in whatever order and with whatever comments, stays as it is.
  - Needs nothing on the host but apt.
options:
  name:
    description:
      - Name of the file, without C(.sources).
      - Names of this collection's own files begin with C(llm-fleet-). They give way to files of others.
    type: str
    required: true
  state:
    description: Whether the repository is described. With V(absent) its key goes too, unless another file names it.
    type: str
    choices: [present, absent]
    default: present
  url:
    description: Address of the repository (C(https:), C(http:) or C(file:)). apt puts the host's architecture in the place of V($(ARCH\)).
    type: str
    default: ""
  suite:
    description: Suite of the repository. One that ends in C(/) is a path, and has no components.
    type: str
    default: /
  components:
    description: Components of the repository. Left out where O(suite) is a path.
    type: list
    elements: str
    default: []
  key:
    description:
      - Address or absolute path (on the host) of the repository's key, or the armoured key itself.
      - Empty for none. apt then takes the keys that it trusts anyhow.
    type: str
    default: ""
  trusted:
    description: Whether the repository is taken without a signature. For a folder on the host itself.
    type: bool
    default: false
  force:
    description:
      - Whether a key is fetched again that is on the host already, because its owner may have changed it.
      - Without it, an address is asked only where there is no key yet. A key given as text is compared in either case.
    type: bool
    default: false
  timeout:
    description: How many seconds the transfer of the key may stand still.
    type: int
    default: 30
author:
  - localfirst.llm_fleet contributors (@localfirst)
attributes:
  check_mode:
    description: Says what would be done. A key that is not on the host yet is not fetched.
    support: full
  diff_mode:
    description: Shows the file and an armoured key before and after.
    support: full
  idempotent:
    description: Calling it twice has the effect of calling it once.
    support: full
"""

EXAMPLES = r"""
- name: Describe a mirror of NVIDIA's repository
  localfirst.llm_fleet.apt_source:
    name: llm-fleet-nvidia
    url: https://mirror.example/cuda/debian12/x86_64/
    key: https://mirror.example/cuda/key.asc
  become: true

- name: Describe Docker's repository
  localfirst.llm_fleet.apt_source:
    name: llm-fleet-docker
    url: https://mirror.example/docker/linux/debian
    suite: bookworm
    components: [stable]
    key: /usr/share/keyrings/mirror.gpg
  become: true

- name: Forget it, and its key if nobody else needs that
  localfirst.llm_fleet.apt_source:
    name: llm-fleet-nvidia
    state: absent
  become: true
"""

RETURN = r"""
path:
  description: The file that describes the repository.
  type: str
  returned: success
  sample: /etc/apt/sources.list.d/llm-fleet-nvidia.sources
signed_by:
  description: Its C(Signed-By) - files, fingerprints or an embedded key. An empty string for none, and with O(state=absent).
  type: str
  returned: success
  sample: /etc/apt/keyrings/llm-fleet-nvidia.asc
agrees_with:
  description: The file of somebody else's whose C(Signed-By) was taken. An empty string for none.
  type: str
  returned: success
  sample: /etc/apt/sources.list.d/cuda-debian12-x86_64.list
actions:
  description: What was done, or would be done in check mode.
  type: list
  elements: str
  returned: success
  sample: ["write /etc/apt/keyrings/llm-fleet-nvidia.asc", "write /etc/apt/sources.list.d/llm-fleet-nvidia.sources"]
"""

import os
import re
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import apt_key, apt_sources
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.apt_system import AptSystem


class AptSource:
    """One file of apt's sources, and its key."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.wish = module.params
        self.actions: list[str] = []
        self.changed = False
        self.diff: list[dict] = []
        if not apt_sources.is_name(self.wish["name"]):
            self.fail("apt passes over files of that name. Use letters, digits, `-`, `_` and `.` only")
        self.apt = AptSystem(module, 0, self.fail)
        self.main = Path(self.apt.path("Dir::Etc::sourcelist/f"))
        self.parts = Path(self.apt.path("Dir::Etc::sourceparts/d"))
        self.keys = Path(self.apt.path("Dir::Etc/d")) / "keyrings"
        self.file = self.parts / f"{self.wish['name']}.sources"
        self.own_keys = [self.keys / f"{self.wish['name']}{suffix}" for suffix in (".asc", ".gpg")]
        self.text = self.read(self.file) if self.file.is_file() else ""
        self.named = apt_sources.key_files(apt_sources.parse(str(self.file), self.text))
        self.before, self.after = self.others()

    def present(self) -> dict:
        self.check()
        giver, options = self.agreement()
        shared = Path(giver.signed_by) if giver and self.is_shared(giver.signed_by) else None
        signed_by = self.taken_key(giver) if giver and not shared else self.key(shared)
        taken = giver.file if giver and shared not in self.own_keys else ""
        text = apt_sources.render(self.wish["url"], self.wish["suite"], self.wish["components"], signed_by, options)
        if not apt_sources.says_the_same(self.text, text):
            heading = f"# Managed by localfirst.llm_fleet.apt_source ({self.wish['name']}): changes here are overwritten.\n"
            if taken:
                heading += f"# Signed-By is that of {taken}: apt reads no source at all where two of the same place disagree.\n"
            self.write(self.file, (heading + text).encode(errors="surrogateescape"))
        self.keep_mode(self.file, 0o644)
        self.tidy(apt_sources.key_files(apt_sources.parse(str(self.file), text)))
        return self.result(signed_by, taken)

    def absent(self) -> dict:
        self.remove(self.file)
        self.tidy(set())
        return self.result("", "")

    def result(self, signed_by: str, taken: str) -> dict:
        return {
            "changed": self.changed, "path": str(self.file), "signed_by": signed_by, "agrees_with": taken,
            "actions": self.actions, "diff": self.diff,
        }

    def check(self) -> None:
        wish = self.wish
        if not re.fullmatch(r"[a-z][a-z0-9+.-]*:\S+", wish["url"]):
            self.fail(f"`url` is {wish['url']!r}, which is no address. Set it to one that begins with https:, http: or file:")
        if not re.fullmatch(r"\S+", wish["suite"]):
            self.fail(f"`suite` is {wish['suite']!r}. Set it to one word, or to / for a repository without suites")
        wish["components"] = [name for name in wish["components"] if name]
        if not wish["suite"].endswith("/") and not wish["components"]:
            self.fail(f"the suite {wish['suite']} needs `components`. A suite without any is a path and ends in /")
        if wrong := [name for name in wish["components"] if re.search(r"\s", name)]:
            self.fail(f"the component {wrong[0]!r} is not one word")

    def agreement(self) -> tuple:
        """The entry of another file whose key has to be taken, and the options besides the key."""
        architecture = self.apt.path("APT::Architecture")
        place = apt_sources.place(self.wish["url"], self.wish["suite"], architecture)
        before, after = (
            [entry for entry in entries if entry.enabled and place in entry.places(architecture)]
            for entries in (self.before, self.after)
        )
        try:
            giver, options = apt_sources.agree(before, after)
        except apt_sources.Conflict as conflict:
            self.fail(
                f"{conflict} describe {self.wish['url']} {self.wish['suite']} with different Signed-By, so apt reads no source at all."
                " Nothing was changed. Make both say the same, or remove one, and run again"
            )
        if not (before or after) and self.wish["trusted"]:
            options = {"Trusted": "yes"}
        return giver, options

    def others(self) -> tuple[list, list]:
        """The entries of all other files, before and after ours in the order in which apt reads them."""
        paths = [path for path in self.parts.iterdir() if path.suffix in (".list", ".sources")] if self.parts.is_dir() else []
        read = [path for path in sorted(paths) if apt_sources.is_name(path.name) and path != self.file and path.is_file()]
        before = ([self.main] if self.main.is_file() else []) + [path for path in read if path < self.file]
        after = [path for path in read if path > self.file]
        return tuple([entry for path in paths for entry in apt_sources.parse(str(path), self.read(path))] for paths in (before, after))

    # The key

    def is_shared(self, signed_by: str) -> bool:
        """Whether it is a key that this module has written, for this source or for another one."""
        path = Path(signed_by)
        return path in self.own_keys or (path.parent == self.keys and path.name.startswith(apt_sources.PREFIX))

    def taken_key(self, giver: apt_sources.Entry) -> str:
        """Somebody else's Signed-By, unless its key has gone: one of ours may still name what it once took from others."""
        words = apt_sources.words(giver.signed_by)
        if all(word.startswith("/") and not Path(word).exists() for word in words) and not self.module.check_mode:
            self.fail(
                f"{giver.file} describes the same repository and names {' and '.join(words)}, which is not on the host. Nothing was"
                " changed. Put the key there, or remove that file if nobody needs it, and run again"
            )
        return giver.signed_by

    def key(self, shared: Path | None) -> str:
        """The file with the key, which is brought up to date. `shared` is one that another source names already."""
        key = self.wish["key"].strip()
        if not key or (apt_key.is_path(key) and not shared):
            if key and not self.module.check_mode:
                self.read_key(key)
            return str(shared or key)
        own = not shared or shared in self.own_keys
        there = next((path for path in self.known_keys(shared) if path.is_file()), None)
        fetched = not apt_key.is_path(key) and not apt_key.is_text(key)
        if there and not self.wish["force"] and (fetched or not own):
            path = there
        elif self.module.check_mode and not there and not apt_key.is_text(key):
            path = shared or self.own_keys[key.endswith(".gpg")]
            self.act(f"write {path}")
        else:
            content = self.read_key(key)
            path = shared or self.own_keys[apt_key.suffix(content) == ".gpg"]
            if path.suffix != apt_key.suffix(content):
                self.fail(
                    f"the key is {'a binary' if path.suffix == '.asc' else 'an armoured'} one now, and another source names {path}."
                    " Nothing was changed. Give the key in the same form as before, or remove the other source first"
                )
            if not path.is_file() or path.read_bytes() != content:
                self.write(path, content)
        # Everybody reads it: apt fetches and verifies as a user without rights.
        self.keep_mode(self.keys, 0o755)
        self.keep_mode(path, 0o644)
        return str(path)

    def known_keys(self, shared: Path | None) -> list[Path]:
        """Where the key may be: first where our file says that it is."""
        return [shared] if shared else [*self.left(), *sorted(self.own_keys, key=lambda path: str(path) not in self.named)]

    def left(self) -> list[Path]:
        """Keys that our file names and shared with sources that are gone."""
        shared = [Path(name) for name in sorted(self.named) if self.is_shared(name)]
        return [path for path in shared if path not in self.own_keys and not (self.parts / f"{path.stem}.sources").exists()]

    def read_key(self, key: str) -> bytes:
        try:
            return apt_key.read(self.module, key, self.wish["timeout"])
        except apt_key.KeyTrouble as trouble:
            self.fail(str(trouble))

    def tidy(self, named: set[str]) -> None:
        """Remove our key, and one that our file shared with a source that is gone. What a source names stays."""
        named = named | apt_sources.key_files(self.before + self.after)
        for path in [*self.own_keys, *self.left()]:
            if str(path) not in named:
                self.remove(path)

    # Files

    def read(self, path: Path) -> str:
        return path.read_text(encoding="utf-8", errors="surrogateescape")

    def write(self, path: Path, content: bytes) -> None:
        self.show(path, path.read_bytes() if path.is_file() else b"", content)
        self.act(f"write {path}")
        if self.module.check_mode:
            return
        if not path.parent.is_dir():
            path.parent.mkdir(mode=0o755, parents=True)
        descriptor, name = tempfile.mkstemp(dir=self.module.tmpdir)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        self.module.atomic_move(name, str(path))

    def keep_mode(self, path: Path, mode: int) -> None:
        if path.exists():
            self.changed = self.module.set_mode_if_different(str(path), mode, self.changed)

    def remove(self, path: Path) -> None:
        if path.exists():
            self.show(path, path.read_bytes(), b"")
            self.act(f"remove {path}")
            if not self.module.check_mode:
                path.unlink()

    def show(self, path: Path, before: bytes, after: bytes) -> None:
        """For the diff. A binary key is only mentioned."""
        shown = [
            content.decode(errors="replace") if path.suffix != ".gpg" else "a binary key\n" * bool(content)
            for content in (before, after)
        ]
        self.diff.append({"before_header": str(path), "before": shown[0], "after_header": str(path), "after": shown[1]})

    def act(self, action: str) -> None:
        self.changed = True
        self.actions.append(action)

    def fail(self, message: str) -> None:
        self.module.fail_json(msg=f"{self.wish['name']}: {message}.", actions=self.actions)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "url": {"type": "str", "default": ""},
            "suite": {"type": "str", "default": "/"},
            "components": {"type": "list", "elements": "str", "default": []},
            # The public half.
            "key": {"type": "str", "default": "", "no_log": False},
            "trusted": {"type": "bool", "default": False},
            "force": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    source = AptSource(module)
    module.exit_json(**(source.present() if module.params["state"] == "present" else source.absent()))


if __name__ == "__main__":
    main()
