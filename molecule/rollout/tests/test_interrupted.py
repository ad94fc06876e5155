# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Killed anywhere, finished later: the fleet keeps serving, and the same command goes on."""

from __future__ import annotations

import json
import os
import signal

import pytest

from ansible_collections.localfirst.llm_fleet.molecule.conftest import unharmed, until
from ansible_collections.localfirst.llm_fleet.molecule.rollout.tests.conftest import everywhere

SURGE = ("-e", "strategy=surge")
long = pytest.mark.long
# (task, how often it has begun) at which the controller is killed.
POINTS = [
    ("Put the new instances through their gates", 1),
    ("Forget it", 1),
    pytest.param("Take the plan's lock", 1, marks=long),
    pytest.param("Note the plan", 1, marks=long),
    pytest.param("Make the containers of the new release, without starting them", 1, marks=long),
    pytest.param("Start the new release on its nodes", 1, marks=long),
    pytest.param("Let the instances in", 1, marks=long),
    pytest.param("Count requests, errors and times of both releases on every gateway", 2, marks=long),
    pytest.param("Drain the instances", 1, marks=long),
    pytest.param("Wait for those that load side by side", 1, marks=long),
    pytest.param("Remember how far it is", 3, marks=long),
    pytest.param("Note the new release as good", 1, marks=long),
]


def kill_at(process, output, task: str, times: int) -> None:
    """Kill all of a run, with SIGKILL, when a task begins."""

    def begun() -> bool:
        assert process.poll() is None, output.read_text()[-4000:]
        lines = output.read_text().splitlines()
        return sum(line.startswith("TASK [") and f"{task}]" in line for line in lines) >= times

    until(begun, 400, 0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("task, times", POINTS)
def test_killed_at(fleet, rollouts, load, turn, tmp_path, task, times):
    with load() as clients:
        output = tmp_path / "killed"
        process = rollouts.start("talk", *turn.arguments, *SURGE, output=output)
        kill_at(process, output, task, times)
        # From another directory, and in time: a run that is dead holds no lock.
        done = rollouts.run("talk", *turn.arguments, *SURGE, cwd=tmp_path)
    assert done.status == 0, done.output[-5000:]
    unharmed(clients.report)
    assert everywhere(fleet, turn.new)
    for gateway in fleet.hosts("gateways"):
        routes = json.loads(fleet.shell(gateway, "cat /var/lib/llm_fleet/routes.json"))
        assert routes["routes"] == {} and fleet.shell(gateway, "ls /var/lib/llm_fleet/locks") == ""


@pytest.mark.long
def test_status_tells_of_an_interrupted_rollout_and_rollback_takes_it_back(fleet, rollouts, load, turn, tmp_path):
    with load() as clients:
        output = tmp_path / "killed"
        process = rollouts.start("talk", *turn.arguments, *SURGE, output=output)
        kill_at(process, output, "Drain the instances", 1)
        file = tmp_path / "status.json"
        fleet.playbook("status", "-e", f"status_file={file}")
        [row] = json.loads(file.read_text())["rollouts"]
        assert (row["model"], row["from"], row["to"]) == ("talk", turn.old, turn.new)
        # site.yml leaves the model alone meanwhile.
        fleet.playbook("site")
        assert fleet.plan()["rollouts"]["talk"]["to_version"] == turn.new
        done = rollouts.run("talk", playbook="rollback")
    assert done.status == 0, done.output[-5000:]
    assert done.report["outcome"] == "taken back"
    unharmed(clients.report)
    assert everywhere(fleet, turn.old)


@pytest.mark.long
def test_one_that_is_under_way_stops_when_it_is_asked_to(fleet, rollouts, load, turn, tmp_path):
    with load() as clients:
        output = tmp_path / "running"
        canary = {"canary": {"share": 20, "bake": "60s", "min_requests": 5}}
        process = rollouts.start("talk", *turn.arguments, *SURGE, output=output, rollout=canary)
        until(lambda: "TASK [Send a few clients" in output.read_text(), 300)
        refused = rollouts.run("talk", *turn.arguments, *SURGE)
        assert refused.status != 0 and "rollout-talk" in refused.output and "since" in refused.output
        done = rollouts.run("talk", playbook="rollback")
        assert process.wait(300) != 0
    assert "asked this rollout to stop" in output.read_text()
    assert done.status == 0, done.output[-5000:]
    unharmed(clients.report)
    assert everywhere(fleet, turn.old)


@pytest.mark.long
def test_rollouts_of_two_models_go_side_by_side(fleet, rollouts, load, turn, turn_of, tmp_path):
    solo = turn_of("solo")
    with load(models=["talk", "solo"]) as clients:
        output = tmp_path / "solo"
        other = type(rollouts)(rollouts.fleet, rollouts.catalog, tmp_path / "other")
        other.folder.mkdir()
        process = other.start("solo", *solo.arguments, output=output)
        done = rollouts.run("talk", *turn.arguments, *SURGE)
        assert process.wait(400) == 0, output.read_text()[-4000:]
    assert done.status == 0, done.output[-5000:]
    unharmed(clients.report)
    assert everywhere(fleet, turn.new) and everywhere(fleet, solo.new, "solo")
