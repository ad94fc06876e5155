# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The upgrade of hosts, read as it is written: no host is lost unnoticed, and none begins before those ahead of it are done."""

from __future__ import annotations

import re

import yaml

from ansible_collections.localfirst.llm_fleet.tests.unit.conftest import REPO
from ansible_collections.localfirst.llm_fleet.tests.unit.support.playbook_steps import steps, unnoticed

PLAYBOOKS = REPO / "playbooks"
TASKS = PLAYBOOKS / "tasks/hosts"
STORY = PLAYBOOKS / "parts/upgrade_hosts.yml"
WALKED = list(steps(STORY, []))
NODE = yaml.safe_load((TASKS / "node.yml").read_text())
INCLUDE = "ansible.builtin.include_tasks"


def files(tasks: list[dict]) -> list[str]:
    return [task[INCLUDE] for task in tasks if INCLUDE in task]


def plays() -> list[dict]:
    return yaml.safe_load(STORY.read_text())


def test_no_step_loses_a_gateway_unnoticed():
    assert [fault for fault in map(unnoticed, WALKED) if fault] == []
    delegated = {step.file.name for step in WALKED if step.delegated}
    assert {"drain.yml", "let_in.yml", "gate.yml", "begin.yml", "lock.yml", "unlock.yml"} <= delegated


def test_every_task_file_is_part_of_the_story():
    assert set(TASKS.glob("*.yml")) <= {step.file for step in WALKED}


def test_a_node_begins_only_on_the_word_of_all_before_it():
    (play,) = [play for play in plays() if "serial" in play]
    # Settings need no connection to anything.
    task = play["tasks"][-1]
    assert [step["ansible.builtin.import_role"]["tasks_from"] for step in play["tasks"][:-1]] == ["settings"]
    assert "upgrade_done" in task["when"] and "hosts_before" in task["vars"]["before"]
    # The word is the last thing that happens, after clients are let in; and nothing else says it.
    block = NODE[0]["block"]
    assert "upgrade_done" in block[-1]["ansible.builtin.set_fact"]
    said = [step for step in WALKED if "upgrade_done" in step.task.get("ansible.builtin.set_fact", {})]
    assert [step.task["name"] for step in said] == [block[-1]["name"]]


def test_whatever_fails_on_a_node_is_remembered_and_lets_nobody_in():
    (task,) = NODE
    (rescue,) = task["rescue"]
    assert "upgrade_failure" in rescue["ansible.builtin.set_fact"]
    order = files(task["block"])
    assert order.index("../rollout/drain.yml") < order.index("stop.yml") < order.index("upgrade.yml") < order.index("check.yml")
    assert order.index("check.yml") < order.index("start.yml") < order.index("gate.yml") < order.index("../rollout/let_in.yml")
    letting_in = [step for step in WALKED if step.file.name == "let_in.yml" and step.delegated]
    assert {step.around[-2]["name"] for step in letting_in} == {NODE[0]["name"]}


def test_the_locks_are_given_back_whatever_becomes_of_the_nodes():
    last = plays()[-1]
    assert last["hosts"] == "gateways:gpu_nodes"
    names = [name for task in last["tasks"] if task.get(INCLUDE, "").endswith("unlock.yml") for name in task["loop"]]
    assert sorted(names) == ["hosts", "plan"]
    # Before it may fail, in its report.
    assert files(last["tasks"])[-1].endswith("report.yml")


def test_what_its_head_offers_is_asked_for():
    head = [line for line in (PLAYBOOKS / "hosts.yml").read_text().splitlines() if line.startswith("#")]
    offered = set(re.findall(r"-e (\w+)=", "\n".join(head)))
    asked_for = "\n".join(file.read_text() for file in [*PLAYBOOKS.glob("parts/*_hosts.yml"), *TASKS.glob("*.yml")])
    assert {"upgrade", "prepare", "remove"} <= offered
    assert {name for name in offered if not re.search(rf"\b{name} (\||is |==)", asked_for)} == set()
