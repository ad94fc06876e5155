# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Small fleets for tests: only what a test says differs from the ordinary."""

from __future__ import annotations

import hashlib

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.catalog_rollout import ROLLOUT
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.plan import make_plan
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.rollout import Opened, Request, open_rollout

ENGINES = {
    "llamacpp": {
        "public": ["POST /v1/chat/completions"],
        "ready": [{"path": "/health", "status": 200}, {"path": "/v1/models", "contains": '"id":"{model}"'}],
        "api_key": True,
        "busy": {"metric": "llamacpp:requests_processing"},
        "metrics": "/metrics",
    },
    "ollama": {
        "public": ["POST /v1/chat/completions", "POST /v1/embeddings"],
        "ready": [{"path": "/api/tags", "contains": '"name":"{model}:{version}"'}],
        "api_key": False,
        "busy": None,
        "metrics": None,
    },
}


def model(name: str, replicas: int | str = 1, gpus: int = 0, **other) -> dict:
    """A catalog entry."""
    return {
        "name": name,
        "version": "1.0.0",
        "engine": "llamacpp",
        "replicas": replicas,
        "gpus": gpus,
        "placement": {"hosts": ["*"]},
        "access": ["demo"],
        "queue": 16,
        **other,
    }


def record(name: str, version: str = "1.0.0", engine: str = "llamacpp", **other) -> dict:
    """A release record."""
    return {
        "release": hashlib.sha256(f"{name} {version} {engine}".encode()).hexdigest()[:12],
        "model": name,
        "version": version,
        "engine": engine,
        "context": 4096,
        "parallel": 4,
        "source": f"file:///models/{name}.gguf",
        "format": "gguf",
        "size": 4,
        "files": [{"path": f"{name}.gguf", "size": 4, "sha256": hashlib.sha256(version.encode()).hexdigest()}],
        "container": {"port": 8080},
        **other,
    }


def host(name: str, gpus: int = 0, reachable: bool = True, **other) -> dict:
    """A GPU node."""
    address = f"10.0.0.{int(hashlib.sha256(name.encode()).hexdigest()[:6], 16) % 250 + 1}"
    uuids = [f"GPU-{name}-{number}" for number in range(gpus)]
    return {"name": name, "address": address, "gpus": uuids, "reachable": reachable, **other}


def plan(catalog: list, hosts: list, current: dict | None = None, **options):
    """`make_plan` with the releases that the catalog's versions lead to."""
    wanted = {entry["name"]: record(entry["name"], entry["version"], entry["engine"]) for entry in catalog}
    return make_plan(catalog, options.pop("wanted", wanted), ENGINES, hosts, current, **options)


def seats(planned: dict) -> dict:
    """{instance id: its host}."""
    return {instance["id"]: instance["host"] for instance in planned["instances"]}


def labels(instance: dict, **other) -> dict:
    """A running container of an instance, as host_info sees it."""
    keys = ("id", "model", "version", "release", "replica", "slot", "port")
    return {**{key: instance[key] for key in keys}, "state": "running", "health": "healthy", **other}


def surged(planned: dict, instance_id: str, version: str, engine: str = "llamacpp", gpus: list | None = None) -> dict:
    """The plan with a new release in the other slot of a replica, as a rollout writes it."""
    [old] = [instance for instance in planned["instances"] if instance["id"] == instance_id]
    slot = "b" if old["slot"] == "a" else "a"
    target = record(old["model"], version, engine)
    new = {
        **old,
        "id": f"{old['model']}-{old['replica']}-{slot}",
        "slot": slot,
        "port": planned["ports"][f"{old['model']}/{old['replica']}"] + "ab".index(slot),
        "release": target["release"],
        "version": version,
        "gpus": gpus or [],
    }
    instances = [*planned["instances"], new]
    return {
        **planned,
        "generation": planned["generation"] + 1,
        "engines": {**planned["engines"], engine: ENGINES[engine]},
        "releases": {**planned["releases"], target["release"]: target},
        "instances": sorted(instances, key=lambda it: (it["model"], it["replica"], it["slot"])),
    }


def rollout_settings(**written) -> dict:
    """What the catalog says of a model's rollouts, with its own defaults."""
    faults: list = []
    clean = ROLLOUT(written, "rollout", faults)
    assert not faults, faults
    return clean


def measured(planned: dict, hosts: list, **other) -> dict:
    """What a rollout has to know of the nodes; `other` holds for all of them. Without it there is room for nothing but CPU models."""
    held = {gpu for instance in planned["instances"] for gpu in instance["gpus"]}
    return {
        node["name"]: {
            "reachable": node["reachable"],
            "memory_free": 0,
            "gpu_free": {},
            "gpus_idle": [gpu for gpu in node["gpus"] if gpu not in held],
            "standing": [],
            **other,
        }
        for node in hosts
    }


def asked(planned: dict, hosts: list, name: str, target: dict | None = None, **other) -> Opened:
    """What comes of asking for a rollout, by default of version 1.1.0, which git wants too.

    other: `wanted`, the record that git wants; `settings`, the catalog's; `states`, the nodes; and fields of the request.
    """
    target = target or record(name, "1.1.0")
    wanted = other.pop("wanted", target)
    settings, states = other.pop("settings", rollout_settings()), other.pop("states", measured(planned, hosts))
    request = Request(**{"id": "r-1", "model": name, "who": "ann on laptop", "started": "2026-01-02T03:04:05Z", **other})
    return open_rollout(planned, request, target, wanted, ENGINES[target["engine"]], settings, states)


def opened(planned: dict, hosts: list, name: str, target: dict | None = None, **other) -> dict:
    """The plan in which that rollout is open."""
    result = asked(planned, hosts, name, target, **other)
    assert not result.faults, result.faults
    return result.plan
