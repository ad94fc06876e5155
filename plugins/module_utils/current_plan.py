# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Which plan the fleet has now, by what its hosts say.

A wrong answer here would plan the fleet anew over running instances. So whatever is not clear is a fault.
"""

from __future__ import annotations

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault

FORMAT = 1
SHAPE = {
    "generation": int,
    "ports": dict,
    "engines": dict,
    "models": dict,
    "releases": dict,
    "instances": list,
}
INSTANCE = {"id", "model", "replica", "slot", "host", "address", "port", "release", "version", "gpus"}
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
    newest = max(planned, key=lambda state: state["plan"]["generation"])  # the first of them by name
    generation = newest["plan"]["generation"]
    for other in planned:
        if other["plan"]["generation"] == generation and other["plan"] != newest["plan"]:
            faults.append(
                Fault(
                    f"{newest['host']} and {other['host']} have different plans of generation {generation}",
                    f"hosts {newest['host']}, {other['host']}",
                    f"Find out which one was applied (compare with status.yml), and remove {FILE}"
                    " on the hosts with the other",
                )
            )
    return (None, faults) if faults else (newest["plan"], [])


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
    return Fault(f"its plan is damaged: {damage}", where, RESTORE) if damage else None


def _damage(plan: dict) -> str | None:
    """The first thing in a plan that could not have been written by this collection."""
    for key, kind in SHAPE.items():
        if not isinstance(plan.get(key), kind):
            return f"{key} is missing or of the wrong type"
    for instance in plan["instances"]:
        if not isinstance(instance, dict) or not set(instance) >= INSTANCE:
            return f"an instance is incomplete: {instance}"
        if instance["model"] not in plan["models"] or instance["release"] not in plan["releases"]:
            return f"model or release of instance {instance['id']} is missing"
    return None


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
