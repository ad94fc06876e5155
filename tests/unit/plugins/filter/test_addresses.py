# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from ansible_collections.localfirst.llm_fleet.plugins.filter.addresses import (
    addresses,
    local_address,
    not_addresses,
    spelled_alike,
    supplier_urls,
)

HOSTVARS = {
    "gw1": {"llm_fleet_address": "10.0.0.10", "ansible_host": "192.0.2.10"},
    "gw2": {"ansible_host": "192.0.2.11"},
    "10.0.0.12": {},
}


def test_the_private_address_comes_first_then_ansibles_then_the_name():
    assert addresses(["gw2", "gw1", "10.0.0.12"], HOSTVARS) == ["192.0.2.11", "10.0.0.10", "10.0.0.12"]


def test_a_depot_is_found_at_its_address_and_port():
    hostvars = {"d1": {"ansible_host": "10.0.0.5"}, "d2": {"llm_fleet_address": "fd00::5", "depot_port": 9000}}
    assert supplier_urls(["d2", "d1"], hostvars) == ["https://[fd00::5]:9000", "https://10.0.0.5:8444"]
    assert supplier_urls(["d"], {"d": {"llm_fleet_address": "10.0.0.6", "depot_address": "10.1.0.6"}}) == ["https://10.1.0.6:8444"]


def test_the_port_of_a_depot_is_the_default_of_its_role():
    role = Path(__file__).resolve().parents[4] / "roles" / "depot" / "defaults" / "main.yml"
    defaults = yaml.safe_load(role.read_text())
    assert supplier_urls(["d"], {"d": {}}) == [f"https://d:{defaults['depot_port']}"]


def test_the_controller_is_reached_where_its_routes_lead():
    assert local_address("127.0.0.5") == "127.0.0.1"


def test_what_has_no_route_is_named():
    with pytest.raises(AnsibleFilterError, match=r"nowhere\.invalid"):
        local_address("nowhere.invalid")


@pytest.mark.parametrize("text", ["10.0.0.300", "1.2.3", "abc", "1::2::3", "gpu1", "", "10.0.0.1 ", "10.0.0.0/8", "fe80::1%eth0", 7])
def test_what_is_no_address_is_picked_out(text):
    assert not_addresses(["10.0.0.1", text, "fd00::5"]) == [text]


def test_an_address_has_one_spelling_and_names_keep_theirs():
    written = ["Depot1", "fd00:0::5", "FD00::A", "fd00::5", "10.0.0.5", "2001:0db8:0:0:1:0:0:1", "10.0.0", "Depot1", "a:b"]
    assert spelled_alike(written) == ["Depot1", "fd00::5", "fd00::a", "10.0.0.5", "2001:db8::1:0:0:1", "10.0.0", "a:b"]
