# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The state of a host's GPUs and driver, as one word, and one sentence about what to do. Pure: no I/O."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.nvidia_smi import Answer, Log

READY, NO_GPU, NO_DRIVER, NOT_LOADED = "ready", "no_gpu", "no_driver", "not_loaded"
MISMATCH, LOST, FAILING = "mismatch", "lost", "failing"
STATES = (READY, NO_GPU, NO_DRIVER, NOT_LOADED, MISMATCH, LOST, FAILING)

_MISMATCH = re.compile(r"version mismatch", re.IGNORECASE)
_NOT_LOADED = re.compile(r"couldn't communicate with the NVIDIA driver|Driver Not Loaded", re.IGNORECASE)
_LOST = re.compile(r"GPU is lost|Unable to determine the device handle|fallen off the bus", re.IGNORECASE)
_LIBRARY = re.compile(r"NVML library version: ([0-9.]+)")

JOURNAL = "`journalctl -k | grep NVRM`"
REBOOT = "drain and reboot the host"


class Seen(NamedTuple):
    """What the survey saw."""

    pci: list[dict[str, Any]]  # GPUs on the PCI bus
    answer: Answer | None  # of `nvidia-smi -q -x`; None where there is no nvidia-smi
    log: Log | None
    lost: list[dict[str, Any]]  # GPUs that should answer and do not
    module: str  # version of the kernel module that is loaded
    kernel: dict[str, Any]
    built: bool  # whether there is a module for the kernel that runs
    timeout: float


def library_version(answer: Answer | None) -> str:
    """The version of the user libraries, as nvidia-smi says it where it differs from the module's."""
    match = _LIBRARY.search(answer.said) if answer else None
    return match[1] if match else ""


def says_mismatch(answer: Answer) -> bool:
    return answer.code == 18 or _MISMATCH.search(answer.said) is not None


def says_not_loaded(answer: Answer) -> bool:
    return answer.code == 9 or _NOT_LOADED.search(answer.said) is not None


def judge(seen: Seen) -> tuple[str, str]:
    """The state, and what is wrong, where, and what to do next; no sentence where nothing is wrong."""
    answer = seen.answer
    if answer is None:
        return _without_tool(seen)
    if answer.hung:
        return FAILING, (
            f"nvidia-smi did not answer within {seen.timeout:g} s: the driver or a GPU hangs. Look into {JOURNAL}, then {REBOOT}"
        )
    if says_mismatch(answer):
        return MISMATCH, _mismatch(seen)
    if seen.log is not None and (seen.log.gpus or seen.lost):
        return (LOST, _lost(seen)) if seen.lost else (READY, "")
    if not seen.pci and not seen.module:
        return NO_GPU, ""
    if says_not_loaded(answer):
        return NOT_LOADED, _not_loaded(seen)
    if seen.lost or _LOST.search(answer.said) or answer.code == 15:
        return LOST, _lost(seen)
    if seen.log is not None or answer.code == 6 or "No devices were found" in answer.said:
        return _no_devices(seen)
    if answer.code == 12 or "libnvidia-ml" in answer.said:
        return FAILING, (
            "nvidia-smi does not find libnvidia-ml.so, so only a part of the driver is installed. Install all its packages in one version"
        )
    said = next((line.strip() for line in reversed(answer.said.splitlines()) if line.strip()), "nothing")
    return FAILING, f"nvidia-smi fails with status {answer.code} and says: {said[:300]}. Look into {JOURNAL}"


def nameless(addresses: list[str]) -> str:
    return f"`nvidia-smi -L` does not tell the MIG devices of the GPU at {', '.join(addresses)}. Look into {JOURNAL}, and run it by hand"


def _without_tool(seen: Seen) -> tuple[str, str]:
    if not seen.pci:
        return NO_GPU, ""
    if seen.module:
        return NO_DRIVER, (
            f"the kernel module {seen.module} is loaded, but there is no nvidia-smi here. Install the driver's tools in that version"
            " (Debian: nvidia-smi, Ubuntu: nvidia-utils, NVIDIA's repository: nvidia-driver-cuda)"
        )
    return NO_DRIVER, (
        f"there is no driver for {_count(seen.pci)}. Install it, for instance with the role localfirst.llm_fleet.nvidia_driver"
    )


def _mismatch(seen: Seen) -> str:
    library = library_version(seen.answer)
    versions = f"the kernel module is {seen.module or 'of another version'} and the library {library or 'of another one'}"
    return (
        f"{versions}: the driver was upgraded and the old module is still loaded. What runs goes on, nothing new can start;"
        f" {REBOOT} to load the new one"
    )


def _not_loaded(seen: Seen) -> str:
    kernel = seen.kernel
    holders = {device["driver"] for device in seen.pci} - {"", "nvidia"}
    if seen.module:
        return f"the kernel module {seen.module} is loaded, but nvidia-smi cannot talk to it. Look into {JOURNAL}, then {REBOOT}"
    if "nouveau" in holders or (kernel["nouveau"] and not holders):
        return f"nouveau holds the GPU, so no other module can. Keep nouveau from loading (modprobe.d, initramfs), then {REBOOT}"
    if holders:
        who = ", ".join(sorted(holders))
        return f"the GPUs are held by {who}, for virtual machines. Give them back to the host, or take it out of the fleet"
    if not seen.built:
        headers = "" if kernel["headers"] else f" Install the headers of kernel {kernel['release']} first."
        return (
            f"the driver is installed, but there is no module for the kernel that runs ({kernel['release']}).{headers}"
            " Build it (`dkms autoinstall`), or reboot into the kernel that it was built for"
        )
    if kernel["secure_boot"] == "enabled":
        return (
            "the driver's module is there and not loaded, and Secure Boot is on. `modprobe nvidia` says whether its key is trusted:"
            " enrol the key that signed it (`mokutil --import`), or install signed modules"
        )
    return f"the driver is installed and its module is not loaded. Load it (`modprobe nvidia`), or {REBOOT}"


def _lost(seen: Seen) -> str:
    places = sorted({gpu["address"] for gpu in seen.lost} - {""})
    where = f" at {', '.join(places)}" if places else ""
    what = f"{'a GPU' if len(seen.lost) < 2 else f'{len(seen.lost)} GPUs'}{where} fell off the bus or does not answer"
    return f"{what}. Look into {JOURNAL} for its XIDs, {REBOOT}, and have the card, its power and its slot checked if it happens again"


def _no_devices(seen: Seen) -> tuple[str, str]:
    """nvidia-smi works and finds nothing."""
    if not seen.pci:
        return LOST, f"the kernel module is loaded, and no GPU is left on the PCI bus. Look into {JOURNAL}, then {REBOOT}"
    if not any(device["driver"] == "nvidia" for device in seen.pci):
        return NOT_LOADED, (
            f"the driver does not take {_count(seen.pci)}. Look into {JOURNAL}: most often this branch does not support the GPU,"
            " or not in this flavour (open, proprietary)"
        )
    return LOST, _lost(seen._replace(lost=[device for device in seen.pci if device["driver"] == "nvidia"]))


def _count(devices: list[dict[str, Any]]) -> str:
    places = [device["address"] for device in devices]
    return f"the GPU at {places[0]}" if len(places) == 1 else f"the {len(places)} GPUs at {', '.join(places)}"
