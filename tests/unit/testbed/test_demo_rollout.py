# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What the demo's rollout does next, and how it tells what happens."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPO / "testbed"))
pytest.importorskip("openai", reason="the demo's client")
import demo_rollout  # noqa: E402
from rollout_story import PLAYS, Story  # noqa: E402

ROLLOUT = {
    "model": "tiny",
    "strategy": "surge",
    "from_version": "1.0.0",
    "to_version": "1.1.0",
    "undo": False,
    "canary": {"share": 20, "bake": 15, "clients": [], "min_requests": 20},
    "batches": [{"number": 1, "hosts": ["gpu1"]}, {"number": 2, "hosts": ["gpu2"]}],
}
PROBED = {"requests": 8, "errors": 0, "ttft_p95_s": 0.012}
SEEN = {"requests": 31, "errors": 0, "latency_ms": 9.6}


def plan(version: str, previous: str = "", rejected: tuple = (), begun: dict | None = None) -> dict:
    entry = {
        "version": version,
        "previous": {"version": previous, "release": "a"} if previous else None,
        "rejected": [{"version": one} for one in rejected],
    }
    return {"models": {"tiny": entry}, "rollouts": {"tiny": begun} if begun else {}}


@pytest.mark.parametrize("known, playbook, variables", [
    (plan("1.0.0"), "rollout", ("version=1.1.0",)),
    (plan("1.1.0", previous="1.0.0"), "rollback", ()),
    # After the way back.
    (plan("1.0.0", rejected=("1.1.0",)), "rollout", ("version=1.1.0", "retry_rejected=true")),
    # Nothing to return to.
    (plan("1.1.0"), "rollout", ("version=1.0.0",)),
    (plan("1.1.0", rejected=("1.0.0",)), "rollout", ("version=1.0.0", "retry_rejected=true")),
    # Begun and broken off.
    (plan("1.0.0", begun={"from_version": "1.0.0", "to_version": "1.1.0", "undo": False}), "rollout", ("version=1.1.0",)),
    (plan("1.1.0", begun={"from_version": "1.1.0", "to_version": "1.0.0", "undo": True}), "rollback", ()),
])
def test_each_call_goes_to_the_other_version(known, playbook, variables):
    move = demo_rollout.next_move(known)
    assert (move.playbook, move.variables) == (playbook, variables)
    assert {move.old, move.new} == {"1.0.0", "1.1.0"} and move.old == known["models"]["tiny"]["version"]
    assert move.arguments[:3] == [f"playbooks/{playbook}.yml", "-i", "inventories/demo"]


def test_what_is_not_the_old_version_is_the_new_one():
    move = demo_rollout.Move("rollout", "1.0.0", "1.1.0")
    assert demo_rollout.named({"shares": {"1.0.0": 0.75, "mavete repa": 0.25}}, move)["shares"] == {"1.0.0": 0.75, "1.1.0": 0.25}
    assert demo_rollout.named({"shares": {"mavete repa": 1.0}}, move)["shares"] == {"1.0.0": 0, "1.1.0": 1}
    assert demo_rollout.named({"shares": {}}, move)["shares"] == {}


def told(*events: dict) -> list[str]:
    story = Story()
    return [sentence for event in events for sentence in story.tell(event)]


def mark(what: str, batch: int = 0) -> dict:
    return {"mark": {"at": 0, "what": what, "batch": batch}}


def test_the_story_of_a_rollout():
    gate = {"batch": 1, "gate": "probes", "failures": [], "summary": {"new": PROBED, "old": {**PROBED, "ttft_p95_s": 0.011}}}
    canary = {"batch": 1, "gate": "canary", "failures": [], "summary": {"traffic": {"new": SEEN, "old": SEEN}, "probes": {}}}
    sentences = told(
        {"play": "Bring the models to the nodes"},
        {"play": "Let the controller rest"},
        {"rollout": ROLLOUT},
        mark("begin"),
        mark("loaded 1.24 stopped 0.0", 1),
        {"gate": gate},
        mark("share 20", 1),
        {"gate": canary},
        mark("share 20", 1),
        mark("share 50", 1),
        mark("drained 0.4", 1),
    )
    assert sentences == [
        "the nodes get the files that they lack",
        "tiny goes from 1.0.0 to 1.1.0, surge: gpu1, then gpu2",
        "batch 1 of 2: gpu1 has loaded 1.1.0, in 1.2 s",
        "batch 1 of 2: gate passed: 8 probes, 0 errors, first token after 12 ms (p95), with 1.0.0 11 ms",
        "canary: 20 % of the requests go to 1.1.0, and are watched for 15 s",
        "canary: gate passed: 31 requests of clients, 0 errors, first byte after 10 ms, with 1.0.0 10 ms",
        "batch 1 of 2: 50 % of the requests go to 1.1.0",
        "batch 1 of 2: gpu1 has ended its last stream of 1.0.0, after 0.4 s",
    ]


def test_the_story_of_one_that_goes_back():
    why = "smoke[0]: it says otherwise"
    gate = {"batch": 1, "gate": "probes", "failures": [why], "summary": {"new": PROBED, "old": PROBED}}
    sentences = told({"rollout": ROLLOUT}, {"gate": gate}, {"back": why}, mark("back"), mark("share 0"), mark("drained 1", 1))
    assert sentences[1:] == ["gate failed: smoke[0]: it says otherwise", "it goes back: smoke[0]: it says otherwise"]


def test_its_plays_are_those_of_the_playbooks():
    names = {
        name
        for file in (REPO / "playbooks").rglob("*.yml")
        for name in re.findall(r"^- name: (.+)$", file.read_text(), re.MULTILINE)
    }
    assert set(PLAYS) <= names
