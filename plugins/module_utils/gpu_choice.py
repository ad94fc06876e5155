# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""How many GPUs a model with `gpus: auto` gets: the fewest that hold it, by the estimate (fit.py). Pure: no I/O.

A model that runs keeps the number it has while that holds what is wanted: other hosts in the fleet are no reason for another release.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.fit import MOST_GPUS, Demand, demand_of
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.placement_rules import gpu_allowed, matches
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.release import wanted_releases
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.room import MIG

AUTO = "auto"


def with_gpus(
    models: list[dict], lock: dict[str, Any], profiles: dict[str, Any], nodes: list[dict], current: dict | None
) -> tuple[list[dict], list[Fault]]:
    """The models with a number for `gpus` where the catalog says `auto`, and why one cannot be told.

    models have the exact version; nodes: all GPU nodes as make_plan has them. What was asked stays in `gpus_asked`, so that the
    answer can be asked again for another version.
    """
    done, faults = [], []
    for model in models:
        if model.get("gpus_asked", model["gpus"]) != AUTO:
            done.append(model)
            continue
        record = wanted_releases([{**model, "gpus": 1}], lock, profiles)[model["name"]]
        count, fault = _choose({**model, "gpus": 1}, partial(demand_of, record), nodes, _held(model["name"], current))
        done.append({**model, "gpus": count, "gpus_asked": AUTO})
        faults += [fault] if fault else []
    return done, faults


def _held(name: str, current: dict | None) -> list[dict]:
    return [instance for instance in (current or {}).get("instances", []) if instance["model"] == name and instance["gpus"]]


def _choose(model: dict, demand: Callable[[int], Demand], nodes: list[dict], held: list[dict]) -> tuple[int, Fault | None]:
    """The number, and why none can be told. demand: what each of so many GPUs needs; held: the model's instances with GPUs."""
    where = f"llm_fleet_models[{model['name']}].gpus"
    hosts = {node["name"]: node for node in nodes}
    if held and all(_holds(demand(len(one["gpus"])), hosts.get(one["host"], {}), one["gpus"]) for one in held):
        return max(len(one["gpus"]) for one in held), None
    one = demand(1)
    if one.needed is None:
        fix = "write the number of GPUs, or what a replica takes of each in limits.gpu_memory"
        return 1, Fault(f"'auto' has no estimate to go by: {one.why}", where, fix)
    measured = [_measured(model, node) for node in nodes if matches(model, node)]
    if not any(measured):
        fix = "get their drivers up (hosts.yml), open placement to other hosts, or write the number"
        return 1, Fault("'auto' finds no GPU that says how large it is on the hosts that placement allows", where, fix)
    most = min(MOST_GPUS, max(1, *(len(_together(gpus, 2)) for gpus in measured)))
    possible = [count for count in range(1, most + 1) if demand(count).divides]
    enough = (count for count in possible if any(_enough(demand(count), gpus, count) for gpus in measured))
    # Where none is enough, the plan says of each host why not, for the most that one could give it.
    return next(enough, possible[-1]), None


def _holds(demand: Demand, host: dict, gpus: list[str]) -> bool:
    """Whether GPUs that a replica has can hold it. Of one that says nothing it is not known, and it stays."""
    return demand.divides and all(demand.fits(host, gpu) for gpu in gpus)


def _measured(model: dict, node: dict) -> list[tuple[dict, str]]:
    """The GPUs of a node that the model may have and that tell their size."""
    known = node.get("gpu_memory") or {}
    return [(node, gpu) for gpu in node["gpus"] if gpu in known and gpu_allowed(model, node, gpu)]


def _together(gpus: list[tuple[dict, str]], count: int) -> list[tuple[dict, str]]:
    """A program computes on one MIG device only."""
    return [one for one in gpus if count == 1 or not one[1].startswith(MIG)]


def _enough(demand: Demand, gpus: list[tuple[dict, str]], count: int) -> bool:
    return sum(demand.fits(node, gpu) for node, gpu in _together(gpus, count)) >= count
