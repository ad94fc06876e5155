# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What people read about memory: why something does not fit and what would, and what is tight or not known. Pure: no I/O."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Callable

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.fit import Demand, Memory, machine_room
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.memory import CACHE_TYPES, MARGIN

GIB = 2**30
LEAST_CONTEXT = 512
# Steps in which people choose a context; an advice of 12 877 tokens would look like more than an estimate.
CONTEXT_STEP = 256


def gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def parts(demand: Demand) -> str:
    """What a replica needs, and of what that is the sum."""
    where = "on each GPU" if demand.gpus else "of memory"
    if demand.override is not None and demand.gpus:
        return f"{gib(demand.override)} {where} (limits.gpu_memory)"
    found = demand.estimate
    named = (("weights", found.weights), ("cache", found.kv_cache), ("buffers", found.buffers), ("engine", found.overhead))
    said = ", ".join(f"{name} {size / GIB:.1f}" for name, size in named)
    return f"{gib(found.total)} {where} ({said})"


def advice(model: dict[str, Any], memory: Memory, room: int, gpu_counts: dict[int, int], others: Iterable[str]) -> str:
    """What would fit into `room` bytes, one change at a time.

    gpu_counts: {number of GPUs: the room that each of so many has on some host}. others: hosts that have room and may not take it.
    """
    name, demand, record = model["name"], memory.of_model(model["name"]), memory.releases[model["name"]]
    others = sorted(others)
    found: list[str] = []
    if demand.estimate is not None and (demand.override is None or not demand.gpus):
        facts = record["fit"]

        def fits(**changes: Any) -> bool:
            return memory.of_model(name, **changes).needed <= room

        slots = record["parallel"] if facts["sequences"] == "parallel" else 1
        fewer = _largest(1, slots - 1, lambda count: fits(sequences=count))
        found += [f"parallel: {fewer}"] if fewer else []
        steps = _largest(LEAST_CONTEXT // CONTEXT_STEP, (record["context"] - 1) // CONTEXT_STEP, lambda n: fits(context=n * CONTEXT_STEP))
        found += [f"context: {steps * CONTEXT_STEP}"] if steps else []
        found += _narrower(facts, fits)
        left = room - (demand.estimate.total - demand.estimate.weights)
        if 0 < left < demand.estimate.weights:
            found.append(f"a smaller quantization (weights of {gib(left)} in place of {gib(demand.estimate.weights)} {_each(demand)})")
    for count, each in sorted(gpu_counts.items()):
        more = memory.of_model(name, count)
        if count > demand.gpus and demand.gpus and demand.override is None and more.divides and (more.needed or 0) <= each:
            found.append(f"gpus: {count}")
            break
    if others:
        found.append(f"placement.hosts with {', '.join(others)}")
    none = f"no single change would do: choose a smaller model, or {'larger GPUs' if demand.gpus else 'a larger host'}"
    said = "any one of these would fit: " + "; ".join(found) if found else none
    wrong = "; where the estimate is wrong, limits.gpu_memory takes its place" if demand.gpus else ""
    return f"{said}{wrong} (docs/fit.md)"


def _each(demand: Demand) -> str:
    return "on each GPU" if demand.gpus > 1 else "in all"


def _narrower(facts: dict[str, Any], fits: Callable[..., bool]) -> list[str]:
    """The widest number format of the cache that fits and that the engine can be told."""
    offered = facts.get("types")
    if not offered:
        return []
    now = max(_bits(facts["key_type"]), _bits(facts["value_type"]))
    for kind in sorted(offered["choices"], key=_bits, reverse=True):
        if _bits(kind) < now and fits(key_type=kind, value_type=kind, flash=True):
            return [" and ".join(f"settings.{name}: {kind}" for name in offered["settings"])]
    return []


def _bits(kind: str) -> float:
    size, count = CACHE_TYPES.get(kind, CACHE_TYPES["f16"])
    return size / count


def _largest(least: int, most: int, fits: Callable[[int], bool]) -> int:
    """The largest number that fits; 0 where none does. Whatever is below one that fits, fits too."""
    if most < least or not fits(least):
        return 0
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if fits(middle) else (least, middle - 1)
    return least


def warnings(instances: list[dict], hosts: Iterable[dict], memory: Memory) -> list[str]:
    """What is not known, what runs although it does not fit, and what fits with little to spare."""
    fleet = {host["name"]: host for host in hosts if host["reachable"]}
    mine = [it for it in instances if it["host"] in fleet]
    return [*_unknown(mine, memory), *_unmeasured(mine, fleet, memory), *_gpus(mine, fleet, memory), *_machines(mine, fleet, memory),
            *_limits(memory)]


def _unknown(instances: list[dict], memory: Memory) -> list[str]:
    used = {instance["model"] for instance in instances}
    found = []
    for name in sorted(used & set(memory.models) & set(memory.releases)):
        demand = memory.of_model(name)
        if demand.needed is None:
            also = ", or say limits.gpu_memory" if demand.gpus else ""
            found.append(f"{name}: memory not checked, because {demand.why}{also}")
    return found


def _unmeasured(instances: list[dict], fleet: dict[str, dict], memory: Memory) -> list[str]:
    def silent(instance: dict) -> bool:
        demand = memory.of_instance(instance)
        return demand.needed is not None and any(demand.room(fleet[instance["host"]], gpu) is None for gpu in instance["gpus"])

    hosts = sorted({instance["host"] for instance in instances if silent(instance)})
    return [f"{host}: memory not checked, because its GPUs do not say how much they have (no driver yet?)" for host in hosts]


def _gpus(instances: list[dict], fleet: dict[str, dict], memory: Memory) -> list[str]:
    """Two releases of a model may share GPUs while a rollout is open, so that what counts is the sum."""
    sums: dict[tuple, int] = defaultdict(int)
    for instance in instances:
        for gpu in instance["gpus"]:
            sums[instance["host"], gpu] += memory.of_instance(instance).needed or 0
    found = []
    for instance in instances:
        host, demand = fleet[instance["host"]], memory.of_instance(instance)
        rooms = [(demand.room(host, gpu), sums[host["name"], gpu]) for gpu in instance["gpus"]]
        known = [(needed / room if room else 2.0, needed, room) for room, needed in rooms if room is not None and needed]
        if known:
            found += _tight(f"{host['name']}: {instance['id']}", *max(known), "of each GPU")
    return found


def _machines(instances: list[dict], fleet: dict[str, dict], memory: Memory) -> list[str]:
    found = []
    for name, host in sorted(fleet.items()):
        here = [instance for instance in instances if instance["host"] == name and not instance["gpus"]]
        needed, room = sum(map(memory.on_cpu, here)), machine_room(host)
        if here and room is not None:
            names = ", ".join(sorted(instance["id"] for instance in here))
            found += _tight(f"{name}: {names}", needed / room if room else 2.0, needed, room, "of memory")
    return found


def _tight(what: str, ratio: float, needed: int, room: int, of: str) -> list[str]:
    if ratio > 1:
        return [f"{what}: by the estimate {gib(needed)} {of} are needed, and {gib(room)} are there; what runs is left alone"]
    if ratio > 1 - MARGIN:
        return [f"{what}: {gib(needed)} of {gib(room)} {of} are needed: under {MARGIN:.0%} are left, as much as the estimate may be off"]
    return []


def _limits(memory: Memory) -> list[str]:
    """A container that may have less than its engine needs is killed in the middle of its work."""
    found = []
    for name in sorted(set(memory.models) & set(memory.releases)):
        demand, container = memory.of_model(name), memory.releases[name].get("container") or {}
        limit = container.get("memory_bytes")
        if demand.gpus == 0 and demand.needed is not None and limit and limit < demand.needed:
            needs = f"by the estimate needs {gib(demand.needed)}"
            found.append(f"{name}: its container may have {gib(limit)}, and {needs}: raise limits.memory")
    return found
