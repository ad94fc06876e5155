# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The ledger of ports: a pair for every replica, fleet-wide, and never again for another one.

A gateway that missed a change still points at old ports. As long as a port means one replica for good, the
worst it can meet there is a refused connection, and never somebody else's model.
"""

from __future__ import annotations

from typing import NamedTuple


class Lease(NamedTuple):
    """The new ledger, and the replicas for which no pair was left."""

    ledger: dict
    without: list


def lease(ledger: dict, replicas: list, standing: dict, port_range: tuple) -> Lease:
    """Gives every replica its pair of ports.

    ledger: first port of the pair by replica ("tiny/0"), as the last plan has it.
    replicas: those of the new plan, in the order in which they choose.
    standing: {port: replica} of every instance that runs or may still run.
    port_range: first and last port, both included.
    """
    ledger = dict(ledger)
    lowest, highest = port_range
    holders = set(standing.values())
    busy = {*replicas, *holders}
    without = []

    def inside(first):
        return lowest <= first < highest

    def unowned(key, owners):
        """The lowest pair that nobody else has."""
        pairs = range(lowest, highest, 2)
        return next((p for p in pairs if owners.get(p, key) == key == owners.get(p + 1, key)), None)

    owners = _owners(ledger, standing)
    for key in replicas:
        if key in ledger and (inside(ledger[key]) or key in holders):
            continue
        first = unowned(key, owners)
        if first is None:  # the range is used up: take the lowest pair from replicas that are gone
            kept = {other: port for other, port in ledger.items() if other in busy}
            first = unowned(key, _owners(kept, standing))
        if first is None:
            without.append(key)
            continue
        for gone in {owners.get(first), owners.get(first + 1)} - {None, key}:
            ledger.pop(gone)
        ledger[key] = first
        owners = _owners(ledger, standing)
    return Lease(dict(sorted(ledger.items())), without)


def _owners(ledger: dict, standing: dict) -> dict:
    owners = {port: key for key, first in ledger.items() for port in (first, first + 1)}
    return {**owners, **standing}
