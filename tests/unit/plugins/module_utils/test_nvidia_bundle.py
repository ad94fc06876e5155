# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Which driver a bundle gets, where nobody asks a host; and that it is the one that the host will ask for."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.nvidia_bundle import bundle_driver
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.nvidia_preflight import plan
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gpu_hosts import CATALOGS, catalog, found, machine

SYSTEMS = [name for name in CATALOGS if not name.startswith("redhat")]


def asked(system: str = "debian-12", **changes) -> dict:
    wish = {
        "source": "nvidia", "branch": "", "version": "580.95.05", "flavour": "open", "headless": True, "fabric": "auto", "kernels": [],
        "architecture": "amd64", "distribution": system, "catalog": catalog(system) if system else {}, "companions": ["libnvidia-*"],
    }
    return bundle_driver({**wish, **changes})


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("source", ["nvidia", "distribution"])
@pytest.mark.parametrize("joined", [False, True])
def test_a_host_finds_all_that_it_will_ask_for(system, source, joined):
    branch = str(catalog(system)["sources"][source]["branch"])
    kernel = "6.8.0-45-generic" if "ubuntu" in system else "6.1.0-28-amd64"
    switch = {"needed": joined, "version": "", "active": False}
    gpus = machine("blackwell" if int(branch) > 570 else "hopper", state="no_driver", version="", fabric_manager=switch)
    host = plan(found(system, source=source, branch=branch, flavour="open", kernel=kernel, gpus=gpus))
    brought = asked(system, source=source, version="", branch=branch, kernels=[kernel])["set"]
    assert host["packages"] and set(host["packages"]) <= set(brought["packages"])
    assert set(host["build"]) | set(host["beside"]) <= set(brought["beside"]) and set(host["optional"]) <= set(brought["optional"])
    assert brought["version"] == branch and "mokutil" in brought["beside"]


@pytest.mark.parametrize(("system", "architecture", "names"), [
    ("debian-12", "amd64", {"linux-image-amd64", "linux-headers-amd64", "dkms"}),
    ("debian-13", "arm64", {"linux-image-arm64", "linux-headers-arm64"}),
    ("ubuntu-24.04", "amd64", {"linux-image-generic", "linux-headers-generic", "dkms"}),
])
def test_without_a_kernel_the_newest_comes_with_its_headers(system, architecture, names):
    brought = asked(system, architecture=architecture)["set"]
    assert names <= set(brought["beside"]) and not any("0.0-0" in name for name in brought["beside"] + brought["optional"])


def test_with_kernels_only_their_headers_come():
    brought = asked(kernels=["6.1.0-28-amd64", "6.1.0-40-cloud-amd64"])["set"]
    assert {"linux-headers-6.1.0-28-amd64", "linux-headers-6.1.0-40-cloud-amd64", "dkms"} <= set(brought["beside"])
    assert not any(name.startswith("linux-image") for name in brought["beside"])
    # Metapackages of later kernels, where the sources have them.
    assert {"linux-headers-amd64", "linux-headers-cloud-amd64"} <= set(brought["optional"])


@pytest.mark.parametrize(("changes", "word"), [
    ({"version": ""}, "set nvidia_driver_version"), ({"flavour": "auto"}, "set nvidia_driver_flavour"),
    ({"version": "", "flavour": "auto"}, "set nvidia_driver_version and nvidia_driver_flavour"),
    ({"branch": "570"}, "is not of branch 570"), ({"source": "distribution"}, "there are: 535"), ({"catalog": {}}, "has no branch 580"),
    ({"source": "local"}, ""), ({"source": "preinstalled", "version": "", "flavour": "auto"}, ""),
])
def test_what_is_not_determined_is_told_in_words(changes, word):
    told = asked(**changes)
    assert told["set"] == {} and word in told["unknown"] and bool(told["unknown"]) is bool(word)


def test_a_host_that_takes_it_from_a_bundle_is_told_what_to_do_about_its_kernel():
    kernel = {"release": "6.1.0-28-amd64", "headers": False, "nouveau": False, "secure_boot": "disabled"}
    gpus = machine("hopper", state="no_driver", version="", kernel=kernel)
    names = ("nvidia-driver-cuda", "nvidia-kernel-open-dkms")
    offered = {name: ["580.95.05-1"] for name in names} | {"dkms": ["3"]}

    def fixes(**more) -> list[str]:
        host = found(gpus=gpus, version="580.95.05", bundle="/var/lib/x/apt.conf", offered={**offered, **more})
        return [fault["fix"] for fault in plan(host)["faults"]]

    [fix] = fixes()
    assert "nvidia_driver_kernels: [6.1.0-28-amd64]" in fix and "apt-get" not in fix
    [fix] = fixes(**{"linux-image-amd64": ["6.1.1"], "linux-headers-amd64": ["6.1.1"]})
    assert "APT_CONFIG=/var/lib/x/apt.conf apt-get install linux-image-amd64 linux-headers-amd64" in fix
    assert fixes(**{"linux-headers-6.1.0-28-amd64": ["6.1.1"]}) == []
