# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Which GPUs of a node engines may use: what the operator lists, what the node's driver tells, and what is in use. Pure: no I/O.

`gpu` is what M(localfirst.llm_fleet.host_info) returned under that name: {"state", "problem", "gpus"}.
"""

from __future__ import annotations

from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault, suggestion
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.gpu_state import LOST, NO_GPU, READY

# Nothing that could be wrong was seen.
FINE = ("", READY, NO_GPU)


def usable(gpus: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What can be given to an engine: each GPU that answers, or in its place its MIG devices where MIG is on."""
    found = []
    for gpu in gpus:
        if gpu["state"] == READY:
            found += gpu["mig"]["devices"] if gpu["mig"]["mode"] == "enabled" else [gpu]
    return found


def memory(gpus: list[dict[str, Any]], which: str) -> dict[str, int]:
    """Bytes (C(memory_total), C(memory_free)) of what is usable, by UUID. What does not say is left out."""
    return {gpu["uuid"]: gpu[which] for gpu in usable(gpus) if gpu["uuid"] and gpu[which] is not None}


def traits(gpus: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the plan chooses GPUs by, each by UUID: C(gpu_names), C(islands) that NVLink joins, C(sockets) of the machine.

    A MIG device is where its GPU is, and has its name. What a GPU does not say is left out.
    """
    told: dict[str, dict[str, Any]] = {"gpu_names": {}, "islands": {}, "sockets": {}}
    for gpu in gpus:
        values = {"gpu_names": gpu.get("name"), "islands": gpu.get("island"), "sockets": gpu.get("numa_node")}
        for key, value in values.items():
            if value not in (None, "", -1):
                told[key].update((one["uuid"], value) for one in [gpu, *gpu["mig"]["devices"]])
    return told


def node_gpus(listed: list[str] | None, gpu: dict[str, Any] | None, held: list[str]) -> list[str]:
    """UUIDs that the plan may give away on a node, in the driver's order.

    listed: llm_fleet_gpus, or None where the operator lists nothing: then all that answer.
    held: those that instances of the current plan have there, in the plan's order.

    A driver that does not answer tells nothing about its GPUs, and engines that run go on without it. So the node keeps what it has,
    and gets nothing new. Where some GPUs answer, one that does not is gone.
    """
    state, gpus = (gpu or {}).get("state", ""), (gpu or {}).get("gpus", [])
    answering = [one["uuid"] for one in usable(gpus)]
    if any(gpu["mig"]["mode"] == "enabled" and not gpu["mig"]["devices"] for gpu in gpus):
        # Partitions do not outlast a boot, and come back under the same names when they are laid out again.
        answering += [uuid for uuid in dict.fromkeys(held) if uuid.startswith("MIG-") and uuid not in answering]
    if state == READY or (state == LOST and answering):
        return answering if listed is None else _restricted(listed, gpus, answering)
    if state in ("", NO_GPU, "no_driver") and listed is not None:
        return listed  # nobody knows better: the driver is still to come, or there is only what the operator says
    kept = [] if state in ("", NO_GPU) else list(dict.fromkeys(held))
    return kept if listed is None else [uuid for uuid in kept if uuid in listed]


def _restricted(listed: list[str], gpus: list[dict[str, Any]], answering: list[str]) -> list[str]:
    """What is both listed and answers, in the list's order. A GPU in MIG mode stands for its MIG devices."""
    parts = {gpu["uuid"]: [one["uuid"] for one in usable([gpu])] for gpu in gpus}
    wanted = [uuid for name in listed for uuid in parts.get(name, [name])]
    return [uuid for uuid in dict.fromkeys(wanted) if uuid in answering]


def check_listed(listed: Any, gpu: dict[str, Any] | None, held: list[str], where: str) -> list[Fault]:
    """A UUID that no GPU of the node has is a slip of the pen. One that instances use was a GPU of the node: that one broke."""
    if not isinstance(listed, list) or not gpu or gpu["state"] != READY:
        return []
    known = {one["uuid"] for one in gpu["gpus"]} | {one["uuid"] for one in usable(gpu["gpus"])}
    return [
        Fault(f"llm_fleet_gpus: the node has no GPU {uuid}", where, f"{suggestion(uuid, known, 'GPUs')}, or take it out of the list")
        for uuid in listed
        if uuid not in known and uuid not in held
    ]


def problems(hosts: dict[str, dict[str, Any]], nodes: list[str]) -> list[str]:
    """What is wrong with the GPUs of nodes that answered, a line each. It stops nobody: engines on other GPUs go on."""
    told = ((name, hosts[name].get("gpu") or {}) for name in nodes if name in hosts)
    return [f"{name}: {gpu['problem']}" for name, gpu in told if gpu.get("state", "") not in FINE]
