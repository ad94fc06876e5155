# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
name: distinct_hosts
short_description: Of hosts that have the same variables of some roles, the first
version_added: 0.1.0
description:
  - What a role would do by its variables alone is the same on all hosts that have the same ones.
    Who asks one host of each kind need not ask hundreds.
  - Reads what the inventory says, also of hosts that a run leaves out.
options:
  _input:
    description: Names of hosts.
    type: list
    elements: str
    required: true
  hostvars:
    description: Ansible's C(hostvars).
    type: dict
    required: true
  roles:
    description: Names of roles, or other beginnings of names. A role's variables are those whose names begin with its own and C(_).
    type: list
    elements: str
    required: true
author:
  - localfirst.llm_fleet contributors (@localfirst)
"""

EXAMPLES = r"""
- name: Show which hosts get other drivers than the rest
  ansible.builtin.debug:
    msg: "{{ groups['gpu_nodes'] | localfirst.llm_fleet.distinct_hosts(hostvars, ['nvidia_driver']) }}"
"""

RETURN = r"""
_value:
  description: Names of hosts, in the order of the input.
  type: list
  elements: str
  sample: ["gpu1", "gpu17"]
"""

import json

from ansible.errors import AnsibleError


def distinct_hosts(names: list, hostvars, roles: list) -> list:
    """Return the first of each kind of host."""
    prefixes = tuple(f"{role}_" for role in roles)
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(_kind(name, hostvars[name], prefixes), name)
    return list(first.values())


def _kind(name: str, variables, prefixes: tuple) -> str:
    try:
        return json.dumps({each: variables[each] for each in sorted(variables) if each.startswith(prefixes)}, sort_keys=True)
    except (AnsibleError, TypeError):
        # Nobody may ever need the one that has no value. Whoever does says better what is wrong with it.
        return name


class FilterModule:
    """Makes the filter known to Ansible."""

    def filters(self) -> dict:
        return {"distinct_hosts": distinct_hosts}
