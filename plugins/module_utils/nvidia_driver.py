# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What is known of NVIDIA's drivers: generations of GPUs, branches, flavours of the kernel module, names of packages. Pure.

Sources: NVIDIA's driver installation guide, its notes on the open kernel modules and on the end of support of old
generations, and the packages of Debian, Ubuntu and NVIDIA's repositories.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault

OPEN_SINCE = 515
"""The first branch with open kernel modules."""
OPEN_BY_DEFAULT = 560
"""From here on NVIDIA recommends them for every generation that can have them; before, for data centre GPUs only."""


class Generation(NamedTuple):
    """Which branches and flavours serve one generation of GPUs. None stands for no limit that is known."""

    first: int
    last: int | None = None
    open: bool = True
    proprietary: bool = True


GENERATIONS = {
    "kepler": Generation(304, 470, open=False),
    "maxwell": Generation(343, 580, open=False),
    "pascal": Generation(367, 580, open=False),
    "volta": Generation(384, 580, open=False),
    "turing": Generation(410),
    "ampere": Generation(450),
    "ada": Generation(520),
    "hopper": Generation(520),
    "blackwell": Generation(570, proprietary=False),
}
"""A generation that is not here is newer than this table: nothing is claimed of it, and it gets the open flavour."""

CLOSED_BRANCHES = {
    470: (6, 9), 545: (6, 7), 555: (6, 10), 560: (6, 11), 565: (6, 12), 575: (6, 16),
}
"""Branches that get no releases any more, with the newest kernel that their last release was made for."""


def branch_of(version: str) -> int:
    """`580.95.05-1` and `580` to 580; 0 where there is no number."""
    match = re.match(r"(?:\d+:)?(\d+)", version)
    return int(match[1]) if match else 0


def kernel_number(release: str) -> tuple[int, int]:
    """`6.1.0-28-amd64` to (6, 1)."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def choose_flavour(architectures: list[str], branch: int, wish: str = "auto") -> str:
    """Open or proprietary: as wished, or what serves all GPUs of the host; open where nothing speaks against it."""
    if wish != "auto":
        return wish
    known = [GENERATIONS[name] for name in architectures if name in GENERATIONS]
    if any(not generation.open for generation in known) or branch < OPEN_SINCE:
        return "proprietary"
    if branch < OPEN_BY_DEFAULT and any(name in ("turing", "ampere", "ada") for name in architectures):
        return "proprietary"
    return "open"


def check_flavour(architectures: list[str], branch: int, flavour: str, where: str) -> list[Fault]:
    """The flavour serves every GPU of the host."""
    faults = []
    if flavour == "open" and branch < OPEN_SINCE:
        fix = f"take branch {OPEN_SINCE} or newer, or the proprietary flavour"
        faults.append(Fault(f"branch {branch} has no open kernel modules", where, fix))
    unfit = [name for name in _known(architectures) if not getattr(GENERATIONS[name], flavour)]
    other = "proprietary" if flavour == "open" else "open"
    for name in unfit:
        mixed = [more for more in _known(architectures) if not getattr(GENERATIONS[more], other)]
        fix = f"set nvidia_driver_flavour to {other}, or leave it out"
        if mixed:
            fix = f"no flavour serves {name} and {mixed[0]} in one host: move one kind of GPU to another host"
        faults.append(Fault(f"the {flavour} kernel modules do not serve {name.capitalize()} GPUs", where, fix))
    return faults


def check_branch(architectures: list[str], branch: int, where: str) -> list[Fault]:
    """The branch serves every GPU of the host."""
    faults = []
    for name in _known(architectures):
        generation = GENERATIONS[name]
        what = f"branch {branch} does not serve {name.capitalize()} GPUs"
        if branch < generation.first:
            faults.append(Fault(what, where, f"set nvidia_driver_branch to {generation.first} or newer"))
        elif generation.last is not None and branch > generation.last:
            faults.append(Fault(what, where, f"{generation.last} was the last branch that does: set nvidia_driver_branch to it"))
    return faults


def check_kernel(branch: int, release: str, where: str) -> list[Fault]:
    """The branch's module compiles for the running kernel, as far as is known."""
    newest = CLOSED_BRANCHES.get(branch)
    if newest is None or kernel_number(release) <= newest:
        return []
    return [
        Fault(
            f"branch {branch} gets no releases any more, and its last one was made for kernels up to {newest[0]}.{newest[1]};"
            f" {release} is running",
            where,
            "take a branch that is maintained, or an older kernel; to try nevertheless, put `kernel` into nvidia_driver_accept",
        )
    ]


