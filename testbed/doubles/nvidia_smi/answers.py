# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What the double prints about GPUs: XML as drivers since 560 write it, lists, rows of CSV and a short table."""
from __future__ import annotations

import time
from typing import Any
from xml.sax.saxutils import escape

import machine
from machine import Machine, Stop, bus_id, mig_uuid

LOST = "GPU is lost"
REASONS = (
    "gpu_idle", "applications_clocks_setting", "sw_power_cap", "hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown",
    "sync_boost", "sw_thermal_slowdown", "display_clocks_setting",
)


def mode(value: bool | None) -> str:
    return "N/A" if value is None else "Enabled" if value else "Disabled"


def amount(value: float | None, unit: str, form: str = ".2f") -> str:
    return "N/A" if value is None else f"{value:{form}} {unit}"


def used(seen: Machine, gpu: dict[str, Any]) -> int:
    return gpu.get("memory_used", 0) + sum(app["memory"] for app in seen.apps if app["uuid"] == gpu["uuid"])


def instance_memory(gpu: dict[str, Any], instance: dict[str, Any]) -> int:
    """MiB of a MIG device: its eighths of what the GPU has, less what the driver takes."""
    return gpu["memory"] * instance["slices"] // 8 - 128


def element(name: str, value: Any, depth: int) -> str:
    tabs = "\t" * depth
    if isinstance(value, dict):
        inner = "".join(element(key, item, depth + 1) for key, item in value.items())
        return f"{tabs}<{name}>\n{inner}{tabs}</{name}>\n"
    if isinstance(value, list):
        return "".join(element(name, item, depth) for item in value)
    return f"{tabs}<{name}>{escape(str(value))}</{name}>\n"


def log(seen: Machine, gpus: list[dict[str, Any]]) -> str:
    body = "".join(gpu_log(seen, gpu) for gpu in gpus if gpu["lost"] != "handle")
    head = {
        "timestamp": time.strftime("%a %b %e %H:%M:%S %Y"), "driver_version": seen.module,
        "cuda_version": seen.scenario.get("cuda", "13.0"), "attached_gpus": len(seen.gpus),
    }
    begin = '<?xml version="1.0" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v13.dtd">\n<nvidia_smi_log>\n'
    return begin + "".join(element(*item, 1) for item in head.items()) + body + "</nvidia_smi_log>\n"


def gpu_log(seen: Machine, gpu: dict[str, Any]) -> str:
    power, errors, lost = gpu["power"], gpu.get("errors", {}), gpu["lost"]
    taken = used(seen, gpu)
    counted = {"corrected": errors.get("corrected", 0), "uncorrected": errors.get("uncorrected", 0)} if gpu["ecc"] else {}
    counters = {
        "sram_correctable": 0 if gpu["ecc"] else "N/A", "sram_uncorrectable_parity": 0 if gpu["ecc"] else "N/A",
        "sram_uncorrectable_secded": 0 if gpu["ecc"] else "N/A", "dram_correctable": counted.get("corrected", "N/A"),
        "dram_uncorrectable": counted.get("uncorrected", "N/A"),
    }
    whole = [instance for instance in gpu["instances"] if instance.get("compute", True)]
    devices = {"mig_device": [mig_log(gpu, instance, number) for number, instance in enumerate(whole)]}
    active = gpu.get("throttle", [])
    tree = {
        "product_name": gpu["name"], "product_brand": "NVIDIA", "product_architecture": gpu["architecture"],
        "persistence_mode": mode(gpu["persistence"]),
        "mig_mode": {"current_mig": mode(gpu["mig"]), "pending_mig": mode(gpu["mig_pending"])},
        "mig_devices": devices if gpu["mig"] and whole else "\n\t\t\tNone\n\t\t",
        "uuid": gpu["uuid"], "minor_number": gpu["index"],
        "gpu_recovery_action": gpu.get("recovery", "None"),
        "pci": {
            "pci_bus": gpu["address"][5:7].upper(), "pci_device": gpu["address"][8:10].upper(), "pci_domain": gpu["address"][:4].upper(),
            "pci_device_id": f"{gpu['device_id'][2:]}10DE".upper(), "pci_bus_id": bus_id(gpu),
        },
        "clocks_event_reasons": {f"clocks_event_reason_{name}": "Active" if name in active else "Not Active" for name in REASONS},
        "fb_memory_usage": {
            "total": f"{gpu['memory']} MiB", "reserved": "0 MiB", "used": f"{taken} MiB", "free": f"{gpu['memory'] - taken} MiB",
        },
        "compute_mode": "Default",
        "ecc_mode": {"current_ecc": mode(gpu["ecc"]), "pending_ecc": mode(gpu["ecc_pending"])},
        "ecc_errors": {"volatile": counters, "aggregate": counters},
        "remapped_rows": {
            "remapped_row_pending": yes(gpu.get("repair") == "pending"), "remapped_row_failure": yes(gpu.get("repair") == "failed"),
        },
        "temperature": {"gpu_temp": amount(gpu.get("temperature"), "C", "d")},
        "gpu_power_readings": {
            "power_state": "P0", "average_power_draw": amount(power.get("draw"), "W"), "instant_power_draw": amount(power.get("draw"), "W"),
            "current_power_limit": amount(gpu["limit"], "W"), "requested_power_limit": amount(gpu["limit"], "W"),
            "default_power_limit": amount(power.get("default"), "W"), "min_power_limit": amount(power.get("min"), "W"),
            "max_power_limit": amount(power.get("max"), "W"),
        },
        "fabric": {"state": gpu.get("fabric") or "N/A", "status": "Success" if gpu.get("fabric") == "Completed" else "N/A"},
        "processes": {"process_info": [process(app) for app in seen.apps if app["uuid"] == gpu["uuid"]]},
    }
    if lost:
        tree["fb_memory_usage"] = dict.fromkeys(tree["fb_memory_usage"], LOST)
        tree["temperature"] = {"gpu_temp": LOST}
        tree["ecc_errors"]["volatile"] = {**counters, "dram_correctable": LOST, "dram_uncorrectable": LOST}
        tree["gpu_power_readings"] = {**tree["gpu_power_readings"], "average_power_draw": LOST, "instant_power_draw": LOST}
    inner = "".join(element(*item, 2) for item in tree.items())
    return f'\t<gpu id="{bus_id(gpu)}">\n{inner}\t</gpu>\n\n'


