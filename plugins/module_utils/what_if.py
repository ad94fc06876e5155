# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""A fleet as it is not: without some of its nodes, or with more of them. For `plan.yml`, which only shows. Pure: no I/O."""

from __future__ import annotations

import re
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import gpu_supply, words
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault, suggestion
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.gpu_state import READY
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.maintenance import asked_hosts

# What fleet_plan takes as its option `what_if`.
WHAT_IF = {
    "without": {"type": "str", "default": ""},
    "with": {"type": "str", "default": ""},
}
GPUS = re.compile(r"([1-9][0-9]?)x(.+)")
EXAMPLES = "as in gpu9:gpu1 (a node like gpu1) or gpu9:8x80g (one with eight GPUs of 80 GiB)"
# What a node that nobody has touched yet holds.
BARE = {"blobs": {}, "instances": [], "plan": None, "plan_error": "", "fleet_ca": ""}


def imagine(params: dict[str, Any]) -> tuple[dict[str, Any], list[Fault]]:
    """The arguments of fleet_plan for the fleet that `what_if` describes, and what is wrong with the description.

    A node that is taken away gives everything back, as with `hosts.yml -e remove=…`. One that comes is new and empty.
    """
    asked, faults = params["what_if"] or {}, []
    gone = asked_hosts(asked.get("without") or "", params["nodes"])
    for name in gone["unknown"]:
        faults.append(Fault(f"there is no node {name}", "without", suggestion(name, params["nodes"], "nodes")))
    hosts, nodes = list(params["hosts"]), list(params["nodes"])
    for item in filter(None, (part.strip() for part in (asked.get("with") or "").split(","))):
        node, found = _node(item, params["hosts"], nodes)
        faults += found
        if node is not None:
            hosts.append(node)
            nodes.append(node["name"])
    changed = {"hosts": hosts, "nodes": nodes, "removed": [*params["removed"], *gone["hosts"]]}
    return {**params, **changed, "asked": [*params["asked"], *nodes[len(params["nodes"]):]]}, faults


def _node(item: str, hosts: list[dict], nodes: list[str]) -> tuple[dict | None, list[Fault]]:
    """One node that is not there, after one that is."""
    name, colon, like = item.partition(":")
    if not colon or not name or not like:
        return None, [Fault(f"'{item}' does not say what the node is like", "with", f"write it {EXAMPLES}")]
    if name in nodes:
        return None, [Fault(f"there is a node {name} already", "with", "give the new one a name of its own")]
    answered = {host["name"]: host for host in hosts if host["name"] in nodes}
    gpus = GPUS.fullmatch(like)
    if gpus is None and like not in answered:
        what = f"'{like}' is no node that answered, and no GPUs"
        return None, [Fault(what, "with", f"{suggestion(like, answered, 'nodes')}; or write it {EXAMPLES}")]
    if not answered:
        return None, [Fault("no node answered that the new one could be like", "with", "see to it that one does")]
    model = answered[like] if like in answered else answered[min(answered)]
    told = (model.get("gpu") or {}).get("gpus") or []
    if gpus:
        faults: list[Fault] = []
        size = words.SIZE(gpus[2], "with", faults)
        if faults:
            return None, [fault._replace(fix=f"write it {EXAMPLES}") for fault in faults]
        told = [_gpu(words.size_bytes(size))] * int(gpus[1])
    # An operator's list of GPUs is about those of the host that it was written for.
    facts = {key: value for key, value in model.items() if key != "gpus"}
    found = [_renamed(gpu, f"{name}-{index}") for index, gpu in enumerate(told)]
    memory = gpu_supply.memory(found, "memory_total")
    return {
        **facts,
        **BARE,
        "name": name,
        # Of the addresses for documentation (RFC 3849), which nothing answers at.
        "address": f"2001:db8::{len(nodes) + 1:x}",
        "gpu": {"state": READY if found else "no_gpu", "problem": "", "gpus": found},
        "gpu_memory": memory,
        "gpu_free": dict(memory),
    }, []


def _gpu(size: int) -> dict:
    """A GPU of which only the size is known."""
    return {"name": "", "state": READY, "memory_total": size, "memory_free": size, "mig": {"mode": "disabled", "devices": []}}


def _renamed(gpu: dict, name: str) -> dict:
    """The GPU, and its MIG devices, under UUIDs that nothing in the fleet has."""
    devices = [{**one, "uuid": f"MIG-what-if-{name}-{index}"} for index, one in enumerate(gpu["mig"]["devices"])]
    return {**gpu, "uuid": f"GPU-what-if-{name}", "mig": {**gpu["mig"], "devices": devices}}
