# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Engine profiles as data."""
from __future__ import annotations

DOCUMENTATION = r"""
name: engine_profiles
author: localfirst.llm_fleet contributors (@localfirst)
short_description: Engine profiles of the collection and of the operator
version_added: 0.1.0
description:
  - Reads the engine profiles that come with the collection, then those in the operator's directories, and checks them.
  - A profile is one YAML file, named after its engine. It says how the engine is started, how it is asked whether it
    is ready, which of its paths clients may reach, and which settings a model may have.
  - Reads on the controller only.
options:
  _terms:
    description:
      - Directories with profiles of the operator's own, files C(*.yml) or C(*.yaml). A profile in a later
        directory takes the place of an earlier one with the same name, the collection's own included.
      - A relative path starts from the directory of the playbook.
    type: list
    elements: path
    default: []
"""

EXAMPLES = r"""
- name: Show the engines of the collection
  ansible.builtin.debug:
    msg: "{{ lookup('localfirst.llm_fleet.engine_profiles') | list }}"

- name: Show which settings a model may have under an engine of one's own
  ansible.builtin.debug:
    msg: "{{ (lookup('localfirst.llm_fleet.engine_profiles', '/srv/fleet/engines')).my_engine.settings | list }}"
"""

RETURN = r"""
_list:
  description: One mapping from the name of each engine to its profile.
  type: list
  elements: dict
  sample:
    - llamacpp:
        name: llamacpp
        formats: [gguf]
"""

from pathlib import Path

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.engine_profile import check_profile
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault, listing
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.strict_yaml import load_yaml

BUILT_IN = Path(__file__).resolve().parent.parent / "module_utils" / "engine_profiles"
SUFFIXES = (".yml", ".yaml")


class LookupModule(LookupBase):
    """Collects profiles; the work is in read_profiles."""

    def run(self, terms, variables=None, **kwargs):
        directories = [Path(self._loader.path_dwim(str(term))) for term in self._flatten(terms)]
        profiles, faults = read_profiles([BUILT_IN, *directories])
        if faults:
            raise AnsibleLookupError(f"The engine profiles have faults:\n{listing(faults)}")
        return [profiles]


def read_profiles(directories: list[Path]) -> tuple[dict, list[Fault]]:
    """The profiles of all directories by name, and everything that is wrong with them."""
    profiles: dict = {}
    faults: list[Fault] = []
    for directory in directories:
        if not directory.is_dir():
            faults.append(Fault("there is no such directory", str(directory), "create it, or take it out of the list"))
            continue
        for path in sorted(path for path in directory.iterdir() if path.suffix in SUFFIXES):
            profile, found = read_profile(path)
            faults += found
            profiles[path.stem] = profile
    return profiles, faults


def read_profile(path: Path) -> tuple[dict, list[Fault]]:
    """One profile, and what is wrong with it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return {}, [Fault(f"the file cannot be read: {error}", str(path), "make it a readable text file")]
    profile, faults = load_yaml(text, str(path))
    if not faults:
        faults = check_profile(profile, str(path))
    if not faults and profile["name"] != path.stem:
        what = f"the name '{profile['name']}' is not the file's"
        faults = [Fault(what, f"{path}: name", f"write '{path.stem}', or rename the file")]
    return profile, faults