def yes(value: bool) -> str:
    return "Yes" if value else "No"


def mig_log(gpu: dict[str, Any], instance: dict[str, Any], number: int) -> dict[str, Any]:
    """Like the original's, without the UUID: only -L tells that."""
    memory = instance_memory(gpu, instance)
    return {
        "index": number, "gpu_instance_id": instance["id"], "compute_instance_id": 0,
        "fb_memory_usage": {"total": f"{memory} MiB", "reserved": "0 MiB", "used": "12 MiB", "free": f"{memory - 12} MiB"},
    }


def process(app: dict[str, Any]) -> dict[str, Any]:
    return {"pid": app["pid"], "type": "C", "process_name": app["name"], "used_memory": f"{app['memory']} MiB"}


def listing(gpus: list[dict[str, Any]]) -> str:
    lines = []
    for gpu in gpus:
        if gpu["lost"] == "handle":
            lines.append(machine.unreachable(gpu).rstrip())
            continue
        lines.append(f"GPU {gpu['index']}: {gpu['name']} (UUID: {gpu['uuid']})")
        whole = [instance for instance in gpu["instances"] if gpu["mig"] and instance.get("compute", True)]
        for number, instance in enumerate(whole):
            lines.append(f"  MIG {instance['profile']:<11} Device {number:>2}: (UUID: {mig_uuid(gpu['uuid'], instance['id'], 0)})")
    return "\n".join(lines) + "\n"


def links(gpus: list[dict[str, Any]]) -> str:
    text = ""
    for gpu in gpus:
        if gpu["lost"] == "handle":
            continue
        text += f"GPU {gpu['index']}: {gpu['name']} (UUID: {gpu['uuid']})\n"
        link = gpu.get("nvlink", {"links": 0, "active": 0})
        for number in range(link["links"]):
            text += f"\t Link {number}: {'26.562 GB/s' if number < link['active'] else '<inactive>'}\n"
    return text


def topology(seen: Machine, gpus: list[dict[str, Any]]) -> str:
    """GPUs with links of one kind are joined, as on a machine with NVSwitches; `joined` in the scenario says which are by bridges."""
    pairs = [set(pair) for pair in seen.scenario.get("joined", [])]
    names = "\t".join(f"GPU{gpu['index']}" for gpu in gpus)
    text = f"\t\x1b[4m{names}\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m\n"
    for gpu in gpus:
        cells = []
        for other in gpus:
            links = gpu.get("nvlink", {"links": 0})["links"]
            joined = any({gpu["index"], other["index"]} <= pair for pair in pairs) if pairs else links > 0
            cells.append(" X " if other is gpu else f"NV{links or 4}" if joined else "SYS")
        text += f"GPU{gpu['index']}\t" + "\t".join(cells) + "\t0-31\t0\t\tN/A\n"
    return text + "\nLegend:\n\n  X    = Self\n  NV#  = Connection traversing a bonded set of # NVLinks\n"


def version(seen: Machine) -> str:
    short = ".".join(seen.library.split(".")[:2])
    return (
        f"NVIDIA-SMI version  : {seen.library}\nNVML version        : {short}\n"
        f"DRIVER version      : {seen.module}\nCUDA Version        : {seen.scenario.get('cuda', '13.0')}\n"
    )


