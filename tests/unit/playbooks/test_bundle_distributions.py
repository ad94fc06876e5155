# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""For which distributions a bundle has packages, and what of them servers with GPUs add."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.bundle_manifest import DISTRIBUTION
from ansible_collections.localfirst.llm_fleet.tests.unit.support.role_template import Playbooks

SOURCES = "deb [signed-by=/usr/share/keyrings/ubuntu-archive-keyring.gpg] http://archive.ubuntu.com/ubuntu noble main\n"
UBUNTU = "ubuntu-24.04-amd64"
OWN = {"rc": 0, "stdout": "debian-12-amd64"}
SILENT = {"rc": 127, "stdout": ""}


def look() -> list[str]:
    """The command that asks the controller for its distribution."""
    return Playbooks().tasks("bundle/distributions.yml")[0]["ansible.builtin.command"]["argv"]


def asked(value: Any, controller: dict = OWN) -> tuple[dict, list[str]]:
    """What packages are brought for, and the messages with which the playbook stops."""
    playbook = Playbooks(llm_fleet_bundle_distributions=value, bundle_controller=controller)
    _look, know, *checks = playbook.tasks("bundle/distributions.yml")
    sources = playbook.with_variables(know).fill_in(know["ansible.builtin.set_fact"]["bundle_sources"])
    for check in checks:
        at = playbook.with_variables(check, bundle_sources=sources)
        arguments = check["ansible.builtin.assert"]
        if at.evaluate(check.get("when", "true")) and not at.evaluate(arguments["that"]):
            # Ansible stops at the first.
            return sources, [at.fill_in(arguments["fail_msg"])]
    return sources, []


def test_the_controllers_own_distribution_needs_no_sources():
    assert asked("auto") == ({"debian-12-amd64": ""}, [])
    assert asked({"debian-12-amd64": None, UBUNTU: SOURCES}) == ({"debian-12-amd64": None, UBUNTU: SOURCES}, [])


@pytest.mark.parametrize("none", [{}, "{}", "", "[]", [], None, "null"])
def test_a_bundle_without_packages_may_be_asked_for_in_many_ways(none):
    assert asked(none) == ({}, [])


def test_they_may_be_given_as_text():
    assert asked("{debian-12-amd64: ''}") == ({"debian-12-amd64": ""}, [])


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (dict.fromkeys(("debian", "ubuntu-24.04", "Debian-12-amd64", UBUNTU), SOURCES), ["debian", "ubuntu-24.04", "Debian-12-amd64"]),
        ({12: SOURCES, "debian--amd64": SOURCES}, ["12", "debian--amd64"]),
        ("debian-12-amd64", ["debian-12-amd64"]),
        (["debian-12-amd64", UBUNTU], ["debian-12-amd64", UBUNTU]),
        (True, ["true"]),
    ],
)
def test_what_is_no_distribution_is_named_with_all_others(value, named):
    _sources, [message] = asked(value)
    assert message.startswith("llm_fleet_bundle_distributions names no distribution with ") and "{debian-12-amd64: " in message
    assert all(name in message.partition(". Write")[0] for name in named)
    assert UBUNTU not in message or UBUNTU in named


def test_names_are_those_that_a_bundle_takes():
    for name in (UBUNTU, "debian-12-arm64", "debian-12", "debian--amd64", "debian-sid-amd64", "linux-mint-22-amd64", "a-1-"):
        faults: list = []
        DISTRIBUTION(name, "distribution", faults)
        assert bool(asked({name: SOURCES})[1]) == bool(faults), name


def test_a_controller_without_apt_is_told_what_to_write():
    said = subprocess.run(look(), env={"PATH": "/nowhere"}, capture_output=True, text=True, check=False)
    assert said.returncode != 0 and not said.stdout
    _sources, [message] = asked("auto", {"rc": said.returncode, "stdout": said.stdout})
    assert "packages for this controller come from" in message and "no release of a distribution with apt" in message
    _sources, [message] = asked({UBUNTU: ""}, SILENT)
    assert f"packages for {UBUNTU} come from" in message
    assert asked({}, SILENT) == ({}, [])


def test_what_servers_with_gpus_want_of_a_distribution_whose_version_has_a_dot():
    driver = {"of": "driver", "packages": ["cuda-drivers"]}
    nodes = [
        {
            "sets": {UBUNTU: [["docker.io"], [package]], "debian-12-amd64": [["other"]]},
            "elsewhere": {UBUNTU: [driver], "debian-12-amd64": []},
            "unknown": {UBUNTU: "nvidia_driver_version is not set"} if package == "docker-cli" else {},
            "images": [],
        }
        for package in ("docker-cli", "dkms")
    ]
    playbook = Playbooks(
        bundle_distribution={"key": UBUNTU, "value": ""}, bundle_named=nodes, bundle_roles=[], bundle_prerequisites=["python3-apt"],
        llm_fleet_bundle_packages=[], hostvars={"gpu1": {}},
    )
    _ask, bring, say, _list = playbook.tasks("bundle/distribution.yml")
    at, arguments = playbook.with_variables(bring), bring["localfirst.llm_fleet.bundle_packages"]
    assert at.fill_in(arguments["sets"]) == [["python3-apt"], ["docker.io"], ["docker-cli"], ["dkms"]]
    assert at.fill_in(arguments["elsewhere"]) == [{"packages": ["cuda-drivers"]}]
    at = playbook.with_variables(say)
    assert at.evaluate(say["when"]) and "nvidia_driver_version is not set (" in at.fill_in(say["ansible.builtin.debug"]["msg"])
