# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from ansible_collections.localfirst.llm_fleet.plugins.filter.addresses import addresses

HOSTVARS = {
    "gw1": {"llm_fleet_address": "10.0.0.10", "ansible_host": "192.0.2.10"},
    "gw2": {"ansible_host": "192.0.2.11"},
    "10.0.0.12": {},
}


def test_the_private_address_comes_first_then_ansibles_then_the_name():
    assert addresses(["gw2", "gw1", "10.0.0.12"], HOSTVARS) == ["192.0.2.11", "10.0.0.10", "10.0.0.12"]
