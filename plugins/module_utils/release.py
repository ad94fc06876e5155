# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What an instance runs, as data: a model version, an engine image and the engine's settings, under one hash.

Two instances with the same release are interchangeable; one with another release is a rollout away.
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.engine_profile import fill
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.extra_args import argument_words
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.fit import fit_facts
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.words import size_bytes

MODEL_DIR = "/models"  # where a container sees the files of its model, read-only
MIB = 2**20
MANIFESTS = "manifests/"  # where the one manifest of an Ollama store is
# What a node has to know of a file; `from` and `content` are left out where the lockfile has none.
FILE_KEYS = ("path", "size", "sha256", "from", "content")

# Where a release may run and whom it serves is left out, and so is where its files came from: the digests
# already say what they are.
HASHED = ("model", "version", "image", "engine", "context", "parallel", "container")


def build_release(
    profile: dict[str, Any],
    model: dict[str, Any],
    version: str,
    lock_entry: dict[str, Any],
    image: str,
    image_ids: dict[str, str] | None = None,
) -> dict[str, Any]:
    """The release record of a model version: `image` is the engine's, as 'repository@sha256:...'.

    `image_ids` are what the lockfile says Docker calls it on each platform. They follow from the image, and are no part of the hash.

    All arguments have passed their checks (check_profile, check_catalog, parse_lockfile).
    """
    files = [
        {key: file[key] for key in FILE_KEYS if file.get(key) is not None}
        for file in sorted(lock_entry["files"], key=lambda file: file["path"])
    ]
    record = {
        "model": model["name"],
        "version": version,
        "engine": profile["name"],
        "image": image,
        **({"image_ids": image_ids} if image_ids else {}),
        "context": model["context"],
        "parallel": model["parallel"],
        "source": lock_entry["source"],
        "format": lock_entry["format"],
        "size": lock_entry["size"],
        "files": files,
    }
    # No part of the hash, but where the engine divides each layer among them: what else it does is the same on any number of GPUs.
    record["gpus"] = model.get("gpus") or 0
    if "{tensor_parallel}" in json.dumps(profile["container"]):
        record["tensor_parallel"] = max(1, record["gpus"])
    record["container"] = _container(profile, model, record)
    record["fit"] = fit_facts(profile, model, lock_entry)
    return {"release": release_hash(record), **record}


def release_hash(record: dict[str, Any]) -> str:
    """The name of a release: 12 digits of the sha256 over all that makes one engine behave unlike another."""
    identity = {key: record[key] for key in HASHED}
    identity["files"] = sorted([file["path"], file["sha256"]] for file in record["files"])
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:12]


