# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A bad release never gets far: the old one is back before anybody could have typed the command."""

from __future__ import annotations

import json

import pytest

from ansible_collections.localfirst.llm_fleet.molecule.conftest import unharmed
from ansible_collections.localfirst.llm_fleet.molecule.rollout.tests.conftest import everywhere

BAD = [
    pytest.param("2.1.0", {}, "smoke[0]", id="answers-otherwise"),
    pytest.param("2.0.0", {}, "is not ready", id="never-loads", marks=pytest.mark.long),
    # Twenty times slower than the old release beside it; a busy machine makes both slow.
    pytest.param("2.2.0", {"samples": 12, "slowdown": 6}, "slowdown", id="too-slow", marks=pytest.mark.long),
]


@pytest.mark.parametrize("version, gates, clue", BAD)
def test_a_bad_version_meets_no_client(fleet, rollouts, load, turn, version, gates, clue):
    with load() as clients:
        done = rollouts.run("talk", "-e", f"version={version}", gates=gates)
    assert done.status != 0
    assert done.report["outcome"] == "taken back" and done.report["rejected"]
    assert clue in done.report["why"], done.report["why"]
    unharmed(clients.report)
    assert set(clients.report.by_version) == {"old"}, "a client met the bad version"
    assert everywhere(fleet, turn.old)
    # And it is not tried again by itself.
    again = rollouts.run("talk", "-e", f"version={version}", insist=False)
    assert again.status != 0 and "was rejected" in again.output and clue in again.output


@pytest.mark.long
def test_one_that_crashes_under_clients_goes_back_at_once(fleet, rollouts, load, turn, tmp_path):
    """It passes its gates, and ends after 20 requests: what the canary's clients meet is seen at the gateways."""
    images = json.dumps({"llm_fleet_engine_images": {"llamacpp": "10.203.1.2:5000/llamacpp:flaky"}})
    lock = tmp_path / "flaky.lock.yml"
    lock.write_bytes((fleet.state / "rollout.lock.yml").read_bytes())
    flaky = ("-e", images, "-e", f"llm_fleet_lockfile={lock}")
    fleet.playbook("lock", *flaky)
    canary = {"canary": {"share": 30, "bake": "30s", "min_requests": 5}}
    with load(clients=8) as clients:
        done = rollouts.run("talk", *flaky, version=turn.old, rollout=canary)
    assert done.status != 0
    assert done.report["outcome"] == "taken back" and "error_rate" in done.report["why"], done.report["why"]
    assert everywhere(fleet, turn.old)
    # Only requests that the canary had were harmed: gateways log which release each went to.
    old = fleet.plan()["models"]["talk"]["release"]
    for fault in clients.report.faults:
        if fault["request_id"]:
            logged = [fleet.shell(gateway, f"journalctl -t haproxy -o cat --grep '{fault['request_id']}'", check=False)
                      for gateway in fleet.hosts("gateways")]
            releases = {json.loads(line[line.index("{"):])["release"] for text in logged for line in text.splitlines() if "{" in line}
            assert old not in releases, fault
