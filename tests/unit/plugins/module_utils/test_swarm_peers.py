# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Whom a host dials."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.swarm_peers import MESH, RACK, SOME, swarm_peers


def nodes(count: int) -> list[str]:
    return [f"gpu{number:03}" for number in range(count)]


@pytest.mark.parametrize("count", [0, 1, 2, MESH - 1])
def test_a_small_fleet_knows_each_other(count):
    for name in nodes(count):
        assert swarm_peers(name, ["depot1"], nodes(count)) == sorted({"depot1", *nodes(count)} - {name})


def test_a_host_that_is_a_depot_and_a_node_is_dialled_once_and_not_by_itself():
    assert swarm_peers("gpu000", ["gpu000", "gpu001"], nodes(3)) == ["gpu001", "gpu002"]


def test_in_a_large_fleet_lists_stay_short_and_everybody_is_reached():
    fleet = nodes(480)
    racks = {name: f"r{number // 40}" for number, name in enumerate(fleet)}
    chosen = {name: swarm_peers(name, ["depot1", "depot2"], fleet, racks) for name in fleet}
    for name, peers in chosen.items():
        assert {"depot1", "depot2"} <= set(peers) and name not in peers
        assert len(peers) == 2 + RACK + SOME
        assert sum(racks.get(peer) == racks[name] for peer in peers) == RACK
        assert swarm_peers(name, ["depot2", "depot1"], reversed(fleet), racks) == peers
    # From any host all others are reached without a depot: connections go both ways.
    linked = {name: set() for name in fleet}
    for name, peers in chosen.items():
        for peer in set(peers) & set(fleet):
            linked[name].add(peer)
            linked[peer].add(name)
    reached, new = set(), {fleet[0]}
    while new:
        reached |= new
        new = set().union(*(linked[name] for name in new)) - reached
    assert reached == set(fleet)


def test_without_racks_it_is_some_others():
    assert len(swarm_peers("gpu000", ["depot1"], nodes(100))) == 1 + SOME
