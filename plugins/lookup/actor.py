# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Who runs this playbook."""
from __future__ import annotations

DOCUMENTATION = r"""
name: actor
author: localfirst.llm_fleet contributors (@localfirst)
short_description: Says who runs this playbook, from where, and in which process
version_added: 0.1.0
description:
  - Returns the same in every task of a run, whichever worker the lookup is made in.
  - For M(localfirst.llm_fleet.fleet_lock) and M(localfirst.llm_fleet.audit_note). It is no proof of identity. It says what the
    controller, or AWX, says of itself.
  - Under AWX the user and the job are those of C(awx_user_name) and C(awx_job_id), or C(tower_user_name) and C(tower_job_id).
    Otherwise the user is the one who has logged in, also where the playbook is run with sudo.
  - On a controller without C(/proc) it cannot tell a process; C(place) and C(process) are empty then.
"""

EXAMPLES = r"""
- name: Show who runs this
  ansible.builtin.debug:
    msg: "{{ lookup('localfirst.llm_fleet.actor') }}"
"""

RETURN = r"""
_list:
  description: One mapping, of texts only. Nothing in it is secret.
  type: list
  elements: dict
  contains:
    user:
      description: Who it is.
      type: str
    job:
      description: Number of the job in AWX, or an empty text.
      type: str
    host:
      description: Name of the controller.
      type: str
    place:
      description: Equal only where process ids mean the same. Made of the id of the kernel's boot and the namespace of process ids.
      type: str
    process:
      description: Process id of C(ansible-playbook) and its start time in clock ticks after the boot.
      type: str
  sample:
    - user: alice
      job: ""
      host: controller
      place: "a3ce31ce-af72-4f27-93aa-27cdf52f17b1:4026531836"
      process: "3241:912345"
"""

import os

from ansible.plugins.lookup import LookupBase

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.actor import current


class LookupModule(LookupBase):
    """Asks for the actor; the work is in module_utils/actor.py."""

    def run(self, terms, variables=None, **kwargs):
        return [current(variables or {}, os.environ)]
