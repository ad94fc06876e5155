# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The plan: which instance of which model runs on which host, GPUs and port.

Pure, deterministic and sticky. The same input gives the same plan, in whatever order models and hosts come.
What runs stays where it is: a model or a host that comes moves nothing, and one that goes moves only what
it held.

The plan never changes the release of a model that runs. A wanted release that differs is pending until a
rollout (rollout.py) takes the model there; while one is open, its model stays exactly as it is.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.current_plan import FORMAT, choose_current
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.fit import Memory
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.fit_text import warnings
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.placement import Seat, place
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.placement_rules import is_wanted, per_host
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.plan_text import changes, pending
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.ports import lease
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.rollout import SLOTS, held_releases

__all__ = ["PlanResult", "choose_current", "make_plan"]

NOTHING: dict = {
    "format": FORMAT,
    "generation": 0,
    "ports": {},
    "engines": {},
    "models": {},
    "releases": {},
    "instances": [],
    "rollouts": {},
    "maintenance": {},
}
# What only rollouts write into a model's entry.
OF_ROLLOUTS = ("previous", "rejected", "override")


class PlanResult(NamedTuple):
    """What `make_plan` found out."""

    plan: dict  # what plan.json holds
    leaving: list  # instances that run, or may run, and are not in the plan: to be drained, then removed
    pending: list  # sentences: what is wanted and does not happen in this run
    actions: list  # sentences: what this run changes
    faults: list  # while there is one, the plan must not be applied
    warnings: list = []  # sentences about memory: what is tight, what is not known


def make_plan(
    catalog: list,
    releases_wanted: dict,
    engines: dict,
    hosts: list,
    current: dict | None,
    *,
    port_range: tuple = (20000, 29999),
    running: dict | None = None,
    frozen: bool = False,
) -> PlanResult:
    """Plans the fleet.

    catalog: the models, checked and with defaults filled in.
    releases_wanted: {model: release record} that catalog and lockfile lead to.
    engines: {engine: what gateways, gates and monitors have to know of it}.
    hosts: GPU nodes [{"name", "address", "gpus", "reachable"}]. One that can't be reached keeps what it has. Those that say more have
        "gpu_memory" {UUID: bytes}, "memory" (bytes of the machine), and what is not for engines: "gpu_memory_reserve", "memory_reserve".
    current: the plan that was last applied, or None for a new fleet.
    running: {host: instances by the labels of their containers}, of the hosts that answered.
    frozen: change nothing and only report what is pending (for runs that do not include all gateways).
    """
    before = current or NOTHING
    models = {model["name"]: model for model in catalog}
    # What runs on a host in maintenance stays as it is, and nothing new comes there.
    resting = before.get("maintenance", {})
    hosts = [{**host, "maintenance": host["name"] in resting} for host in hosts]
    hosts = [{**host, "reachable": host["reachable"] and not host["maintenance"]} for host in hosts]
    fleet = {host["name"]: host for host in hosts}

    rolling = before.get("rollouts", {})
    out = {name: entry for name, entry in resting.items() if name in fleet}
    staying = _staying(before["instances"], models, fleet, rolling)
    kept = set(map(_where, staying))
    going = [instance for instance in before["instances"] if _where(instance) not in kept]
    strays = _strays(running or {}, before["instances"], fleet)

    known = {**before["releases"], **{record["release"]: record for record in releases_wanted.values()}}
    releases = _releases(models, before, known, releases_wanted)
    memory = Memory(models, releases, known)
    placement = place([models[name] for name in releases if name not in rolling], hosts, staying, going, memory)
    ports, portless = _lease_ports(placement.seats, staying, going + strays, before["ports"], port_range)
    new = [
        _instance(seat, releases[seat.model], fleet[seat.host], ports, going)
        for seat in placement.seats
        if (seat.model, seat.replica) not in portless
    ]

    instances = sorted(staying + new, key=_order)
    entries = _entries(models, instances, before["models"], releases, releases_wanted)
    ends = {"models": entries, "rollouts": rolling}
    used = {instance["release"] for instance in instances} | held_releases(ends) & set(known)
    spoken = {entry["engine"] for entry in entries.values()} | {known[release]["engine"] for release in used}
    plan = {
        "format": FORMAT,
        "generation": before["generation"],
        "ports": ports,
        "engines": {name: engines.get(name, before["engines"].get(name)) for name in sorted(spoken)},
        "models": entries,
        "releases": {release: known[release] for release in sorted(used)},
        "instances": instances,
        "rollouts": rolling,
        "maintenance": out,
    }
    if plan != current:
        plan["generation"] += 1

    leaving = _leaving(instances, going + strays, known, {**before["engines"], **engines})
    waiting = placement.waiting + pending(plan, models)
    actions = changes(before, plan, leaving)
    if frozen:
        return PlanResult(before, [], waiting + [f"not in this run: {action}" for action in actions], [], [])
    faults = _unlocked(models, releases) + _shared_gpus(hosts) + _cut_short(before, models, fleet)
    faults += placement.faults + _no_ports(portless, port_range)
    return PlanResult(plan, leaving, waiting, actions, faults, warnings(instances, hosts, memory))


