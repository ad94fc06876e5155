# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""A rollout as changes of the plan: it is opened, and ends by being committed or abandoned. Pure: no I/O.

While it is open the plan has both instances of each replica, in its two slots, and `rollouts` says which release they come
from and go to. What of it has happened already is no part of the plan: containers and gateways know (routes.py).
"""

from __future__ import annotations

from typing import NamedTuple

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault, suggestion
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.rollout_strategy import (
    REPLACE,
    SURGE,
    choose,
    gpu_count,
    make_batches,
    most_at_once,
    too_large,
)

SLOTS = ("a", "b")
KEPT_REJECTIONS = 20
SMALLER = "fewer parallel requests, a shorter context, a narrower cache or a smaller quantization would need less (docs/fit.md)"


class Opened(NamedTuple):
    """What came of asking for a rollout. Without `rollout` there is nothing to switch."""

    plan: dict
    rollout: dict | None
    resumed: bool
    faults: list[Fault]


class Request(NamedTuple):
    """Who asks for which rollout, and how."""

    id: str
    model: str
    who: str
    started: str  # ISO 8601, UTC
    why: str = ""
    strategy: str | None = None  # in place of the catalog's
    bake: int | None = None  # seconds, in place of the catalog's
    accept_outage: bool = False
    retry_rejected: bool = False
    undo: bool = False  # back to an earlier release: no canary, all at once


def open_rollout(
    plan: dict, request: Request, target: dict, wanted: dict, interface: dict, settings: dict, hosts: dict[str, dict]
) -> Opened:
    """Opens a rollout of a model to `target`, a release record, or finds it open.

    wanted: the record that catalog and lockfile lead to; it is another one where a version was named by hand.
    interface: what gateways and probes have to know of the target's engine.
    settings: the catalog's `rollout` of this model. hosts: as `choose` wants them, with "reachable" and "standing", the ids of
    their containers; all GPU nodes.
    """
    model = request.model
    entry = plan["models"].get(model)
    if entry is None or not any(instance["model"] == model for instance in plan["instances"]):
        fault = Fault(f"{model} does not run yet", f"llm_fleet_models[{model}]", "run site.yml: its first release needs no rollout")
        return Opened(plan, None, False, [fault])
    rollout = plan.get("rollouts", {}).get(model)
    if rollout:
        return Opened(plan, rollout, True, _other_target(model, rollout, target, request))
    old = [it for it in plan["instances"] if it["model"] == model and it["release"] != target["release"]]
    if not old:
        return Opened(plan, None, False, [])
    faults = [*_refused(entry, request, target), *_resting(plan, old), *_away(old, hosts), *_left_over(old, hosts)]
    choice = choose(request.strategy or settings["strategy"], old, target, hosts)
    if choice.name == SURGE and choice.lacking:
        faults += [Fault(f"there is no room for a surge: {lack}", "strategy", "use replace or auto") for lack in choice.lacking]
    new = [_beside(instance, target, choice.gpus[instance["replica"]], plan["ports"]) for instance in old]
    # What has run before may come back whatever the estimate says.
    large = [] if request.undo else too_large(new, target, hosts)
    faults += [Fault(f"the new release does not fit: {lack}", f"llm_fleet_models[{model}]", SMALLER) for lack in large]
    faults += _few_gpus(old, target, choice.gpus)
    count = len({it["replica"] for it in plan["instances"] if it["model"] == model})
    if choice.name == REPLACE and count == 1 and not request.accept_outage:
        faults.append(_outage(model, choice.lacking))
    rollout = {
        "id": request.id,
        "from": entry["release"],
        "from_version": entry["version"],
        "to": target["release"],
        "to_version": target["version"],
        "strategy": choice.name,
        "batches": _batches(old, choice.name, count, settings, request),
        "canary": None if request.undo else _canary(settings, request),
        "override": target["release"] != wanted["release"],
        "undo": request.undo,
        "who": request.who,
        "why": request.why,
        "started": request.started,
    }
    opened = {
        **plan,
        "generation": plan["generation"] + 1,
        "engines": {**plan["engines"], target["engine"]: interface},
        "models": {**plan["models"], model: _wanted(entry, wanted)},
        "releases": {**plan["releases"], target["release"]: target},
        "instances": sorted([*plan["instances"], *new], key=_order),
        "rollouts": {**plan.get("rollouts", {}), model: rollout},
    }
    return Opened(opened, rollout, False, faults)


def commit(plan: dict, model: str, at: str) -> dict:
    """The plan after a rollout that ended well: the new release is the model's, and the old one can be returned to."""
    rollout, entry = plan["rollouts"][model], plan["models"][model]
    rejected = [one for one in entry.get("rejected", []) if one["release"] != rollout["to"]]
    previous = {"release": rollout["from"], "version": rollout["from_version"]}
    if rollout["undo"]:
        why = rollout["why"] or "rolled back on demand"
        rejected, previous = _with(rejected, previous, why, rollout["who"], at), None
    entry = {**entry, "release": rollout["to"], "version": rollout["to_version"], "previous": previous, "rejected": rejected}
    entry["pending"] = entry["release"] != entry["wanted_release"]
    entry["override"] = None
    if rollout["override"] and entry["pending"]:
        entry["override"] = {"version": rollout["to_version"], "who": rollout["who"], "at": at}
    return _closed(plan, model, entry, rollout["to"])


