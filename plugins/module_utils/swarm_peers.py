# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Whom a host dials where hosts bring each other files. Pure: no I/O.

A small fleet knows each other. In a large one each host dials the depots, its own rack and some others, the same ones
each time; they are dialled by others in turn, so that all hang together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

MESH = 16  # up to so many hosts all know each other
SOME = 24  # others that a host dials beside depots and its rack
RACK = 24  # most that it dials of its rack


def swarm_peers(name: str, depots: Iterable[str], nodes: Iterable[str], racks: Mapping[str, str] | None = None) -> list[str]:
    """The hosts that `name` dials, sorted. `racks`: the rack of each host, where that is known."""
    depots, racks = set(depots) - {name}, racks or {}
    others = set(nodes) - {name} - depots
    if len(depots) + len(others) < MESH:
        return sorted(depots | others)
    rack = racks.get(name, "")
    near = {other for other in others if rack and racks.get(other, "") == rack}
    chosen = _some(name, near, RACK) | _some(name, others - near, SOME)
    return sorted(depots | chosen)


def _some(name: str, hosts: set[str], count: int) -> set[str]:
    """So many of these, other ones for each name, and the same ones each time."""
    return set(sorted(hosts, key=lambda host: hashlib.sha256(f"{name} {host}".encode()).digest())[:count])
