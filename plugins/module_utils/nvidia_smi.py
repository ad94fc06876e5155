# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Asks nvidia-smi, and reads its answers of all driver versions since Kepler.

Names in its XML change with the driver: `power_readings` became `gpu_power_readings`, `clocks_throttle_reasons` became
`clocks_event_reasons`, one counter of uncorrectable errors became two. What a GPU does not say is None or an empty string here.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.gpu_pci import chip, normal_address

# What stands in place of a value where the GPU does not answer any more.
GONE = ("GPU is lost", "Unknown Error", "GPU requires reset")
# Active reasons for low clocks that mean trouble. Idleness, a set clock and the power limit under load are everyday ones.
TROUBLE = ("hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "sw_thermal_slowdown")

_UNREACHED = re.compile(r"^.*Unable to determine the device handle for GPU[^\n]*$", re.MULTILINE)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_NUMBER = re.compile(r"-?[0-9]+(?:[.,][0-9]+)?")
_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "MB": 2**20}
_LISTED = re.compile(r"^(\s*)(GPU|MIG) (.+?)\s+\(UUID: ([^)]+)\)\s*$")


class Answer(NamedTuple):
    """What a program printed, and how it ended; no code where it hung and was killed."""

    code: int | None
    text: str
    errors: str = ""

    @property
    def hung(self) -> bool:
        return self.code is None

    @property
    def said(self) -> str:
        return f"{self.text}\n{self.errors}"


class Log(NamedTuple):
    """One `nvidia-smi -q -x`: versions, GPUs in nvidia-smi's order, and the addresses of those it could not get hold of."""

    driver: str
    cuda: str
    gpus: list[dict[str, Any]]
    unreached: list[str]


def ask(command: Sequence[str], timeout: float) -> Answer:
    """Run a program in the C locale. One that hangs is killed, and left alone where even that does not end it.

    A process that waits for a dead GPU inside the kernel ignores SIGKILL; waiting for it would hang us as well.
    """
    environment = {**os.environ, "LC_ALL": "C", "LANGUAGE": "C"}
    try:
        process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, start_new_session=True
        )
    except OSError as error:
        return Answer(127, "", f"{command[0]}: {error.strerror}")
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=2)
        return Answer(None, "", "")
    return Answer(process.returncode, output.decode(errors="replace"), errors.decode(errors="replace"))


def parse_log(text: str) -> Log | None:
    """Read `nvidia-smi -q -x`; None where that is no such document."""
    unreached = [address for line in _UNREACHED.findall(text) for address in [_address_in(line)] if address]
    # These lines come before the document, or in the middle of it.
    document = _CONTROL.sub("", _UNREACHED.sub("", text))
    begin, end = document.find("<?xml"), document.rfind("</nvidia_smi_log>")
    if begin < 0 or end < begin:
        return None
    try:
        root = ElementTree.fromstring(document[begin : end + len("</nvidia_smi_log>")])
    except ElementTree.ParseError:
        return None
    gpus = [_gpu(element, index) for index, element in enumerate(root.findall("gpu"))]
    # Since driver 610 the old names only say that there are new ones.
    driver = _version(root, "driver_version") or _version(root, "kmd_version")
    return Log(driver, _version(root, "cuda_version") or _version(root, "cuda_umd_version"), gpus, unreached)


def lost_gpu(address: str) -> dict[str, Any]:
    """A GPU of which no more is known than where it is, or was."""
    return {**_gpu(ElementTree.Element("gpu", {"id": address}), -1), "compute_capability": ""}


def parse_list(text: str) -> dict[str, list[dict[str, str]]]:
    """Read `nvidia-smi -L`: the MIG devices, with UUID and profile, by the UUID of their GPU."""
    devices: dict[str, list[dict[str, str]]] = {}
    parent = None
    for line in text.splitlines():
        match = _LISTED.match(line)
        if match and match[2] == "GPU":
            parent = devices.setdefault(match[4].strip(), [])
        elif match and parent is not None:
            parent.append({"uuid": match[4].strip(), "profile": match[3].split()[0]})
    return devices


