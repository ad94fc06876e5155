# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Generations, branches, flavours, and the packages that the role's vars files lead to."""

from __future__ import annotations

import re

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import nvidia_driver
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gpu_hosts import CATALOGS, catalog

KERNELS = {"debian-12": "6.1.0-28-amd64", "debian-13": "6.12.41+deb13-cloud-amd64", "ubuntu-22.04": "5.15.0-130-generic",
           "ubuntu-24.04": "6.8.0-51-generic", "redhat-9": "5.14.0-503.19.1.el9_5.x86_64"}


def choose(system: str, source: str, branch: int, flavour: str = "open", **more):
    return nvidia_driver.choose_packages(catalog(system), source, branch, flavour, KERNELS[system], **more)


@pytest.mark.parametrize(
    ("architectures", "branch", "flavour"),
    [
        (["hopper"], 580, "open"),
        (["blackwell"], 570, "open"),
        (["pascal"], 580, "proprietary"),
        (["volta", "hopper"], 580, "proprietary"),
        (["ada"], 580, "open"),
        (["ada"], 535, "proprietary"),  # ready for data centre GPUs only at that time
        (["hopper"], 535, "open"),
        (["hopper"], 470, "proprietary"),
        (["from the future"], 999, "open"),
        ([], 580, "open"),
    ],
)
def test_the_flavour_follows_the_gpus(architectures, branch, flavour):
    assert nvidia_driver.choose_flavour(architectures, branch) == flavour
    assert nvidia_driver.choose_flavour(architectures, branch, "proprietary") == "proprietary"


@pytest.mark.parametrize(
    ("architecture", "branch", "advice"),
    [
        ("pascal", 590, "580 was the last"),
        ("kepler", 535, "470 was the last"),
        ("blackwell", 535, "570 or newer"),
        ("hopper", 470, "520 or newer"),
    ],
)
def test_a_branch_that_does_not_serve_a_gpu_is_a_fault(architecture, branch, advice):
    fault, = nvidia_driver.check_branch([architecture], branch, "host gpu1")
    assert architecture.capitalize() in fault.what and advice in fault.fix
    assert nvidia_driver.check_branch([architecture], int(re.search(r"\d+", advice)[0]), "host gpu1") == []


def test_a_flavour_that_does_not_serve_a_gpu_is_a_fault():
    fault, = nvidia_driver.check_flavour(["blackwell"], 580, "proprietary", "host gpu1")
    assert "Blackwell" in fault.what and "open" in fault.fix
    fault, = nvidia_driver.check_flavour(["pascal", "hopper"], 580, "open", "host gpu1")
    assert "Pascal" in fault.what and "proprietary" in fault.fix
    fault, = nvidia_driver.check_flavour(["pascal", "blackwell"], 580, "proprietary", "host gpu1")
    assert "no flavour serves blackwell and pascal" in fault.fix
    assert nvidia_driver.check_flavour(["hopper"], 470, "open", "host gpu1")[0].what == "branch 470 has no open kernel modules"


def test_a_kernel_that_is_too_new_for_a_branch_without_releases_is_a_fault():
    fault, = nvidia_driver.check_kernel(565, "6.14.0-29-generic", "host gpu1")
    assert "6.12" in fault.what and "6.14.0-29-generic" in fault.what and "nvidia_driver_accept" in fault.fix
    assert nvidia_driver.check_kernel(565, "6.8.0-51-generic", "host gpu1") == []
    assert nvidia_driver.check_kernel(580, "6.18.5", "host gpu1") == [], "nothing is claimed of a branch that is maintained"


@pytest.mark.parametrize(
    ("system", "source", "branch", "flavour", "packages"),
    [
        ("debian-12", "distribution", 535, "open", ["nvidia-smi", "libcuda1", "nvidia-open-kernel-dkms"]),
        ("debian-13", "distribution", 550, "proprietary", ["nvidia-smi", "libcuda1", "nvidia-kernel-dkms"]),
        ("debian-12", "nvidia", 580, "open", ["nvidia-driver-cuda", "nvidia-kernel-open-dkms"]),
        ("debian-13", "local", 590, "proprietary", ["nvidia-driver-cuda", "nvidia-kernel-dkms"]),
        ("ubuntu-22.04", "nvidia", 580, "open",
         ["libnvidia-compute-580", "nvidia-utils-580", "nvidia-compute-utils-580", "nvidia-dkms-580-open"]),
        ("ubuntu-24.04", "nvidia", 590, "open", ["libnvidia-compute", "nvidia-persistenced", "nvidia-dkms-open"]),
        ("ubuntu-24.04", "nvidia", 570, "proprietary",
         ["libnvidia-compute-570", "nvidia-utils-570", "nvidia-compute-utils-570", "nvidia-dkms-570"]),
        ("ubuntu-24.04", "distribution", 580, "open",
         ["nvidia-utils-580-server", "libnvidia-compute-580-server", "nvidia-compute-utils-580-server", "nvidia-dkms-580-server-open"]),
        ("redhat-9", "nvidia", 580, "open", ["nvidia-driver-cuda", "nvidia-persistenced", "kmod-nvidia-open-dkms"]),
        ("redhat-9", "nvidia", 570, "proprietary", ["nvidia-driver-cuda", "nvidia-persistenced", "kmod-nvidia-latest-dkms"]),
    ],
)
def test_packages(system, source, branch, flavour, packages):
    assert choose(system, source, branch, flavour).packages == packages


