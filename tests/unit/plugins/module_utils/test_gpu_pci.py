# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""GPUs by sysfs, on trees as the kernel makes them, and the table of chips against the PCI ID database."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import gpu_pci

IDS = Path(__file__).parent / "nvidia_smi" / "pci_ids.txt"
FAMILIES = {
    "GF": "fermi", "GK": "kepler", "GM": "maxwell", "GP": "pascal", "GV": "volta", "TU": "turing", "GA": "ampere", "AD": "ada",
    "GH": "hopper", "GB": "blackwell", "GR": "rubin",
}  # fmt: skip
# Laptops, cars and boards with the GPU in the processor, listed between others.
ELSEWHERE = {0x22CE, 0x22D0, 0x22D1}


@pytest.fixture
def bus(tmp_path):
    """`bus.add("0000:01:00.0", device="0x2330")`: one more device, as sysfs shows it."""
    root = tmp_path / "devices"
    root.mkdir()

    class Bus(gpu_pci.PciBus):
        def add(self, address, vendor="0x10de", device="0x2330", kind="0x030200", driver="nvidia", node="0"):
            path = root / address
            path.mkdir()
            for name, value in (("vendor", vendor), ("device", device), ("class", kind), ("numa_node", node)):
                if value is not None:
                    (path / name).write_text(f"{value}\n")
            if driver:
                held = tmp_path / "drivers" / driver
                held.mkdir(parents=True, exist_ok=True)
                (path / "driver").symlink_to(held)
            return path

    return Bus(root)


def test_a_gpu_is_described_without_any_driver(bus):
    bus.add("0000:53:00.0", driver="", node="1")
    assert bus.nvidia() == [
        {"address": "0000:53:00.0", "device_id": "0x2330", "class": "0x030200", "driver": "", "numa_node": 1, "architecture": "hopper",
         "kind": "gpu"}
    ]


def test_only_gpus_and_switches_of_nvidia_count(bus):
    bus.add("0000:00:00.0", vendor="0x8086", device="0x1237", kind="0x060000")
    bus.add("0000:01:00.0", kind="0x030000", device="0x2684", driver="nouveau")
    bus.add("0000:01:00.1", kind="0x040300", device="0x22ba", driver="snd_hda_intel")  # the same card's sound
    bus.add("0000:07:00.0", kind="0x068000", device="0x22a3")
    bus.add("0000:41:00.4", device="0x2330")
    (bus.devices / "0000:41:00.4" / "physfn").symlink_to(bus.devices / "0000:01:00.0")  # a share of another GPU
    found = bus.nvidia()
    assert [(one["address"], one["kind"], one["driver"]) for one in found] == [
        ("0000:01:00.0", "gpu", "nouveau"), ("0000:07:00.0", "nvswitch", "nvidia"),
    ]
    assert found[0]["architecture"] == "ada" and found[1]["architecture"] == ""


def test_a_device_that_lacks_attributes_is_no_error(bus):
    bus.add("0000:02:00.0", node=None)
    bus.add("0000:03:00.0", device="0xffff", node="-1")
    bus.add("0000:04:00.0", vendor=None)
    assert [(one["numa_node"], one["architecture"]) for one in bus.nvidia()] == [(-1, "hopper"), (-1, "")]
    assert gpu_pci.PciBus(bus.devices / "nowhere").nvidia() == []


@pytest.mark.parametrize(
    ("devices", "needed"),
    [
        ([("0x2330", "0x030200")], False),
        ([("0x2330", "0x030200"), ("0x22a3", "0x068000")], True),
        ([("0x2901", "0x030200")], True),  # B200: the switches are out of sight
        ([("0x2941", "0x030200")], False),  # GB200: somebody else's
        ([], False),
    ],
)
def test_switches_need_a_fabric_manager(bus, devices, needed):
    for number, (device, kind) in enumerate(devices):
        bus.add(f"0000:0{number}:00.0", device=device, kind=kind)
    assert gpu_pci.needs_fabric_manager(bus.nvidia()) is needed


def test_the_table_agrees_with_the_pci_id_database():
    listed = [(int(device, 16), name) for device, name in (line.split() for line in IDS.read_text().splitlines())]
    assert len(listed) > 900
    for device, name in listed:
        if device not in ELSEWHERE:
            assert gpu_pci.chip(f"0x{device:04x}")[0] == FAMILIES[name[:2]], f"{device:04x} {name}"


def test_ranges_of_the_table_come_in_order_and_do_not_overlap():
    ends = [-1]
    for first, last, _architecture, _capability in gpu_pci.CHIPS:
        assert ends[-1] < first <= last
        ends.append(last)


@pytest.mark.parametrize(
    ("device", "capability"),
    # https://developer.nvidia.com/cuda-gpus: K80, M40, P100, P40, V100, T4, A100, A10, L40S, H200, B200, B300, RTX PRO 6000, GB10
    [("0x102d", "3.7"), ("0x17fd", "5.2"), ("0x15f8", "6.0"), ("0x1b38", "6.1"), ("0x1db4", "7.0"), ("0x1eb8", "7.5"), ("0x20b2", "8.0"),
     ("0x2236", "8.6"), ("0x26b9", "8.9"), ("0x2335", "9.0"), ("0x2901", "10.0"), ("0x3182", "10.3"), ("0x2bb5", "12.0"),
     ("0x2e12", "12.1")],
)  # fmt: skip
def test_compute_capabilities_are_those_of_products(device, capability):
    assert gpu_pci.chip(device)[1] == capability


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("00000000:53:00.0", "0000:53:00.0"), ("0000:0D:00.0", "0000:0d:00.0"), ("0000:83:00", "0000:83:00.0"),
        ("00010000:C1:00.0", "10000:c1:00.0"), ("", ""), ("0:1:0", ""), ("GPU-1", ""),
    ],
)
def test_addresses_are_written_as_sysfs_does(text, address):
    assert gpu_pci.normal_address(text) == address


@given(st.integers(0, 0xFFFFFFFF), st.integers(0, 255), st.integers(0, 31), st.integers(0, 7))
def test_every_form_of_an_address_is_the_same_one(domain, bus_number, device, function):
    long = f"{domain:08X}:{bus_number:02X}:{device:02X}.{function}"
    once = gpu_pci.normal_address(long)
    assert once == gpu_pci.normal_address(once) == f"{domain:04x}:{bus_number:02x}:{device:02x}.{function}"
