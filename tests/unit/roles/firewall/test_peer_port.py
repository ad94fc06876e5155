# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Who may bring files from a host, by the rules as they are rendered."""

from __future__ import annotations

import re

from ansible_collections.localfirst.llm_fleet.tests.unit.support.role_template import Role

PEERS = ["10.0.0.5", "10.0.20.21", "fd00::5"]


def rendered(**variables) -> str:
    return Role("firewall", firewall_gateways=["10.0.0.11"], **variables).render("firewall.nft.j2")


def rules(**variables) -> list[str]:
    chain = re.search(r"chain input \{\n(.*?)\n  \}", rendered(**variables), re.DOTALL)[1]
    return [line.strip() for line in chain.splitlines() if line.strip() and not line.strip().startswith("#")]


def test_peers_and_nobody_else_reach_the_port():
    *accepted, last = [rule for rule in rules(firewall_peer_port=8446, firewall_peers=PEERS) if "8446" in rule]
    assert [rule.split("tcp dport 8446 ")[1] for rule in accepted] == ["ip saddr @peers_v4 accept", "ip6 saddr @peers_v6 accept"]
    assert last == "tcp dport 8446 ct direction original drop"
    # An engine that takes a peer's address comes over the bridge, and gets the rule that drops.
    assert all(rule.startswith('iifname != "llmf0" ') for rule in accepted)
    text = rendered(firewall_peer_port=8446, firewall_peers=PEERS)
    assert "elements = { 10.0.0.5, 10.0.20.21 }" in text and "elements = { fd00::5 }" in text


def test_with_http_the_rules_are_those_without_it():
    assert rendered(firewall_peers=PEERS) == rendered() and "8446" not in rendered(firewall_peers=PEERS)


def test_the_port_follows_the_distribution():
    assert Role("firewall", llm_fleet_distribution="p2p", llm_fleet_peer_port="8500").evaluate("firewall_peer_port") == 8500
    assert Role("firewall", llm_fleet_distribution="http", llm_fleet_peer_port="8500").evaluate("firewall_peer_port") == 0
    assert Role("firewall").evaluate("firewall_peer_port") == 0
    assert Role("model_peer", llm_fleet_peer_port="8500").evaluate("model_peer_port") == 8500
