# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What must hold of the hosts before anything is changed on one of them. Pure: no I/O.

Everything here takes what M(localfirst.llm_fleet.host_info) returned and gives back a list of faults.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import PurePosixPath
from posixpath import normpath

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault, suggestion

CLOCK_SKEW_SECONDS = 5.0
"""Tokens expire and leases run by the hosts' clocks; more than this is a fault."""

RED_HAT_FAMILY = ("rhel", "rocky", "almalinux", "centos")
NODE_DISTRIBUTIONS = {
    "debian": ("12", "13"),
    "ubuntu": ("22.04", "24.04"),
    **dict.fromkeys(RED_HAT_FAMILY, ("9",)),
}
DEPOT_DISTRIBUTIONS = {"debian": ("12", "13"), "ubuntu": ("22.04", "24.04")}
GATEWAY_DISTRIBUTIONS = {"debian": ("12", "13"), "ubuntu": ("24.04",)}
# With drivers before 470, MIG devices are called MIG-GPU-<UUID>/<GPU instance>/<compute instance>.
GPU_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z-]+(/[0-9]+/[0-9]+)?")
HAPROXY_MINIMUM = (2, 6, 12)
"""That of Debian 12, the oldest distribution of a gateway."""


def check_groups(gateways: list[str], nodes: list[str]) -> list[Fault]:
    """A fleet needs at least one host that answers clients and one that computes."""
    return [
        Fault(f"the group `{group}` is empty", "inventory", f"put at least one host into the group `{group}`")
        for group, members in (("gateways", gateways), ("gpu_nodes", nodes))
        if not members
    ]


def check_paths(paths: dict[str, str]) -> list[Fault]:
    """Paths on the controller are absolute, or nobody could say which directory they start from."""
    faults = []
    for variable, path in sorted(paths.items()):
        if not path:
            faults.append(
                Fault(
                    f"{variable} is not set, and there is no inventory on disk to take a default from",
                    variable,
                    f"set {variable} to an absolute path that outlives this run",
                )
            )
        elif not path.startswith("/"):
            fix = f"make it absolute, for instance \"{{{{ inventory_dir }}}}/{path}\""
            faults.append(Fault(f"the path {path!r} is relative", variable, fix))
    return faults


def check_inventories(directories: list[str], paths: dict[str, str]) -> list[Fault]:
    """Ansible takes every file below an inventory that is a directory for one more inventory, keys among them, but for hidden ones."""
    faults = []
    for variable, path in sorted(paths.items()):
        for directory in directories:
            place, root = PurePosixPath(normpath(path)), PurePosixPath(normpath(directory))
            if root in place.parents and not any(part.startswith(".") for part in place.relative_to(root).parts):
                what = f"the inventory is the directory {directory}, so Ansible reads {path} as an inventory, too, and shows what is in it"
                fix = f"name the file and not the directory (-i {directory}/hosts.yml), or set {variable} to a place elsewhere"
                faults.append(Fault(what, variable, fix))
    return faults


def check_labels(models: list[dict], hosts: list[dict]) -> list[Fault]:
    """A label that no GPU node has is a slip of the pen. With a node that does not answer, nobody knows."""
    known = {label for host in hosts for label in host.get("labels") or {}}
    fix = "label the nodes with llm_fleet_labels in the inventory"
    faults = []
    for model in models:
        placement = model["placement"]
        asked = [("labels", label) for label in placement["labels"] or {}] + [("spread", placement["spread"])] * bool(placement["spread"])
        for key, label in asked:
            if label not in known:
                where = f"llm_fleet_models[{model['name']}].placement.{key}"
                faults.append(Fault(f"no GPU node has the label '{label}'", where, f"{suggestion(label, known, 'labels')}, or {fix}"))
    return faults


def check_port_range(port_range: list[int]) -> list[Fault]:
    """First and last port for engines."""
    if len(port_range) == 2 and 1 <= port_range[0] < port_range[1] <= 65535:
        return []
    what = f"{port_range} is not the first and the last port of a range"
    return [Fault(what, "llm_fleet_port_range", "write both as a list, as in [20000, 29999]")]


def check_reachable(gateways: list[str], gateways_out: list[str], asked: set[str], answered: set[str]) -> list[Fault]:
    """Every gateway answers or is declared out: all gateways serve the same plan, or none gets a new one."""
    faults = [
        Fault(
            f"gateway {name} does not answer",
            f"host {name}",
            f"bring it back, or declare it out with llm_fleet_gateways_out: [{name}] (nodes then refuse it)",
        )
        for name in gateways
        if name in asked and name not in answered and name not in gateways_out
    ]
    faults += [
        Fault(f"{name} is no gateway", "llm_fleet_gateways_out", f"known gateways: {', '.join(sorted(gateways))}")
        for name in gateways_out
        if name not in gateways
    ]
    if gateways and set(gateways) <= set(gateways_out):
        faults.append(Fault("no gateway is left", "llm_fleet_gateways_out", "leave at least one gateway in"))
    return faults


def check_depots(depots: list[str], usable: list[str]) -> list[Fault]:
    """Where there are depots, nodes get what they lack from nobody else: at least one has to answer."""
    if not depots or usable:
        return []
    return [
        Fault(
            f"no depot answers ({', '.join(sorted(depots))})",
            "group `depots`",
            "bring one of them back, or take them out of the group `depots`: the controller then hands out the files",
        )
    ]