def stray_instances(plan: dict, running: dict, hosts: list) -> list:
    """Instances that run on a host though the plan has none of that name there, as `leaving` has them."""
    strays = _strays(running, plan["instances"], {host["name"]: host for host in hosts})
    return _leaving(plan["instances"], strays, plan["releases"], plan["engines"])


def _staying(instances: list, models: dict, fleet: dict, rolling: dict) -> list:
    """The instances that the new plan keeps as they are."""
    staying = []
    on_host = defaultdict(set)  # the replicas on a host, the lowest, of a model with `replicas: all`
    for instance in sorted(instances, key=_order):
        host, model, replica = fleet.get(instance["host"]), models.get(instance["model"]), instance["replica"]
        if host is None:
            continue
        if not host["reachable"] or instance["model"] in rolling:
            staying.append(instance)
        elif is_wanted(instance, model, host) and set(instance["gpus"]) <= set(host["gpus"]):
            same = on_host[model["name"], host["name"]]
            if model["replicas"] == "all" and replica not in same and len(same) >= per_host(model):
                continue
            same.add(replica)
            staying.append({**instance, "address": host["address"]})
    return staying


def _strays(running: dict, instances: list, fleet: dict) -> list:
    """Instances that run on a host though the current plan has none of that name there."""
    known = set(map(_where, instances))
    return [
        {
            **{key: labels[key] for key in ("id", "model", "replica", "slot", "port", "release", "version")},
            "host": host,
            "address": fleet.get(host, {}).get("address", ""),
            "gpus": [],
        }
        for host, found in running.items()
        for labels in found
        if (labels["id"], host) not in known
    ]


def _releases(models: dict, before: dict, known: dict, wanted: dict) -> dict:
    """{model: record} that new replicas get: what the model runs, or the wanted one where it does not run."""
    running = defaultdict(list)
    for instance in before["instances"]:
        running[instance["model"]].append(instance["release"])
    releases = {}
    for name in models:
        if name in running:
            served = before["models"][name]["release"]
            releases[name] = known[served if served in running[name] else running[name][0]]
        elif name in wanted:
            releases[name] = wanted[name]
    return releases


def _lease_ports(seats: list, staying: list, others: list, ledger: dict, port_range: tuple) -> tuple:
    """The new ledger, and the replicas (model, number) for which it has no ports."""
    replicas = {(it["model"], it["replica"]) for it in staying} | {(it.model, it.replica) for it in seats}
    names = {f"{model}/{number}": (model, number) for model, number in sorted(replicas)}
    standing = {it["port"]: f"{it['model']}/{it['replica']}" for it in others + staying}
    ledger, without = lease(ledger, list(names), standing, port_range)
    return ledger, {names[name] for name in without}


def _instance(seat: Seat, record: dict, host: dict, ports: dict, going: list) -> dict:
    """A new instance, in the slot that no instance of the same replica is about to leave.

    So a replica that moves has one name where it comes and another where it goes.
    """
    left = {it["slot"] for it in going if (it["model"], it["replica"]) == (seat.model, seat.replica)}
    slot = next((slot for slot in SLOTS if slot not in left), SLOTS[0])
    return {
        "id": f"{seat.model}-{seat.replica}-{slot}",
        "model": seat.model,
        "replica": seat.replica,
        "slot": slot,
        "host": host["name"],
        "address": host["address"],
        "port": ports[f"{seat.model}/{seat.replica}"] + SLOTS.index(slot),
        "release": record["release"],
        "version": record["version"],
        "gpus": seat.gpus,
    }


