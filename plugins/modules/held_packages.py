#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: held_packages
short_description: Installs packages that belong together at one version and keeps them there
version_added: 0.1.0
description:
  - Chooses one upstream version that all named packages have, pins apt to it, installs it and holds the packages, with
    what came along, so that neither C(apt-get upgrade) nor unattended upgrades swap one of them.
  - Where another version is asked for, it releases its own holds, installs that version and holds what is there then,
    whether the installation went well or not. What others hold is never changed.
  - Installed packages that are the wanted version stay as they are, however new the versions on offer.
  - Refuses to remove packages other than those that O(companions) names, before it has changed anything.
  - Says in one sentence what was wrong where apt refuses - a changed key, unmet dependencies, a package's script that failed.
  - Remembers what it has installed, so that O(state=absent) takes away that and no more.
  - For the apt family. With dnf, C(versionlock) does the same.
options:
  name:
    description: Name of this set of packages. Its pin is C(/etc/apt/preferences.d/llm-fleet-<name>).
    type: str
    required: true
  state:
    description: Whether the packages are there and held, or taken away and no longer pinned.
    type: str
    choices: [present, absent]
    default: present
  packages:
    description: The packages. All get the same upstream version.
    type: list
    elements: str
    default: []
  version:
    description:
      - Version that is wanted. A branch (C(580)), an upstream version (C(580.95.05)), a whole version
        (C(580.95.05-1)) or a pattern (C(580.95.*)).
      - By default the newest on offer, or the one that is there.
    type: str
    default: ""
  companions:
    description:
      - Patterns of the names of packages that come along, for example C(libnvidia-*).
      - They are pinned to the same version, held, and may be removed in the course of a change.
    type: list
    elements: str
    default: []
  hold:
    description: Whether the packages are held and pinned. Without it, they are installed if they are missing, and no more.
    type: bool
    default: true
  state_dir:
    description: Directory for the record of what was installed.
    type: path
    default: /var/lib/llm_fleet
  lock_timeout:
    description: How many seconds to wait for another program that uses apt.
    type: int
    default: 300
author:
  - localfirst.llm_fleet contributors (@localfirst)
attributes:
  check_mode:
    description: Says what would be done, from a simulation by apt, and does none of it.
    support: full
  diff_mode:
    description: Shows versions and holds before and after.
    support: full
  idempotent:
    description: Calling it twice has the effect of calling it once.
    support: full
"""

EXAMPLES = r"""
- name: Install a driver and keep it
  localfirst.llm_fleet.held_packages:
    name: nvidia-driver
    packages: [nvidia-driver-cuda, nvidia-kernel-open-dkms]
    version: 580.95.05
    companions: ["nvidia-*", "libnvidia-*", libcuda1]
  become: true

- name: Let it go again
  localfirst.llm_fleet.held_packages:
    name: nvidia-driver
    state: absent
  become: true
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode.
  type: list
  elements: str
  returned: always
  sample: ["install nvidia-driver-cuda 580.95.05-1", "hold nvidia-driver-cuda"]
installs:
  description: Packages that were installed, upgraded or downgraded (or would be), each with its version.
  type: list
  elements: str
  returned: always
  sample: ["nvidia-driver-cuda 580.95.05-1"]
removes:
  description: Packages that were removed, or would be.
  type: list
  elements: str
  returned: always
  sample: [nvidia-kernel-dkms]
version:
  description: The upstream version that the packages have now, or would have. An empty string where it is not known yet.
  type: str
  returned: success
  sample: 580.95.05
before:
  description: The version of each named package before. Missing ones are left out.
  type: dict
  returned: success
  sample: {"nvidia-driver-cuda": "580.82.07-1"}
held:
  description: Packages that are held now, or would be.
  type: list
  elements: str
  returned: success
  sample: [libcuda1, libnvidia-ml1, nvidia-driver-cuda, nvidia-kernel-open-dkms]
