# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Whether a release fits: what it needs by the estimate (memory.py), and what GPUs and machines have for it. Pure: no I/O.

What the estimate needs is kept in a release's record under `fit`, so that the plan also knows it of releases that the catalog has
left behind. It is no part of the release's hash: another estimate is no reason to start an engine anew.

Where something is not known (a model without a shape, a GPU without a driver) nothing is refused; fit_text.py says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.memory import (
    CACHE_TYPES,
    Estimate,
    Load,
    estimate,
    tensor_parallel_sizes,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.words import size_bytes

MIB = 2**20
MOST_GPUS = 64  # as the catalog allows
# Of a process that computes on the CPU, where the profile says nothing else.
CPU_OVERHEAD_MB = 256
PLANNED_EARLIER = "what it runs was planned before its memory was known: roll out what the lockfile has now"


def fit_facts(profile: dict[str, Any], model: dict[str, Any], lock_entry: dict[str, Any]) -> dict[str, Any]:
    """All that the estimate of a release needs, for its record; `why` says what it lacks."""
    limit = (model.get("limits") or {}).get("gpu_memory")
    override = {"override": size_bytes(limit)} if limit else {}
    spec, chosen, shape = profile.get("gpu_memory"), model.get("settings") or {}, lock_entry.get("shape")
    if spec is None:
        return {**override, "why": f"the profile of the engine '{profile['name']}' has no gpu_memory: add it there"}
    moved = [name for name in spec.get("unchecked") or [] if chosen.get(name) is not None]
    if moved:
        return {**override, "why": f"settings.{moved[0]} puts parts of it where the estimate cannot follow: leave it out"}
    if shape is None:
        return {**override, "why": "the lockfile does not have its shape: lock again"}

    def setting(name: str | None, default: Any) -> Any:
        value = chosen.get(name) if name else None
        if value is None and name:
            value = profile["settings"].get(name, {}).get("default")
        return default if value is None else value

    types, share, flash = spec.get("cache_types") or {}, spec.get("share"), spec.get("flash_attention")
    default_type = types.get("default") or "f16"
    facts = {
        **override,
        "shape": shape,
        "sequences": spec["sequences"],
        "key_type": setting(types.get("key"), default_type),
        "value_type": setting(types.get("value"), default_type),
        "types": _offered(profile, types),
        "batch": setting(spec["batch"].get("setting"), spec["batch"]["default"]),
        "flash": flash is None or setting(flash["setting"], None) != flash["off"],
        "tensor_parallel": bool(spec.get("tensor_parallel")),
        "share": setting(share.get("setting"), share["default"]) if share else None,
        "gpu_layers": setting(spec.get("gpu_layers"), None),
        "overhead": spec["overhead_mb"] * MIB,
        "cpu_overhead": (CPU_OVERHEAD_MB if spec.get("cpu_overhead_mb") is None else spec["cpu_overhead_mb"]) * MIB,
    }
    return {key: value for key, value in facts.items() if value is not None}


def _offered(profile: dict[str, Any], types: dict[str, Any]) -> dict[str, Any] | None:
    """The settings that choose the cache's number format, and what they may be: for advice."""
    names = sorted({types[side] for side in ("key", "value") if types.get(side)})
    if not names:
        return None
    choices = [set(profile["settings"][name].get("choices") or CACHE_TYPES) for name in names]
    return {"settings": names, "choices": sorted(set.intersection(*choices) & set(CACHE_TYPES))}


@dataclass(frozen=True)
class Demand:
    """What one replica needs of each of its GPUs, or of its machine where it has none."""

    gpus: int
    estimate: Estimate | None = None
    override: int | None = None
    why: str = ""  # there is no estimate
    share: float | None = None  # of each GPU, which the engine takes whatever it needs
    sizes: tuple[int, ...] = ()  # numbers of GPUs that can share the model's heads; empty where that is no matter

    @property
    def needed(self) -> int | None:
        """Bytes, or None where nobody knows."""
        if self.override is not None and self.gpus:
            return self.override
        return self.estimate.total if self.estimate else None

    def room(self, host: dict[str, Any], gpu: str) -> int | None:
        """Bytes of a GPU that it may have; None where the host does not say how large that is."""
        total = (host.get("gpu_memory") or {}).get(gpu)
        if total is None:
            return None
        room = total - host.get("gpu_memory_reserve", 0)
        return max(0, room if self.share is None else min(room, floor(total * self.share)))

    def fits(self, host: dict[str, Any], gpu: str) -> bool:
        room = self.room(host, gpu)
        return self.needed is None or room is None or self.needed <= room

    @property
    def divides(self) -> bool:
        """Whether so many GPUs can share the model at all."""
        return self.gpus <= 1 or not self.sizes or self.gpus in self.sizes


def demand_of(record: dict[str, Any] | None, gpus: int, override: int | None = None, **changes: Any) -> Demand:
    """The demand of a replica of this release on so many GPUs. `changes` are fields of its Load: for advice."""
    facts = (record or {}).get("fit") or {}
    override = facts.get("override") if override is None else override
    shape = facts.get("shape")
    if shape is None:
        return Demand(gpus, None, override, facts.get("why") or PLANNED_EARLIER)
    load = {
        "context": record["context"],
        "sequences": record["parallel"] if facts["sequences"] == "parallel" else 1,
        "gpus": max(1, gpus),
        "tensor_parallel": facts["tensor_parallel"],
        "paged": facts.get("share") is not None,
        # Without GPUs everything is in the machine's memory.
        "gpu_layers": facts.get("gpu_layers") if gpus else None,
        "overhead": facts["overhead"] if gpus else facts["cpu_overhead"],
        **{key: facts[key] for key in ("key_type", "value_type", "batch", "flash")},
        **changes,
    }
    sizes = tuple(tensor_parallel_sizes(shape, MOST_GPUS)) if facts["tensor_parallel"] else ()
    return Demand(gpus, estimate(shape, Load(**load)), override, "", facts.get("share"), sizes)


def takes(demand: Demand, total: int | None) -> int | None:
    """Bytes that a replica takes of a GPU with so many: what it needs, or the share that its engine takes whatever it needs."""
    if demand.share is None:
        return demand.needed
    return None if total is None else floor(total * demand.share)


class Memory:
    """What models and instances of one plan need."""

    def __init__(self, models: dict[str, dict], releases: dict[str, dict], known: dict[str, dict]) -> None:
        """models: the catalog's, by name; releases: the record that new replicas of each get; known: all records, by release."""
        self.models = models
        self.releases = releases
        self.known = known

    def of_model(self, name: str, gpus: int | None = None, **changes: Any) -> Demand:
        """Of a new replica."""
        model = self.models.get(name, {})
        return demand_of(self.releases.get(name), model.get("gpus", 0) if gpus is None else gpus, self._override(name), **changes)

    def of_instance(self, instance: dict[str, Any]) -> Demand:
        """Of one that runs, or is to run."""
        override = self._override(instance["model"])
        return demand_of(self.known.get(instance["release"]), len(instance["gpus"]), override)

    def on_cpu(self, instance: dict[str, Any]) -> int:
        """Bytes of its machine's memory; at least what its files have, where there is no estimate. 0 for those with GPUs."""
        if instance["gpus"]:
            return 0
        needed = self.of_instance(instance).needed
        return (self.known.get(instance["release"]) or {}).get("size", 0) if needed is None else needed

    def _override(self, name: str) -> int | None:
        limit = (self.models.get(name, {}).get("limits") or {}).get("gpu_memory")
        return size_bytes(limit) if limit else None


def machine_room(host: dict[str, Any]) -> int | None:
    """Bytes of a machine's memory for replicas without GPUs; None where it does not say how much it has."""
    total = host.get("memory")
    return None if total is None else max(0, total - host.get("memory_reserve", 0))
