# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Which packages a bundle needs for hosts' drivers, where that can be known without the hosts. Pure.

`bundle_driver` takes what the role's variables say:

    wish: {source, branch, version, flavour, headless, fabric, kernels [release], architecture, distribution, catalog, companions}
    back: {set: {packages, version, companions, beside, optional}, empty where there is none; unknown: why, for people, or empty}
"""

from __future__ import annotations

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.nvidia_driver import (
    Choice,
    branch_of,
    branches_on_offer,
    choose_packages,
    find_set,
    usual_kernel,
)

# For hosts with Secure Boot, whose own key signs what is compiled there.
SIGNING = ["mokutil", "openssl"]


def bundle_driver(wish: dict) -> dict:
    """The set for one group of hosts, or why there is none."""
    if wish["source"] not in ("nvidia", "distribution"):
        # Somebody else brings it: a folder or a mirror of the site, or an image.
        return {"set": {}, "unknown": ""}
    branch = branch_of(wish["branch"]) or branch_of(wish["version"])
    unset = [] if branch else ["nvidia_driver_version"]
    unset += ["nvidia_driver_flavour"] if wish["flavour"] == "auto" else []
    if unset:
        return {"set": {}, "unknown": f"only the host could say which one it needs, so set {' and '.join(unset)}"}
    if wish["version"] and branch_of(wish["version"]) != branch:
        return {"set": {}, "unknown": f"nvidia_driver_version {wish['version']} is not of branch {branch}"}
    if not wish["catalog"] or find_set(wish["catalog"], wish["source"], branch) is None:
        there = branches_on_offer(wish["catalog"], wish["source"]) if wish["catalog"] else ""
        what = f"{wish['distribution']} has no branch {branch} from the source {wish['source']}"
        return {"set": {}, "unknown": f"{what}; there are: {there}" if there else what}
    kernels = wish["kernels"] or [usual_kernel(wish["catalog"], wish["architecture"])]
    choices = [_choice(wish, branch, kernel) for kernel in kernels]
    # Without a kernel that was named, the distribution's newest comes with its headers: one has to fit the other.
    headers = [name for choice in choices for name in (choice.build if wish["kernels"] else [*choice.kernel, *wish["catalog"]["build"]])]
    found = {
        "packages": choices[0].packages,
        "version": wish["version"] or str(branch),
        "companions": wish["companions"],
        "beside": list(dict.fromkeys([*headers, *choices[0].beside, *SIGNING])),
        "optional": list(dict.fromkeys(name for choice in choices for name in choice.optional if wish["kernels"] or name not in headers)),
    }
    return {"set": found, "unknown": ""}


def _choice(wish: dict, branch: int, kernel: str) -> Choice:
    fabric = wish["fabric"] == "present" or (wish["fabric"] == "auto" and wish["architecture"] == "amd64")
    # Which GPUs and switches there are nobody knows here: what they might need comes along, and lies there.
    return choose_packages(
        wish["catalog"], wish["source"], branch, wish["flavour"], kernel, headless=wish["headless"], fabric=fabric, nvlink5=True,
    )
