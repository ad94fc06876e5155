# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A bare server has become one that is ready for engines, and stays so, whatever else is upgraded there."""

from __future__ import annotations

import json
import re

import pytest

from ansible_collections.localfirst.llm_fleet.molecule.gpu_host.tests.conftest import GPUS, uuids

DRIVER = "580.95.05"


@pytest.mark.parametrize("node", GPUS)
def test_the_driver_is_whole(fleet, node):
    assert len(uuids(fleet.shell(node, "nvidia-smi -L"))) == GPUS[node]
    assert DRIVER in fleet.shell(node, "cat /proc/driver/nvidia/version")
    # Open kernel modules: NVIDIA's own for Hopper, and right for Ada Lovelace.
    assert "nvidia-kernel-open-dkms" in fleet.shell(node, "dpkg-query -W -f '${Package} ' 'nvidia-kernel*'")
    assert set(fleet.shell(node, "nvidia-smi --query-gpu=persistence_mode --format=csv,noheader").split()) == {"Enabled"}
    assert "blacklist nouveau" in fleet.shell(node, "cat /etc/modprobe.d/llm-fleet-nouveau.conf")
    # NVSwitch is on one of the two, and only that one has a fabric manager, at the driver's version.
    fabric = fleet.shell(node, "systemctl is-active nvidia-fabricmanager", check=False)
    assert fabric == ("active" if node == "gpu1" else "inactive"), fabric
    if node == "gpu1":
        assert fleet.shell(node, "dpkg-query -W -f '${Version}' nvidia-fabricmanager") == f"{DRIVER}-1"


@pytest.mark.parametrize("node", GPUS)
def test_an_upgrade_of_everything_leaves_driver_and_toolkit_alone(fleet, node):
    listed = "dpkg-query -W -f '${Package}=${Version}\\n' | grep -e nvidia -e libcuda"
    before = fleet.shell(node, listed)
    offered = fleet.shell(node, "apt-cache madison nvidia-driver-cuda nvidia-container-toolkit")
    assert "590.48.01-1" in offered and "1.18.0-1" in offered, "there is nothing newer that it could be upgraded to"
    for verb in ("upgrade", "dist-upgrade"):
        fleet.shell(node, f"DEBIAN_FRONTEND=noninteractive apt-get -qy {verb}")
    assert fleet.shell(node, listed) == before
    # Nor where somebody lets go of the holds: the pin is still there.
    held = fleet.shell(node, "apt-mark showhold | grep -v container | tr '\\n' ' '")
    fleet.shell(node, f"apt-mark unhold {held}")
    try:
        simulated = fleet.shell(node, "apt-get -s dist-upgrade")
        assert not re.findall(r"^Inst .*nvidia.*590.*$", simulated, re.MULTILINE), simulated
    finally:
        fleet.shell(node, f"apt-mark hold {held}")


def test_an_operators_own_daemon_json_survives(fleet):
    config = json.loads(fleet.shell("gpu2", "cat /etc/docker/daemon.json"))
    assert config["default-shm-size"] == "96M" and config["labels"] == ["rack=7"] and config["log-opts"]["max-size"] == "5m"
    assert config["runtimes"]["nvidia"]["path"] == "nvidia-container-runtime"
    assert fleet.shell("gpu2", "stat -c %a /etc/docker/daemon.json") == "600"
    assert "rack=7" in fleet.shell("gpu2", "docker info --format '{{.Labels}}'")


@pytest.mark.parametrize(("node", "way"), [("gpu1", "--gpus"), ("gpu2", "--gpus"), ("gpu2", "--device")])
def test_a_container_sees_exactly_the_gpus_that_it_was_given(fleet, image, node, way):
    here = uuids(fleet.shell(node, "nvidia-smi -L"))
    for given in ([here[1]], here[:2], here):
        by_cdi = " ".join(f"--device=nvidia.com/gpu={uuid}" for uuid in given)
        asked = f"--gpus '\"device={','.join(given)}\"'" if way == "--gpus" else by_cdi
        seen = fleet.shell(node, f"docker run --rm --network none {asked} --entrypoint nvidia-smi {image} -L")
        assert sorted(uuids(seen)) == sorted(given)
    none = asked.replace(here[0], "GPU-none")
    refused = fleet.shell(node, f"docker run --rm {none} --entrypoint true {image} 2>&1; echo $?", check=False)
    assert not refused.endswith("\n0") and "GPU-none" in refused
