# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Who may ask for the health of GPUs, by the rules as they are rendered."""

from __future__ import annotations

import re

from ansible_collections.localfirst.llm_fleet.tests.unit.support.role_template import Role

GATEWAYS = ["10.0.0.11", "fd00::11"]


def rules(**variables) -> list[str]:
    """The rules of the chain that sees packets to the host itself, in their order."""
    text = Role("firewall", firewall_gateways=GATEWAYS, firewall_monitors=["10.0.0.21"], **variables).render("firewall.nft.j2")
    chain = re.search(r"chain input \{\n(.*?)\n  \}", text, re.DOTALL)[1]
    return [line.strip() for line in chain.splitlines() if line.strip() and not line.strip().startswith("#")]


def test_gateways_and_nobody_else_reach_the_port():
    about = [rule for rule in rules(firewall_agent_port=9109) if "9109" in rule]
    accepted, last = about[:-1], about[-1]
    assert [rule.split("tcp dport 9109 ")[1] for rule in accepted] == ["ip saddr @gateways_v4 accept", "ip6 saddr @gateways_v6 accept"]
    assert last == "tcp dport 9109 drop"
    # An engine that takes a gateway's address comes over the bridge, and gets the rule that drops.
    assert all(rule.startswith('iifname != "llmf0" ') for rule in accepted)


def test_without_a_port_the_rules_are_those_without_it():
    assert rules() == rules(firewall_agent_port=0) == [rule for rule in rules(firewall_agent_port=9109) if "9109" not in rule]


def test_the_fleet_has_one_port_for_both_sides():
    for role, name in (("firewall", "firewall_agent_port"), ("gateway", "gateway_agent_port"), ("gpu_health", "gpu_health_agent_port")):
        assert Role(role, llm_fleet_gpu_drain_port="9109").evaluate(name) == 9109, role
        assert Role(role).evaluate(name) == 0, role
    assert Role("gpu_health", llm_fleet_gpu_drain_port=9109).evaluate("gpu_health_drain") is True
    assert Role("gpu_health").evaluate("gpu_health_drain") is False
