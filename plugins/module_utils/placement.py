# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Where a new replica goes. What stands already is never moved to make room for it."""

from __future__ import annotations

from collections import Counter
from fnmatch import fnmatchcase
from typing import NamedTuple

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault


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


class Room:
    """Who sits where, and which GPUs are free. A GPU belongs to one instance in the whole fleet."""

    def __init__(self, hosts: list, staying: list, going: list):
        self.hosts = {host["name"]: host for host in sorted(hosts, key=lambda host: host["name"])}
        taken = {gpu for instance in staying for gpu in instance["gpus"]}
        # A leaving instance holds its GPUs until it is drained, and that is after the new ones have started.
        held = {gpu for instance in going for gpu in instance["gpus"]} - taken
        self.free = {name: [gpu for gpu in it["gpus"] if gpu not in taken | held] for name, it in self.hosts.items()}
        self.soon = {name: [gpu for gpu in it["gpus"] if gpu in held] for name, it in self.hosts.items()}
        replicas = {(instance["host"], instance["model"], instance["replica"]) for instance in staying}
        self.of_model = Counter((host, model) for host, model, _replica in replicas)
        self.of_all = Counter(host for host, _model, _replica in replicas)

    def best(self, model: dict, candidates: list, after_leaving: bool = False) -> str | None:
        """The host for one more replica, now or when all that leaves has left."""
        fitting = []
        for host in candidates:
            left = len(self.free[host]) - model["gpus"] + (len(self.soon[host]) if after_leaving else 0)
            if self.hosts[host]["reachable"] and left >= 0:
                fitting.append((self.of_model[host, model["name"]], -left, self.of_all[host], host))
        return min(fitting)[-1] if fitting else None

    def take(self, model: dict, host: str) -> list:
        """Gives away the first free GPUs of a host, and those that become free after them."""
        gpus = [*self.free[host], *self.soon[host]][: model["gpus"]]
        for pool in (self.free, self.soon):
            pool[host] = [gpu for gpu in pool[host] if gpu not in gpus]
        self.of_model[host, model["name"]] += 1
        self.of_all[host] += 1
        return gpus


def matches(model: dict, host: str) -> bool:
    """True when the model may run on the host."""
    return any(fnmatchcase(host, pattern) for pattern in model["placement"]["hosts"])


def is_wanted(instance: dict, model: dict | None) -> bool:
    """True when the catalog wants this replica, and allows it on its host."""
    if model is None or not matches(model, instance["host"]):
        return False
    return model["replicas"] == "all" or instance["replica"] < model["replicas"]


def place(models: list, hosts: list, staying: list, going: list) -> Placement:
    """Finds a seat for every wanted replica that has none yet.

    Models with most GPUs choose first, then those with the fewest hosts to choose from: the rest fits around
    them.
    """
    room = Room(hosts, staying, going)
    result = Placement([], [], [])

    def choosy(model):
        candidates = sum(matches(model, host) for host in room.hosts)
        return -model["gpus"], model["replicas"] != "all", candidates, model["name"]

    for model in sorted(models, key=choosy):
        homeless = []
        for replica, candidates in _missing(model, room, staying):
            host = room.best(model, candidates)
            later = None if host else room.best(model, candidates, after_leaving=True)
            if host:
                result.seats.append(Seat(model["name"], replica, host, room.take(model, host)))
            elif later:
                room.take(model, later)  # or the next replica would wait for the same GPUs
                waits = f"for GPUs that become free on {later}: run again then"
                result.waiting.append(f"{model['name']}: replica {replica} waits {waits}")
            elif model["replicas"] == "all" and not room.hosts[candidates[0]]["reachable"]:
                waits = f"until {candidates[0]} can be reached"
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
    eligible = [host for host in room.hosts if matches(model, host)]
    if model["replicas"] != "all":
        yield from ((replica, eligible) for replica in range(model["replicas"]) if replica not in numbers)
        return
    unused = (number for number in range(len(numbers) + len(eligible)) if number not in numbers)
    served = {instance["host"] for instance in own}
    yield from zip(unused, ([host] for host in eligible if host not in served))


def _no_room(model: dict, homeless: list, room: Room) -> Fault:
    """Says of every host why it can't take the model, hosts with the same reason together."""
    reasons: dict = {}
    for name, host in room.hosts.items():
        if not matches(model, name):
            reason = "not in placement.hosts"
        elif not host["reachable"]:
            reason = "can't be reached"
        else:
            reason = f"{len(room.free[name])} of {len(host['gpus'])} GPUs free"
        reasons.setdefault(reason, []).append(name)
    lacks = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in sorted(reasons.items()))
    numbers = ", ".join(map(str, homeless))
    return Fault(
        f"no host can take replica {numbers} of {model['name']} with {model['gpus']} GPUs each"
        f" ({lacks or 'there are no hosts'})",
        f"llm_fleet_models[{model['name']}].placement",
        "Ask for fewer replicas or GPUs, open placement.hosts to more hosts, or add a host",
    )
