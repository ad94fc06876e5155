# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A model goes from one version to the next on three nodes, and nobody who uses it notices."""

from __future__ import annotations

import json

import pytest

from ansible_collections.localfirst.llm_fleet.molecule.rollout.tests.conftest import everywhere, unharmed
from ansible_collections.localfirst.llm_fleet.tests.load import report as reports

NEW = ("-e", "version=1.1.0")


@pytest.mark.parametrize("strategy", ["surge", "replace"])
def test_nobody_notices(fleet, rollouts, load, strategy):
    with load() as clients:
        done = rollouts.run("talk", *NEW, "-e", f"strategy={strategy}")
    assert done.status == 0, done.output[-5000:]
    assert done.report["outcome"] == "rolled out" and done.report["strategy"] == strategy
    unharmed(clients.report)
    assert everywhere(fleet, "1.1.0")
    # Both versions answered clients, and at the end only the new one.
    assert clients.report.by_version["old"]["last_began"] < clients.report.ended - 1
    assert sum(seen["streams"] for name, seen in clients.report.by_version.items() if name != "old") > 0


def test_what_was_asked_for_is_there_already(fleet, rollouts):
    """Neither the same command nor site.yml finds anything to do, and both say how it stands."""
    assert rollouts.run("talk", *NEW, rollout={"canary": "none"}).status == 0
    again = rollouts.run("talk", *NEW)
    assert again.status == 0 and set(again.changed().values()) == {0}, again.changed()
    assert again.report["outcome"] == "nothing to do"
    site = fleet.playbook("site", *rollouts.variables("talk"))
    assert "pending rollout 1.1.0 -> 1.0.0" in site.stdout and "chose 1.1.0 by hand" in site.stdout
    assert everywhere(fleet, "1.1.0")


def test_check_mode_says_it_all_and_does_nothing(fleet, rollouts):
    plan = fleet.plan()
    done = rollouts.run("talk", *NEW, "-e", "strategy=replace", "--check", "--diff")
    assert done.status == 0, done.output[-3000:]
    for clue in (
        "at any moment at least 2 of 3 replicas serve",
        "gpu1: drain and stop talk-0-",
        "gpu3: drain and stop talk-",
        "bake for 3 s with 20 % of the requests",
        "MiB of files",
    ):
        assert clue in done.output, clue
    assert fleet.plan() == plan
    for node in fleet.hosts("gpu_nodes"):
        assert fleet.shell(node, "docker ps -aq --filter label=llm_fleet.version=1.1.0") == ""


def test_what_was_done_is_on_record(fleet, rollouts):
    """Who, what, on which host, with which result; and no secret. (The rollouts of the tests before are on it too.)"""
    done = rollouts.run("talk", *NEW, "-e", "reason=because", rollout={"canary": "none"})
    assert done.status == 0, done.output[-3000:]
    for gateway in fleet.hosts("gateways"):
        file = "/var/log/llm_fleet/audit.jsonl"
        assert fleet.shell(gateway, f"stat -c %a {file}") == "640"
        lines = [json.loads(line) for line in fleet.shell(gateway, f"cat {file}").splitlines()]
        whats = {line["what"] for line in lines}
        assert {"drain", "ready", "route"} <= whats
        assert all(line["who"]["user"] and line["from"] and line["result"] for line in lines)
        assert "llmf_" not in json.dumps(lines)
    history = [json.loads(line) for line in fleet.shell("gpu1", "cat /var/lib/llm_fleet/releases.jsonl").splitlines()]
    last = [entry for entry in history if entry["rollout"] == done.report["id"]]
    assert [entry["outcome"] for entry in last] == ["switched", "good"]
    assert last[-1]["version"] == "1.1.0" and last[-1]["why"] == "because" and last[-1]["gates"]["gates"]


def test_a_rollback_on_demand_needs_no_depot(fleet, rollouts, load):
    assert rollouts.run("talk", *NEW, rollout={"canary": "none"}).status == 0
    walls = "; ".join(f"iptables -I OUTPUT -d {fleet.address(host)} -j REJECT" for host in ("depot1", "upstream"))
    for node in fleet.hosts("gpu_nodes"):
        fleet.shell(node, walls)
    try:
        with load() as clients:
            done = rollouts.run("talk", "-e", "reason=worse", playbook="rollback")
    finally:
        for node in fleet.hosts("gpu_nodes"):
            fleet.shell(node, walls.replace("-I OUTPUT", "-D OUTPUT"))
    assert done.status == 0, done.output[-5000:]
    unharmed(clients.report)
    assert everywhere(fleet, "1.0.0")
    # What was left is refused from now on, until somebody insists.
    refused = rollouts.run("talk", *NEW)
    assert refused.status != 0 and "worse" in refused.output and "retry_rejected=true" in refused.output
    assert everywhere(fleet, "1.0.0")


class TestOneReplica:
    def test_an_outage_needs_consent_and_is_measured(self, fleet, rollouts, load):
        refused = rollouts.run("solo", *NEW, "-e", "strategy=replace")
        assert refused.status != 0 and "accept_outage=true" in refused.output
        assert everywhere(fleet, "1.0.0", "solo")
        with load(models=["solo"], retry=0.2) as clients:
            done = rollouts.run("solo", *NEW, "-e", "strategy=replace", "-e", "accept_outage=true")
        assert done.status == 0, done.output[-5000:]
        assert "OUTAGE" in done.output
        assert everywhere(fleet, "1.1.0", "solo")
        # Streams in flight ended by themselves; who came in between was refused, and the report says for how long.
        assert clients.report.broken == clients.report.short == clients.report.duplicated == 0, clients.report.faults[:10]
        [gap] = reports.gaps(clients.report)
        assert gap["seconds"] < done.mark("share 100") - done.mark("share 0") + 2
        assert set(clients.report.refused) <= {"503 no_instance"}

    def test_with_room_it_goes_without_a_gap(self, fleet, rollouts, load):
        with load(models=["solo"]) as clients:
            done = rollouts.run("solo", *NEW)
        assert done.status == 0, done.output[-5000:]
        assert done.report["strategy"] == "surge"
        unharmed(clients.report)
        assert everywhere(fleet, "1.1.0", "solo")
