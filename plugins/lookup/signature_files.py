# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The files that a catalog names for its signatures."""
from __future__ import annotations

DOCUMENTATION = r"""
name: signature_files
author: localfirst.llm_fleet contributors (@localfirst)
short_description: Public keys, CA certificates and signatures that a catalog names
version_added: 0.1.0
description:
  - Reads the files of the controller that C(signature) names in a catalog, so that signatures can be verified on another host.
  - A file that cannot be read is no error here. Whoever needs it says so, with its place in the catalog.
options:
  _terms:
    description: The catalog as the operator wrote it, see docs/catalog.md.
    type: raw
    required: true
"""

EXAMPLES = r"""
- name: Show whose signatures the fleet trusts
  ansible.builtin.debug:
    msg: "{{ lookup('localfirst.llm_fleet.signature_files', llm_fleet_models) | list }}"
"""

RETURN = r"""
_list:
  description: One mapping from each path to C(text), or to C(error).
  type: list
  elements: dict
  sample:
    - /srv/fleet/models.pub: {text: "-----BEGIN PUBLIC KEY-----\n…"}
      /srv/fleet/gone.pub: {error: no such file or directory}
"""

from ansible.plugins.lookup import LookupBase

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_check import read_files
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_demand import named_paths


class LookupModule(LookupBase):
    """Reads them; the work is in module_utils/signature_check.py."""

    def run(self, terms, variables=None, **kwargs):
        return [read_files(path for models in terms for path in named_paths(models))]
