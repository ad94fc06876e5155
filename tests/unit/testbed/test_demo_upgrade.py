# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What the demo's upgrade does next, and how it tells what happens."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPO / "testbed"))
sys.path.insert(0, str(REPO / "testbed" / "doubles" / "nvidia_repo"))
pytest.importorskip("openai", reason="the demo's client")
import demo_upgrade  # noqa: E402
import packages  # noqa: E402
from demo_upgrade import FIRST, SECOND, TOOLKITS  # noqa: E402
from upgrade_story import PLAYS, TASKS, Story  # noqa: E402


def out(*hosts: str, why: str) -> dict:
    return {host: {"since": "2026-01-01T09:30:00Z", "who": "alice", "why": why} for host in hosts}


@pytest.mark.parametrize("drivers, maintenance, old, new", [
    ({"gpu1": FIRST, "gpu2": FIRST}, {}, FIRST, SECOND),
    ({"gpu1": SECOND, "gpu2": SECOND}, {}, SECOND, FIRST),
    # Begun and broken off: before the first node had it, between the two, and when both had.
    ({"gpu1": FIRST, "gpu2": FIRST}, out("gpu1", "gpu2", why=f"driver-{SECOND}"), FIRST, SECOND),
    ({"gpu1": SECOND, "gpu2": FIRST}, out("gpu1", "gpu2", why=f"driver-{SECOND}"), FIRST, SECOND),
    ({"gpu1": SECOND, "gpu2": SECOND}, out("gpu2", why=f"driver-{SECOND}"), FIRST, SECOND),
    # The same on the way back, and while a node is not there.
    ({"gpu1": FIRST, "gpu2": SECOND}, out("gpu1", "gpu2", why=f"driver-{FIRST}"), SECOND, FIRST),
    ({"gpu2": SECOND}, out("gpu1", "gpu2", why=f"driver-{FIRST}"), SECOND, FIRST),
    # What somebody else has begun says nothing; where nodes differ, they come together.
    ({"gpu1": FIRST, "gpu2": SECOND}, out("gpu1", why="upgrade"), FIRST, SECOND),
])
def test_each_call_goes_to_the_other_driver(drivers, maintenance, old, new):
    move = demo_upgrade.next_move(drivers, maintenance)
    assert (move.old, move.new) == (old, new)
    assert move.arguments[:3] == ["playbooks/hosts.yml", "-i", "inventories/demo"]
    given = dict(argument.split("=", 1) for argument in move.arguments[4::2])
    assert given["upgrade"] == "all" and given["nvidia_driver_version"] == new
    assert given["container_runtime_nvidia_version"] == TOOLKITS[new]
    # By this the next call knows what was begun.
    assert given["reason"] == move.reason


def test_it_begins_with_what_the_inventory_says_and_the_repository_has_both():
    inventory = yaml.safe_load((REPO / "inventories" / "demo" / "group_vars" / "all.yml").read_text())
    assert inventory["nvidia_driver_version"] == FIRST
    assert inventory["container_runtime_nvidia_version"] == TOOLKITS[FIRST]
    assert packages.BRANCHES["580"] == (FIRST, SECOND)
    assert {toolkit.removesuffix("-1") for toolkit in TOOLKITS.values()} == set(packages.TOOLKITS)


def node(host: str, at: float, **event) -> dict:
    return {"host": host, "at": at, **event}


def whole(host: str, begin: float) -> list[dict]:
    """A node's events, from its first drained request to its first new one; beside them a task that nobody is told of."""
    tasks = [node(host, begin + number, task=name) for number, name in enumerate(TASKS)]
    mark = node(host, begin + 0.5, mark={"at": 0, "what": "drained 0.44", "batch": 0})
    dull = node(host, begin + 0.7, task="Look for DCGM")
    why = node(host, begin + 2.5, reboot=["the loaded module is another"])
    back = node(host, begin + 2.8, rebooted=14)
    return [tasks[0], mark, dull, *tasks[1:3], why, back, *tasks[3:], node(host, begin + 61, done=True)]


def test_the_story_of_an_upgrade():
    story = Story()
    events = [
        {"play": "Look at the fleet, and say who goes out of service when"},
        *(node(host, 0, lacks=["driver 1 -> 2", "toolkit -> 3"]) for host in ("gpu1", "gpu2")),
        node("gw1", 1, batches=[["gpu1"], ["gpu2"]]),
        {"play": "Upgrade the nodes, a batch at a time"},
        *whole("gpu1", 100),
        *whole("gpu2", 200),
    ]
    sentences = [sentence for event in events for sentence in story.tell(event)]
    assert sentences[:3] == [
        "hosts.yml looks at what each node lacks",
        "gpu1 and gpu2 lack: driver 1 -> 2; toolkit -> 3",
        "they go out of service in this order: gpu1, then gpu2",
    ]
    assert sentences[3:14] == [
        "gpu1 is drained: no gateway sends it anything new",
        "gpu1 has ended its last stream, after 0.4 s",
        "gpu1 stops its engines",
        "gpu1 sees to its driver",
        "gpu1 has to be rebooted: the loaded module is another",
        "gpu1 is back from its reboot, after 14 s",
        "gpu1 sees to Docker and the container toolkit",
        "gpu1 is checked: every GPU has to be there again",
        "gpu1 starts its engines",
        "gpu1 is gated: its engines have to answer probes before any client meets them",
        "gpu1 serves again, 61 s after it was drained",
    ]
    assert sentences[14:] == [sentence.replace("gpu1", "gpu2") for sentence in sentences[3:14]]
    assert story.reboots == 2 and story.conclusion == "gpu1 and gpu2 serve again"


def test_nodes_that_lack_something_else_are_told_of_apart():
    story = Story(lacks={"gpu1": ["bring it back into service"], "gpu2": ["driver 1 -> 2"]})
    lines = story.tell(node("gw1", 1, batches=[["gpu1"], ["gpu2"]]))
    assert lines[:2] == ["gpu1 lacks: bring it back into service", "gpu2 lacks: driver 1 -> 2"]


def test_the_story_of_one_that_fails():
    story = Story()
    started = node("gpu1", 5, task="Start its engines")
    assert story.tell(started) and not story.tell(started), "the step that includes it has the same name"
    assert story.tell(node("gpu1", 9, failure="Wait until they are ready: tiny-0-a: no answer")) == [
        "gpu1 stays drained: Wait until they are ready: tiny-0-a: no answer",
    ]
    assert story.conclusion == "gpu1 stays out of service"
    assert Story().conclusion == "nothing was upgraded"


def test_its_plays_and_tasks_are_those_of_the_playbook():
    files = [REPO / "playbooks" / "parts" / "upgrade_hosts.yml", *(REPO / "playbooks" / "tasks" / "hosts").glob("*.yml")]
    names = {name for file in files for name in re.findall(r"^ *- name: (.+)$", file.read_text(), re.MULTILINE)}
    assert {*PLAYS, *TASKS} <= names
