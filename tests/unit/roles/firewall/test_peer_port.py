# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Who may bring files from a host, by the rules as they are rendered."""

from __future__ import annotations

import json
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


def loaded(**sets: list[str]) -> dict:
    """What `nft --json list table inet llm_fleet` prints (nftables 1.0.6); a set without elements has no `elem`."""
    about = [{"metainfo": {"version": "1.0.6", "release_name": "Lester Gooch #5", "json_schema_version": 1}},
             {"table": {"family": "inet", "name": "llm_fleet", "handle": 9}}]
    for name, addresses in sets.items():
        about.append({"set": {"family": "inet", "name": name, "table": "llm_fleet", "type": "ipv4_addr", "handle": 1,
                              **({"elem": addresses} if addresses else {})}})
    return {"rc": 0, "stdout": json.dumps({"nftables": about})}


def lacking(table: dict) -> list[str]:
    return Role("firewall", firewall_peers=[*PEERS, "10.0.20.21"], __firewall_table=table).evaluate("__firewall_peers_lacking")


def test_only_peers_that_are_new_are_let_in():
    assert lacking(loaded(gateways_v4=["10.0.0.5"], peers_v4=["10.0.20.21"], peers_v6=[])) == ["10.0.0.5", "fd00::5"]
    assert lacking(loaded(peers_v4=["10.0.0.5", "10.0.20.21", "10.0.0.9"], peers_v6=["fd00::5"])) == []


def test_a_peer_is_known_however_its_address_is_written():
    table = loaded(peers_v6=["fd00::5", "fd00::a"])
    role = Role("firewall", firewall_peers=["fd00:0::5", "FD00::A", "fd00::a", "fd00:0:0::b"], __firewall_table=table)
    assert role.evaluate("__firewall_peers_lacking") == ["fd00::b"]


def test_rules_that_know_of_no_peers_stay_as_they_are():
    assert lacking(loaded(gateways_v4=["10.0.0.11"], peers_v4=[], peers_v6=[])) == []
    assert lacking({"rc": 1, "stdout": "", "stderr": "Error: No such file or directory"}) == []
    assert lacking({"rc": 2, "msg": "Error executing command: [Errno 2] No such file or directory: b'/usr/sbin/nft'"}) == []
