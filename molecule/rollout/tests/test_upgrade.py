# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Nodes are upgraded while clients stream. What is to be upgraded here is Docker: a setting that it takes up only when it is restarted.

After the other tests, by the file's name: the next site.yml takes the setting back, and some of them count what one changes.
"""

from __future__ import annotations

import json
import re

import pytest

from ansible_collections.localfirst.llm_fleet.molecule.conftest import unharmed
from ansible_collections.localfirst.llm_fleet.molecule.rollout.tests.conftest import everywhere


@pytest.fixture
def lacking(fleet, tmp_path):
    """Arguments with which Docker has to be restarted on every node, whatever an earlier run has set."""
    other = "80M" if '"96M"' in fleet.shell("gpu1", "cat /etc/docker/daemon.json") else "96M"
    config = {"insecure-registries": [f"{fleet.address('upstream')}:5000"], "default-shm-size": other}
    file = tmp_path / "docker.json"
    file.write_text(json.dumps({"container_runtime_daemon_config": config}))
    return ["-e", f"@{file}"]


def hosts(fleet, upgrade: str, *arguments: str):
    return fleet.playbook("hosts", "-e", f"upgrade={upgrade}", *arguments, check=False)


# In short form, scenario gpu_host upgrades drivers with the same playbook under the same load.
@pytest.mark.long
def test_nodes_are_upgraded_one_after_the_other_and_nobody_notices(fleet, rollouts, load, turn, lacking):
    # Engines run, so Docker is not restarted: it waits.
    site = fleet.playbook("site", *lacking)
    assert "restart pending" in site.stdout
    with load() as clients:
        done = hosts(fleet, "gpu2,gpu3", *lacking)
    assert done.returncode == 0, done.stdout[-5000:]
    unharmed(clients.report)
    assert everywhere(fleet, turn.old)
    text = " ".join(done.stdout.split())
    assert re.search(r"batch 1 of 2, gpu2: drain and stop talk-\d-[ab].*a restart of Docker for default-shm-size", text)
    assert "Upgraded, and serving again: gpu2, gpu3" in text
    for node in ("gpu2", "gpu3"):
        assert fleet.shell(node, "test -e /var/lib/llm_fleet/docker-restart-pending; echo $?") == "1"
        lines = [json.loads(line) for line in fleet.shell(node, "cat /var/log/llm_fleet/audit.jsonl").splitlines()]
        assert [line["result"] for line in lines if line["what"] == "upgrade"][-1] == "ok"
    assert fleet.plan()["maintenance"] == {}
    # There is nothing left to do there, and nobody is drained for it.
    again = hosts(fleet, "gpu2,gpu3", *lacking)
    assert again.returncode == 0 and "Nothing is to be upgraded." in again.stdout
    # What only gpu1 has nobody else serves.
    refused = hosts(fleet, "all", *lacking)
    assert refused.returncode != 0 and "nobody else serves solo" in " ".join(refused.stdout.split())
    assert fleet.plan()["maintenance"] == {} and everywhere(fleet, turn.old, "talk")
    accepted = hosts(fleet, "all", *lacking, "-e", "accept_outage=true")
    assert accepted.returncode == 0, accepted.stdout[-5000:]
    assert everywhere(fleet, fleet.plan()["models"]["solo"]["version"], "solo")
    # The nodes that lacked nothing were never taken out of service.
    assert fleet.plan()["maintenance"] == {}


@pytest.mark.long
def test_a_node_that_fails_stays_drained_until_it_is_mended(fleet, rollouts, load, turn, lacking):
    fleet.playbook("site", *lacking)
    # Docker no longer comes up there.
    unit = "/etc/systemd/system/docker.service.d/broken.conf"
    fleet.shell("gpu2", f"printf '[Service]\\nExecStartPre=/bin/false\\n' > {unit}; systemctl daemon-reload")
    with load() as clients:
        failed = hosts(fleet, "gpu2,gpu3", *lacking)
        assert failed.returncode != 0
        text = " ".join(failed.stdout.split())
        assert "gpu2 stays drained" in text and "Left as they were: gpu3" in text
        assert set(fleet.plan()["maintenance"]) == {"gpu2"}
        fleet.shell("gpu2", f"rm {unit}; systemctl daemon-reload; systemctl reset-failed docker; systemctl start docker")
        # site.yml leaves it alone, and a rollout does not begin there.
        fleet.playbook("site", *lacking)
        assert set(fleet.plan()["maintenance"]) == {"gpu2"}
        assert "is in maintenance" in " ".join(rollouts.run("talk", *turn.arguments).output.split())
        done = hosts(fleet, "gpu2,gpu3", *lacking)
        assert done.returncode == 0, done.stdout[-5000:]
    unharmed(clients.report)
    assert fleet.plan()["maintenance"] == {} and everywhere(fleet, turn.old)
