# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Which plan the fleet has now, by what its hosts say.

A wrong answer here would plan the fleet anew over running instances. So whatever is not clear is a fault.
"""

from __future__ import annotations

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault

FORMAT = 1
PLAN = {"generation": int, "ports": dict, "engines": dict, "models": dict, "releases": dict, "instances": list}
MODEL = {"engine": str, "release": str, "version": str, "access": list, "queue": int}
RELEASE = {"release": str, "model": str, "version": str, "engine": str, "files": list, "container": dict}
INSTANCE = {
    "id": str,
    "model": str,
    "replica": int,
    "slot": str,
    "host": str,
    "address": str,
    "port": int,
    "release": str,
    "version": str,
    "gpus": list,
}
FILE = "/var/lib/llm_fleet/plan.json"
RESTORE = f"Copy {FILE} there from a host that has the newest plan, or remove the file"


def choose_current(states: list) -> tuple:
    """Returns (current plan or None, faults).

    states: of every gateway and node {"host", "reachable", "plan", "plan_error", "instances"}.
    The highest generation wins: a host that was away has an older one, and gets the next like all others.
    """
    states = sorted((state for state in states if state["reachable"]), key=lambda state: state["host"])
    faults = [fault for fault in map(_unreadable, states) if fault]
    if faults:
        return None, faults
    planned = [state for state in states if state["plan"] is not None]
    if not planned:
        return None, _forgotten(states)
    generation = max(state["plan"]["generation"] for state in planned)
    versions: list = []  # [plan, [hosts]], for each content that claims to be the newest
    for state in planned:
        if state["plan"]["generation"] == generation:
            same = next((version for version in versions if version[0] == state["plan"]), None)
            if same is None:
                versions.append([state["plan"], [state["host"]]])
            else:
                same[1].append(state["host"])
    if len(versions) > 1:
        return None, [_conflict(generation, [", ".join(hosts) for _plan, hosts in versions])]
    return versions[0][0], []


def _unreadable(state: dict) -> Fault | None:
    """What is wrong with the plan of one host, if anything."""
    plan, where = state["plan"], f"host {state['host']}"
    if state["plan_error"]:
        return Fault(f"its plan can't be read: {state['plan_error']}", where, RESTORE)
    if plan is None:
        return None
    if not isinstance(plan, dict) or "format" not in plan:
        return Fault("its plan is not a plan of this collection", where, RESTORE)
    if plan["format"] != FORMAT:
        what = f"its plan has format {plan['format']}, and this version of the collection knows format {FORMAT}"
        return Fault(what, where, "Use the version of the collection that wrote it, or a newer one")
    damage = _damage(plan)
    return Fault(f"its plan is damaged: there is {damage}", where, RESTORE) if damage else None


def _damage(plan: dict) -> str | None:
    """The first thing in a plan that this collection could not have written."""
    damage = _misfit(plan, PLAN)
    if damage:
        return damage
    for name, entry in plan["models"].items():
        damage = _misfit(entry, MODEL)
        if damage:
            return f"{damage} in model {name}"
    for name, record in plan["releases"].items():
        damage = _misfit(record, RELEASE)
        if damage:
            return f"{damage} in release {name}"
        if record["engine"] not in plan["engines"]:
            return f"no {record['engine']} in engines, which release {name} needs"
    for instance in plan["instances"]:
        damage = _misfit(instance, INSTANCE)
        if damage:
            return f"{damage} in an instance: {instance}"
        replica = f"{instance['model']}/{instance['replica']}"
        for key, name in (("models", instance["model"]), ("releases", instance["release"]), ("ports", replica)):
            if name not in plan[key]:
                return f"no {name} in {key}, which instance {instance['id']} needs"
    return None


def _misfit(record: object, shape: dict) -> str | None:
    """The first key that a record lacks, or has with a value of the wrong type."""
    if not isinstance(record, dict):
        return "no mapping"
    for key, kind in shape.items():
        if not isinstance(record.get(key), kind) or isinstance(record[key], bool):
            return f"no proper {key}"
    return None


def _conflict(generation: int, camps: list) -> Fault:
    """Two controllers planned at once, or somebody edited a plan: only a person can say what was applied."""
    return Fault(
        f"there are different plans of generation {generation}, on {' / '.join(camps)}",
        f"hosts {', '.join(camps)}",
        f"Find out which one was applied (compare with status.yml), and remove {FILE} on the hosts with the other",
    )


def _forgotten(states: list) -> list:
    """Instances without a plan are no new fleet: a plan from nothing would give their GPUs and ports away."""
    orphans = [
        f"{state['host']} ({', '.join(instance['id'] for instance in state['instances'])})"
        for state in states
        if state["instances"]
    ]
    if not orphans:
        return []
    return [
        Fault(
            f"instances run on {'; '.join(orphans)}, but no host that answers has a plan",
            "the fleet's plan",
            f"Bring back a gateway or node that has {FILE}, or restore that file from a backup on one host;"
            " to start anew instead, remove these containers first",
        )
    ]
