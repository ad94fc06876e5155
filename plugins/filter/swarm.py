# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Who brings files to whom, as a filter for playbooks."""

from __future__ import annotations

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.swarm_peers import swarm_peers


class FilterModule:
    """Filters of the plays in which hosts bring each other files."""

    def filters(self):
        return {"swarm_peers": swarm_peers}
