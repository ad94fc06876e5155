# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What each kind of host has to know of the plan. Pure: a view decides nothing, it only turns the plan around."""

from __future__ import annotations

import hashlib
import hmac
import json

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.engine_profile import fill
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.release import placeholder_values

REQUESTS_PER_MINUTE = 600
CONCURRENT = 16


def host_instances(plan: dict, host: str) -> list:
    """The instances of one host, each with its release under `record` and its `duty`.

    Duty: `serve` (has to run), or in an open rollout `wait` (has to stand ready, the rollout starts it) and `leave` (the
    rollout stops it), or `rest` on a host in maintenance. Only what has to serve is anybody else's to start or stop.
    """
    return [
        {**instance, "record": plan["releases"][instance["release"]], "duty": duty(plan, instance)}
        for instance in plan["instances"]
        if instance["host"] == host
    ]


def duty(plan: dict, instance: dict) -> str:
    """serve, wait, leave or rest: see host_instances."""
    if instance["host"] in plan.get("maintenance", {}):
        return "rest"
    rollout = plan.get("rollouts", {}).get(instance["model"])
    if rollout is None:
        return "serve"
    return "wait" if instance["release"] == rollout["to"] else "leave"


def settled_instances(plan: dict) -> list:
    """The instances that have to take requests: no rollout of their model is open, and their host is not in maintenance."""
    return [instance for instance in plan["instances"] if duty(plan, instance) == "serve"]


def engine_key(seed: str, model: str) -> str:
    """The API key of a model's engines. Gateways and engines derive the same one, so that no key travels."""
    if not seed:
        raise ValueError("the seed of the engine keys is empty: everybody could derive the keys")
    return hmac.new(seed.encode(), f"llm_fleet engine key:{model}".encode(), hashlib.sha256).hexdigest()


def engine_keys(plan: dict, seed: str, leaving: list | None = None) -> dict:
    """{model: API key} of all models that run or are about to leave."""
    models = {*plan["models"], *(instance["model"] for instance in leaving or [])}
    return {model: engine_key(seed, model) for model in sorted(models)}


def gateway_view(plan: dict, clients: list, leaving: list | None = None) -> dict:
    """All that a gateway's configuration says: who may ask for which model, and which servers answer.

    A leaving instance keeps its server until it is drained, but no name leads to it any more.
    """
    served = {name: entry for name, entry in plan["models"].items() if entry["wanted_release"] is not None}
    allowed = {
        client["name"]: [name for name, entry in served.items() if {client["name"], "*"} & set(entry["access"])]
        for client in sorted(clients, key=lambda client: client["name"])
    }
    return {
        "backends": _backends(plan, served, leaving or []),
        "models": _names(plan, served),
        "access": sorted(f"{client}|{model}" for client, models in allowed.items() for model in models),
        "paths": {name: list(plan["engines"][entry["engine"]]["public"]) for name, entry in sorted(served.items())},
        "model_lists": {client: model_list(models) for client, models in allowed.items()},
        "limits": {client["name"]: _limits(client) for client in sorted(clients, key=lambda client: client["name"])},
    }


def model_list(models: list) -> str:
    """The body of GET /v1/models as OpenAI's API has it."""
    data = [{"id": model, "object": "model", "created": 0, "owned_by": "llm_fleet"} for model in sorted(models)]
    return json.dumps({"object": "list", "data": data}, separators=(",", ":"))


def backend_name(model: str, release: str) -> str:
    """HAProxy's name for one release of one model."""
    return f"be_{model}_{release}"


def gateway_servers(instances: list) -> list:
    """HAProxy's names, backend/server, for instances of the plan or leaving ones."""
    return [f"{backend_name(it['model'], it['release'])}/{_server(it)}" for it in instances]


def _server(instance: dict) -> str:
    """HAProxy's name for an instance. That of a leaving one may differ from its id."""
    return instance.get("server", instance["id"])


def _backends(plan: dict, served: dict, leaving: list) -> list:
    """One backend for each release of each model, with the servers that run it."""
    backends = {
        (name, entry["release"]): _backend(name, entry["release"], entry["version"], entry["queue"])
        for name, entry in served.items()
    }
    reachable = [instance for instance in leaving if instance["address"] and "release_record" in instance]
    for instance in [*plan["instances"], *reachable]:
        model, release, version = instance["model"], instance["release"], instance["version"]
        record = instance.get("release_record") or plan["releases"][release]
        engine = instance.get("engine_record") or plan["engines"][record["engine"]]
        queue = plan["models"][model]["queue"] if model in plan["models"] else 1
        backend = backends.setdefault((model, release), _backend(model, release, version, queue))
        backend["ready"] = [_probe(probe, record) for probe in engine["ready"]]
        backend["api_key"] = engine["api_key"]
        place = {"address": instance["address"], "port": instance["port"]}
        backend["servers"].append({"name": _server(instance), **place, "maxconn": record["parallel"]})
    for backend in backends.values():
        backend["servers"].sort(key=lambda server: server["name"])
    return [backends[key] for key in sorted(backends)]


