#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: gateway_traffic
short_description: Reads what HAProxy has counted for backends
version_added: 0.1.0
description:
  - One call is one snapshot of the counters, from the current process and from those that still serve what they had before a reload.
  - Each process counts from zero when it starts. What came between two snapshots follows from the counters of each process, over
    reloads too; what a process did between the first snapshot and its end is lost.
options:
  backends:
    description: Names of backends. One that HAProxy does not have shows zeros.
    type: list
    elements: str
    required: true
  socket:
    description: HAProxy's runtime socket.
    type: path
    default: /run/haproxy/admin.sock
  master_socket:
    description: The runtime socket of HAProxy's master process.
    type: path
    default: /run/haproxy-master.sock
author:
  - localfirst.llm_fleet contributors (@localfirst)
attributes:
  check_mode:
    description: Reads as it does otherwise. Where HAProxy does not run yet, all counters are zero.
    support: full
  diff_mode:
    description: Changes nothing, so there is nothing to show.
    support: full
  idempotent:
    description: Changes nothing.
    support: full
"""

EXAMPLES = r"""
- name: See what both releases have had so far
  localfirst.llm_fleet.gateway_traffic:
    backends: [be_tiny_8b2d4f6a1c3e, be_tiny_0f3a5c7e9b1d]
  become: true
  register: before
"""

RETURN = r"""
counters:
  description:
    - What HAProxy has counted, by backend. Requests are counted when they end.
    - An error of the release is in C(responses_5xx), or in C(aborted_by_server) where the answer had begun. None is in both.
    - C(aborted_by_client) are clients that left by themselves. C(response_errors) and C(connection_errors) overlap with the errors.
    - C(answers) are responses of engines. C(latency_ms) is the average time until the first byte of one, null where there is none.
    - C(workers) has the same counters for each process by its process id.
  type: dict
  returned: always
  sample:
    be_tiny_0f3a5c7e9b1d:
      requests: 120
      responses_5xx: 1
      connection_errors: 0
      response_errors: 1
      aborted_by_server: 0
      aborted_by_client: 3
      answers: 117
      latency_ms: 210.5
      workers:
        "4711": {requests: 120, responses_5xx: 1, connection_errors: 0, response_errors: 1, aborted_by_server: 0, aborted_by_client: 3,
                 answers: 117, latency_ms: 210.5}
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.haproxy_runtime import (
    HAProxyRuntime,
    RuntimeFailure,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.traffic import snapshot


def counters(module: AnsibleModule) -> dict:
    """The snapshot that was asked for."""
    runtime = HAProxyRuntime(module.params["socket"], module.params["master_socket"])
    if module.check_mode and not runtime.runs():
        return snapshot({}, module.params["backends"])
    return snapshot(runtime.stats(), module.params["backends"])


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "backends": {"type": "list", "elements": "str", "required": True},
            "socket": {"type": "path", "default": "/run/haproxy/admin.sock"},
            "master_socket": {"type": "path", "default": "/run/haproxy-master.sock"},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(changed=False, counters=counters(module))
    except RuntimeFailure as failure:
        module.fail_json(msg=str(failure))


if __name__ == "__main__":
    main()
