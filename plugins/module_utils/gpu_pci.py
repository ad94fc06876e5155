# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's GPUs and NVSwitches as the kernel lists them on the PCI bus: known without any driver.

Reads sysfs only. Neither lspci nor its list of names has to be there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

NVIDIA = "0x10de"
DEVICES = Path("/sys/bus/pci/devices")
_GPU_CLASSES = ("0x0300", "0x0302")  # VGA and 3D controllers; the same card's sound and USB have classes of their own
_BRIDGE_CLASS = "0x0680"
_ADDRESS = re.compile(r"([0-9a-fA-F]{4,8}):([0-9a-fA-F]{2}):([0-9a-fA-F]{2})(?:\.([0-7]))?")

CHIPS = (
    # First and last device id, architecture, compute capability; an empty one where products of that chip differ or none is documented.
    # Which id is which chip: the PCI ID database (pci-ids.ucw.cz), version 2026.08.22; a test compares with its list of NVIDIA's chips.
    # Which chip has which capability: https://developer.nvidia.com/cuda-gpus
    (0x06C0, 0x06DF, "fermi", "2.0"),
    (0x0DC0, 0x0F06, "fermi", "2.1"),
    (0x0FC0, 0x0FFF, "kepler", "3.0"),
    (0x1001, 0x102A, "kepler", "3.5"),
    (0x102D, 0x102D, "kepler", "3.7"),
    (0x102E, 0x103F, "kepler", "3.5"),
    (0x1040, 0x107D, "fermi", "2.1"),
    (0x1080, 0x109B, "fermi", "2.0"),
    (0x1140, 0x1140, "fermi", "2.1"),
    (0x1180, 0x11FF, "kepler", "3.0"),
    (0x1200, 0x1251, "fermi", "2.1"),
    (0x1280, 0x130B, "kepler", "3.5"),
    (0x1340, 0x139D, "maxwell", "5.0"),
    (0x13AD, 0x13AE, "maxwell", "5.2"),
    (0x13B0, 0x13BD, "maxwell", "5.0"),
    (0x13BE, 0x1436, "maxwell", "5.2"),
    (0x15C2, 0x15FF, "pascal", "6.0"),
    (0x1613, 0x1676, "maxwell", "5.2"),
    (0x1725, 0x172F, "pascal", "6.0"),
    (0x174D, 0x179C, "maxwell", "5.0"),
    (0x17C2, 0x17FD, "maxwell", "5.2"),
    (0x1B00, 0x1D56, "pascal", "6.1"),
    (0x1D81, 0x1DF6, "volta", "7.0"),
    (0x1E02, 0x1FF9, "turing", "7.5"),
    (0x2080, 0x20FF, "ampere", "8.0"),
    (0x2182, 0x21D1, "turing", "7.5"),
    (0x2200, 0x223F, "ampere", "8.6"),
    (0x2302, 0x23F0, "hopper", "9.0"),
    (0x2414, 0x25FB, "ampere", "8.6"),
    (0x2681, 0x28F8, "ada", "8.9"),
    (0x2900, 0x29F1, "blackwell", "10.0"),
    (0x2B00, 0x2B00, "blackwell", ""),
    (0x2B85, 0x2DF9, "blackwell", "12.0"),
    (0x2E03, 0x2E2A, "blackwell", "12.1"),
    (0x2F04, 0x2F58, "blackwell", "12.0"),
    (0x3000, 0x30C0, "rubin", ""),
    (0x3180, 0x31FE, "blackwell", "10.3"),
    (0x3200, 0x323E, "blackwell", ""),
    (0x3340, 0x3340, "blackwell", ""),
)

# GPUs that come on boards with NVSwitches only, of which the host sees none: they sit behind ConnectX adapters there (NVIDIA's Fabric
# Manager User Guide, HGX B200 and B300). In GB200 and GB300 racks fabric manager runs on the switches' own hosts.
BEHIND_SWITCHES = frozenset(["0x2901", "0x2909", "0x3182"])


def chip(device_id: str) -> tuple[str, str]:
    """Architecture and compute capability that go with a device id such as ``0x2330``; empty where it is not known."""
    number = int(device_id, 16)
    return next(((name, capability) for first, last, name, capability in CHIPS if first <= number <= last), ("", ""))


def normal_address(text: str) -> str:
    """An address as sysfs writes it (``0000:53:00.0``), from any form: nvidia-smi has 8 digits of domain, messages of XIDs no function."""
    match = _ADDRESS.fullmatch(text.strip())
    if match is None:
        return ""
    domain, bus, device, function = match.groups()
    return f"{int(domain, 16):04x}:{bus}:{device}.{function or 0}".lower()


class PciBus:
    """What sysfs tells of the PCI bus."""

    def __init__(self, devices: Path = DEVICES) -> None:
        self.devices = devices

    def nvidia(self) -> list[dict[str, Any]]:
        """GPUs and NVSwitches, by address. Virtual functions are left out: they are shares of a GPU that is in the list."""
        if not self.devices.is_dir():
            return []
        found = [
            self.describe(path)
            for path in sorted(self.devices.iterdir())
            if self.read(path, "vendor") == NVIDIA and not (path / "physfn").exists()
        ]
        return [device for device in found if device["kind"]]

    def describe(self, path: Path) -> dict[str, Any]:
        device_id, device_class = self.read(path, "device"), self.read(path, "class")
        kind = {_BRIDGE_CLASS: "nvswitch", **dict.fromkeys(_GPU_CLASSES, "gpu")}.get(device_class[:6], "")
        driver = path / "driver"
        node = self.read(path, "numa_node")
        return {
            "address": path.name,
            "device_id": device_id,
            "class": device_class,
            "driver": driver.resolve().name if driver.exists() else "",
            "numa_node": int(node) if node.lstrip("-").isdigit() else -1,
            "architecture": chip(device_id)[0] if kind == "gpu" and device_id else "",
            "kind": kind,
        }

    @staticmethod
    def read(path: Path, name: str) -> str:
        """The text of one attribute. A device that is being taken away may lose it between two calls."""
        try:
            return (path / name).read_text(encoding="ascii", errors="replace").strip()
        except OSError:
            return ""


def needs_fabric_manager(devices: list[dict[str, Any]]) -> bool:
    """Whether these GPUs reach each other over NVSwitches that this host has to set up."""
    return any(device["kind"] == "nvswitch" or device["device_id"] in BEHIND_SWITCHES for device in devices)