"""

import fnmatch
import json
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import apt_packages
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.apt_system import AptSystem


class HeldPackages:
    """One set of packages on one host."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.wish = module.params
        self.result: dict = {"changed": False, "actions": [], "installs": [], "removes": []}
        self.record_file = Path(self.wish["state_dir"]) / f"packages-{self.wish['name']}.json"
        self.apt = AptSystem(module, self.wish["lock_timeout"], self.fail)
        self.pin_file = Path(self.apt.path("Dir::Etc::preferencesparts/d")) / f"llm-fleet-{self.wish['name']}"

    def present(self) -> dict:
        installed = self.apt.installed()
        names, wanted = self.wish["packages"], self.wish["version"]
        self.result["before"] = {name: installed[name].version for name in names if name in installed}
        before = self.shown(installed)
        version, specs = self.plan(installed)
        chosen = apt_packages.upstream(version)
        self.result["version"] = chosen
        if specs:
            self.simulate(specs, installed, version)
            if left := self.stragglers(installed, chosen):
                specs += left
                self.simulate(specs, installed, version)
            self.announce()
        self.write_pin(self.pin(version))
        if specs and not self.module.check_mode:
            self.install(specs, installed)
            installed = self.apt.installed()
            off = [name for name in names if not apt_packages.matches(installed[name].version, wanted)]
            if off:
                self.fail(f"{', '.join(off)} did not become {wanted}")
        self.result["held"] = self.hold(installed, chosen) if self.wish["hold"] else []
        self.result["diff"] = {"before": before, "after": self.shown(self.apt.installed())}
        return self.result

    def plan(self, installed: dict) -> tuple[str, list[str]]:
        """The version that the first package gets, and what is to be installed: nothing where all is there."""
        names, wanted = self.wish["packages"], self.wish["version"]
        fitting = {
            name: installed[name].version
            for name in names
            if name in installed and installed[name].complete and apt_packages.matches(installed[name].version, wanted)
        }
        missing = [name for name in names if name not in fitting]
        if not self.wish["hold"]:
            return "", missing
        versions = sorted({apt_packages.upstream(version) for version in fitting.values()}, key=apt_packages.order)
        if not missing and len(versions) <= 1:
            return fitting[names[0]] if names else "", []
        offered = self.apt.offered(names)
        # A package that joins a set gets the set's version; only where that is no longer on offer do all move.
        chosen = apt_packages.choose(names, offered, versions[-1]) if versions else ""
        chosen = chosen or apt_packages.choose(names, offered, wanted)
        if not chosen:
            if self.module.check_mode and not all(offered.get(name) for name in names):
                # On a bare host the repository is not there yet in check mode.
                return "", missing
            self.fail(apt_packages.missing_version(names, offered, wanted))
        full = {name: apt_packages.full_version(name, offered, chosen, wanted) for name in names}
        return full[names[0]], [f"{name}={version}" for name, version in full.items()]

    def simulate(self, specs: list[str], installed: dict, version: str) -> None:
        """Let apt say what it would do with the new pin and without our holds."""
        # Above the pin of the version that is there now, which may be the higher one.
        pin = self.pin(version, apt_packages.PIN_PRIORITY + 1) or ""
        code, output, errors = self.apt.simulate(specs, pin, self.ours(installed))
        if code != 0:
            if not (self.module.check_mode and "Unable to locate package" in errors):
                self.fail(apt_packages.explain(output + errors, self.foreign_holds()))
            self.result["installs"] = [spec.replace("=", " ") for spec in specs]
        else:
            self.result["installs"], self.result["removes"] = apt_packages.parse_simulated(output)

    def stragglers(self, installed: dict, chosen: str) -> list[str]:
        """Companions that would stay behind: on the way to an older version apt keeps what a `>=` allows."""
        touched = {what.split()[0] for what in self.result["installs"]} | set(self.result["removes"])
        left = [name for name in self.ours(installed) if name not in touched and apt_packages.upstream(installed[name].version) != chosen]
        offered = self.apt.offered(left if chosen else [])
        versions = {name: apt_packages.full_version(name, offered, chosen) for name in left}
        return [f"{name}={version}" for name, version in versions.items() if version]

    def announce(self) -> None:
        """Say what apt would do, and stop where that is somebody else's. Nothing has been changed by then."""
        foreign = [name for name in self.result["removes"] if not self.is_ours(name)]
        if foreign:
            self.fail(
                f"apt would remove {', '.join(foreign)} to make room. Nothing was changed."
                " Remove them yourself if they are not needed, or choose another source or version"
            )
        self.act(*(f"install {what}" for what in self.result["installs"]), *(f"remove {name}" for name in self.result["removes"]))

    def install(self, specs: list[str], installed: dict) -> None:
        """Install what was simulated. Released are our own holds only, and whatever happens, they are set again.

        apt does not change a held package for the sake of another one: with libraries held, a driver could never move.
        """
        self.remember({spec.split("=")[0] for spec in specs}, installed)
        self.mark("unhold", [name for name in self.ours(installed) if installed[name].held])
        code, output, errors = self.apt.get("install", *specs)
        there = self.apt.installed()
        self.remember(set(there), installed)
        if code != 0:
            if self.wish["hold"]:
                self.mark("hold", self.ours(there))
            self.fail(apt_packages.explain(output + errors, self.foreign_holds()))

    def ours(self, installed: dict) -> list[str]:
        """Installed packages of this set: the named ones, and companions that this module has held."""
        held = self.recorded().get("held", [])
        return sorted(name for name in installed if name in self.wish["packages"] or name in held)

    def pin(self, version: str, priority: int = apt_packages.PIN_PRIORITY) -> str | None:
        names = sorted({*self.wish["packages"], *self.wish["companions"]})
        return apt_packages.pin_text(self.wish["name"], names, version, priority) if self.wish["hold"] and version else None

    def hold(self, installed: dict, chosen: str) -> list[str]:
        """Hold the packages and what came along, and release what no longer belongs to them."""
        names = sorted({*self.wish["packages"], *apt_packages.companions(installed, self.wish["companions"], chosen)})
        present = [name for name in names if name in installed]
        self.mark("hold", [name for name in present if not installed[name].held])
        known = self.recorded()
        gone = [name for name in known.get("held", []) if name not in names and name in installed and installed[name].held]
        self.mark("unhold", gone)
        if not self.module.check_mode and known.get("held") != present:
            self.write_record({**known, "held": present})
        return names if self.module.check_mode else present

    def absent(self) -> dict:
        """Release, remove what this set brought, forget."""
        installed, known = self.apt.installed(), self.recorded()
        self.mark("unhold", [name for name in known.get("held", []) if name in installed and installed[name].held])
        self.write_pin(None)
        names = [name for name in known.get("packages", []) if name in installed]
        if names:
            code, output, errors = self.apt.get("remove", "--simulate", "--allow-change-held-packages", *names)
            if code != 0:
                self.fail(apt_packages.explain(output + errors, self.foreign_holds()))
            removes = apt_packages.parse_simulated(output)[1]
            needed = [name for name in removes if name not in names]
            if needed:
                self.fail(f"{', '.join(needed)} need what would be removed. Nothing was removed; remove them first")
            self.result["removes"] = removes
            self.act(*(f"remove {name}" for name in removes))
            if not self.module.check_mode:
                code, output, errors = self.apt.get("remove", *names)
                if code != 0:
                    self.fail(apt_packages.explain(output + errors, self.foreign_holds()))
        if self.record_file.exists() and not self.module.check_mode:
            self.record_file.unlink()
        self.result.update(version="", before={name: installed[name].version for name in names}, held=[])
        return self.result

    def mark(self, what: str, names: list[str]) -> None:
        if names:
            self.act(*(f"{what} {name}" for name in names))
            if not self.module.check_mode:
                code, output, errors = self.apt.run(["apt-mark", what, *names])
                if code != 0:
                    self.fail(apt_packages.explain(output + errors))

    def write_pin(self, text: str | None) -> None:
        there = self.pin_file.read_text() if self.pin_file.exists() else None
        if there == text or not (text or self.wish["state"] == "absent"):
            return
        self.act(f"{'write' if text else 'remove'} {self.pin_file}")
        if self.module.check_mode:
            return
        if text is None:
            self.pin_file.unlink()
        else:
            self.pin_file.parent.mkdir(parents=True, exist_ok=True)
            self.pin_file.write_text(text)
            self.pin_file.chmod(0o644)

    def foreign_holds(self) -> list[str]:
        held = self.recorded().get("held", [])
        return [name for name, package in self.apt.installed().items() if package.held and name not in held]

    def recorded(self) -> dict:
        try:
            return json.loads(self.record_file.read_text())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            self.fail(f"{self.record_file} is not JSON: {error}. Restore it from a backup, or remove it to forget what was installed")

    def remember(self, names: set, before: dict) -> None:
        """Add to the record what was not there before; also ahead of an installation, in case it is cut off."""
        known = self.recorded()
        packages = sorted({*known.get("packages", []), *(name for name in names if name not in before)})
        if packages != known.get("packages"):
            self.write_record({**known, "packages": packages})

    def write_record(self, record: dict) -> None:
        self.record_file.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        self.record_file.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        self.record_file.chmod(0o640)

    def is_ours(self, name: str) -> bool:
        return name in self.wish["packages"] or any(fnmatch.fnmatchcase(name, pattern) for pattern in self.wish["companions"])

    def shown(self, installed: dict) -> str:
        lines = [
            f"{name} {package.version}{' (held)' if package.held else ''}\n"
            for name, package in sorted(installed.items())
            if self.is_ours(name)
        ]
        return "".join(lines)

    def act(self, *actions: str) -> None:
        self.result["changed"] = self.result["changed"] or bool(actions)
        self.result["actions"] += actions

    def fail(self, message: str) -> None:
        self.module.fail_json(msg=f"{self.wish['name']}: {message}.", **self.result)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "packages": {"type": "list", "elements": "str", "default": []},
            "version": {"type": "str", "default": ""},
            "companions": {"type": "list", "elements": "str", "default": []},
            "hold": {"type": "bool", "default": True},
            "state_dir": {"type": "path", "default": "/var/lib/llm_fleet"},
            "lock_timeout": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    held = HeldPackages(module)
    module.exit_json(**(held.present() if module.params["state"] == "present" else held.absent()))


if __name__ == "__main__":
    main()
