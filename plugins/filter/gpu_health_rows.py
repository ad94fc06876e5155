# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
name: gpu_health_rows
short_description: What is wrong with the GPUs of a fleet, as rows
version_added: 0.1.0
description:
  - Makes a row for each finding, and for each host whose GPUs are no longer looked at, the worst first.
options:
  _input:
    description: By host, C(gpu_health) as M(localfirst.llm_fleet.host_info) returns it.
    type: dict
    required: true
author:
  - localfirst.llm_fleet contributors (@localfirst)
"""

EXAMPLES = r"""
- name: Show it
  ansible.builtin.debug:
    msg: "{{ {'gpu1': host.gpu_health} | localfirst.llm_fleet.gpu_health_rows | localfirst.llm_fleet.table(['host', 'gpu', 'finding']) }}"
"""

RETURN = r"""
_value:
  description: C(host), C(gpu), C(uuid), C(severity), C(finding), C(since), C(text) and C(advice).
  type: list
  elements: dict
  sample:
    - host: gpu1
      gpu: "0000:53:00.0"
      uuid: GPU-4f1b2c3d-0000-0000-0000-000000000000
      severity: critical
      finding: xid-79
      since: "2026-11-28T17:08:02Z"
      text: "XID 79, fallen off the bus: GPU has fallen off the bus."
      advice: Drain the host, and switch its power off and on
"""

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.gpu_health_report import gpu_health_rows


class FilterModule:
    """Makes the filter known to Ansible."""

    def filters(self) -> dict:
        return {"gpu_health_rows": gpu_health_rows}