def check_distribution(distribution: str, peer_port: int, depots: list[str], port_range: list[int]) -> list[Fault]:
    """Where hosts bring each other files, one of them has to have them first."""
    if distribution != "p2p":
        return []
    faults = []
    if not depots:
        what = "p2p needs a host that has the files first, and there is none in the group `depots`"
        fix = "put a host into the group `depots`, or set llm_fleet_distribution to http: the controller then hands out the files"
        faults.append(Fault(what, "llm_fleet_distribution", fix))
    first, last = (*port_range, 0, 0)[:2]
    if not 1024 <= peer_port <= 65535 or first <= peer_port <= last:
        what = f"{peer_port} is no port from 1024 on that lies outside of the engines' ({first} to {last})"
        faults.append(Fault(what, "llm_fleet_peer_port", "choose another one, for instance 8446"))
    return faults


def check_host(host: dict, is_gateway: bool, is_depot: bool = False) -> list[Fault]:
    """One host: its distribution, its clock, its address, its GPUs and, on a gateway, its HAProxy."""
    where = f"host {host['name']}"
    kind = "gateway" if is_gateway else "depot" if is_depot else "GPU node"
    faults = [*_check_distribution(host["distribution"], kind, where), *_check_address(host["address"], where)]
    faults += _check_gpus(host.get("gpus"), where)
    skew = least_skew(host["clock_skew"], host["call_seconds"])
    if abs(skew) > CLOCK_SKEW_SECONDS:
        faults.append(
            Fault(
                f"its clock differs from the controller's by {skew:.1f} s (at most {CLOCK_SKEW_SECONDS:.0f} s)",
                where,
                "synchronise the clocks, for instance with chrony, and run again",
            )
        )
    # A host whose package lists were never read offers nothing yet; the gateway role looks again when it has read them.
    if is_gateway and host["haproxy_version"] and haproxy_number(host["haproxy_version"]) < HAPROXY_MINIMUM:
        least = ".".join(map(str, HAPROXY_MINIMUM))
        faults.append(
            Fault(
                f"HAProxy {least} or newer is needed, the package sources offer {host['haproxy_version']}",
                where,
                "refresh the package lists, or take a gateway with Debian 12 or Ubuntu 24.04 or newer",
            )
        )
    return faults


def least_skew(measured: float, call_seconds: float) -> float:
    """The smallest skew that explains what was measured, in seconds.

    `measured` is the host's clock less the controller's when it called; the host looked at its own at any moment of the
    `call_seconds` after that. A busy controller or a slow line must not pass for a wrong clock.
    """
    return min(max(measured - call_seconds, 0.0), measured)


def check_disk(host: dict, bytes_to_move: int, reserve: int) -> list[Fault]:
    """The store holds what the plan brings, and `reserve` bytes stay free on its file system."""
    store = host["store"]
    if bytes_to_move == 0 or store["free_bytes"] >= bytes_to_move + reserve:
        return []
    gib = 1024**3
    return [
        Fault(
            f"{store['path']} has {store['free_bytes'] / gib:.1f} GiB free, {bytes_to_move / gib:.1f} GiB are to come"
            f" and {reserve / gib:.1f} GiB stay free (llm_fleet_disk_reserve)",
            f"host {host['name']}",
            "free some space, mount a larger disk there, or plan fewer models for this host",
        )
    ]


def check_ca(hosts: list[dict], controller_ca: str) -> list[Fault]:
    """A host's certificate was signed by the CA that the controller holds.

    A controller that lost the CA's directory (an execution environment starts with none) would make
    another CA, and every client would have to trust that one.
    """
    return [
        Fault(
            "it has a certificate of another CA than the one in llm_fleet_ca_dir",
            f"host {host['name']}",
            "point llm_fleet_ca_dir to the directory of the fleet's CA, on storage that outlives this run;"
            " to start with a new CA, remove /etc/haproxy/llm_fleet/ca.pem on every gateway, and /etc/llm_fleet/tls on every"
            " other host, first",
        )
        for host in hosts
        if host.get("fleet_ca", "").strip() not in ("", controller_ca.strip())
    ]


def haproxy_number(version: str) -> tuple[int, ...]:
    """``2.6.12-1+deb12u4`` to ``(2, 6, 12)``; an empty tuple where there is no version."""
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    return tuple(map(int, match.groups())) if match else ()


def _check_distribution(distribution: dict, kind: str, where: str) -> list[Fault]:
    supported = {"gateway": GATEWAY_DISTRIBUTIONS, "depot": DEPOT_DISTRIBUTIONS}.get(kind, NODE_DISTRIBUTIONS)
    name, version = distribution["id"], distribution["version"]
    # Red Hat's family counts minor releases (9.4), of which any will do.
    release = version.split(".")[0] if name in RED_HAT_FAMILY else version
    if release in supported.get(name, ()):
        return []
    known = ", ".join(f"{name} {' or '.join(releases)}" for name, releases in supported.items())
    found = f"{name} {version}".strip() or "an unknown distribution"
    return [Fault(f"a {kind} on {found} is not supported", where, f"use one of: {known}")]


def _check_address(address: str, where: str) -> list[Fault]:
    # Engines are published on this address and firewalls name it: a name that resolves elsewhere tomorrow won't do.
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return [Fault(f"{address!r} is not an IP address", where, "set llm_fleet_address to the host's private IP address")]
    return []


def _check_gpus(gpus: object, where: str) -> list[Fault]:
    fix = "write the UUIDs that `nvidia-smi -L` prints, as a list: llm_fleet_gpus: [GPU-11111111-1111-1111-1111-111111111111]"
    if gpus is None:
        return []
    if not isinstance(gpus, list):
        return [Fault(f"llm_fleet_gpus is not a list: {gpus!r}", where, fix)]
    return [Fault(f"llm_fleet_gpus: {gpu!r} is not the UUID of a GPU", where, fix) for gpu in gpus if not GPU_UUID.fullmatch(str(gpu))]