def wanted_releases(
    models: Iterable[dict[str, Any]], lock: dict[str, Any], profiles: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """The release that catalog and lockfile want for each model: {model name: release record}."""
    wanted = {}
    for model in models:
        name, version, engine = model["name"], model["version"], model["engine"]
        locked = lock["images"][engine]
        image = "{image}@{digest}".format(**locked)
        wanted[name] = build_release(profiles[engine], model, version, lock["models"][name][version], image, locked.get("ids"))
    return wanted


def engine_interfaces(profiles: dict[str, Any], used: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What gateways and probes have to know of the engines in use: {engine: its public paths, probes, ...}.

    Placeholders in `ready` and `preload` are left for engine_profile.fill: they differ from model to model.
    """
    return {
        engine: {
            "public": list(profiles[engine]["http"]["public"]),
            "ready": [dict(probe) for probe in profiles[engine]["http"]["ready"]],
            "api_key": profiles[engine].get("api_key") is not None,
            "busy": profiles[engine]["http"].get("busy"),
            "metrics": profiles[engine]["http"].get("metrics"),
            "preload": profiles[engine]["http"].get("preload"),
        }
        for engine in sorted(set(used))
    }


def command_line(record: dict[str, Any]) -> list[str]:
    """All words that start the engine of a release. Without an entrypoint of the profile's, the image's own goes before them."""
    container = record["container"]
    return [*container.get("entrypoint", []), *container["command"]]


def placeholder_values(record: dict[str, Any], port: int) -> dict[str, Any]:
    """What engine_profile.fill puts into a profile's strings for one release."""
    return {
        "port": port,
        "model": record["model"],
        "version": record["version"],
        "model_path": f"{MODEL_DIR}/{record['files'][0]['path']}",
        "model_dir": MODEL_DIR,
        "config_dir": _config_dir(record["files"]),
        "context": record["context"],
        "parallel": record["parallel"],
        "total_context": record["context"] * record["parallel"],
        # Releases of engines that have no use for it don't have it: what else they do is the same on any number of GPUs.
        "tensor_parallel": record.get("tensor_parallel", 1),
        "manifest_digest": next((file["sha256"] for file in record["files"] if file["path"].startswith(MANIFESTS)), ""),
    }


def _container(profile: dict[str, Any], model: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """How Docker runs this release."""
    container, limits = profile["container"], model.get("limits") or {}
    values = placeholder_values(record, container["port"])
    flags, variables = _settings(profile["settings"], model.get("settings") or {})
    environment = {name: fill(value, values) for name, value in container["environment"].items()}
    entrypoint = [fill(word, values) for word in container.get("entrypoint") or []]
    return {
        **({"entrypoint": entrypoint} if entrypoint else {}),
        "command": [
            *(fill(word, values) for words in container["command"] for word in words),
            *flags,
            *argument_words(profile, model.get("extra_args") or []),
        ],
        "environment": {**environment, **variables},
        "port": container["port"],
        "read_only": container["read_only"],
        "tmpfs": list(container["tmpfs"]),
        "stop_signal": container["stop_signal"],
        "stop_timeout": container["stop_timeout"],
        "healthcheck": [fill(word, values) for word in container["healthcheck"]],
        "memory_bytes": _memory_bytes(container["memory"], limits, record["size"]),
        "cpus": float(limits["cpus"]) if limits.get("cpus") else None,
        "pids": limits.get("pids") or container["pids"],
        "shm_bytes": container["shm_mb"] * MIB,
        "writable": list(container["writable"]),
        "api_key_environment": (profile.get("api_key") or {}).get("environment"),
        **({"user": container["user"]} if container["user"] != "fleet" else {}),
    }


def _config_dir(files: list[dict[str, Any]]) -> str:
    """The directory of the topmost config.json. Parts of a model may have one of their own further down."""
    found = [PurePosixPath(file["path"]).parent for file in files if PurePosixPath(file["path"]).name == "config.json"]
    top = min(found, key=lambda path: (len(path.parts), str(path)), default=PurePosixPath())
    return str(PurePosixPath(MODEL_DIR) / top)


def _memory_bytes(memory: dict[str, Any], limits: dict[str, Any], size: int) -> int:
    """The catalog's limit, or the profile's estimate from the size of the files."""
    if limits.get("memory"):
        return size_bytes(limits["memory"])
    return memory["base_mb"] * MIB + int(memory["per_artifact_byte"] * size)


def _settings(specs: dict[str, Any], chosen: dict[str, Any]) -> tuple:
    """The flags and environment variables that bring the settings to the engine.

    In the order of their names: where a setting stands in a file must not change the release.
    """
    flags: list[str] = []
    variables: dict[str, str] = {}
    for name, spec in sorted(specs.items()):
        value = chosen.get(name)
        if value is None:
            value = spec.get("default")
        if value is None:
            continue
        if spec.get("env"):
            variables[spec["env"]] = _word(value, spec["type"])
        elif spec["type"] != "bool":
            flags += [spec["flag"], _word(value, spec["type"])]
        elif value:
            flags.append(spec["flag"])
    return flags, variables


def _word(value: Any, kind: str) -> str:
    """A setting as the engine reads it: 2 and 2.0 are one float, a list is joined by commas, true is 1."""
    if kind == "list":
        return ",".join(_word(item, "float" if isinstance(item, float) else "str") for item in value)
    if kind == "bool":
        return str(int(value))
    return repr(float(value)) if kind == "float" else str(value)
