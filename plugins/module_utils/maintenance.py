# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Hosts that are taken out of service for a while, to be upgraded, as a change of the plan. Pure: no I/O.

The plan's `maintenance` names them. What runs on them keeps its place, nobody but hosts.yml starts it or lets requests reach
it, nothing new is placed there, and no rollout of it begins. A run that is broken off leaves the entry, so that site.yml does
not bring back a node whose upgrade failed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault, suggestion
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.rollout_strategy import per_cent
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.views import gateway_servers, host_instances

# What the module fleet_plan takes.
MAINTENANCE = {
    "hosts": {"type": "list", "elements": "str", "required": True},
    "state": {"type": "str", "choices": ["begin", "end"], "required": True},
    "who": {"type": "str", "required": True},
    "why": {"type": "str", "default": ""},
}


def under_maintenance(plan: dict | None) -> dict[str, dict[str, str]]:
    """{host: {"who", "why", "since"}}. Plans of earlier versions of the collection know none."""
    return (plan or {}).get("maintenance", {})


def begin(plan: dict, hosts: list[str], who: str, why: str, at: str) -> dict:
    """The plan with these hosts out of service. One that is out already keeps who took it out, and since when."""
    out = under_maintenance(plan)
    new = {host: {"who": who, "why": why, "since": at} for host in hosts if host not in out}
    return _changed(plan, {**out, **new})


def end(plan: dict, hosts: list[str]) -> dict:
    """The plan with these hosts back in service."""
    return _changed(plan, {host: entry for host, entry in under_maintenance(plan).items() if host not in hosts})


def _changed(plan: dict, out: dict) -> dict:
    if out == under_maintenance(plan):
        return plan
    return {**plan, "generation": plan["generation"] + 1, "maintenance": dict(sorted(out.items()))}


def asked_hosts(text: str, nodes: list[str]) -> dict[str, list[str]]:
    """The nodes that a comma-separated list of names and patterns means, in their own order, and the parts that mean none.

    `all` is all of them; a part that begins with `!` leaves out what it matches, as in Ansible's patterns.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    meant = {part: {node for node in nodes if fnmatchcase(node, "*" if part == "all" else part.lstrip("!"))} for part in parts}
    taken = set().union(*(found for part, found in meant.items() if not part.startswith("!")))
    left_out = set().union(*(found for part, found in meant.items() if part.startswith("!")))
    hosts = [node for node in nodes if node in taken - left_out]
    return {"hosts": hosts, "unknown": [part for part, found in meant.items() if not found]}


def maintained_instances(plan: dict, host: str) -> list[dict[str, Any]]:
    """The instances of one host, with their release under `record` and the gateways' name for each under `server`."""
    own = host_instances(plan, host)
    return [{**it, "server": server} for it, server in zip(own, gateway_servers(own))]


def check(plan: dict | None, hosts: list[str], nodes: list[str], answered: set[str]) -> list[Fault]:
    """What forbids to take these hosts out of service. nodes: all GPU nodes of the inventory; answered: those that this run can work on."""
    faults = [Fault(f"{host} is no GPU node", "-e upgrade=…", suggestion(host, nodes, "GPU nodes")) for host in hosts if host not in nodes]
    fix = "bring it back, or leave it out of -e upgrade=…"
    faults += [Fault(f"{host} does not answer", f"host {host}", fix) for host in hosts if host in nodes and host not in answered]
    for model, rollout in sorted((plan or {}).get("rollouts", {}).items()):
        on = sorted({it["host"] for it in plan["instances"] if it["model"] == model} & set(hosts))
        if on:
            begun = f"begun by {rollout['who']} at {rollout['started']}"
            what = f"a rollout of {model} to {rollout['to_version']} is open on {', '.join(on)}, {begun}"
            fix = f"continue it with rollout.yml -e model={model}, or take it back with rollback.yml -e model={model}, first"
            faults.append(Fault(what, f"rollout {rollout['id']}", fix))
    return faults


