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

SURGE, REPLACE, AUTO = "surge", "replace", "auto"
STRATEGIES = (AUTO, SURGE, REPLACE)
GIB = 2**30
# Weights take about the size of their files; context, graphs and fragments come on top. Engines that claim most of a GPU
# at their start (vLLM does) leave no room that this could find, and are replaced.
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
    now, while the old instances run. GPUs of a new instance: those of the old one where they have room for both,
    otherwise idle ones of the same host.
    """
    same = {instance["replica"]: instance["gpus"] for instance in instances}
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


def gpu_bytes(record: dict[str, Any]) -> int:
    """GPU memory that a release is taken to need, on all its GPUs together: an estimate from the size of its files."""
    return int(record["size"] * GPU_FACTOR) + GPU_BASE


def _seat(members: list[dict], record: dict[str, Any], host: dict[str, Any]) -> tuple[dict[int, list[str]], list[str]]:
    """GPUs for the new instances on one host, and what it lacks."""
    gpus: dict[int, list[str]] = {}
    lacking = []
    needed = (record["container"].get("memory_bytes") or 0) * len(members)
    free = host.get("memory_free", 0)
    if free < needed:
        lacking.append(f"{needed / GIB:.1f} GiB of memory are needed beside what runs, {free / GIB:.1f} GiB are free")
    idle = list(host.get("gpus_idle", []))
    for instance in members:
        count = len(instance["gpus"])
        if count == 0:
            continue
        each = ceil(gpu_bytes(record) / count)
        if all(host.get("gpu_free", {}).get(gpu, 0) >= each for gpu in instance["gpus"]):
            gpus[instance["replica"]] = instance["gpus"]
        elif len(idle) >= count:
            gpus[instance["replica"]], idle = idle[:count], idle[count:]
        else:
            lacking.append(f"neither {each / GIB:.1f} GiB free on each GPU of {instance['id']} nor {count} idle GPUs")
    return gpus, lacking


def make_batches(replicas: list[int], wanted: list[int | str], most: int) -> list[list[int]]:
    """Replicas in batches.

    wanted: how many are to have switched after each stage, as a number or in per cent ("25%", rounded up).
    most: how many may be away at once; a larger stage becomes several batches.
    """
    batches: list[list[int]] = []
    done = 0
    for stage in [*wanted, "100%"]:
        goal = stage if isinstance(stage, int) else ceil(len(replicas) * int(stage.rstrip("%")) / 100)
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
