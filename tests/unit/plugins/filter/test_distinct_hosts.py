# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Which hosts have to be asked, by variables as Ansible hands them to a filter."""

from __future__ import annotations

import pytest
import yaml
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager

from ansible_collections.localfirst.llm_fleet.plugins.filter.distinct_hosts import FilterModule

distinct_hosts = FilterModule().filters()["distinct_hosts"]
ROLES = ["nvidia_driver", "container_runtime", "llm_fleet_bundle"]


@pytest.fixture
def distinct(tmp_path):
    def ask(hosts: dict, **shared) -> list[str]:
        (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"vars": shared, "hosts": hosts}}))
        loader = DataLoader()
        inventory = InventoryManager(loader, str(tmp_path / "hosts.yml"))
        return distinct_hosts(list(hosts), HostVars(inventory, VariableManager(loader, inventory), loader), ROLES)

    return ask


def test_hosts_with_the_same_variables_are_asked_once(distinct):
    assert distinct({"gpu1": {"ansible_host": "10.0.0.1"}, "gpu2": {"ansible_host": "10.0.0.2"}}, nvidia_driver_version="580") == ["gpu1"]
    newer = {"nvidia_driver_version": "590"}
    hosts = {"gpu1": {}, "gpu2": newer, "gpu3": newer, "gpu4": {"container_runtime_mtu": 9000}}
    assert distinct(hosts, nvidia_driver_version="580") == ["gpu1", "gpu2", "gpu4"]


def test_what_a_bundle_is_to_have_for_a_host_counts_as_well(distinct):
    hosts = {"gpu1": {"llm_fleet_bundle_nvidia": []}, "gpu2": {"llm_fleet_labels": {}}, "gpu3": {"llm_fleet_labels": {"rack": "a"}}}
    assert distinct(hosts, llm_fleet_bundle_nvidia=["toolkit", "driver"]) == ["gpu1", "gpu2"]


def test_what_counts_is_what_a_variable_comes_to(distinct):
    hosts = {"gpu1": {"site": "a"}, "gpu2": {"site": "b"}, "gpu3": {"site": "a"}}
    assert distinct(hosts, nvidia_driver_version="{{ {'a': 580, 'b': 590}[site] }}") == ["gpu1", "gpu2"]
    assert distinct(hosts, nvidia_driver_version="{{ 580 if site in ['a', 'b'] else 590 }}") == ["gpu1"]


def test_a_host_whose_variables_have_no_value_is_asked_itself(distinct):
    """The role that needs it says what is wrong; one that does not is not disturbed."""
    assert distinct({"gpu1": {}, "gpu2": {"nvidia_driver_mirror": "{{ nobody_said }}"}, "gpu3": {}}) == ["gpu1", "gpu2"]
