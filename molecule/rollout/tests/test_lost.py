# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Nodes, gateways and disks fail while a rollout is under way."""

from __future__ import annotations

import contextlib
import json
import subprocess

import pytest

from ansible_collections.localfirst.llm_fleet.molecule.conftest import unharmed, until
from ansible_collections.localfirst.llm_fleet.molecule.rollout.tests.conftest import everywhere, versions

pytestmark = pytest.mark.long
SURGE = ("-e", "strategy=surge")
SILENT = "iptables {} INPUT -p tcp --dport 22 -j DROP"


def begun(output, task: str):
    return until(lambda: f"TASK [{task}" in output.read_text(), 600, 0.1)


@contextlib.contextmanager
def silent(fleet, gateway):
    """A gateway that goes on serving, and that the controller cannot reach."""
    fleet.shell(gateway, SILENT.format("-I"))
    try:
        yield
    finally:
        fleet.shell(gateway, SILENT.format("-D"))


def test_a_node_that_dies_takes_nobody_along(fleet, rollouts, turn, load, tmp_path):
    output = tmp_path / "output"
    with load() as clients:
        process = rollouts.start("talk", *turn.arguments, *SURGE, output=output)
        begun(output, "Watch")
        subprocess.run(["docker", "kill", fleet.container("gpu3")], check=True, capture_output=True)
        try:
            assert process.wait(400) != 0
            report = json.loads((rollouts.folder / "report.json").read_text())
            assert report["outcome"] == "taken back" and not report["rejected"], report
            assert versions(fleet) == {"gpu1": [turn.old], "gpu2": [turn.old]}
        finally:
            subprocess.run(["docker", "start", fleet.container("gpu3")], check=True, capture_output=True)
            until(lambda: fleet.shell("gpu3", "systemctl is-active ssh docker", check=False).split() == ["active", "active"])
    # What gpu3 was answering when its power went is lost, and nothing else.
    assert clients.report.refused_total == 0
    assert clients.report.broken <= 6, clients.report.faults
    fleet.playbook("site")
    assert everywhere(fleet, turn.old)


def test_no_rollout_begins_while_a_gateway_is_silent(fleet, rollouts, turn):
    plan = fleet.plan()
    with silent(fleet, "gw2"):
        done = rollouts.run("talk", *turn.arguments, *SURGE)
        assert done.status != 0 and "gateway gw2 does not answer" in done.output
        assert fleet.plan() == plan


def test_a_gateway_that_falls_silent_in_mid_drain_breaks_nothing(fleet, rollouts, turn, load, tmp_path):
    output = tmp_path / "output"
    with load() as clients:
        process = rollouts.start("talk", *turn.arguments, *SURGE, output=output)
        begun(output, "Drain the instances")
        with silent(fleet, "gw2"):
            assert process.wait(500) != 0
            report = json.loads((rollouts.folder / "report.json").read_text())
            assert report["outcome"] == "unfinished" and report["silent"] == ["gw2"], report
        done = rollouts.run("talk", playbook="rollback")
    assert done.status == 0, done.output[-5000:]
    unharmed(clients.report)
    assert everywhere(fleet, turn.old)


@pytest.mark.parametrize("verb", ["reload", "restart"])
def test_haproxy_may_come_and_go_in_mid_drain(fleet, rollouts, turn, load, tmp_path, verb):
    output = tmp_path / "output"
    with load(tokens=(300, 500)) as clients:
        process = rollouts.start("talk", *turn.arguments, *SURGE, output=output)
        begun(output, "Drain the instances")
        fleet.shell("gw1", f"systemctl {verb} haproxy")
        assert process.wait(400) == 0, output.read_text()[-4000:]
    assert everywhere(fleet, turn.new)
    if verb == "reload":
        unharmed(clients.report)
    else:
        # A restart ends what went through that gateway at that moment; the other one noticed nothing.
        other = f"{fleet.address('gw2')}:443"
        assert [fault for fault in clients.report.faults if fault["gateway"] == other] == []


def test_a_full_disk_stops_it_before_anything_is_switched(fleet, rollouts, turn):
    plan = fleet.plan()
    blob = "/var/lib/llm_fleet/store"
    fleet.shell("gpu2", f"rm -rf {blob}/models/talk/2.2.0; mkdir -p {blob}/incoming && mount -t tmpfs -o size=1m tmpfs {blob}/incoming")
    try:
        done = rollouts.run("talk", "-e", "version=2.2.0")
    finally:
        fleet.shell("gpu2", f"umount {blob}/incoming")
    assert done.status != 0
    assert fleet.plan()["instances"] == plan["instances"]
    assert everywhere(fleet, turn.old)