def abandon(plan: dict, model: str, at: str, rejected: str = "") -> dict:
    """The plan after a rollout that was taken back. `rejected` says why its release is not to be tried again, if so."""
    rollout, entry = plan["rollouts"][model], plan["models"][model]
    if rejected:
        failed = {"release": rollout["to"], "version": rollout["to_version"]}
        entry = {**entry, "rejected": _with(entry.get("rejected", []), failed, rejected, rollout["who"], at)}
    return _closed(plan, model, entry, rollout["from"])


def closed_leaving(before: dict, after: dict) -> list[dict]:
    """The instances that go when a rollout ends, each with what a gateway needs to know of it until then."""
    places = {(it["id"], it["host"]) for it in after["instances"]}
    return [
        {
            **it,
            "server": it["id"],
            "release_record": before["releases"][it["release"]],
            "engine_record": before["engines"][before["releases"][it["release"]]["engine"]],
        }
        for it in before["instances"]
        if (it["id"], it["host"]) not in places
    ]


def earlier_release(plan: dict, model: str) -> tuple[dict | None, list[Fault]]:
    """The record that a rollback on demand returns to, or why there is none."""
    entry = plan["models"].get(model)
    if entry is None:
        return None, [Fault(f"the fleet does not run {model}", "model", suggestion(model, plan["models"], "models"))]
    previous = entry.get("previous")
    if not previous or previous["release"] not in plan["releases"]:
        fix = "name a version: rollout.yml -e model=… -e version=…"
        return None, [Fault(f"{model} has run nothing before {entry['version']} that it could return to", "model", fix)]
    return plan["releases"][previous["release"]], []


def held_releases(plan: dict) -> set[str]:
    """Releases that nobody runs and that the plan keeps for a way back, or for a rollout that is open."""
    previous = {entry["previous"]["release"] for entry in plan["models"].values() if entry.get("previous")}
    return previous | {rollout[end] for rollout in plan.get("rollouts", {}).values() for end in ("from", "to")}


def _closed(plan: dict, model: str, entry: dict, release: str) -> dict:
    """The plan without the rollout and without the instances of its other release."""
    rollout = plan["rollouts"][model]
    other = rollout["from"] if release == rollout["to"] else rollout["to"]
    entry = {**entry, "engine": plan["releases"][release]["engine"]}
    instances = [it for it in plan["instances"] if it["model"] != model or it["release"] != other]
    closed = {
        **plan,
        "generation": plan["generation"] + 1,
        "models": {**plan["models"], model: entry},
        "instances": instances,
        "rollouts": {name: one for name, one in plan["rollouts"].items() if name != model},
    }
    kept = {it["release"] for it in instances} | held_releases(closed)
    closed["releases"] = {name: record for name, record in plan["releases"].items() if name in kept}
    spoken = {record["engine"] for record in closed["releases"].values()} | {one["engine"] for one in closed["models"].values()}
    closed["engines"] = {name: one for name, one in plan["engines"].items() if name in spoken}
    return closed


def _few_gpus(old: list[dict], target: dict, gpus: dict[int, list[str]]) -> list[Fault]:
    """Replicas for which their host has fewer GPUs than the new release divides the model among."""
    lacking = [it for it in old if len(gpus[it["replica"]]) < gpu_count(target, it)]
    return [
        Fault(
            f"{it['host']} has {len(gpus[it['replica']])} GPUs for replica {it['replica']}, and the release needs {gpu_count(target, it)}",
            f"llm_fleet_models[{it['model']}].gpus",
            "free some there, or leave 'gpus' as it was",
        )
        for it in lacking
    ]