def _backend(model: str, release: str, version: str, queue: int) -> dict:
    return {
        "name": backend_name(model, release),
        "model": model,
        "version": version,
        "release": release,
        "queue": queue,
        "ready": [],
        "api_key": False,
        "servers": [],
    }


def _probe(probe: dict, record: dict) -> dict:
    """A readiness probe with its placeholders filled in."""
    values = placeholder_values(record, record["container"]["port"])
    return {key: fill(value, values) if isinstance(value, str) else value for key, value in probe.items()}


def _names(plan: dict, served: dict) -> dict:
    """{name that a client may ask for: backend}: each model, and each of its versions and releases that runs."""
    names = {}
    for model, entry in sorted(served.items()):
        names[model] = names[f"{model}@{entry['version']}"] = backend_name(model, entry["release"])
    for instance in plan["instances"]:
        if instance["model"] in served:
            # By its release too: a rollout may change settings and no version.
            for which in (instance["version"], instance["release"]):
                names.setdefault(f"{instance['model']}@{which}", backend_name(instance["model"], instance["release"]))
    return dict(sorted(names.items()))


def _limits(client: dict) -> dict:
    limits = client.get("limits") or {}
    return {
        "requests_per_minute": limits.get("requests_per_minute", REQUESTS_PER_MINUTE),
        "concurrent": limits.get("concurrent", CONCURRENT),
    }


def status_rows(plan: dict | None, states: list) -> list:
    """What should run and what does: a row for each instance that the plan or a host knows.

    states: of each host {"host", "reachable", "plan", "instances": [{"id", "release", "state", "health", ...}]}.
    """
    plan = {"generation": 0, "models": {}, "releases": {}, "instances": [], **(plan or {})}
    hosts = {state["host"]: state for state in states}
    rows = []
    for instance in plan["instances"]:
        state = hosts.get(instance["host"], {"reachable": False})
        rows.append(_row(plan, instance, *_health(instance, state, plan["generation"], duty(plan, instance))))
    planned = {(instance["id"], instance["host"]) for instance in plan["instances"]}
    for host, state in hosts.items():
        strays = state["instances"] if state["reachable"] else []
        rows += [
            _row(plan, {**it, "host": host}, "unexpected", "not in the plan")
            for it in strays
            if (it["id"], host) not in planned
        ]
    return sorted(rows, key=lambda row: (row["model"], row["instance"], row["host"]))


def _row(plan: dict, instance: dict, state: str, drift: str) -> dict:
    entry = plan["models"].get(instance["model"], {})
    record = plan["releases"].get(instance["release"], {})
    wanted = entry.get("wanted_release")
    return {
        "host": instance["host"],
        "model": instance["model"],
        "version": instance["version"],
        "engine": record.get("engine", ""),
        "port": instance["port"],
        "instance": instance["id"],
        "release": instance["release"],
        "wanted_release": wanted,
        "state": state,
        "pending": state != "unexpected" and wanted != instance["release"],
        "drift": drift,
    }


def _health(instance: dict, state: dict, generation: int, wanted: str) -> tuple:
    """(state, drift) of a planned instance."""
    if not state["reachable"]:
        return "unreachable", ""
    found = next((it for it in state["instances"] if it["id"] == instance["id"]), None)
    if wanted != "serve" and (found is None or found["state"] in ("created", "exited")):
        return {"wait": "waiting", "leave": "stopped", "rest": "in maintenance"}[wanted], ""
    if found is None:
        return "missing", "no container"
    drift = [
        f"{key} is {found[key]}, planned {instance[key]}" for key in ("release", "port") if found[key] != instance[key]
    ]
    known = state.get("plan")
    if known and known["generation"] != generation:
        drift.append(f"the host's plan has generation {known['generation']}, the newest {generation}")
    if found["state"] not in ("running", "restarting"):
        shown = "stopped"
    elif found["state"] == "restarting" or found["health"] == "unhealthy":
        shown = "unhealthy"
    else:
        shown = "starting" if found["health"] == "starting" else "running"
    if found["state"] != "running":
        drift.append(f"the container is {found['state']}")
    return shown, "; ".join(drift)
