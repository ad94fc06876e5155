# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""How a model gets from one release to another: which strategy its hosts have room for, and in which batches. Pure: no I/O.

`surge` starts the new instance beside the old one and keeps the old one loaded until the rollout is over: no replica is
missing at any moment, and the way back takes a second. `replace` stops the old instance before the new one starts: it
needs no room, and each replica is away while its engine loads. `auto` is surge where every host has room, else replace.

The steps of each are in playbooks/tasks/rollout/<strategy>.yml.
"""

from __future__ import annotations

from collections import defaultdict
from math import ceil
from typing import Any, NamedTuple

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.fit import Demand, demand_of
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.fit_text import gib, parts

SURGE, REPLACE, AUTO = "surge", "replace", "auto"
STRATEGIES = (AUTO, SURGE, REPLACE)
GIB = 2**30
# Where there is no estimate (fit.py): weights take about the size of their files; context, graphs and fragments come on top.
GPU_FACTOR = 1.2
GPU_BASE = GIB


class Choice(NamedTuple):
    """What `choose` found: the strategy, the GPUs of each new instance, and what stands against surge (a sentence a host)."""

    name: str
    gpus: dict[int, list[str]]
    lacking: list[str]


def choose(asked: str, instances: list[dict], record: dict[str, Any], hosts: dict[str, dict]) -> Choice:
    """The strategy for instances that are to run `record`.

    hosts: {name: {"memory_free": bytes, "gpu_free": {UUID: bytes}, "gpus_idle": UUIDs that no instance has}}, as measured
    now, while the old instances run; with "gpu_memory" and "gpu_memory_reserve" where it is known how large the GPUs are.
    GPUs of a new instance: those of the old one where they have room for both, otherwise idle ones of the same host.
    """
    same = _own(instances, record, hosts)
    if asked == REPLACE:
        return Choice(REPLACE, same, [])
    by_host: dict[str, list[dict]] = defaultdict(list)
    for instance in instances:
        by_host[instance["host"]].append(instance)
    gpus: dict[int, list[str]] = {}
    lacking = []
    for name, members in sorted(by_host.items()):
        found, lack = _seat(members, record, hosts.get(name, {}))
        gpus.update(found)
        lacking += [f"{name}: {sentence}" for sentence in lack]
    if lacking and asked == AUTO:
        return Choice(REPLACE, same, lacking)
    return Choice(SURGE, {**same, **gpus}, lacking)


def too_large(instances: list[dict], record: dict[str, Any], hosts: dict[str, dict]) -> list[str]:
    """What stands against `record` on GPUs that it is to have for itself alone, a sentence an instance."""
    found = []
    for instance in instances:
        demand, host = demand_of(record, len(instance["gpus"])), hosts.get(instance["host"], {})
        small = [gpu for gpu in instance["gpus"] if not demand.fits(host, gpu)]
        if small:
            room = gib(demand.room(host, small[0]))
            found.append(f"{instance['host']}: {instance['id']} needs {parts(demand)}, and {small[0]} has {room}")
        elif not demand.divides:
            found.append(f"{instance['host']}: the {demand.gpus} GPUs of {instance['id']} cannot share the model's attention heads evenly")
    return found


def gpu_count(record: dict[str, Any], instance: dict) -> int:
    """The GPUs that a release gets in the place of an instance: as many as the catalog says, or as there are where it was built earlier."""
    return record.get("gpus", len(instance["gpus"]))


def _own(instances: list[dict], record: dict[str, Any], hosts: dict[str, dict]) -> dict[int, list[str]]:
    """The GPUs that new instances find where the old ones have stopped, with idle ones of the host where they need more."""
    idle = {instance["host"]: list(hosts.get(instance["host"], {}).get("gpus_idle", [])) for instance in instances}
    gpus = {}
    for instance in instances:
        found = [*instance["gpus"], *idle[instance["host"]]][: gpu_count(record, instance)]
        idle[instance["host"]] = [gpu for gpu in idle[instance["host"]] if gpu not in found]
        gpus[instance["replica"]] = found
    return gpus


def gpu_bytes(record: dict[str, Any]) -> int:
    """GPU memory that a release is taken to need without an estimate, on all its GPUs together: from the size of its files."""
    return int(record["size"] * GPU_FACTOR) + GPU_BASE


def _each(record: dict[str, Any], demand: Demand, host: dict[str, Any], gpu: str) -> int:
    """Bytes that a new instance takes of a GPU: by the estimate, or all of the share that its engine claims."""
    if demand.needed is None:
        return ceil(gpu_bytes(record) / demand.gpus)
    room = demand.room(host, gpu)
    return room if demand.share is not None and room is not None else demand.needed


def _memory(record: dict[str, Any], instance: dict) -> int:
    """Bytes of the machine's memory for a new instance: its container may have no more than its limit."""
    limit = record["container"].get("memory_bytes") or 0
    needed = demand_of(record, 0).needed
    return limit if instance["gpus"] or needed is None else min(limit, needed) or needed


def _seat(members: list[dict], record: dict[str, Any], host: dict[str, Any]) -> tuple[dict[int, list[str]], list[str]]:
    """GPUs for the new instances on one host, and what it lacks."""
    gpus: dict[int, list[str]] = {}
    lacking = []
    needed = sum(_memory(record, instance) for instance in members)
    free = host.get("memory_free", 0)
    if free < needed:
        lacking.append(f"{needed / GIB:.1f} GiB of memory are needed beside what runs, {free / GIB:.1f} GiB are free")
    idle = list(host.get("gpus_idle", []))
    for instance in members:
        count = gpu_count(record, instance)
        if count == 0:
            continue
        demand, gpu_free = demand_of(record, count), host.get("gpu_free", {})
        large = [gpu for gpu in idle if demand.fits(host, gpu)]
        own = count == len(instance["gpus"])
        if own and all(gpu_free.get(gpu, 0) >= _each(record, demand, host, gpu) for gpu in instance["gpus"]):
            gpus[instance["replica"]] = instance["gpus"]
        elif len(large) >= count:
            gpus[instance["replica"]] = large[:count]
            idle = [gpu for gpu in idle if gpu not in large[:count]]
        else:
            each = max((_each(record, demand, host, gpu) for gpu in [*instance["gpus"], *idle]), default=0)
            lacking.append(f"neither {each / GIB:.1f} GiB free on each GPU of {instance['id']} nor {count} idle GPUs")
    return gpus, lacking


def per_cent(share: str, count: int) -> int:
    """How many of `count` a share such as "25%" is, rounded up."""
    return ceil(count * int(share.rstrip("%")) / 100)


def make_batches(replicas: list[int], wanted: list[int | str], most: int) -> list[list[int]]:
    """Replicas in batches.

    wanted: how many are to have switched after each stage, as a number or in per cent ("25%", rounded up).
    most: how many may be away at once; a larger stage becomes several batches.
    """
    batches: list[list[int]] = []
    done = 0
    for stage in [*wanted, "100%"]:
        goal = stage if isinstance(stage, int) else per_cent(stage, len(replicas))
        while done < min(goal, len(replicas)):
            size = min(most, min(goal, len(replicas)) - done)
            batches.append(replicas[done : done + size])
            done += size
    return batches


def most_at_once(strategy: str, replicas: int, unavailable: int | str) -> int:
    """How many replicas a batch may have: all of them with surge, at least one and never all of several with replace."""
    if strategy == SURGE:
        return max(1, replicas)
    allowed = unavailable if isinstance(unavailable, int) else replicas * int(unavailable.rstrip("%")) // 100
    return max(1, min(allowed, replicas - 1))
