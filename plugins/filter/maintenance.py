# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What hosts.yml asks of the plan, as filters."""

from __future__ import annotations

from ansible.errors import AnsibleFilterError

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import faults, maintenance


def maintenance_batches(plan: dict, hosts: list, size: str = "1", gateways: dict | None = None) -> list:
    """Which hosts are out at the same time, batch by batch."""
    try:
        return maintenance.batches(plan, hosts, str(size), gateways)
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


def outage_text(plan: dict, batches: list, gateways: dict | None = None) -> str:
    """For whom nobody would answer, as a refusal; nothing where somebody always does."""
    found = maintenance.outage(plan, batches, gateways)
    return faults.listing(found) if found else ""


def hosts_before(batches: list, host: str) -> list:
    """Who has to be done before this host begins."""
    return maintenance.hosts_before(batches, host)


def maintenance_lines(batches: list, plan: dict, wanted: dict) -> list:
    """What will happen to which host when."""
    return maintenance.maintenance_lines(batches, plan, wanted)


def asked_hosts(text: str, nodes: list) -> dict:
    """Which nodes a text such as `gpu*,!gpu3` means."""
    return maintenance.asked_hosts(text, nodes)


def maintained_instances(plan: dict, host: str) -> list:
    """The instances of one host, with the gateways' name for each."""
    return maintenance.maintained_instances(plan, host)


class FilterModule:
    """Filters of hosts.yml."""

    def filters(self):
        public = (asked_hosts, hosts_before, maintained_instances, maintenance_batches, maintenance_lines, outage_text)
        return {function.__name__: function for function in public}