def batches(plan: dict, hosts: list[str], size: str, gateways: dict[str, dict[str, Any]] | None = None) -> list[list[str]]:
    """The hosts in the order given, as many at a time as `size` (such as 2, or 25%) and as their models allow.

    Two hosts that have the only two instances of a model are never out at the same time. Those that are out already, by what
    gateways told, come first: the others have to wait for them.
    """
    most = at_once(size, len(hosts))
    made: list[list[str]] = []
    for host in sorted(hosts, key=lambda host: all(_serves(it, gateways) for it in plan["instances"] if it["host"] == host)):
        if made and len(made[-1]) < most and not sole(plan, [*made[-1], host]).keys() - sole(plan, [host]).keys():
            made[-1].append(host)
        else:
            made.append([host])
    return made


def at_once(size: str, count: int) -> int:
    """How many of `count` hosts `size` stands for, at least one. ValueError where it is neither a number nor per cent."""
    if not re.fullmatch(r"[1-9][0-9]*%?", size):
        raise ValueError(f"'{size}' is neither a number of hosts, as 2, nor per cent of them, as 25%")
    return max(1, per_cent(size, count) if size.endswith("%") else int(size))


def sole(
    plan: dict, hosts: list[str], gateways: dict[str, dict[str, Any]] | None = None, back: Collection[str] = ()
) -> dict[str, list[str]]:
    """{model: instances} that nobody would serve while these hosts are out.

    gateways: what M(localfirst.llm_fleet.release_info) told, by gateway. With it only servers count that are up and take
    requests there, on every gateway; without it what the plan has. back: hosts that serve by then, whatever they do now.
    """
    instances = defaultdict(list)
    for instance in plan["instances"]:
        instances[instance["model"]].append(instance)
    found = {}
    for model, of_model in sorted(instances.items()):
        there = [it for it in of_model if it["host"] in hosts]
        others = [it for it in of_model if it["host"] not in hosts]
        if there and not any(it["host"] in back or _serves(it, gateways) for it in others):
            found[model] = [it["id"] for it in there]
    return found


def _serves(instance: dict, gateways: dict[str, dict[str, Any]] | None) -> bool:
    (server,) = gateway_servers([instance])
    told = [gateway.get("servers", {}).get(server) for gateway in (gateways or {}).values()]
    return all(found and found["up"] and found["state"] == "ready" for found in told)


def outage(plan: dict, made: list[list[str]], gateways: dict[str, dict[str, Any]] | None = None) -> list[Fault]:
    """Which models nobody would serve while one of these batches is out; see `sole`. None begins before all earlier ones are back."""
    return [
        Fault(
            f"nobody else serves {model} while {', '.join(hosts)} {'is' if len(hosts) == 1 else 'are'} out ({', '.join(ids)})",
            f"llm_fleet_models[{model}].replicas",
            "add a replica elsewhere, bring back the one that does not answer, or accept the outage with -e accept_outage=true",
        )
        for hosts in made
        for model, ids in sole(plan, hosts, gateways, hosts_before(made, hosts[0])).items()
    ]


def hosts_before(made: list[list[str]], host: str) -> list[str]:
    """All hosts of the batches before the one that this host is in."""
    mine = next(number for number, hosts in enumerate(made) if host in hosts)
    return [before for hosts in made[:mine] for before in hosts]


def maintenance_lines(made: list[list[str]], plan: dict, wanted: dict[str, list[str]]) -> list[str]:
    """What will happen to which host when, a line each. wanted: what each host lacks, in words."""
    lines = []
    for number, hosts in enumerate(made, start=1):
        for host in hosts:
            ids = ", ".join(it["id"] for it in plan["instances"] if it["host"] == host) or "nothing"
            lines.append(f"batch {number} of {len(made)}, {host}: drain and stop {ids}; {'; '.join(wanted.get(host, []))}; start it again")
    return lines