def fields(seen: Machine, gpu: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """The fields of --query-gpu that the double knows: value and unit."""
    power, errors, taken = gpu["power"], gpu.get("errors", {}), used(seen, gpu)
    memory = {"total": gpu["memory"], "used": taken, "free": gpu["memory"] - taken}
    active = sum(bit for name, bit in BITS.items() if name in gpu.get("throttle", []))
    values: dict[str, tuple[str, str]] = {
        "index": (str(gpu["index"]), ""), "count": (str(len(seen.gpus)), ""), "uuid": (gpu["uuid"], ""),
        "name": (gpu["name"], ""), "pci.bus_id": (bus_id(gpu), ""), "driver_version": (seen.module, ""),
        "compute_cap": (gpu["compute_capability"], ""), "persistence_mode": (mode(gpu["persistence"]), ""),
        **{f"memory.{key}": (str(value), " MiB") for key, value in memory.items()},
        **{f"power.{key}": (watts(power.get(name)), " W") for key, name in WATTS.items()}, "power.limit": (watts(gpu["limit"]), " W"),
        "temperature.gpu": (str(gpu.get("temperature", "[N/A]")), ""),
        "ecc.mode.current": (bracketed(gpu["ecc"]), ""), "ecc.mode.pending": (bracketed(gpu["ecc_pending"]), ""),
        "mig.mode.current": (bracketed(gpu["mig"]), ""), "mig.mode.pending": (bracketed(gpu["mig_pending"]), ""),
        "ecc.errors.corrected.volatile.total": (str(errors.get("corrected", 0)) if gpu["ecc"] else "[N/A]", ""),
        "ecc.errors.uncorrected.volatile.total": (str(errors.get("uncorrected", 0)) if gpu["ecc"] else "[N/A]", ""),
        "clocks_event_reasons.active": (f"0x{active:016x}", ""), "utilization.gpu": ("0", " %"),
    }
    if gpu["lost"]:
        values = {name: value if name in ("index", "count", "driver_version") else (f"[{LOST}]", "") for name, value in values.items()}
    return {**values, **{alias: values[name] for alias, name in ALIASES.items()}}


ALIASES = {
    "gpu_uuid": "uuid", "gpu_name": "name", "gpu_bus_id": "pci.bus_id", "clocks_throttle_reasons.active": "clocks_event_reasons.active",
}
WATTS = {"draw": "draw", "default_limit": "default", "min_limit": "min", "max_limit": "max"}
BITS = {"sw_power_cap": 0x4, "hw_slowdown": 0x8, "sw_thermal_slowdown": 0x20, "hw_thermal_slowdown": 0x40, "hw_power_brake_slowdown": 0x80}


def watts(value: float | None) -> str:
    return "[N/A]" if value is None else f"{value:.2f}"


def bracketed(value: bool | None) -> str:
    return mode(value).replace("N/A", "[N/A]")


def query_gpu(seen: Machine, gpus: list[dict[str, Any]], names: list[str], form: list[str]) -> str:
    rows = []
    for gpu in gpus:
        if gpu["lost"] == "handle":
            rows.append(machine.unreachable(gpu).rstrip())
            continue
        known = fields(seen, gpu)
        for name in names:
            if name not in known:
                raise Stop(2, f'Field "{name}" is not a valid field to query.\n\n')
        units = "nounits" not in form
        rows.append(", ".join(known[name][0] + (known[name][1] if units and known[name][0][0] != "[" else "") for name in names))
    return headed(rows, names, form, {"memory": "MiB", "power": "W", "utilization": "%"})


def query_apps(seen: Machine, gpus: list[dict[str, Any]], names: list[str], form: list[str]) -> str:
    rows = []
    for app in seen.apps:
        gpu = next((gpu for gpu in gpus if app["uuid"] == gpu["uuid"] or app["uuid"] in mig_uuids(gpu)), None)
        if gpu is None:
            continue
        known = {
            "gpu_uuid": app["uuid"], "gpu_name": gpu["name"], "gpu_bus_id": bus_id(gpu), "pid": str(app["pid"]),
            "process_name": app["name"], "name": app["name"], "used_memory": f"{app['memory']}{'' if 'nounits' in form else ' MiB'}",
            "used_gpu_memory": f"{app['memory']}{'' if 'nounits' in form else ' MiB'}",
        }
        for name in names:
            if name not in known:
                raise Stop(2, f'Field "{name}" is not a valid field to query.\n\n')
        rows.append(", ".join(known[name] for name in names))
    return headed(rows, names, form, {"used_memory": "MiB", "used_gpu_memory": "MiB"})


def mig_uuids(gpu: dict[str, Any]) -> list[str]:
    return [mig_uuid(gpu["uuid"], instance["id"], 0) for instance in gpu["instances"]]


def headed(rows: list[str], names: list[str], form: list[str], units: dict[str, str]) -> str:
    if "noheader" not in form:
        unit = {name: units.get(name) or units.get(name.partition(".")[0]) for name in names}
        rows = [", ".join(f"{name} [{unit[name]}]" if unit[name] else name for name in names), *rows]
    return "".join(f"{row}\n" for row in rows)
