# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""`nvidia-smi mig`: which partitions there are, making them and taking them away, with the rules that a change can break."""
from __future__ import annotations

from typing import Any

from answers import mig_uuids
from machine import Machine, Stop, bus_id

# Name without memory: id of the profile, compute slices of 7, memory slices of 8.
PROFILES = {"1g": (19, 1, 1), "1g+": (15, 1, 2), "2g": (14, 2, 2), "3g": (9, 3, 4), "4g": (5, 4, 4), "7g": (0, 7, 8)}
IN_USE, SCARCE = 19, 23


def profiles(gpu: dict[str, Any]) -> dict[str, tuple[int, int, int]]:
    """The GPU's own names: `3g.40gb` has 4 of 8 slices of 80 GB."""
    total = round(gpu["memory"] / 1024 / 10) * 10 or 8
    return {f"{name[:2]}.{total * memory // 8}gb": (number, compute, memory) for name, (number, compute, memory) in PROFILES.items()}


def enabled(gpus: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = [gpu for gpu in gpus if gpu["mig"]]
    if not found:
        raise Stop(6, "No MIG-enabled devices found.\n")
    return found


def list_profiles(gpus: list[dict[str, Any]]) -> str:
    """-lgip, in short: the original's table has more columns."""
    lines = ["GPU instance profiles:", "GPU   Name             ID    Instances   Memory"]
    for gpu in enabled(gpus):
        for name, (number, _compute, memory) in sorted(profiles(gpu).items()):
            free = room(gpu) // memory
            size = gpu["memory"] * memory / 8 / 1024
            lines.append(f"  {gpu['index']}  MIG {name:<14} {number:>2}     {free}/{8 // memory}        {size:.2f}")
    return "\n".join(lines) + "\n"


def room(gpu: dict[str, Any]) -> int:
    """Memory slices that nobody has."""
    return 8 - sum(instance["slices"] for instance in gpu["instances"])


def list_instances(gpus: list[dict[str, Any]]) -> str:
    rows = []
    for gpu in enabled(gpus):
        for instance in gpu["instances"]:
            number = profiles(gpu).get(instance["profile"], (0, 0, 0))[0]
            place = f"{instance['start']}:{instance['slices']}"
            rows.append(f"|   {gpu['index']}  MIG {instance['profile']:<13}{number:>5}{instance['id']:>9}{place:>14}     |\n")
    if not rows:
        raise Stop(6, "No GPU instances found: Not Found\n")
    edge = f"+{'-' * 55}+\n"
    head = (
        f"| {'GPU instances:':<54}|\n| {'GPU   Name             Profile  Instance   Placement':<54}|\n"
        f"| {'                         ID       ID       Start:Size':<54}|\n|{'=' * 55}|\n"
    )
    return edge + head + edge.join(rows) + edge


def create(seen: Machine, gpus: list[dict[str, Any]], names: str, with_compute: bool) -> str:
    """-cgi NAME,… [-C]: by name or by id of the profile."""
    text = ""
    for gpu in enabled(gpus):
        known = profiles(gpu)
        by_id = {str(number): name for name, (number, _compute, _memory) in known.items()}
        for asked in names.split(","):
            name = by_id.get(asked, asked.removeprefix("MIG ").strip())
            if name not in known:
                raise Stop(2, f"Option '{asked}' is not a GPU instance profile of GPU {gpu['index']:>2}\n")
            number, compute, memory = known[name]
            taken = sum(known[one["profile"]][1] for one in gpu["instances"])
            start = place(gpu["instances"], memory)
            if start is None or taken + compute > 7:
                raise Stop(SCARCE, (
                    f"{text}Unable to create a GPU instance on GPU {gpu['index']:>2} using profile {number}: Insufficient Resources\n"
                    "Failed to create GPU instances: Insufficient Resources\n"
                ))
            used = {one["id"] for one in gpu["instances"]}
            identity = next(free for free in range(1, 15) if free not in used)
            made = {"id": identity, "profile": name, "start": start, "slices": memory, "compute": with_compute}
            seen.change(gpu, instances=[*gpu["instances"], made])
            where = f"on GPU {gpu['index']:>2}"
            text += f"Successfully created GPU instance ID {identity:>2} {where} using profile MIG {name} (ID {number:>2})\n"
            if with_compute:
                text += (
                    f"Successfully created compute instance ID  0 {where} GPU instance ID {identity:>2}"
                    f" using profile MIG {name} (ID  0)\n"
                )
    return text


def place(instances: list[dict[str, Any]], slices: int) -> int | None:
    """The first memory slice of a free place; places begin at multiples of their size."""
    taken = {number for one in instances for number in range(one["start"], one["start"] + one["slices"])}
    starts = range(0, 9 - slices, slices)
    return next((start for start in starts if not taken & set(range(start, start + slices))), None)


def destroy(seen: Machine, gpus: list[dict[str, Any]], what: str) -> str:
    """-dci takes the compute instances, -dgi the GPU instances that have none left."""
    text = ""
    kind = "compute instances" if what == "-dci" else "GPU instances"
    for gpu in enabled(gpus):
        if not gpu["instances"] or (what == "-dci" and not any(one.get("compute", True) for one in gpu["instances"])):
            raise Stop(6, f"No {kind} found: Not Found\n")
        for instance, device in zip(list(gpu["instances"]), mig_uuids(gpu), strict=True):
            where = f"GPU {gpu['index']:>2}"
            name = f"compute instance ID  0 from {where} GPU instance ID {instance['id']:>2}" if what == "-dci" else (
                f"GPU instance ID {instance['id']:>2} from {where}")
            held = seen.in_use(device, gpu["uuid"]) if what == "-dci" else instance.get("compute", True)
            if held:
                used = "In use by another client\n"
                raise Stop(IN_USE, f"{text}Unable to destroy {name}: {used}Failed to destroy {kind}: {used}")
            rest = [one for one in gpu["instances"] if one["id"] != instance["id"]]
            left = [{**one, "compute": False} if one["id"] == instance["id"] else one for one in gpu["instances"]]
            seen.change(gpu, instances=left if what == "-dci" else rest)
            text += f"Successfully destroyed {name}\n"
    return text


def set_mode(seen: Machine, gpus: list[dict[str, Any]], on: bool) -> str:
    """-mig 1|0. On a GPU that nobody uses it takes effect at once; otherwise it is pending until a reset."""
    text = ""
    for gpu in gpus:
        if gpu["mig"] is None:
            raise Stop(3, f"Unable to {'enable' if on else 'disable'} MIG Mode for GPU {bus_id(gpu)}: Not Supported\n"
                          "Treating as warning and moving on.\nAll done.\n")
        if not on and gpu["instances"] and gpu["mig"]:
            raise Stop(IN_USE, f"Unable to disable MIG Mode for GPU {bus_id(gpu)}: In use by another client\n"
                               "Terminating early due to previous errors.\n")
        if seen.in_use(gpu["uuid"], *mig_uuids(gpu)) and gpu["mig"] != on:
            seen.change(gpu, mig_pending=on)
            which = "enable" if on else "disable"
            text += f"Warning: MIG mode is in pending {which} state for GPU {bus_id(gpu)}:In use by another client\n"
        else:
            seen.change(gpu, mig=on, mig_pending=on, instances=gpu["instances"] if on else [])
        text += f"{'Enabled' if on else 'Disabled'} MIG Mode for GPU {bus_id(gpu)}\n"
    return f"{text}All done.\n"
