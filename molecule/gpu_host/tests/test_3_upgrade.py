# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Driver and toolkit go from one version to the next, under load, with a reboot of every node, and nobody who uses the models notices."""

from __future__ import annotations

import json
import re

import pytest

from ansible_collections.localfirst.llm_fleet.molecule.conftest import unharmed
from ansible_collections.localfirst.llm_fleet.molecule.gpu_host.tests.conftest import GPUS

OLD = {"nvidia_driver_version": "580.95.05", "container_runtime_nvidia_version": "1.17.8-1"}
NEW = {"nvidia_driver_version": "580.105.08", "container_runtime_nvidia_version": "1.18.0-1"}
BAD = {**NEW, "nvidia_driver_version": "590.10.01", "nvidia_driver_branch": "590"}
# Makes the sixth GPU fall off the bus at the next boot.
LOSE = """\
import json
path = "/etc/testbed/gpus.json"
seen = json.load(open(path))
seen["gpus"][5]["lost"] = "bus"
json.dump(seen, open(path, "w"))
"""
DIVIDED = {"nvidia_driver_mig": [{"gpu": "7", "profiles": ["3g.40gb", "1g.10gb"]}]}


@pytest.fixture
def hosts(fleet, serving):
    """`hosts("gpu1", **variables)` upgrades nodes to what the variables say. `said` has its words, wherever lines were broken."""

    def run(upgrade: str, *arguments: str, **variables):
        done = fleet.playbook("hosts", *serving, "-e", f"upgrade={upgrade}", "-e", json.dumps(variables), *arguments, check=False)
        done.said = " ".join((done.stdout + done.stderr).split())
        return done

    return run


def versions(fleet, node: str) -> tuple[str, str, str]:
    """(driver of the loaded module, driver as nvidia-smi says it, toolkit)"""
    module = re.search(r"\d+\.\d+\.\d+", fleet.shell(node, "cat /proc/driver/nvidia/version"))[0]
    asked = "nvidia-smi --query-gpu=driver_version --format=csv,noheader | sort -u"
    return module, fleet.shell(node, asked), fleet.shell(node, "dpkg-query -W -f '${Version}' nvidia-container-toolkit")


def installed(fleet) -> dict:
    """The variables of what gpu1 has now."""
    return OLD if versions(fleet, "gpu1")[0] == OLD["nvidia_driver_version"] else NEW


def booted(fleet, node: str) -> str:
    return fleet.shell(node, "stat -c %Y /proc/1")


def test_an_upgrade_with_reboots_goes_unnoticed(fleet, serving, hosts, load):
    boots = {node: booted(fleet, node) for node in GPUS}
    with load() as clients:
        done = hosts("all", **NEW)
    assert done.returncode == 0, done.stdout[-5000:]
    unharmed(clients.report)
    for number, (node, gpus) in enumerate(GPUS.items(), start=1):
        wanted = "driver 580.95.05 -> 580.105.08; .*?nvidia-container-toolkit -> 1.18.0-1;"
        assert re.search(rf"batch {number} of 2, {node}: .*?{wanted}", done.said)
        assert versions(fleet, node) == ("580.105.08", "580.105.08", "1.18.0-1")
        assert booted(fleet, node) != boots[node] and fleet.shell(node, "nvidia-smi -L | wc -l") == str(gpus)
        assert "nvidia-driver-cuda" in fleet.shell(node, "apt-mark showhold")
        assert fleet.shell(node, "docker ps --filter label=llm_fleet.instance --format '{{.Status}}'").startswith("Up")
    assert "a reboot is needed" in done.said and "Upgraded, and serving again: gpu1, gpu2" in done.said
    assert fleet.shell("gpu1", "systemctl is-active nvidia-fabricmanager; nv-fabricmanager --version").endswith("580.105.08")
    assert fleet.plan()["maintenance"] == {}


@pytest.mark.long
def test_there_is_nothing_left_to_upgrade(hosts):
    again = hosts("all", **NEW)
    assert again.returncode == 0 and "Nothing is to be upgraded." in again.said


def test_a_mig_layout_waits_for_the_gpu(fleet, serving):
    listed = fleet.shell("gpu1", "nvidia-smi -L")
    now = installed(fleet)
    # Engines run, of which nobody outside knows what they use: nothing is changed by a run that does not drain.
    waiting = fleet.playbook("hosts", *serving, "-e", "prepare=gpu1", "-e", json.dumps({**now, **DIVIDED}))
    assert "in use by the engine talk-" in " ".join(waiting.stdout.split())
    assert fleet.shell("gpu1", "nvidia-smi -L") == listed