def parse_links(text: str) -> dict[str, dict[str, int]]:
    """Read `nvidia-smi nvlink --status`: how many links each GPU has and how many of them run, by UUID."""
    links: dict[str, dict[str, int]] = {}
    current: dict[str, int] | None = None
    for line in text.splitlines():
        match = _LISTED.match(line)
        if match:
            current = links.setdefault(match[4].strip(), {"links": 0, "active": 0})
        elif current is not None and re.match(r"\s*Link \d+:", line):
            current["links"] += 1
            current["active"] += int(re.search(r":\s*[0-9.]+ GB/s", line) is not None)
    return links


def parse_islands(text: str) -> dict[int, int]:
    """Read `nvidia-smi topo -m`: which GPUs NVLink joins, as the lowest index of those that reach each other, by index.

    The head of the matrix is underlined by escape sequences, in a pipe too. A GPU that NVLink joins with none is alone.
    """
    lines = [line.split() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()]
    head = next((words for words in lines if words and words[0] == "GPU0" and "X" not in words), [])
    columns = [int(word[3:]) for word in head if re.fullmatch(r"GPU[0-9]+", word)]
    rows = {int(words[0][3:]): words[1:] for words in lines if words and words is not head and re.fullmatch(r"GPU[0-9]+", words[0])}
    islands = {index: index for index in columns}
    for index, cells in sorted(rows.items()):
        for other, cell in zip(columns, cells):
            if index in islands and re.fullmatch(r"NV[0-9]+", cell):
                lower, upper = sorted((islands[index], islands[other]))
                islands = {one: lower if island == upper else island for one, island in islands.items()}
    return islands


def parse_rows(text: str, columns: int) -> list[list[str]]:
    """Read `--query-gpu=… --format=csv,noheader`; a line with another number of columns is a message and no row."""
    rows = [[field.strip() for field in line.split(",")] for line in text.splitlines()]
    return [row for row in rows if len(row) == columns]


def with_mig(gpus: list[dict[str, Any]], listed: dict[str, list[dict[str, str]]]) -> list[dict[str, Any]]:
    """The GPUs with UUIDs and profiles of their MIG devices, which most drivers leave out of the XML and `-L` tells in the same order."""
    told = []
    for gpu in gpus:
        named, measured = listed.get(gpu["uuid"], []), gpu["mig"]["devices"]
        same = len(named) == len(measured)
        devices = [
            {**(measured[number] if same else {"memory_total": None, "memory_free": None}), **name} for number, name in enumerate(named)
        ] or [device for device in measured if device["uuid"]]
        told.append({**gpu, "mig": {**gpu["mig"], "devices": devices}})
    return told


def _gpu(element: ElementTree.Element, index: int) -> dict[str, Any]:
    """One GPU as gpu_info returns it."""
    memory, uuid = element.find("fb_memory_usage"), _said(element, "uuid")
    gone = any(_text(element, path).strip("[]") in GONE for path in ("uuid", "fb_memory_usage/total", "remapped_rows"))
    device_id = f"0x{_said(element, 'pci/pci_device_id')[:4].lower() or '0'}"
    return {
        "index": index,
        "uuid": uuid,
        "name": _said(element, "product_name"),
        "address": normal_address(element.get("id", "")) or normal_address(_said(element, "pci/pci_bus_id")),
        "memory_total": _bytes(memory, "total"),
        "memory_free": _bytes(memory, "free"),
        "compute_capability": chip(device_id)[1] if re.fullmatch("0x[0-9a-f]+", device_id) else "",
        "ecc": {**_modes(element, "ecc"), **_ecc_errors(element)},
        "mig": {**_modes(element, "mig"), "devices": [_mig_device(one) for one in element.iterfind("mig_devices/mig_device")]},
        "power": _power(element),
        "temperature": _number(_said(element, "temperature/gpu_temp"), int),
        "throttle": _throttle(element),
        "nvlink": {"links": None, "active": None},
        "persistence": _said(element, "persistence_mode") == "Enabled",
        "fabric": {"state": _said(element, "fabric/state"), "status": _said(element, "fabric/status")},
        "recovery": _said(element, "gpu_recovery_action").replace("None", ""),
        "repair": _repair(element),
        "state": "lost" if gone or not uuid else "ready",
    }