def _beside(old: dict, target: dict, gpus: list[str], ports: dict) -> dict:
    """The new instance of a replica, in its other slot."""
    slot = SLOTS[1 - SLOTS.index(old["slot"])]
    return {
        **old,
        "id": f"{old['model']}-{old['replica']}-{slot}",
        "slot": slot,
        "port": ports[f"{old['model']}/{old['replica']}"] + SLOTS.index(slot),
        "release": target["release"],
        "version": target["version"],
        "gpus": gpus,
    }


def _wanted(entry: dict, wanted: dict) -> dict:
    """The entry with what the catalog wants now: it may have changed since site.yml ran."""
    pending = entry["release"] != wanted["release"]
    return {**entry, "wanted_release": wanted["release"], "wanted_version": wanted["version"], "pending": pending}


def _batches(old: list[dict], strategy: str, count: int, settings: dict, request: Request) -> list[list[int]]:
    replicas = sorted({instance["replica"] for instance in old})
    stages = ["100%"] if request.undo else settings["batches"]
    return make_batches(replicas, stages, most_at_once(strategy, count, settings["max_unavailable"]))


def _canary(settings: dict, request: Request) -> dict | None:
    canary = settings["canary"]
    if not isinstance(canary, dict) or not (canary["share"] or canary["clients"]):
        return None
    return {**canary, "bake": canary["bake"] if request.bake is None else request.bake}


def _other_target(model: str, rollout: dict, target: dict, request: Request) -> list[Fault]:
    """An open rollout is continued to where it was going, or taken back: never turned around half-way."""
    if rollout["to"] == target["release"]:
        return []
    return [
        Fault(
            f"a rollout of {model} to {rollout['to_version']} (release {rollout['to']}) is open since {rollout['started']},"
            f" begun by {rollout['who']}; asked is {target['version']} (release {target['release']})",
            f"rollout {rollout['id']}",
            f"continue it with -e version={rollout['to_version']}, or take it back with rollback.yml -e model={model}",
        )
    ]


def _refused(entry: dict, request: Request, target: dict) -> list[Fault]:
    """A release that failed its gates fails them again, unless somebody knows better."""
    if request.retry_rejected or request.undo:
        return []
    return [
        Fault(
            f"release {one['release']} ({one['version']}) was rejected at {one['at']}: {one['why']}",
            f"llm_fleet_models[{request.model}]",
            "mend it and lock it as another version, or try it again with -e retry_rejected=true",
        )
        for one in entry.get("rejected", [])
        if one["release"] == target["release"]
    ]


def _resting(plan: dict, old: list[dict]) -> list[Fault]:
    """What runs on a host in maintenance is started and stopped by hosts.yml."""
    out = plan.get("maintenance", {})
    return [
        Fault(
            f"{host}, which has {', '.join(it['id'] for it in old if it['host'] == host)}, is in maintenance since {out[host]['since']},"
            f" by {out[host]['who']}",
            f"host {host}",
            f"bring its upgrade to its end first: hosts.yml -e upgrade={host}",
        )
        for host in sorted({it["host"] for it in old} & set(out))
    ]


def _away(old: list[dict], hosts: dict[str, dict]) -> list[Fault]:
    """All replicas switch, or none: a host that does not answer would be left behind."""
    return [
        Fault(
            f"{instance['host']}, which has {instance['id']}, does not answer",
            f"host {instance['host']}",
            f"bring it back, or take it out: hosts.yml -e remove={instance['host']}",
        )
        for instance in old
        if not hosts.get(instance["host"], {}).get("reachable")
    ]


def _left_over(old: list[dict], hosts: dict[str, dict]) -> list[Fault]:
    """The other slot has to be free: what an earlier run could not remove there is not what this one wants to start."""
    slots = {f"{it['model']}-{it['replica']}-{SLOTS[1 - SLOTS.index(it['slot'])]}" for it in old}
    return [
        Fault(f"{name} is left over from an earlier run", f"host {host}", "run site.yml, which removes it, and then this again")
        for host, state in sorted(hosts.items())
        for name in sorted(slots & set(state.get("standing", [])))
    ]


def _outage(model: str, lacking: list[str]) -> Fault:
    room = f" ({'; '.join(lacking)})" if lacking else ""
    return Fault(
        f"{model} has one replica, which has to stop before its new release can start{room}: nobody answers meanwhile",
        f"llm_fleet_models[{model}].replicas",
        "make room for a second instance, or accept the outage with -e accept_outage=true",
    )


def _with(rejected: list[dict], release: dict, why: str, who: str, at: str) -> list[dict]:
    others = [one for one in rejected if one["release"] != release["release"]]
    return [*others, {**release, "why": why, "who": who, "at": at}][-KEPT_REJECTIONS:]


def _order(instance: dict) -> tuple:
    return instance["model"], instance["replica"], instance["slot"], instance["host"]
