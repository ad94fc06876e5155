# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""For which distributions a bundle has packages, and what of them servers with GPUs add."""

from __future__ import annotations

from ansible_collections.localfirst.llm_fleet.tests.unit.support.role_template import Playbooks

UBUNTU = "ubuntu-24.04-amd64"


def test_what_servers_with_gpus_want_of_a_distribution_whose_version_has_a_dot():
    driver = {"of": "driver", "packages": ["cuda-drivers"]}
    nodes = [
        {
            "sets": {UBUNTU: [["docker.io"], [package]], "debian-12-amd64": [["other"]]}, "elsewhere": {UBUNTU: [driver], "debian-12-amd64": []},
            "unknown": {UBUNTU: "nvidia_driver_version is not set"} if package == "docker-cli" else {}, "images": [],
        }
        for package in ("docker-cli", "dkms")
    ]
    playbook = Playbooks(
        bundle_distribution={"key": UBUNTU, "value": ""}, bundle_named=nodes, bundle_roles=[], bundle_prerequisites=["python3-apt"], bundle_base="",
        llm_fleet_bundle_packages=[], dir="/b", hostvars={"gpu1": {}},
    )
    _ask, bring, say, _list = playbook.tasks("bundle/distribution.yml")
    brought = playbook.with_variables(bring).fill_in({name: bring["localfirst.llm_fleet.bundle_packages"][name] for name in ("sets", "elsewhere")})
    assert brought["sets"] == [["python3-apt"], ["docker.io"], ["docker-cli"], ["dkms"]]
    assert brought["elsewhere"] == [{"packages": ["cuda-drivers"]}]
    at = playbook.with_variables(say)
    assert at.evaluate(say["when"]) and "nvidia_driver_version is not set (" in at.fill_in(say["ansible.builtin.debug"]["msg"])
