# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Rollouts that are open, and where gateways do other than the plan says, as rows for people. Pure: no I/O."""

from __future__ import annotations

from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.rollout_story import common_progress
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.views import gateway_servers, settled_instances


def rollout_rows(plan: dict, gateways: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each open rollout. gateways: what M(localfirst.llm_fleet.release_info) told, by host.

    State: `running` while somebody holds its lock, `interrupted` otherwise, or on its way `back`.
    """
    rows = []
    for model, rollout in sorted((plan.get("rollouts") or {}).items()):
        routes = {name: told.get("routes", {}).get(model, {}) for name, told in sorted(gateways.items())}
        progress = common_progress(rollout, list(routes.values()))
        holder = next((one for told in gateways.values() for one in told.get("locks", []) if _holds(one, model)), None)
        replicas = sum(map(len, rollout["batches"]))
        shares = sorted({route.get("share", 0) for route in routes.values()})
        rows.append({
            "model": model,
            "from": rollout["from_version"],
            "to": rollout["to_version"],
            "strategy": rollout["strategy"],
            "state": "back" if progress["back"] else "running" if holder else "interrupted",
            "switched": f"{len(progress['switched'])} of {replicas}",
            "share": " or ".join(f"{share} %" for share in shares) or "0 %",
            "since": rollout["started"],
            "who": rollout["who"],
            "lock": f"{holder['user']} on {holder['host']}, {holder['seconds_left']} s left" if holder else "nobody",
        })
    return rows


def _holds(lock: dict[str, Any], model: str) -> bool:
    return lock["name"] == f"rollout-{model}" and lock["seconds_left"] > 0


def gateway_drift(plan: dict, gateways: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    """A row for each server that should take requests on a gateway and does not, and for each route without a rollout."""
    rows = []
    wanted = gateway_servers(settled_instances({"rollouts": {}, **plan}))
    for gateway, told in sorted(gateways.items()):
        for server in wanted:
            found = told.get("servers", {}).get(server)
            if found is None:
                rows.append({"gateway": gateway, "server": server, "drift": "unknown to HAProxy, or HAProxy does not run"})
            elif found["state"] != "ready":
                rows.append({"gateway": gateway, "server": server, "drift": f"takes no requests: {found['state']}"})
            elif not found["up"]:
                rows.append({"gateway": gateway, "server": server, "drift": "its health check fails"})
        over = sorted(set(told.get("routes", {})) - set(plan.get("rollouts") or {}))
        rows += [{"gateway": gateway, "server": model, "drift": "has a route of a rollout that is over"} for model in over]
    return rows