@pytest.mark.long
def test_no_drain_begins_for_a_mig_layout_that_robs_an_engine_or_cannot_be(fleet, serving, hosts):
    listed = fleet.shell("gpu1", "nvidia-smi -L")
    now = installed(fleet)
    # Even with its engines stopped, a node keeps the GPUs that they were given.
    (mine,) = [gpu for instance in fleet.instances(host="gpu1") for gpu in instance["gpus"]]
    robbed = hosts("gpu1", **now, nvidia_driver_mig=[{"gpu": mine, "profiles": ["1g.10gb"]}])
    assert robbed.returncode != 0 and "takes GPUs away that talk-" in robbed.said and fleet.plan()["maintenance"] == {}
    wrong = hosts("gpu1", **now, nvidia_driver_mig=[{"gpu": "99", "profiles": ["1g10gb"]}])
    assert wrong.returncode != 0 and "names GPU 99, which is not there" in wrong.said and "1g10gb is no MIG profile" in wrong.said
    assert fleet.plan()["maintenance"] == {}
    assert fleet.shell("gpu1", "nvidia-smi -L") == listed


@pytest.mark.long
def test_a_mig_layout_comes_and_goes_with_a_drain(fleet, serving, hosts):
    listed = fleet.shell("gpu1", "nvidia-smi -L")
    divided = hosts("gpu1", **NEW, **DIVIDED)
    assert divided.returncode == 0, divided.stdout[-5000:]
    assert "MIG layout of GPU 7: whole -> 3g.40gb + 1g.10gb" in divided.said
    assert [line.split()[1] for line in fleet.shell("gpu1", "nvidia-smi -L").splitlines() if "MIG " in line] == ["3g.40gb", "1g.10gb"]
    devices = re.findall(r"MIG-[0-9a-f-]+", fleet.shell("gpu1", "nvidia-smi -L"))
    assert all(device in fleet.shell("gpu1", "nvidia-ctk cdi list 2>&1") for device in devices)
    whole = hosts("gpu1", **NEW, nvidia_driver_mig=[{"gpu": "7", "profiles": []}])
    assert whole.returncode == 0, whole.stdout[-5000:]
    assert fleet.shell("gpu1", "nvidia-smi -L") == listed


@pytest.mark.long
def test_a_version_that_does_not_install_leaves_the_node_drained_and_there_is_a_way_back(fleet, serving, hosts, load):
    fleet.playbook("hosts", *serving, "-e", "prepare=all", "-e", json.dumps(NEW))
    with load() as clients:
        failed = hosts("all", **BAD)
        assert failed.returncode != 0 and "gpu1 stays drained" in failed.said and "Left as they were: gpu2" in failed.said
        assert "Bad return status for module build" in failed.said
        assert set(fleet.plan()["maintenance"]) == {"gpu1"}
        back = hosts("all", **NEW)
        assert back.returncode == 0, back.stdout[-5000:]
    unharmed(clients.report)
    assert fleet.plan()["maintenance"] == {}
    assert {versions(fleet, node) for node in GPUS} == {("580.105.08", "580.105.08", "1.18.0-1")}


@pytest.mark.long
def test_a_gpu_that_does_not_come_back_stops_it(fleet, serving, hosts, load):
    """One falls off the bus in the reboot, as bad slots and cards do."""
    drop = "/etc/systemd/system/testbed-gpus.service.d"
    fleet.shell("gpu1", f"cp /etc/testbed/gpus.json /root/gpus.json; install -d {drop}")
    fleet.shell("gpu1", f"cat > /root/lose.py <<'END'\n{LOSE}END")
    fleet.shell("gpu1", f"printf '[Service]\\nExecStartPre=python3 /root/lose.py\\n' > {drop}/lost.conf; systemctl daemon-reload")
    address = json.loads(fleet.shell("gpu1", "cat /etc/testbed/gpus.json"))["gpus"][5]["address"]
    before = versions(fleet, "gpu2")
    with load() as clients:
        failed = hosts("all", **OLD)
        assert failed.returncode != 0 and "gpu1 stays drained" in failed.said and address in failed.said, failed.stdout[-5000:]
        assert versions(fleet, "gpu2") == before
        fleet.shell("gpu1", f"rm -r {drop}; systemctl daemon-reload; cp /root/gpus.json /etc/testbed/gpus.json; testbed-gpus apply")
        back = hosts("all", **OLD)
        assert back.returncode == 0, back.stdout[-5000:]
    unharmed(clients.report)
    assert {versions(fleet, node) for node in GPUS} == {("580.95.05", "580.95.05", "1.17.8-1")}
