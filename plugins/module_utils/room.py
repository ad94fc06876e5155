# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Who sits where, and which GPUs and how much memory are free, while new replicas are placed. Pure: no I/O."""

from __future__ import annotations

from collections import Counter, defaultdict

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.fit import Demand, Memory, machine_room, takes
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.placement_rules import gpu_allowed

MIG = "MIG-"


class Room:
    """The hosts of a fleet with what stands on them. A GPU belongs to one instance, or to several whose models all say `share`."""

    def __init__(self, hosts: list, staying: list, going: list, memory: Memory):
        self.hosts = {host["name"]: host for host in sorted(hosts, key=lambda host: host["name"])}
        self.memory = memory
        # {GPU: {model: bytes that it takes, or None where nobody knows}}. A leaving instance holds its GPUs until it is drained, and
        # that is after the new ones have started.
        self.staying: dict = defaultdict(dict)
        self.going: dict = defaultdict(dict)
        for instances, holders in ((staying, self.staying), (going, self.going)):
            for instance in instances:
                for gpu in instance["gpus"]:
                    holders[gpu][instance["model"]] = self.takes(memory.of_instance(instance), instance["host"], gpu)
        replicas = {(instance["host"], instance["model"], instance["replica"]) for instance in staying}
        self.of_model = Counter((host, model) for host, model, _replica in replicas)
        self.of_all = Counter(host for host, _model, _replica in replicas)
        # Of the machine, by replicas without GPUs.
        self.used = Counter()
        self.returned = Counter()
        for instances, counter in ((staying, self.used), (going, self.used), (going, self.returned)):
            for instance in instances:
                counter[instance["host"]] += memory.on_cpu(instance)

    def free(self, host: str) -> list:
        """The GPUs of a host that nobody has."""
        return [gpu for gpu in self.hosts[host]["gpus"] if not self.staying.get(gpu) and not self.going.get(gpu)]

    def soon(self, host: str) -> list:
        """Those that nobody has any more when all that leaves has left."""
        return [gpu for gpu in self.hosts[host]["gpus"] if not self.staying.get(gpu) and self.going.get(gpu)]

    def takes(self, demand: Demand, host: str, gpu: str) -> int | None:
        """Bytes that a replica takes of a GPU."""
        return takes(demand, (self.hosts.get(host, {}).get("gpu_memory") or {}).get(gpu))

    def best(self, model: dict, candidates: list, after_leaving: bool = False) -> str | None:
        """The host for one more replica, now or when all that leaves has left."""
        demand = self.memory.of_model(model["name"])
        fitting = []
        for host in candidates:
            if not self.hosts[host]["reachable"] or self.neighbours(model, host) or not self.has_memory(demand, host, after_leaving):
                continue
            gpus = self.large_enough(model, demand, host, after_leaving)
            if len(gpus) >= model["gpus"]:
                empty = self.free(host) + (self.soon(host) if after_leaving else [])
                left = len(empty) - len(set(self.choose(model, host, gpus)) & set(empty))
                fitting.append((self.beside(model, host), self.of_model[host, model["name"]], -left, self.of_all[host], host))
        return min(fitting)[-1] if fitting else None

    def beside(self, model: dict, host: str) -> int:
        """How many replicas of the model are where the host is, by the label over which they are to be spread."""
        label = model["placement"].get("spread")
        where = (self.hosts[host].get("labels") or {}).get(label) if label else None
        if where is None:
            return 0
        same = [name for name, other in self.hosts.items() if (other.get("labels") or {}).get(label) == where]
        return sum(self.of_model[name, model["name"]] for name in same)

    def neighbours(self, model: dict, host: str) -> list:
        """The models on a host that this one is to be apart from, because it says so or they do."""
        return sorted(name for name, other in self.memory.models.items() if self.of_model[host, name] and apart(model, other))

    def large_enough(self, model: dict, demand: Demand, host: str, after_leaving: bool = False) -> list:
        """The GPUs of a host that the replica fits on: those it may share first, then free ones, and of those the smallest."""
        node = self.hosts[host]

        def suits(gpu: str) -> bool:
            # A program can compute on one MIG device only.
            return gpu_allowed(model, node, gpu) and not (model["gpus"] > 1 and gpu.startswith(MIG))

        found = [[gpu for gpu in pool if suits(gpu)] for pool in (self.shareable(model, demand, host, after_leaving), self.free(host))]
        if after_leaving:
            found.append([gpu for gpu in self.soon(host) if suits(gpu)])
        found[1:] = [[gpu for gpu in pool if demand.fits(node, gpu)] for pool in found[1:]]
        if demand.needed is None:
            return [gpu for pool in found for gpu in pool]
        # GPUs whose size nobody knows come last; among equals, the order of the host.
        rooms = {gpu: demand.room(node, gpu) for pool in found for gpu in pool}
        return [gpu for pool in found for gpu in sorted(pool, key=lambda gpu: (rooms[gpu] is None, rooms[gpu] or 0))]

    def shareable(self, model: dict, demand: Demand, host: str, after_leaving: bool = False) -> list:
        """GPUs that others hold who share them, and that have memory left for one more. Nobody shares with itself."""
        if not model.get("share"):
            return []
        found = []
        for gpu in self.hosts[host]["gpus"]:
            holders = {**self.staying.get(gpu, {}), **({} if after_leaving else self.going.get(gpu, {}))}
            everybody = {**self.staying.get(gpu, {}), **self.going.get(gpu, {})}
            room, needed = self.whole(host, gpu), self.takes(demand, host, gpu)
            known = None not in (room, needed, *holders.values())
            sharing = all(self.memory.models.get(name, {}).get("share") for name in everybody)
            if holders and model["name"] not in everybody and sharing and known and sum(holders.values()) + needed <= room:
                found.append(gpu)
        return found

    def whole(self, host: str, gpu: str) -> int | None:
        """Bytes of a GPU that engines may have together."""
        total = (self.hosts[host].get("gpu_memory") or {}).get(gpu)
        return None if total is None else total - self.hosts[host].get("gpu_memory_reserve", 0)

    def choose(self, model: dict, host: str, gpus: list) -> list:
        """As many as the model wants: of those that NVLink joins, or else at one socket, if there are enough of them."""
        node, count = self.hosts[host], model["gpus"]
        # For one GPU it does not matter where it is, but an island is better left whole for those who need it.
        for key in ("islands", "sockets") if count > 1 else ("islands",):
            groups = defaultdict(list)
            for gpu in gpus:
                if (node.get(key) or {}).get(gpu) is not None:
                    groups[node[key][gpu]].append(gpu)
            enough = [group for group in groups.values() if len(group) >= count]
            if count and enough:
                return min(enough, key=lambda group: (len(group), gpus.index(group[0])))[:count]
        return gpus[:count]

    def has_memory(self, demand: Demand, host: str, after_leaving: bool = False) -> bool:
        """Whether a replica without GPUs fits into the machine beside the others."""
        left = self.left(host, after_leaving)
        return bool(demand.gpus) or demand.needed is None or left is None or demand.needed <= left

    def left(self, host: str, after_leaving: bool = False) -> int | None:
        room = machine_room(self.hosts[host])
        return None if room is None else room - self.used[host] + (self.returned[host] if after_leaving else 0)

    def take(self, model: dict, host: str) -> list:
        """Gives away GPUs of a host that are large enough, free ones before those that are still to be left, or memory of its machine."""
        demand = self.memory.of_model(model["name"])
        gpus = self.large_enough(model, demand, host)
        if len(gpus) < model["gpus"]:
            gpus = self.large_enough(model, demand, host, after_leaving=True)
        gpus = self.choose(model, host, gpus)
        for gpu in gpus:
            self.staying[gpu][model["name"]] = self.takes(demand, host, gpu)
        self.of_model[host, model["name"]] += 1
        self.of_all[host] += 1
        if not gpus:
            self.used[host] += demand.needed or self.memory.releases.get(model["name"], {}).get("size", 0)
        return gpus


def apart(one: dict, other: dict) -> bool:
    """Whether two models are never to stand on one host; a model may be apart from itself."""
    return other["name"] in (one["placement"].get("apart") or ()) or one["name"] in (other["placement"].get("apart") or ())
