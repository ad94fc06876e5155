# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Versions, pins and refusals, on what apt and dpkg print. What they do with it is in test_held_packages.py."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import apt_packages as apt

MADISON = """\
nvidia-driver-cuda | 590.48.01-1 | https://mirror.example/cuda  Packages
nvidia-driver-cuda | 580.105.08-1 | https://mirror.example/cuda  Packages
nvidia-driver-cuda | 580.95.05-1 | https://mirror.example/cuda  Packages
nvidia-driver-cuda | 580.95.05-1 | https://other.example/cuda  Packages
nvidia-fabricmanager | 580.95.05-1 | https://mirror.example/cuda  Packages
nvidia-graphics-drivers | 535.261.03-1 | http://deb.debian.org/debian bookworm/non-free Sources
"""


@pytest.mark.parametrize(
    ("version", "wanted", "same"),
    [
        ("580.95.05-1", "580", True),
        ("580.95.05-0ubuntu0.24.04.2", "580.95.05", True),
        ("580.95.05-1", "580.95.05-1", True),
        ("580.95.05-1", "580.95.*", True),
        ("1:4.4.1-1", "4.4.1", True),
        ("580.105.08-1", "580.10", False),
        ("5800.1-1", "580", False),
        ("580.95.05-1", "590", False),
        ("580.95.05-1", "", True),
    ],
)
def test_what_counts_as_the_wanted_version(version, wanted, same):
    assert apt.matches(version, wanted) is same


def test_versions_are_in_step_and_in_the_order_of_their_numbers():
    offered = apt.parse_versions(MADISON)
    assert offered["nvidia-driver-cuda"] == ["590.48.01-1", "580.105.08-1", "580.95.05-1"] and "nvidia-graphics-drivers" not in offered
    assert apt.choose(["nvidia-driver-cuda"], offered, "580") == "580.105.08", "105 is more than 95"
    assert apt.choose(["nvidia-driver-cuda", "nvidia-fabricmanager"], offered, "580") == "580.95.05", "the newest that both have"
    assert apt.choose(["nvidia-driver-cuda", "nvidia-fabricmanager"], offered, "590") == ""
    assert apt.full_version("nvidia-driver-cuda", offered, "580.105.08") == "580.105.08-1"


def test_dpkg_s_list_tells_what_is_complete_and_what_is_held():
    found = apt.parse_installed("ii \ta\t1-1\nhi \tb\t2-1\niF \tc\t3-1\nrc \td\t4-1\niU \te\t5-1\nun \tf\t\niiR\tg\t6-1\n")
    assert {name: (package.complete, package.held) for name, package in found.items()} == {
        "a": (True, False), "b": (True, True), "c": (False, False), "e": (False, False), "g": (False, False),
    }


def test_holds_can_be_thought_away():
    status = "Package: a\nStatus: hold ok installed\nVersion: 1\n\nPackage: ab\nStatus: hold ok installed\nVersion: 1\n"
    assert apt.release(status, ["a"]) == status.replace("hold", "install", 1)


def test_a_pin_binds_one_version_of_many_names():
    text = apt.pin_text("nvidia-driver", ["libcuda1", "nvidia-*"], "1:580.95.05-1")
    assert "Package: libcuda1 nvidia-*\nPin: version 1:580.95.05-*\nPin-Priority: 1001\n" in text
    assert text.startswith("# Managed by")


def test_a_simulation_is_read():
    printed = "Inst libcuda1 [1-1] (2-1 N:M [amd64])\nInst nvidia-smi (2-1 N:M [amd64]) []\nRemv old [1-1]\nConf libcuda1 (2-1 N:M)\n"
    assert apt.parse_simulated(printed) == (["libcuda1 2-1", "nvidia-smi 2-1"], ["old"])


REFUSALS = {
    "another key": (
        """W: GPG error: https://mirror.example/cuda  InRelease: The following signatures couldn't be verified because the public key
 is not available: NO_PUBKEY A4B469963BF863CC
E: The repository 'https://mirror.example/cuda  InRelease' is not signed.""",
        ["https://mirror.example/cuda is signed with a key that this host does not have (NO_PUBKEY A4B469963BF863CC)", "fingerprint"],
    ),
    "an old key": (
        "W: GPG error: https://x InRelease: The following signatures were invalid: EXPKEYSIG 3BF863CC cudatools",
        ["has expired (EXPKEYSIG"],
    ),
    "a revoked key": ("W: x: REVKEYSIG 3BF863CC", ["revoked"]),
    "no signature": (
        "E: The repository 'https://mirror.example ./ Release' is not signed.",
        ["https://mirror.example ./ Release is not signed", "InRelease"],
    ),
    "a lock": (
        "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 4711 (apt-get)",
        ["another program uses apt", "lock-frontend"],
    ),
    "a script": (
        """dpkg: error processing package nvidia-kernel-dkms (--configure):
 installed post-installation script subprocess returned error exit status 10
Error! Bad return status for module build on kernel: 6.1.0
E: Sub-process /usr/bin/dpkg returned an error code (1)""",
        ["failed for nvidia-kernel-dkms", "Bad return status", "stays until the next reboot"],
    ),
    "dependencies": (
        """The following packages have unmet dependencies:
 nvidia-driver-cuda : Depends: libcuda1 (= 590.48.01-1) but 580.95.05-1 is to be installed
                      Depends: libnvidia-ml1 (= 590.48.01-1) but it is not going to be installed
E: Unable to correct problems, you have held broken packages.""",
        ["nvidia-driver-cuda needs libcuda1 (= 590.48.01-1) but 580.95.05-1", "nvidia-driver-cuda needs libnvidia-ml1", "apt-mark unhold"],
    ),
    "anything else": ("Hit:1 x\nE: Failed to fetch https://x/a.deb  404  Not Found", ["404  Not Found"]),
    "nothing": ("", ["said nothing"]),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_refusals_become_sentences(refusal):
    printed, told = REFUSALS[refusal]
    said = apt.explain(printed)
    assert all(part in said for part in told), said
    assert "\n" not in said


def test_holds_of_others_are_named():
    assert "Held on this host: libcuda1" in apt.explain("E: Unable to correct problems, you have held broken packages.", ["libcuda1"])
