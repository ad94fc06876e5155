# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""An open rollout as its coordinator goes through it, batch by batch, and as people read it. Pure: no I/O."""

from __future__ import annotations

from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import human
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.rollout_strategy import REPLACE, SURGE
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.views import backend_name, gateway_servers

NOTHING = {"switched": [], "baked": False, "back": ""}


def common_progress(rollout: dict, routes: list[dict[str, Any]]) -> dict[str, Any]:
    """How far a rollout is on every gateway: what only some of them know is done again.

    routes: each gateway's route of the model, as M(localfirst.llm_fleet.gateway_route) keeps it, {} where there is none.
    Back: why it is on its way back, as soon as one gateway says so.
    """
    told = [route.get("progress", {}) for route in routes]
    mine = [{**NOTHING, **one} if one.get("rollout") == rollout["id"] else NOTHING for one in told]
    if not mine:
        return dict(NOTHING)
    return {
        "switched": sorted(set.intersection(*(set(one["switched"]) for one in mine))),
        "baked": all(one["baked"] for one in mine),
        "back": next((one["back"] for one in mine if one["back"]), ""),
    }


def rollout_story(plan: dict, model: str, progress: dict[str, Any] | None = None) -> dict[str, Any]:
    """All that the coordinator needs to know of an open rollout: see RETURN of the filter of this name."""
    rollout, progress = plan["rollouts"][model], {**NOTHING, **(progress or {})}
    mine = [
        {**it, "record": plan["releases"][it["release"]], "server": gateway_servers([it])[0]}
        for it in plan["instances"]
        if it["model"] == model
    ]
    moved = {replica for batch in rollout["batches"] for replica in batch}
    new = {it["replica"]: it for it in mine if it["release"] == rollout["to"] and it["replica"] in moved}
    old = {it["replica"]: it for it in mine if it["release"] != rollout["to"]}
    total = len({it["replica"] for it in mine})
    before = total - len(moved)  # replicas that ran the new release already
    batches, done = [], before
    for number, replicas in enumerate(rollout["batches"], start=1):
        staying = total - len(replicas)
        meanwhile = round(100 * done / staying) if staying else 0
        done += len(replicas)
        switched = sorted({replica for batch in rollout["batches"][:number] for replica in batch})
        batches.append({
            "number": number,
            "of": len(rollout["batches"]),
            "replicas": replicas,
            "new": [new[replica] for replica in replicas if replica in new],
            "old": [old[replica] for replica in replicas if replica in old],
            "share": 100 if done == total else round(100 * done / total),
            "meanwhile": meanwhile,  # while these replicas are away
            # Clients are divided only while both releases answer.
            "canary": number == 1 and rollout["canary"] is not None and (rollout["strategy"] == SURGE or staying > 0),
            "done": set(replicas) <= set(progress["switched"]),
            "switched": switched,
            "switched_before": sorted(set(switched) - set(replicas)),
        })
    canary = rollout["canary"]
    if canary and batches:
        # One of a hundred replicas cannot bear five per cent of the requests.
        canary = {**canary, "share": min(canary["share"], batches[0]["share"])}
    return {
        **{key: rollout[key] for key in ("id", "strategy", "from", "to", "from_version", "to_version", "undo", "why", "who")},
        "canary": canary,
        "model": model,
        "backend": backend_name(model, rollout["to"]),
        "old_backend": backend_name(model, rollout["from"]),
        "engine": plan["releases"][rollout["to"]]["engine"],
        "batches": batches,
        "new": list(new.values()),
        "old": list(old.values()),
        "total": total,
        "least": least_serving(rollout, total),
        "progress": progress,
    }


def least_serving(rollout: dict, total: int) -> int:
    """How many replicas serve at any moment, if nothing goes wrong."""
    return total if rollout["strategy"] == SURGE else total - max(map(len, rollout["batches"]), default=0)


def rollout_lines(story: dict[str, Any]) -> list[str]:
    """What the rollout does, host by host, for whoever has to agree."""
    title = f"{story['model']} {story['from_version']} -> {story['to_version']}"
    lines = [f"{title} (release {story['from']} -> {story['to']}): {story['strategy']}, {_batches(story)}"]
    if story["least"] == story["total"]:
        lines.append(f"at any moment all {story['total']} replicas serve" if story["total"] > 1 else "its one replica serves at any moment")
    elif story["least"]:
        lines.append(f"at any moment at least {story['least']} of {story['total']} replicas serve, fewer than wanted")
    else:
        lines.append("OUTAGE: nobody answers from the moment its one replica is drained until the new one is ready")
    for batch in story["batches"]:
        where = f"batch {batch['number']} of {batch['of']}"
        if batch["done"]:
            lines.append(f"{where}: done already")
            continue
        lines += [f"{where}: {_switch(story, new, old)}" for new, old in zip(batch["new"], batch["old"])]
        if batch["canary"] and not story["progress"]["baked"]:
            lines.append(f"{where}: {_canary(story['canary'])}")
        lines.append(f"{where}: send {batch['share']} % of the requests to {story['to_version']}")
    return lines


def _batches(story: dict[str, Any]) -> str:
    count = len(story["batches"])
    return f"{count} {'batch' if count == 1 else 'batches'}"


def _switch(story: dict[str, Any], new: dict, old: dict) -> str:
    size = human(new["record"]["size"])
    if story["strategy"] == REPLACE:
        return f"{new['host']}: drain and stop {old['id']}, start {new['id']} (port {new['port']}, {size} of files) in its place, gate it"
    return f"{new['host']}: start {new['id']} (port {new['port']}, {size} of files) beside {old['id']}, gate it, drain {old['id']}"


def _canary(canary: dict) -> str:
    whom = [f"{canary['share']} % of the requests"] if canary["share"] else []
    whom += [f"the clients {', '.join(canary['clients'])}"] if canary["clients"] else []
    return f"bake for {canary['bake']} s with {' and '.join(whom)}, at least {canary['min_requests']} requests"
