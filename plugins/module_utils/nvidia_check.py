# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Whether a host has to be rebooted and why, and whether all is there afterwards. Pure: takes what gpu_info returned."""

from __future__ import annotations

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault


def reboot_reasons(gpu: dict, *, parameters_changed: bool = False, installed: str = "") -> list[str]:
    """Why only a reboot brings into effect what is installed and set; empty where nothing waits for one.

    `installed` is the version of the installed packages, where it is known.
    """
    reasons = []
    driver, kernel = gpu["driver"], gpu["kernel"]
    loaded = driver.get("module_version", "")
    if gpu["state"] == "mismatch":
        # nvidia-smi names only the first two numbers of the library's version.
        there = installed or driver.get("version") or "another one"
        reasons.append(f"the loaded kernel module is {loaded or 'of another version'}, the installed driver is {there}")
    elif gpu["state"] == "ready" and installed and loaded and loaded != installed:
        reasons.append(f"the loaded kernel module is {loaded}, the installed driver is {installed}")
    elif gpu["state"] == "not_loaded":
        holder = "nouveau holds the GPUs" if kernel.get("nouveau") else "the kernel module is not loaded"
        reasons.append(f"{holder}, and the installed driver did not load by itself")
    if parameters_changed and loaded:
        reasons.append("parameters of the kernel module have changed since it was loaded")
    for device in gpu["gpus"]:
        for name, label in (("ecc", "ECC"), ("mig", "MIG")):
            state = device.get(name) or {}
            mode, pending = state.get("mode"), state.get("pending")
            if pending and mode and pending != mode:
                reasons.append(f"GPU {device['index']} ({device['uuid']}) has {label} mode {mode} and waits to change to {pending}")
    return reasons


def check_after(before: dict, after: dict, host: str, version: str = "") -> list[Fault]:
    """What must hold after a change of the driver or a reboot: it answers, it is one version, every GPU is there again."""
    where = f"host {host}"
    if after["state"] != "ready":
        fix = "to go back, set nvidia_driver_version to the one before and run again; `dmesg | grep -i nvidia` on the host tells more"
        return [Fault(after["problem"].rstrip(".") or f"the driver is {after['state']}", where, fix)]
    faults = []
    driver = after["driver"]
    versions = {driver["version"], driver["module_version"], version} - {""}
    if len(versions) > 1:
        what = f"library {driver['version']}, kernel module {driver['module_version']}" + (f", packages {version}" if version else "")
        faults.append(Fault(f"the driver's parts are of different versions: {what}", where, "reboot the host, and run again"))
    alive = {device["address"].lower() for device in after["gpus"] if device.get("state", "ready") == "ready"}
    seen = {device["address"].lower() for device in before["pci"] if device["kind"] == "gpu"}
    gone = sorted(seen - alive)
    if gone:
        fix = "switch the host off and on again; if it stays away, look at its seat, its power and `journalctl -k | grep -i xid`"
        faults.append(Fault(f"GPUs that were there before are missing: {', '.join(gone)}", where, fix))
    uuids = {device["uuid"] for device in after["gpus"]}
    for device in before["gpus"]:
        if device["uuid"] not in uuids and device["address"].lower() in alive:
            fix = "a card was swapped: correct llm_fleet_gpus if it names UUIDs"
            faults.append(Fault(f"there is another GPU in place of {device['uuid']} at {device['address']}", where, fix))
    fabric = after["fabric_manager"]
    if fabric["needed"]:
        if fabric["version"] and fabric["version"] != driver["version"]:
            what = f"the fabric manager is {fabric['version']}, the driver {driver['version']}: they must be one version"
            faults.append(Fault(what, where, "run the role again; it keeps both at one version"))
        if not fabric["active"]:
            what = "its GPUs are joined by NVSwitch, and the fabric manager does not run: no program can use them"
            faults.append(Fault(what, where, "see `systemctl status nvidia-fabricmanager` on the host"))
    return faults
