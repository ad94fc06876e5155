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

import ipaddress
import socket

from ansible.errors import AnsibleFilterError

# That of role depot, where the inventory says nothing else.
DEPOT_PORT = 8444


def addresses(names: list, hostvars) -> list:
    """Return the private address of each host of `names`."""
    return [_address(name, hostvars[name]) for name in names]


def _address(name: str, variables) -> str:
    for variable in ("llm_fleet_address", "ansible_host"):
        if variable in variables:
            return variables[variable]
    return name


def supplier_urls(names: list, hostvars) -> list:
    """Return where each depot of `names` serves its blobs."""
    return [_url(name, hostvars[name]) for name in names]


def _url(name: str, variables) -> str:
    address = variables.get("depot_address") or _address(name, variables)
    return f"https://{f'[{address}]' if ':' in address else address}:{variables.get('depot_port', DEPOT_PORT)}"


def local_address(towards: str) -> str:
    """Return the address of this machine from which it reaches another one. Nothing is sent: UDP only looks up the route."""
    family = socket.AF_INET6 if ":" in towards else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((towards, 9))
            return probe.getsockname()[0]
    except OSError as error:
        raise AnsibleFilterError(f"the controller has no route to {towards}: {error}") from error


def not_addresses(texts: list) -> list:
    """Return those of `texts` that are no IP addresses. One with a zone is none either: it says something on one host only."""
    return [text for text in texts if not _is_address(str(text))]


def _is_address(text: str) -> bool:
    try:
        return ipaddress.ip_address(text) is not None and "%" not in text
    except ValueError:
        return False


def spelled_alike(names: list) -> list:
    """Return names as they are, and addresses as the kernel and certificates write them, each once: fd00::5 for FD00:0::5."""
    return list(dict.fromkeys(_spelled(name) for name in names))


def _spelled(name: str) -> str:
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


class FilterModule:
    """Makes the filters known to Ansible."""

    def filters(self) -> dict:
        public = (addresses, supplier_urls, local_address, not_addresses, spelled_alike)
        return {function.__name__: function for function in public}
