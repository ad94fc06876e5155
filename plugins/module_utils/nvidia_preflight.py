# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What a host's driver is to be, and all that speaks against it, before anything is changed on the host. Pure.

`plan` takes one document that the role puts together and gives back another:

    host: {name, source, branch, version, flavour, headless, fabric, accept, kernel, catalog, distribution,
           gpu (what gpu_info returned), installed {package: version}, disk {path: free bytes}, runfile (an installer's leftovers),
           repository (its URL), bundle (apt's settings by which it sees an imported bundle only, or empty), mok {enrolled, password},
           offered {package: [versions]} or none, trouble (why nothing is offered)}
    back: {branch, flavour, packages, build, beside, optional, kernel, stream, fabric, mok, version, faults, text}
"""

from __future__ import annotations

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import apt_packages
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault, listing
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.nvidia_driver import (
    branch_of,
    branches_on_offer,
    check_branch,
    check_flavour,
    check_kernel,
    choose_flavour,
    choose_packages,
    find_set,
    package_source,
)

GIB = 2**30
DISK_NEEDED = {"/usr": 4 * GIB, "/var": 2 * GIB, "/boot": 150 * 2**20}
"""A driver with its sources, compiled; its packages on the way; one more initial file system."""

ACCEPTABLE = ("gpu", "branch", "kernel", "headers", "disk", "secure_boot")


def plan(host: dict) -> dict:
    """Choose branch, flavour and packages, and list every fault."""
    where, source, gpu = f"host {host['name']}", host["source"], host["gpu"]
    architectures = architectures_of(gpu)
    faults: list[tuple[str, Fault]] = [("gpu", fault) for fault in _check_gpus(gpu, where)]
    result = {
        "branch": 0, "flavour": "", "packages": [], "build": [], "beside": [], "optional": [], "kernel": [], "stream": "",
        "fabric": wants_fabric(host), "mok": False, "version": host["version"],
    }
    if source == "preinstalled":
        if gpu["state"] not in ("ready", "no_gpu"):
            fix = "repair it, or let the role install one: set nvidia_driver_source"
            faults.append(("preinstalled", Fault(gpu["problem"].rstrip("."), where, fix)))
    else:
        chosen, more = _choose(host, architectures, where)
        result.update(chosen)
        faults += more
    left = [fault for name, fault in faults if name not in host["accept"]]
    unique = list(dict.fromkeys(left))
    return {**result, "faults": [fault.as_dict() for fault in unique], "text": listing(unique)}


def architectures_of(gpu: dict) -> list[str]:
    """The generations of a host's GPUs, each once; those that gpu_info could not name are left out."""
    return list(dict.fromkeys(device["architecture"] for device in gpu["pci"] if device["kind"] == "gpu" and device["architecture"]))


def wants_fabric(host: dict) -> bool:
    """Whether the fabric manager belongs on the host: as set, or where an NVSwitch is on its bus."""
    if host["fabric"] != "auto":
        return host["fabric"] == "present"
    return bool(host["gpu"]["fabric_manager"]["needed"])


def _choose(host: dict, architectures: list[str], where: str) -> tuple[dict, list[tuple[str, Fault]]]:
    source, catalog = host["source"], host["catalog"]
    faults: list[tuple[str, Fault]] = []
    if not catalog:
        fix = "use Debian 12 or 13, Ubuntu 22.04 or 24.04 or RHEL 9, or install it yourself and set nvidia_driver_source to preinstalled"
        return {}, [("distribution", Fault(f"no driver packages are known for {host['distribution']}", where, fix))]
    if package_source(source) not in catalog["sources"]:
        fix = f"set nvidia_driver_source to one of: {', '.join(sorted({*catalog['sources'], 'local'}))}"
        return {}, [("source", Fault(f"{host['distribution']} has no NVIDIA driver of its own", where, fix))]
    if source == "local" and not host["repository"]:
        fix = "set nvidia_driver_repository.url to the site's mirror, or nvidia_driver_folder to a folder of packages on the host"
        faults.append(("source", Fault("the source is local, and nothing says where the packages are", where, fix)))
    branch = branch_of(host["branch"]) or branch_of(host["version"]) or catalog["sources"][package_source(source)]["branch"]
    if host["version"] and branch_of(host["version"]) != branch:
        what = f"nvidia_driver_version {host['version']} is not of branch {branch}"
        faults.append(("version", Fault(what, where, "set one of both, or make them agree")))
    faults += [("branch", fault) for fault in check_branch(architectures, branch, where)]
    flavour = choose_flavour(architectures, branch, host["flavour"])
    faults += [("branch", fault) for fault in check_flavour(architectures, branch, flavour, where)]
    faults += [("kernel", fault) for fault in check_kernel(branch, host["kernel"], where)]
    result = {"branch": branch, "flavour": flavour}
    if find_set(catalog, source, branch) is None:
        what = f"{host['distribution']} has no branch {branch} from the source {source}"
        faults.append(("source", Fault(what, where, f"there are: {branches_on_offer(catalog, source)}")))
        return result, faults
    secure = host["gpu"]["kernel"]["secure_boot"] == "enabled"
    fabric = wants_fabric(host)
    choice = choose_packages(
        catalog, source, branch, flavour, host["kernel"], headless=host["headless"], fabric=fabric, signed=secure,
        nvlink5="blackwell" in architectures,
    )
    # A module that this host compiles is signed by a key of the host's own, which its firmware has to know.
    result.update(choice._asdict(), mok=secure and bool(choice.build))
    if fabric and not find_set(catalog, source, branch).get("fabric"):
        fix = "take nvidia_driver_source nvidia, which has it, or set nvidia_driver_fabric_manager to absent"
        faults.append(("fabric", Fault("its GPUs are joined by NVSwitch, and this source has no fabric manager", where, fix)))
    faults += _check_host(host, result, where)
    return result, faults


def _check_gpus(gpu: dict, where: str) -> list[Fault]:
    devices = [device for device in gpu["pci"] if device["kind"] == "gpu"]
    if not devices:
        fix = "check that it is seated and not switched off in the firmware, or leave the role out for this host"
        return [Fault("there is no NVIDIA GPU on the PCI bus", where, fix)]
    return [
        Fault(
            f"the GPU at {device['address']} is bound to {device['driver']} (given to virtual machines)", where,
            "take it out of that driver's list (driverctl, /etc/modprobe.d, vfio-pci.ids= on the kernel's command line)",
        )
        for device in devices
        if device["driver"].startswith("vfio")
    ]


def _check_host(host: dict, chosen: dict, where: str) -> list[tuple[str, Fault]]:
    faults = [("disk", fault) for fault in _check_disk(host, where)]
    if host["runfile"]:
        fix = f"remove it with `{host['runfile']} --uninstall` while nothing uses the GPUs, or set nvidia_driver_source to preinstalled"
        faults.append(("runfile", Fault("a driver from NVIDIA's .run installer is there, which no package may overwrite", where, fix)))
    for name in host["installed"]:
        if name.startswith("nvidia-driver-pinning-") and branch_of(name.removeprefix("nvidia-driver-pinning-")) != chosen["branch"]:
            fix = f"remove the package: the role pins by itself (apt-get remove {name})"
            faults.append(("pin", Fault(f"{name} binds apt to another branch than {chosen['branch']}", where, fix)))
    mok = host["mok"]
    if chosen["mok"] and not (mok["enrolled"] or mok["password"]):
        faults.append(
            (
                "secure_boot",
                Fault(
                    "Secure Boot is on, and its firmware does not know the key that modules compiled here are signed with:"
                    " the driver would not load", where,
                    "set nvidia_driver_mok_password to have the enrolment prepared (it is finished at the console), take a source"
                    " with signed modules (Ubuntu: distribution), or turn Secure Boot off",
                ),
            )
        )
    return faults + _check_offer(host, chosen, where)


def _check_disk(host: dict, where: str) -> list[Fault]:
    # What is installed already has its space.
    if any(name in host["installed"] for name in ("nvidia-driver-cuda", "nvidia-smi")):
        return []
    return [
        Fault(
            f"{path} has {free / GIB:.1f} GiB free, the driver needs {DISK_NEEDED[path] / GIB:.1f} GiB", where,
            "free some space (old kernels: apt-get autoremove, dnf remove --oldinstallonly)",
        )
        for path, free in sorted((path, int(free)) for path, free in host["disk"].items())
        if free < DISK_NEEDED.get(path, 0)
    ]


def _check_offer(host: dict, chosen: dict, where: str) -> list[tuple[str, Fault]]:
    """What the package sources have: asked only where something is missing."""
    offered = host["offered"]
    if host["trouble"]:
        fix = "repair that first; until then it is not known what the repository has"
        return [("offer", Fault(host["trouble"].rstrip("."), where, fix))]
    if offered is None:
        return []
    faults = []
    headers = [name for name in chosen["build"] if host["kernel"] in name]
    beside = [name for name in chosen["beside"] if not offered.get(name) and name not in host["installed"]]
    if beside:
        fix = "install the kernel that the package sources have modules for, reboot, and run again"
        faults.append(("offer", Fault(f"no package source has {', '.join(beside)}", where, fix)))
    missing = [name for name in headers if not offered.get(name) and name not in host["installed"]]
    if missing and not host["gpu"]["kernel"]["headers"]:
        fix = _headers_of_bundle(host, chosen) if host["bundle"] else (
            "the running kernel is older than what the package sources carry: install the current kernel, reboot, and run again;"
            " or name a source that still has its headers"
        )
        faults.append(("headers", Fault(f"there are no headers for the running kernel {host['kernel']} ({missing[0]})", where, fix)))
    wanted = chosen_version(host, chosen)
    if not apt_packages.choose(chosen["packages"], offered, wanted):
        what = apt_packages.missing_version(chosen["packages"], offered, wanted)
        faults.append(("offer", Fault(what, where, "set nvidia_driver_version or nvidia_driver_branch to one that is there")))
    return faults


def _headers_of_bundle(host: dict, chosen: dict) -> str:
    fix = f"write a bundle with nvidia_driver_kernels: [{host['kernel']}], import it, and run again"
    if chosen["kernel"] and all(name in host["offered"] for name in chosen["kernel"]):
        command = f"APT_CONFIG={host['bundle']} apt-get install {' '.join(chosen['kernel'])}"
        fix += f"; or take the kernel that this one has ({command}) and reboot"
    return fix


def chosen_version(host: dict, chosen: dict) -> str:
    """What held_packages is asked for: the exact version, or any of the branch."""
    return host["version"] or str(chosen["branch"])
