# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""How GPUs are cut into MIG devices, and how they are to be: the difference as steps for nvidia-smi. Pure."""

from __future__ import annotations

import re
from collections import Counter

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault

PROFILE = re.compile(r"(\d+)g\.(\d+)gb(?:\+\w+(?:\.\w+)*)?")
"""`1g.10gb`, with attributes as in `1g.10gb+me`; compute instances of a part (`1c.2g.20gb`) are not made here."""


def mig_changes(gpus: list[dict], wish: list[dict], busy: dict[str, list[str]], host: str) -> dict:
    """What is to be done for each GPU that the wish names, as steps; what lacks, and what of that waits for a GPU in use, in words; faults.
    `gone` are the UUIDs that nobody finds any more once all is done.

    `wish` is a list of {"gpu": "all", an index or a UUID, "profiles": […]}; later entries win. `busy` has, by UUID,
    who uses a GPU: its layout is left alone then.
    """
    where, faults, wanted = f"host {host}", [], {}
    for entry in wish:
        named = [gpu for gpu in gpus if str(entry["gpu"]) in ("all", str(gpu["index"]), gpu["uuid"])]
        if not named:
            known = ", ".join(f"{gpu['index']} ({gpu['uuid']})" for gpu in gpus) or "none"
            faults.append(Fault(f"nvidia_driver_mig names GPU {entry['gpu']}, which is not there", where, f"GPUs of this host: {known}"))
        wrong = [profile for profile in entry["profiles"] if not PROFILE.fullmatch(profile)]
        if wrong:
            fix = "write profiles as `nvidia-smi mig -lgip` names them, for example 1g.10gb"
            faults.append(Fault(f"nvidia_driver_mig: {', '.join(wrong)} is no MIG profile", where, fix))
        else:
            wanted.update({gpu["uuid"]: entry["profiles"] for gpu in named})
    steps, lacks, waits, gone = [], [], [], []
    for gpu in gpus:
        if gpu["uuid"] not in wanted:
            continue
        step = _step(gpu, wanted[gpu["uuid"]])
        if step is None:
            continue
        mode = (gpu.get("mig") or {}).get("mode")
        if mode not in ("enabled", "disabled"):
            what = f"GPU {gpu['index']} ({gpu['uuid']}) cannot be divided into MIG devices"
            faults.append(Fault(what, where, "take it out of nvidia_driver_mig"))
            continue
        layouts = [" + ".join(profiles) or "whole" for profiles in (step["destroy"], step["create"])]
        lacks.append(f"MIG layout of GPU {gpu['index']}: {' -> '.join(layouts)}")
        gone += [device["uuid"] for device in gpu["mig"].get("devices", [])] or [gpu["uuid"]]
        if busy.get(gpu["uuid"]):
            waits.append(f"{lacks[-1]}, in use by {', '.join(busy[gpu['uuid']])}")
        else:
            steps.append(step)
    text = "; ".join(fault.text() for fault in faults)
    return {
        "steps": steps, "lacks": lacks, "waits": waits, "gone": gone, "faults": [fault.as_dict() for fault in faults], "text": text,
    }


def _step(gpu: dict, profiles: list[str]) -> dict | None:
    mig = gpu.get("mig") or {}
    mode, present = mig.get("mode"), [device["profile"] for device in mig.get("devices", [])]
    enable = bool(profiles)
    same_mode = mode == ("enabled" if enable else "disabled") or (not enable and mode not in ("enabled", "disabled"))
    if same_mode and Counter(present) == Counter(profiles):
        return None
    return {
        "uuid": gpu["uuid"],
        "index": gpu["index"],
        # A mode that is pending already waits for a reboot and is not set again.
        "mode": "" if same_mode or mig.get("pending") == ("enabled" if enable else "disabled") else "1" if enable else "0",
        "destroy": present,
        # Large parts first: small ones in between would leave no room for them.
        "create": sorted(profiles, key=_size, reverse=True),
    }


def _size(profile: str) -> tuple[int, int]:
    match = PROFILE.fullmatch(profile)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def gpu_users(apps: str, engines: list[str], gpus: list[dict]) -> dict[str, list[str]]:
    """Who uses each GPU, by UUID.

    `apps` is what `nvidia-smi --query-compute-apps=gpu_uuid,pid,process_name --format=csv,noheader` prints. Of an engine's
    container it is not known from outside which GPUs it was given, so each of them counts for all GPUs of the host.
    """
    users: dict[str, list[str]] = {gpu["uuid"]: [f"the engine {name}" for name in engines] for gpu in gpus}
    for line in apps.splitlines():
        fields = [field.strip() for field in line.split(",", 2)]
        if len(fields) == 3 and fields[0] in users:
            users[fields[0]].append(f"process {fields[1]} ({fields[2]})")
    return {uuid: who for uuid, who in users.items() if who}