class Choice(NamedTuple):
    """The packages of a driver, and what has to be there before them."""

    packages: list[str]  # all at one version, held
    build: list[str]  # what the kernel module is compiled with; empty where it comes compiled
    beside: list[str]  # what has versions of its own, such as modules that come compiled for one kernel
    optional: list[str]  # installed where there is such a package
    stream: str  # dnf module stream, "" for none
    kernel: list[str]  # the distribution's newest kernel of this flavour, with its headers


def find_set(catalog: dict, source: str, branch: int) -> dict | None:
    """The entry of a catalog (one of the role's vars files) for a branch; None where the source has no such branch."""
    for entry in catalog["sources"].get(package_source(source), {}).get("sets", []):
        if entry["first"] <= branch <= entry.get("last", branch):
            return entry
    return None


def package_source(source: str) -> str:
    """Whose names packages have: a site's own mirror or folder holds NVIDIA's."""
    return "nvidia" if source == "local" else source


def choose_packages(
    catalog: dict, source: str, branch: int, flavour: str, kernel: str, *, headless: bool = True, fabric: bool = False,
    signed: bool = False, nvlink5: bool = False,
) -> Choice:
    """The names, with branch, flavour and kernel filled in. The set must exist: see find_set."""
    entry = find_set(catalog, source, branch) or {}
    ready_made = signed and "signed" in entry
    parts = [*entry.get("common", []), *entry["signed" if ready_made else "modules"][flavour]]
    if not headless:
        parts += entry.get("desktop", [])
    if fabric:
        parts += entry.get("fabric", [])
    extra = entry.get("nvlink5", []) if nvlink5 and fabric else []
    words = {"branch": branch, "kernel": kernel, "kernel_flavour": kernel_flavour(kernel), "suffix": "-open" if flavour == "open" else ""}

    def filled(names: list[str]) -> list[str]:
        return list(dict.fromkeys(name.format(**words) for name in names))

    build = [] if ready_made else catalog["headers"] + catalog["build"]
    optional = [] if ready_made else catalog.get("headers_of_later_kernels", [])
    stream = entry.get("stream", {}).get(flavour, "").format(**words)
    beside = entry.get("beside", []) + (entry["compiled"][flavour] if ready_made else [])
    later = catalog.get("later_kernels", [])
    newest = filled([*later, *catalog.get("headers_of_later_kernels", [])]) if later else []
    return Choice(filled(parts), filled(build), filled(beside), filled(optional + extra), stream, newest)


def usual_kernel(catalog: dict, architecture: str) -> str:
    """A name that stands for whichever kernel a distribution has by itself: only its flavour counts."""
    return f"0.0-0-{catalog.get('usual_flavour', '{architecture}').format(architecture=architecture)}"


def kernel_flavour(release: str) -> str:
    """`6.1.0-28-cloud-amd64` to `cloud-amd64`, `6.8.0-45-generic` to `generic`: what a distribution names its kernels by."""
    match = re.match(r"\d+\.\d+(?:\.\d+)*-\d+(?:\.\d+)*-(.+)", release) or re.match(r"[\d.]+(?:\+[^-]+)?-(.+)", release)
    return match[1] if match else ""


def branches_on_offer(catalog: dict, source: str) -> str:
    """For people: `535` or `570 and newer`."""
    sets = catalog["sources"].get(package_source(source), {}).get("sets", [])
    texts = []
    for entry in sets:
        first, last = entry["first"], entry.get("last")
        if last is None:
            texts.append(f"{first} and newer")
        else:
            texts.append(str(first) if first == last else f"{first} to {last}")
    return ", ".join(texts)


def _known(architectures: list[str]) -> list[str]:
    return [name for name in dict.fromkeys(architectures) if name in GENERATIONS]
