# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Hosts with GPUs, as the module gpu_info describes them, and what the role nvidia_driver adds to that."""

from __future__ import annotations

import copy
from pathlib import Path

import yaml

VARS = Path(__file__).resolve().parents[3] / "roles/nvidia_driver/vars"
CATALOGS = sorted(path.stem for path in VARS.glob("*.yml") if path.stem != "main")


def catalog(name: str) -> dict:
    return yaml.safe_load((VARS / f"{name}.yml").read_text())["__nvidia_driver_catalog"]


def gpu(number: int = 0, **changes) -> dict:
    there = {
        "index": number, "uuid": f"GPU-{number}", "name": "NVIDIA H100 80GB HBM3", "address": f"0000:{number + 1:02x}:00.0",
        "ecc": {"mode": "enabled", "pending": "enabled", "corrected": 0, "uncorrected": 0},
        "mig": {"mode": "disabled", "pending": "disabled", "devices": []}, "state": "ready",
    }
    return {**there, **changes}


def mig(*profiles: str, mode: str = "enabled", pending: str = "") -> dict:
    devices = [{"uuid": f"MIG-{number}", "profile": profile} for number, profile in enumerate(profiles)]
    return {"mode": mode, "pending": pending or mode, "devices": devices}


def machine(*architectures: str, state: str = "ready", version: str = "580.95.05", **changes) -> dict:
    """What gpu_info says of a host with one GPU for each name."""
    devices = [
        {"address": f"0000:{number + 1:02x}:00.0", "device_id": "0x2330", "driver": "nvidia", "architecture": name, "kind": "gpu"}
        for number, name in enumerate(architectures)
    ]
    there = {
        "state": state, "problem": "" if state == "ready" else f"the driver is {state}", "pci": devices,
        "driver": {"version": version, "module_version": version, "cuda_version": "13.0", "flavour": "open"},
        "gpus": [gpu(number) for number in range(len(architectures))] if state == "ready" else [],
        "fabric_manager": {"needed": False, "version": "", "active": False},
        "kernel": {"release": "6.1.0-28-amd64", "headers": True, "nouveau": False, "secure_boot": "disabled"},
    }
    return copy.deepcopy({**there, **changes})


def found(system: str = "debian-12", *, gpus: dict | None = None, **changes) -> dict:
    """The document that the role hands to nvidia_plan, for a bare host with an H100."""
    there = {
        "name": "gpu1", "source": "nvidia", "branch": "", "version": "", "flavour": "auto", "headless": True, "fabric": "auto",
        "accept": [], "kernel": "6.1.0-28-amd64", "catalog": catalog(system) if system else {}, "distribution": system or "Arch",
        "gpu": gpus or machine("hopper", state="no_driver", version=""), "installed": {}, "runfile": "",
        "disk": {"/usr": str(50 * 2**30), "/var": str(50 * 2**30), "/boot": str(2**30)}, "repository": "https://mirror.example/",
        "mok": {"enrolled": False, "password": False}, "offered": None, "trouble": "", "bundle": "",
    }
    return {**there, **changes}