def _modes(element: ElementTree.Element, name: str) -> dict[str, str]:
    """Present and pending mode: C(enabled), C(disabled), or empty for a GPU that has no such thing."""
    return {key: _said(element, f"{name}_mode/{tag}_{name}").lower() for key, tag in (("mode", "current"), ("pending", "pending"))}


def _ecc_errors(element: ElementTree.Element) -> dict[str, int | None]:
    """Errors since the driver was loaded. Sums what the GPU counts; None where it counts nothing."""
    volatile = element.find("ecc_errors/volatile")
    counted: dict[str, list[int]] = {"corrected": [], "uncorrected": []}
    for counter in volatile if volatile is not None else ():
        name = {"single_bit": "corrected", "double_bit": "uncorrected"}.get(counter.tag)
        if name:  # up to Volta: a group of counters with a total
            value = _number(_said(counter, "total"), int)
        else:
            name = "uncorrected" if "uncorrectable" in counter.tag else "corrected"
            value = _number(_meant(counter.text), int)
        if value is not None:
            counted[name].append(value)
    return {name: sum(values) if values else None for name, values in counted.items()}


def _repair(element: ElementTree.Element) -> str:
    """Memory that is worn out: C(failed) where the GPU cannot repair it, C(pending) where it will at its next reset, or empty."""

    def says(*paths: str) -> bool:
        return any(_said(element, path) == "Yes" for path in paths)

    # Rows are remapped since Ampere, pages were retired before.
    if says("remapped_rows/remapped_row_failure", "ecc_errors/aggregate/sram_threshold_exceeded", "ecc_errors/unrepairable_memory"):
        return "failed"
    retired = ("retired_pages/pending_retirement", "retired_pages/pending_blacklist")
    repairs = ("ecc_errors/channel_repair_pending", "ecc_errors/tpc_repair_pending")
    return "pending" if says("remapped_rows/remapped_row_pending", *retired, *repairs) else ""


def _mig_device(element: ElementTree.Element) -> dict[str, Any]:
    memory = element.find("fb_memory_usage")
    return {"uuid": _said(element, "uuid"), "profile": "", "memory_total": _bytes(memory, "total"), "memory_free": _bytes(memory, "free")}


def _power(element: ElementTree.Element) -> dict[str, float | None]:
    readings = next((found for found in map(element.find, ("gpu_power_readings", "power_readings")) if found is not None), None)

    def watts(*names: str) -> float | None:
        values = (_number(_said(readings, name), float) for name in names)
        return None if readings is None else next((value for value in values if value is not None), None)

    return {
        "limit": watts("current_power_limit", "power_limit"),
        "default": watts("default_power_limit"),
        "min": watts("min_power_limit"),
        "max": watts("max_power_limit"),
        "draw": watts("instant_power_draw", "power_draw", "average_power_draw"),
    }


def _throttle(element: ElementTree.Element) -> list[str]:
    active = set()
    for group, prefix in (("clocks_event_reasons", "clocks_event_reason_"), ("clocks_throttle_reasons", "clocks_throttle_reason_")):
        for reason in element.iterfind(f"{group}/*"):
            if _meant(reason.text) == "Active":
                active.add(reason.tag[len(prefix) :])
    return [name for name in TROUBLE if name in active]


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _said(element: ElementTree.Element, path: str) -> str:
    """The text of an element, or nothing where it is not there or says that there is nothing to say."""
    return _meant(element.findtext(path))


def _meant(text: str | None) -> str:
    text = (text or "").strip().strip("[]")
    return "" if text in ("N/A", "Not Supported", "Insufficient Permissions", *GONE) or text.startswith("Requested functionality") else text


def _version(root: ElementTree.Element, name: str) -> str:
    text = _said(root, name)
    return text if re.fullmatch(r"[0-9][0-9.]*", text) else ""


def _number(text: str, kind: type) -> Any:
    match = _NUMBER.match(text)
    return None if match is None else kind(float(match[0].replace(",", ".")))


def _bytes(memory: ElementTree.Element | None, name: str) -> int | None:
    amount, _space, unit = (_said(memory, name) if memory is not None else "").partition(" ")
    return int(amount) * _UNITS[unit] if amount.isdigit() and amount.isascii() and unit in _UNITS else None


def _address_in(line: str) -> str:
    match = re.search(r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]", line)
    return normal_address(match[0]) if match else ""