@pytest.mark.parametrize(
    ("system", "source", "branch", "package"),
    [
        ("debian-12", "nvidia", 570, "nvidia-fabricmanager-570"),
        ("debian-12", "nvidia", 580, "nvidia-fabricmanager"),
        ("ubuntu-24.04", "nvidia", 570, "nvidia-fabricmanager-570"),
        ("ubuntu-24.04", "nvidia", 590, "nvidia-fabricmanager"),
        ("ubuntu-22.04", "distribution", 580, "nvidia-fabricmanager-580"),
        ("redhat-9", "nvidia", 570, "nvidia-fabric-manager"),
        ("redhat-9", "nvidia", 580, "nvidia-fabricmanager"),
    ],
)
def test_the_fabric_manager_is_one_more_package_of_the_set(system, source, branch, package):
    with_it, without = choose(system, source, branch, fabric=True), choose(system, source, branch)
    assert [name for name in with_it.packages if name not in without.packages] == [package]


def test_blackwell_s_nvlink_needs_a_program_that_has_versions_of_its_own():
    choice = choose("debian-13", "nvidia", 580, fabric=True, nvlink5=True)
    assert "nvlsm" in choice.optional and "nvlsm" not in choice.packages
    assert "nvlsm" not in choose("debian-13", "nvidia", 580, nvlink5=True).optional


@pytest.mark.parametrize(
    ("system", "headers", "later"),
    [
        ("debian-12", "linux-headers-6.1.0-28-amd64", "linux-headers-amd64"),
        ("debian-13", "linux-headers-6.12.41+deb13-cloud-amd64", "linux-headers-cloud-amd64"),
        ("ubuntu-22.04", "linux-headers-5.15.0-130-generic", "linux-headers-generic"),
        ("redhat-9", "kernel-devel-5.14.0-503.19.1.el9_5.x86_64", "kernel-devel-matched"),
    ],
)
def test_headers_are_those_of_the_running_kernel_and_of_later_ones(system, headers, later):
    choice = choose(system, "nvidia", 580)
    assert choice.build == [headers, "dkms"] and later in choice.optional


def test_debian_s_persistence_daemon_is_not_in_step_with_its_driver():
    """535.171.04 beside 535.261.03 in Debian 12: as part of the set, no version would be on offer for all."""
    choice = choose("debian-12", "distribution", 535)
    assert choice.beside == ["nvidia-persistenced"] and "nvidia-persistenced" not in choice.packages


def test_ubuntu_s_signed_modules_need_neither_headers_nor_dkms():
    choice = choose("ubuntu-24.04", "distribution", 580, signed=True)
    assert choice.build == [] and choice.beside == ["linux-modules-nvidia-580-server-open-6.8.0-51-generic"]
    assert "nvidia-headless-no-dkms-580-server-open" in choice.packages and "nvidia-dkms-580-server-open" not in choice.packages
    assert choose("ubuntu-24.04", "nvidia", 580, signed=True).build != [], "NVIDIA's are compiled on the host"


def test_red_hat_s_streams_stand_for_branches():
    assert choose("redhat-9", "nvidia", 580).stream == "nvidia-driver:580-open"
    assert choose("redhat-9", "nvidia", 570, "proprietary").stream == "nvidia-driver:570-dkms"


@pytest.mark.parametrize("system", CATALOGS)
def test_every_set_of_every_catalog_can_be_rendered(system):
    content = catalog(system)
    for source, entry in content["sources"].items():
        assert nvidia_driver.find_set(content, source, entry["branch"]), "the default branch is on offer"
        for number in (one[edge] for one in entry["sets"] for edge in ("first", "last") if edge in one):
            for flavour in ("open", "proprietary"):
                for signed in (False, True):
                    choice = choose(system, source, number, flavour, headless=False, fabric=True, signed=signed, nvlink5=True)
                    names = [*choice.packages, *choice.build, *choice.beside, *choice.optional]
                    assert names and all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9+._-]*", name) for name in names), names
                    assert len(set(choice.packages)) == len(choice.packages)


@pytest.mark.parametrize("system", CATALOGS)
def test_no_branch_has_two_sets(system):
    for entry in catalog(system)["sources"].values():
        for branch in range(300, 700):
            assert sum(one["first"] <= branch <= one.get("last", branch) for one in entry["sets"]) <= 1, branch


def test_without_a_desktop_there_is_no_x():
    for system in CATALOGS:
        choice = choose(system, "nvidia", 580)
        assert not any(re.search(r"xserver|^nvidia-driver(-\d+)?(-open)?$|-gl", name) for name in choice.packages), system
        assert len(choose(system, "nvidia", 580, headless=False).packages) > len(choice.packages)


def test_numbers_are_read_from_versions():
    assert nvidia_driver.branch_of("3:580.95.05-1.el9") == nvidia_driver.branch_of("580") == 580
    assert nvidia_driver.branch_of("newest") == 0
    assert nvidia_driver.kernel_flavour("6.18.5") == ""
