# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
name: addresses
short_description: Private addresses of hosts, also of those that a run leaves out
version_added: 0.1.0
description:
  - Reads each host's C(llm_fleet_address) from the inventory, or else C(ansible_host), or else its name.
  - Facts are not needed, so it works for hosts that C(--limit) leaves out.
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
author:
  - localfirst.llm_fleet contributors (@localfirst)
"""

EXAMPLES = r"""
- name: Show where the gateways are
  ansible.builtin.debug:
    msg: "{{ groups['gateways'] | localfirst.llm_fleet.addresses(hostvars) }}"
"""

RETURN = r"""
_value:
  description: An address for each name, in the order of the names.
  type: list
  elements: str
  sample: ["10.0.0.10", "10.0.0.11"]
"""


def addresses(names: list, hostvars) -> list:
    """Return the private address of each host of `names`."""
    return [_address(name, hostvars[name]) for name in names]


def _address(name: str, variables) -> str:
    for variable in ("llm_fleet_address", "ansible_host"):
        if variable in variables:
            return variables[variable]
    return name


class FilterModule:
    """Makes the filter known to Ansible."""

    def filters(self) -> dict:
        return {"addresses": addresses}
