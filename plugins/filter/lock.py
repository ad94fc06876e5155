# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What the lock playbook has to know of the hosts."""

from __future__ import annotations

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lock_changes import versions_in_use


class FilterModule:
    """Filters of M(localfirst.llm_fleet)."""

    def filters(self):
        return {"versions_in_use": versions_in_use}
