# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Which hosts the catalog allows a model: by name, by label, by kind of GPU. Pure: no I/O, and nothing about what is free."""

from __future__ import annotations

from fnmatch import fnmatchcase


def refusal(model: dict, host: dict) -> str:
    """Why the model may not run on the host, or an empty string where it may."""
    rules = model["placement"]
    if not _any_matches(host["name"], rules["hosts"]):
        return "not in placement.hosts"
    for label, wanted in sorted((rules.get("labels") or {}).items()):
        if not _any_matches(str((host.get("labels") or {}).get(label, "")), wanted):
            return f"its label {label} is not {' or '.join(wanted)}"
    if model["gpus"] and rules.get("gpu") and not any(gpu_allowed(model, host, gpu) for gpu in host["gpus"]):
        return f"it has no GPU {' or '.join(rules['gpu'])}"
    return ""


def matches(model: dict, host: dict) -> bool:
    """True when the model may run on the host."""
    return not refusal(model, host)


def gpu_allowed(model: dict, host: dict, gpu: str) -> bool:
    """Whether a GPU is of a kind that the catalog allows. One that does not tell its name is of none."""
    kinds = model["placement"].get("gpu")
    name = (host.get("gpu_names") or {}).get(gpu, "")
    return not kinds or _any_matches(name.lower(), [kind.lower() for kind in kinds])


def is_wanted(instance: dict, model: dict | None, host: dict | None = None) -> bool:
    """True when the catalog wants this replica, and allows it where it is. Without the host, only its name is known.

    A driver that is silent tells no names of GPUs: that is no reason to move what runs.
    """
    if model is None or not _any_matches(instance["host"], model["placement"]["hosts"]):
        return False
    if host is not None:
        known = [gpu for gpu in instance["gpus"] if (host.get("gpu_names") or {}).get(gpu)]
        if not all(gpu_allowed(model, host, gpu) for gpu in known):
            return False
        by_labels = {**model, "placement": {**model["placement"], "gpu": []}}
        if refusal(by_labels, host):
            return False
    return model["replicas"] == "all" or instance["replica"] < model["replicas"]


def per_host(model: dict) -> int:
    """How many replicas each host has of a model with `replicas: all`."""
    return model.get("per_host") or 1


def _any_matches(word: str, patterns: list) -> bool:
    return any(fnmatchcase(word, pattern) for pattern in patterns)
