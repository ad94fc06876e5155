# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What playbooks that look after stores have to know of the fleet, and what they say."""

from __future__ import annotations

from ansible.errors import AnsibleFilterError

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import store_fleet
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import listing
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile import parse_lockfile


def locked(text: str, name: str = "the lockfile", strict: bool = True) -> dict:
    """The lockfile as data; unless `strict`, one with faults is as good as none."""
    # Ansible's texts carry their origin, which YAML's parser does not take for texts.
    data, faults = parse_lockfile(text.encode().decode(), name)
    if faults and not strict:
        return {}
    if faults:
        raise AnsibleFilterError(listing(faults))
    return data


class FilterModule:
    """Filters of the playbooks verify and gc."""

    def filters(self):
        public = (
            locked,
            store_fleet.known_artifacts,
            store_fleet.gc_rows,
            store_fleet.damage_rows,
            store_fleet.still_damaged,
            store_fleet.verified_lines,
        )
        return {each.__name__: each for each in public}
