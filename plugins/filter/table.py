# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
name: table
short_description: Shows rows as an aligned table
version_added: 0.1.0
description:
  - Returns the lines of a table with a head, for a person to read.
options:
  _input:
    description: The rows.
    type: list
    elements: dict
    required: true
  columns:
    description: The keys to show, in this order. A row that lacks one shows C(-).
    type: list
    elements: str
    required: true
author:
  - localfirst.llm_fleet contributors (@localfirst)
"""

EXAMPLES = r"""
- name: Show what runs where
  ansible.builtin.debug:
    msg: "{{ llm_fleet_plan.instances | localfirst.llm_fleet.table(['host', 'model', 'port']) }}"
"""

RETURN = r"""
_value:
  description: The lines of the table.
  type: list
  elements: str
  sample: ["HOST  MODEL  PORT", "gpu1  tiny   20000"]
"""

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.table import table


class FilterModule:
    """Makes the filter known to Ansible."""

    def filters(self) -> dict:
        return {"table": table}
