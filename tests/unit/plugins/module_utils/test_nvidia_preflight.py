# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What a preflight finds: all at once, each with what to do."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.nvidia_preflight import plan
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gpu_hosts import CATALOGS, found, machine

OFFERED = {name: ["580.105.08-1", "580.95.05-1"] for name in ("nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-fabricmanager")}
OFFERED |= {"dkms": ["3.0.10-8"], "linux-headers-6.1.0-28-amd64": ["6.1.119-1"]}


def faults(**changes) -> list[str]:
    return [f"{fault['what']} | {fault['fix']}" for fault in plan(found(**changes))["faults"]]


def bare(*architectures: str, **changes) -> dict:
    return machine(*architectures, state="no_driver", version="", **changes)


def test_a_host_that_is_fit_has_no_fault_and_a_whole_plan():
    chosen = plan(found(offered=OFFERED))
    assert chosen["faults"] == [] and chosen["text"] == ""
    assert (chosen["branch"], chosen["flavour"], chosen["packages"][0]) == (580, "open", "nvidia-driver-cuda")


@pytest.mark.parametrize("system", CATALOGS)
def test_every_distribution_has_a_driver_for_an_h100(system):
    assert faults(system=system) == []


def test_all_faults_come_at_once():
    kernel = {"release": "6.1.0-28-amd64", "headers": False, "nouveau": True, "secure_boot": "enabled"}
    listed = plan(found(
        gpus=bare("pascal", kernel=kernel), branch="590", disk={"/usr": "1000000"}, runfile="/usr/bin/nvidia-uninstall",
        offered={}, installed={"nvidia-driver-pinning-580": "580-1"},
    ))
    text = listed["text"]
    for part in ("does not serve Pascal", "580 was the last", "/usr has 0.0 GiB free", ".run installer", "--uninstall", "Secure Boot is on",
                 "nvidia_driver_mok_password", "nvidia-driver-pinning-580", "no headers for the running kernel 6.1.0-28-amd64",
                 "no package source has nvidia-driver-cuda"):
        assert part in text, (part, text)
    assert len(listed["faults"]) >= 7


def test_what_is_accepted_is_no_fault():
    assert len(faults(gpus=bare())) == 1 and faults(gpus=bare(), accept=["gpu"]) == []
    assert faults(branch="565", kernel="6.14.0-1-amd64") and not faults(branch="565", kernel="6.14.0-1-amd64", accept=["kernel"])
    low = {"/usr": "1", "/var": str(2**40)}
    assert "/usr has" in faults(disk=low)[0] and faults(disk=low, accept=["disk"]) == []


def test_a_gpu_that_virtual_machines_have_is_told():
    given = bare("hopper")
    given["pci"][0]["driver"] = "vfio-pci"
    assert "0000:01:00.0 is bound to vfio-pci" in faults(gpus=given)[0]


def test_the_distribution_has_no_fabric_manager_in_debian():
    joined = bare("hopper", fabric_manager={"needed": True, "version": "", "active": False})
    assert "no fabric manager" in faults(gpus=joined, source="distribution")[0]
    assert faults(gpus=joined, source="distribution", fabric="absent") == []
    chosen = plan(found(gpus=joined, offered=OFFERED))
    assert "nvidia-fabricmanager" in chosen["packages"] and chosen["fabric"] and chosen["faults"] == []


def test_sources_say_what_they_have():
    assert "there are: 535" in faults(source="distribution", branch="580")[0]
    assert "has no NVIDIA driver of its own" in faults(system="redhat-9", source="distribution")[0]
    assert "no driver packages are known for Arch" in faults(system="")[0]
    assert "nothing says where" in faults(source="local", repository="")[0]


def test_branch_and_version_have_to_agree():
    assert "is not of branch 590" in faults(branch="590", version="580.95.05")[0]
    chosen = plan(found(version="590.48.01"))
    assert chosen["branch"] == 590 and chosen["faults"] == []


def test_a_version_that_is_not_on_offer_is_told_with_those_that_are():
    told = faults(version="580.82.07", offered=OFFERED)
    assert len(told) == 1 and "580.82.07 is not on offer" in told[0] and "580.105.08-1, 580.95.05-1" in told[0]


def test_a_repository_that_cannot_be_read_is_one_fault_and_not_five():
    told = faults(offered={}, trouble="https://mirror.example is signed with a key that this host does not have.")
    assert len(told) == 1 and "signed with a key" in told[0] and "repair that first" in told[0]


def test_headers_may_come_without_a_package():
    without = {name: versions for name, versions in OFFERED.items() if not name.startswith("linux-headers")}
    kernel = {"release": "6.1.0-28-amd64", "headers": False, "nouveau": False, "secure_boot": "disabled"}
    assert faults(offered=without) == []
    assert "no headers" in faults(offered=without, gpus=bare("hopper", kernel=kernel))[0]


def test_signed_modules_for_another_kernel_only_are_a_fault():
    kernel = {"release": "6.8.0-51-generic", "headers": True, "nouveau": False, "secure_boot": "enabled"}
    host = {"system": "ubuntu-24.04", "source": "distribution", "gpus": bare("hopper", kernel=kernel), "kernel": "6.8.0-51-generic"}
    told = faults(**host, offered={name: ["580.95.05-0ubuntu1"] for name in plan(found(**host))["packages"]})
    assert len(told) == 1 and "no package source has linux-modules-nvidia-580-server-open-6.8.0-51-generic" in told[0]


@pytest.mark.parametrize(
    ("system", "source", "mok", "needs"),
    [
        ("debian-12", "nvidia", {"enrolled": False, "password": False}, True),
        ("debian-12", "nvidia", {"enrolled": False, "password": True}, False),
        ("debian-12", "nvidia", {"enrolled": True, "password": False}, False),
        ("ubuntu-24.04", "distribution", {"enrolled": False, "password": False}, False),
        ("ubuntu-24.04", "nvidia", {"enrolled": False, "password": False}, True),
    ],
)
def test_secure_boot(system, source, mok, needs):
    kernel = {"release": "6.8.0-51-generic", "headers": True, "nouveau": False, "secure_boot": "enabled"}
    chosen = plan(found(system=system, source=source, mok=mok, gpus=bare("hopper", kernel=kernel), kernel="6.8.0-51-generic"))
    assert any("Secure Boot" in fault["what"] for fault in chosen["faults"]) is needs
    assert chosen["mok"] is (source == "nvidia"), "signed modules of the distribution need no key of the host's"


def test_a_driver_that_is_there_already_is_only_looked_at():
    assert plan(found(source="preinstalled", gpus=machine("pascal", version="590.48.01")))["faults"] == []
    assert "repair it" in faults(source="preinstalled", gpus=machine("hopper", state="mismatch"))[0]
