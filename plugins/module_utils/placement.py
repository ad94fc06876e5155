# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Where a new replica goes. What stands already is never moved to make room for it."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.fit import Demand, Memory
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.fit_text import advice, gib, parts
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.placement_rules import gpu_allowed, matches, per_host, refusal
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.room import MIG, Room


class Seat(NamedTuple):
    """A place for one new replica."""

    model: str
    replica: int
    host: str
    gpus: list


class Placement(NamedTuple):
    """Seats for new replicas, sentences about those that wait, and faults about those that fit nowhere."""

    seats: list
    waiting: list
    faults: list


def place(models: list, hosts: list, staying: list, going: list, memory: Memory | None = None) -> Placement:
    """Finds a seat for every wanted replica that has none yet.

    Models with most GPUs choose first, of those the ones that need the largest, then those with the fewest hosts to choose
    from: the rest fits around them. memory: what replicas need; without it nothing is known of that.
    """
    memory = memory or Memory({model["name"]: model for model in models}, {}, {})
    room = Room(hosts, staying, going, memory)
    result = Placement([], [], [])

    def choosy(model):
        candidates = sum(matches(model, host) for host in room.hosts.values())
        needed = memory.of_model(model["name"]).needed or 0
        return -model["gpus"], -needed if model["gpus"] else 0, model["replicas"] != "all", candidates, model["name"]

    for model in sorted(models, key=choosy):
        homeless = []
        demand = memory.of_model(model["name"])
        if not demand.divides and any(True for _missed in _missing(model, room, staying)):
            result.faults.append(_no_division(model, demand))
            continue
        for replica, candidates in _missing(model, room, staying):
            host = room.best(model, candidates)
            later = None if host else room.best(model, candidates, after_leaving=True)
            if host:
                result.seats.append(Seat(model["name"], replica, host, room.take(model, host)))
            elif later:
                room.take(model, later)  # or the next replica would wait for the same GPUs
                what = "GPUs that become" if model["gpus"] else "memory that becomes"
                waits = f"for {what} free on {later}: run again then"
                result.waiting.append(f"{model['name']}: replica {replica} waits {waits}")
            elif model["replicas"] == "all" and not room.hosts[candidates[0]]["reachable"]:
                away = "is back from maintenance" if room.hosts[candidates[0]].get("maintenance") else "can be reached"
                waits = f"until {candidates[0]} {away}"
                result.waiting.append(f"{model['name']}: replica {replica} waits {waits}")
            else:
                homeless.append(replica)
        if homeless:
            result.faults.append(_no_room(model, homeless, room))
    return result


def _missing(model: dict, room: Room, staying: list):
    """Yields (replica number, hosts that may take it) for each wanted replica that has no instance."""
    own = [instance for instance in staying if instance["model"] == model["name"]]
    numbers = {instance["replica"] for instance in own}
    eligible = [name for name, host in room.hosts.items() if matches(model, host)]
    if model["replicas"] != "all":
        yield from ((replica, eligible) for replica in range(model["replicas"]) if replica not in numbers)
        return
    served = Counter(host for host, _replica in {(instance["host"], instance["replica"]) for instance in own})
    lacking = [host for host in eligible for _one in range(per_host(model) - served[host])]
    unused = (number for number in range(len(numbers) + len(lacking)) if number not in numbers)
    yield from zip(unused, ([host] for host in lacking))


def _no_division(model: dict, demand: Demand) -> Fault:
    """Tensor parallelism gives every GPU the same number of heads."""
    sizes = ", ".join(str(size) for size in demand.sizes if size <= max(16, 2 * model["gpus"]))
    return Fault(
        f"{model['gpus']} GPUs cannot share the attention heads of {model['name']} evenly",
        f"llm_fleet_models[{model['name']}].gpus",
        f"Give it a number of GPUs that divides them: {sizes}",
    )


def _no_room(model: dict, homeless: list, room: Room) -> Fault:
    """Says of every host why it can't take the model, hosts with the same reason together."""
    demand = room.memory.of_model(model["name"])
    reasons: dict = {}
    small = False
    for name, host in room.hosts.items():
        if refusal(model, host):
            reason = refusal(model, host)
        elif not host["reachable"]:
            reason = "in maintenance" if host.get("maintenance") else "can't be reached"
        elif room.neighbours(model, name):
            reason = f"runs {', '.join(room.neighbours(model, name))}, which it is to be apart from"
        elif not room.has_memory(demand, name):
            small, reason = True, f"{gib(max(0, room.left(name)))} of memory left"
        else:
            small, reason = _gpu_reason(model, demand, room, name, small)
        reasons.setdefault(reason, []).append(name)
    lacks = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in sorted(reasons.items()))
    numbers = ", ".join(map(str, homeless))
    needs = f", which needs {parts(demand)}," if small else ""
    fix = "Ask for fewer replicas or GPUs, open placement.hosts to more hosts, or add a host"
    return Fault(
        f"no host can take replica {numbers} of {model['name']}{needs} with {model['gpus']} GPUs each"
        f" ({lacks or 'there are no hosts'})",
        f"llm_fleet_models[{model['name']}].placement",
        _what_fits(model, room) if small else fix,
    )


def _gpu_reason(model: dict, demand: Demand, room: Room, name: str, small: bool) -> tuple[bool, str]:
    """Whether GPUs are too small, on this host or another, and what there is on this one."""
    host = room.hosts[name]
    free = [gpu for gpu in room.free(name) if gpu_allowed(model, host, gpu)]
    large = [gpu for gpu in room.large_enough(model, demand, name) if gpu in free]
    kind = f" that are {' or '.join(model['placement']['gpu'])}" if model["placement"].get("gpu") else ""
    reason = f"{len(free)} of {len(host['gpus'])} GPUs free{kind}"
    if model["gpus"] > 1 and any(gpu.startswith(MIG) for gpu in free):
        reason += "; a replica can have only one MIG device"
    if sum(demand.fits(host, gpu) for gpu in free) < len(free):
        small = small or len(free) >= model["gpus"]
        largest = max(size for size in (demand.room(host, gpu) for gpu in free) if size is not None)
        reason += f", {len(large) or 'none'} of them large enough (at most {gib(largest)})"
    return small, reason


def _what_fits(model: dict, room: Room) -> str:
    """Advice for a model that is too large for every host that has GPUs free for it, or memory."""
    demand = room.memory.of_model(model["name"])
    spaces, others, by_count = [0], [], {}
    for name, host in room.hosts.items():
        if not host["reachable"]:
            continue
        if not matches(model, host):
            if room.has_memory(demand, name) and len(room.large_enough(model, demand, name)) >= model["gpus"]:
                others.append(name)
            continue
        if not model["gpus"]:
            spaces.append(room.left(name) or 0)
            continue
        rooms = sorted((demand.room(host, gpu) or 0 for gpu in room.free(name)), reverse=True)
        for count, size in enumerate(rooms, start=1):
            by_count[count] = max(size, by_count.get(count, 0))
        if len(rooms) >= model["gpus"]:
            spaces.append(rooms[model["gpus"] - 1])
    return advice(model, room.memory, max(spaces), by_count, others)
