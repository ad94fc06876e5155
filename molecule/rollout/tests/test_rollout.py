# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A model goes from one version to the next on three nodes, and nobody who uses it notices."""

from __future__ import annotations

import json

import pytest

from ansible_collections.localfirst.llm_fleet.molecule.conftest import unharmed
from ansible_collections.localfirst.llm_fleet.molecule.rollout.tests.conftest import everywhere
from ansible_collections.localfirst.llm_fleet.tests.load import report as reports

long = pytest.mark.long


def on_record(fleet, done) -> None:
    """Who, what, on which host, with which result; and no secret."""
    for gateway in fleet.hosts("gateways"):
        file = "/var/log/llm_fleet/audit.jsonl"
        assert fleet.shell(gateway, f"stat -c %a {file}") == "640"
        lines = [json.loads(line) for line in fleet.shell(gateway, f"cat {file}").splitlines()]
        assert {"drain", "ready", "route"} <= {line["what"] for line in lines}
        assert all(line["who"]["user"] and line["from"] and line["result"] for line in lines)
        assert "llmf_" not in json.dumps(lines)
    history = [json.loads(line) for line in fleet.shell("gpu1", "cat /var/lib/llm_fleet/releases.jsonl").splitlines()]
    last = [entry for entry in history if entry["rollout"] == done.report["id"]]
    assert [entry["outcome"] for entry in last] == ["switched", "good"]
    assert last[-1]["version"] == done.report["to"] and last[-1]["why"] == "because" and last[-1]["gates"]["gates"]


def test_a_surge_goes_unnoticed_and_leaves_nothing_to_do(fleet, rollouts, load, turn):
    with load() as clients:
        done = rollouts.run("talk", "-e", "strategy=surge", "-e", "reason=because", version=turn.new)
    assert done.status == 0, done.output[-5000:]
    assert done.report["outcome"] == "rolled out" and done.report["strategy"] == "surge"
    unharmed(clients.report)
    assert everywhere(fleet, turn.new)
    # Both versions answered clients, and at the end only the new one.
    assert clients.report.by_version["old"]["last_began"] < clients.report.ended - 1
    assert sum(seen["streams"] for name, seen in clients.report.by_version.items() if name != "old") > 0
    on_record(fleet, done)
    # Neither the same command nor site.yml finds anything to do.
    again = rollouts.run("talk", version=turn.new)
    assert again.status == 0 and again.report["outcome"] == "nothing to do"
    assert set(again.changed().values()) == {0}, again.changed()
    site = rollouts.run("talk", playbook="site", version=turn.new)
    assert site.status == 0 and set(site.changed().values()) == {0}, site.changed()


def test_a_replacement_goes_unnoticed(fleet, rollouts, load, turn):
    with load() as clients:
        done = rollouts.run("talk", *turn.arguments, "-e", "strategy=replace")
    assert done.status == 0, done.output[-5000:]
    assert done.report["strategy"] == "replace"
    unharmed(clients.report)
    assert everywhere(fleet, turn.new)


@long
def test_a_version_chosen_by_hand_is_told_until_git_agrees(fleet, rollouts, turn):
    assert rollouts.run("talk", *turn.arguments, version=turn.old, rollout={"canary": "none"}).status == 0
    site = rollouts.run("talk", playbook="site", version=turn.old)
    assert f"pending rollout {turn.new} -> {turn.old}" in site.output and f"chose {turn.new} by hand" in site.output
    assert everywhere(fleet, turn.new)


@long
def test_check_mode_says_it_all_and_does_nothing(fleet, rollouts, turn):
    plan = fleet.plan()
    done = rollouts.run("talk", *turn.arguments, "-e", "strategy=replace", "--check", "--diff")
    assert done.status == 0, done.output[-3000:]
    for clue in (
        "at any moment at least 2 of 3 replicas serve",
        "gpu1: drain and stop talk-",
        "gpu3: drain and stop talk-",
        "bake for 3 s with 20 % of the requests",
        "MiB of files",
    ):
        # Long lines of the output are broken.
        assert clue in " ".join(done.output.split()), clue
    assert fleet.plan() == plan
    assert everywhere(fleet, turn.old)


@long
def test_a_rollback_on_demand_needs_no_depot(fleet, rollouts, load, turn):
    assert rollouts.run("talk", *turn.arguments, rollout={"canary": "none"}).status == 0
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
    assert everywhere(fleet, turn.old)
    # What was left is refused from now on, until somebody insists.
    refused = rollouts.run("talk", *turn.arguments, insist=False)
    assert refused.status != 0 and "worse" in refused.output and "retry_rejected=true" in refused.output
    assert everywhere(fleet, turn.old)


def test_one_replica_has_an_outage_only_with_consent_and_that_is_measured(fleet, rollouts, load, turn_of):
    turn = turn_of("solo")
    refused = rollouts.run("solo", *turn.arguments, "-e", "strategy=replace")
    assert refused.status != 0 and "accept_outage=true" in refused.output
    assert everywhere(fleet, turn.old, "solo")
    with load(models=["solo"], retry=0.2) as clients:
        done = rollouts.run("solo", *turn.arguments, "-e", "strategy=replace", "-e", "accept_outage=true")
    assert done.status == 0, done.output[-5000:]
    assert "OUTAGE" in done.output
    assert everywhere(fleet, turn.new, "solo")
    # Streams in flight ended by themselves; who came in between was refused, and the moments are in the report.
    seen = clients.report
    assert seen.broken == seen.short == seen.duplicated == 0, seen.faults[:10]
    assert set(seen.refused) <= {"503 no_instance"}
    [gap] = reports.gaps(seen)
    assert done.mark("share 0") - 1 < gap["begin"] and gap["end"] < done.mark("share 100") + 2


@long
def test_one_replica_with_room_goes_without_a_gap(fleet, rollouts, load, turn_of):
    turn = turn_of("solo")
    with load(models=["solo"]) as clients:
        done = rollouts.run("solo", *turn.arguments)
    assert done.status == 0, done.output[-5000:]
    assert done.report["strategy"] == "surge"
    unharmed(clients.report)
    assert everywhere(fleet, turn.new, "solo")