def _entries(models: dict, instances: list, before: dict, releases: dict, wanted: dict) -> dict:
    """{model: what gateways serve of it, and what is wanted}."""
    active = {instance["model"] for instance in instances}
    entries = {}
    for name in sorted(active | set(releases)):
        if name not in models:  # an unreachable host still has it: keep it known, and let nobody in
            nothing = {"wanted_release": None, "wanted_version": None, "access": [], "replicas": 0}
            entry = {**before[name], **nothing}
        else:
            target = wanted.get(name) or releases[name]
            record = releases[name] if name in active else target
            entry = {
                "engine": record["engine"],
                "release": record["release"],
                "version": record["version"],
                "wanted_release": target["release"],
                "wanted_version": target["version"],
                "access": sorted(set(models[name]["access"])),
                "queue": models[name]["queue"],
                "replicas": models[name]["replicas"],
            }
        kept = {key: before[name][key] for key in OF_ROLLOUTS if key in before.get(name, {})}
        entries[name] = {**entry, **kept, "pending": entry["release"] != entry["wanted_release"]}
        if not entries[name]["pending"] and kept.get("override"):
            entries[name]["override"] = None  # git agrees by now
    return entries


def _leaving(planned: list, candidates: list, releases: dict, engines: dict) -> list:
    """The instances that have no place in the plan, each with what a gateway needs to drain it.

    `server` is the gateways' name for it. Without records its release is unknown here; a gateway may still know it.
    """
    places, names = set(map(_where, planned)), {instance["id"] for instance in planned}
    leaving = []
    for instance in candidates:
        if _where(instance) in places:
            continue
        # The same id may run on another host too: then the host tells them apart.
        server = f"{instance['id']}.{instance['host']}" if instance["id"] in names else instance["id"]
        names.add(server)
        leaving.append({**instance, "server": server})
        record = releases.get(instance["release"])
        if record is not None:
            leaving[-1].update(release_record=record, engine_record=engines[record["engine"]])
    return sorted(leaving, key=_order)


def _cut_short(before: dict, models: dict, fleet: dict) -> list:
    """What a rollout that is open still needs cannot be taken away under it."""
    faults = []
    for name, rollout in sorted(before.get("rollouts", {}).items()):
        fix = f"continue it with rollout.yml -e model={name}, or take it back with rollback.yml -e model={name}, first"
        if name not in models:
            what = f"a rollout of {name} to {rollout['to_version']} is open, and the catalog has no {name}"
            faults.append(Fault(what, f"llm_fleet_models[{name}]", f"put it back into the catalog, and {fix}"))
        gone = sorted({it["host"] for it in before["instances"] if it["model"] == name} - set(fleet))
        faults += [Fault(f"a rollout of {name} is open on {host}, which is to leave", f"host {host}", fix) for host in gone]
    return faults


def _unlocked(models: dict, releases: dict) -> list:
    fix = "Lock its version, or take it out of the catalog"
    unlocked = sorted(set(models) - set(releases))
    return [Fault(f"{name} has no release", f"llm_fleet_models[{name}]", fix) for name in unlocked]


def _shared_gpus(hosts: list) -> list:
    owners = defaultdict(list)
    for host in sorted(hosts, key=lambda host: host["name"]):
        for gpu in host["gpus"]:
            owners[gpu].append(host["name"])
    fix = "List each GPU once in the whole fleet, by its UUID"
    return [
        Fault(f"GPU {gpu} is listed more than once", f"llm_fleet_gpus of {', '.join(names)}", fix)
        for gpu, names in sorted(owners.items())
        if len(names) > 1
    ]


def _no_ports(replicas: set, port_range: tuple) -> list:
    return [
        Fault(
            f"no pair of ports is left for replica {number} of {model} in {port_range[0]}-{port_range[1]}",
            "llm_fleet_port_range",
            "Widen the range: every replica needs two ports",
        )
        for model, number in sorted(replicas)
    ]


def _where(instance: dict) -> tuple:
    return instance["id"], instance["host"]


def _order(instance: dict) -> tuple:
    return instance["model"], instance["replica"], instance["slot"], instance["host"]
