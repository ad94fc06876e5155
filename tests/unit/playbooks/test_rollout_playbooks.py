# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The story of a rollout, read as it is written: no step of it may lose a host unnoticed."""

from __future__ import annotations

import pytest
import yaml

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.rollout_strategy import AUTO, STRATEGIES
from ansible_collections.localfirst.llm_fleet.tests.unit.conftest import REPO
from ansible_collections.localfirst.llm_fleet.tests.unit.support.playbook_steps import ASSERT, INCLUDES, Step, steps, unnoticed

PLAYBOOKS = REPO / "playbooks"
TASKS = PLAYBOOKS / "tasks/rollout"
WRITTEN = [strategy for strategy in STRATEGIES if strategy != AUTO]
# What runs in the controller itself, without a connection to anything.
ON_THE_CONTROLLER = {
    *INCLUDES,
    ASSERT,
    "ansible.builtin.debug",
    "ansible.builtin.fail",
    "ansible.builtin.import_role",
    "ansible.builtin.pause",
    "ansible.builtin.set_fact",
    "block",
}

both = pytest.mark.parametrize("name", ["rollout.yml", "rollback.yml"])


def walk(name: str) -> list[Step]:
    return list(steps(PLAYBOOKS / name, WRITTEN))


def coordinators(name: str) -> list[dict]:
    return [play for play in yaml.safe_load((PLAYBOOKS / name).read_text()) if play.get("hosts") == "localhost"]


def story(name: str) -> tuple[dict, dict]:
    """The play that the rollout is, and the block that everything happens in."""
    ((play, task),) = [(play, task) for play in coordinators(name) for task in play["tasks"] if "block" in task]
    return play, task


def included(tasks: list[dict]) -> list[str]:
    return [task[include] for task in tasks for include in INCLUDES if include in task]


@both
def test_no_step_loses_a_host_unnoticed(name):
    found = walk(name)
    assert [fault for fault in map(unnoticed, found) if fault] == []
    delegated = {step.file.name for step in found if step.delegated}
    # What switches, what lets in, what goes back: each of them was seen.
    assert {"start.yml", "drain.yml", "let_in.yml", "route.yml", "gate.yml", "canary_look.yml", "back_batch.yml", "lock.yml"} <= delegated


def test_every_task_file_is_part_of_the_story():
    walked = {step.file for name in ("rollout.yml", "rollback.yml") for step in walk(name)}
    assert set(TASKS.glob("*.yml")) <= walked


def test_every_strategy_is_a_file():
    for strategy in WRITTEN:
        assert (TASKS / f"{strategy}.yml").is_file(), strategy
    assert not (TASKS / f"{AUTO}.yml").exists()


@both
def test_whatever_fails_is_taken_back(name):
    play, block = story(name)
    [rescue] = block["rescue"]
    assert "tasks/rollout/back.yml" in included(rescue["block"])
    # Nor does the way back end the run, without a report and with the lock.
    assert rescue["rescue"]
    assert any("{{ rollout.strategy }}" in file for file in included(block["block"]))
    # A file is included by nobody outside it, where no rescue would help.
    outside = [task for task in play["tasks"] if task is not block]
    assert included(outside) == []


@both
def test_whatever_comes_of_it_the_fleet_is_made_so_and_the_lock_is_given_back(name):
    plays = yaml.safe_load((PLAYBOOKS / name).read_text())
    assert plays[-1]["ansible.builtin.import_playbook"] == "parts/close.yml" and "when" not in plays[-1]


@both
def test_the_coordinator_itself_needs_no_connection(name):
    """So it works wherever it is said how to connect to the fleet; and a `connection` of the play would hold for delegated steps too."""
    for play in coordinators(name):
        assert "connection" not in play and "become" not in play
    mine = [step for step in walk(name) if step.around[0] in coordinators(name) and not step.delegated]
    assert mine
    for step in mine:
        assert ON_THE_CONTROLLER & set(step.task), step.where


@both
def test_every_task_of_the_story_has_a_name(name):
    for step in walk(name):
        assert step.task.get("name", "").strip(), f"{step.file}: {step.task}"


GOOD = """
- hosts: localhost
  tasks:
    - name: Work
      block:
        - name: Drain
          delegate_to: "{{ item }}"
          become: true
          ignore_unreachable: true
          register: drained
        - name: Stop unless every gateway did
          ansible.builtin.include_tasks: answered.yml
          vars: {step: "{{ drained }}"}
        - name: Ask
          delegate_to: gw1
          become: true
          ignore_unreachable: true
          register: asked
        - name: Keep it
          ansible.builtin.set_fact: {answers: "{{ asked.results }}"}
        - name: Stop where somebody else has it
          ansible.builtin.assert: {that: answers | localfirst.llm_fleet.lock_held}
        - name: Write
          delegate_to: localhost
      rescue:
        - name: Go back
          ansible.builtin.include_tasks: back/{{ rollout.strategy }}.yml
"""
BACK = """
- name: Put back
  delegate_to: gpu1
  become: true
  ignore_unreachable: true
  register: put_back
- name: Stop unless it did
  ansible.builtin.include_tasks: ../answered.yml
  vars: {step: "{{ put_back }}"}
"""


@pytest.fixture
def faults(tmp_path):
    """What is found in a small playbook, after changes of its text."""
    (tmp_path / "back").mkdir()
    (tmp_path / "answered.yml").write_text("- {name: Stop, ansible.builtin.assert: {that: true}}\n")

    def look(file: str = "", before: str = "", after: str = "") -> list[str]:
        for name, text in {"play.yml": GOOD, "back/surge.yml": BACK, "back/replace.yml": BACK}.items():
            assert file != name or before in text
            (tmp_path / name).write_text(text.replace(before, after, 1) if file == name else text)
        (tmp_path / "outer.yml").write_text("- ansible.builtin.import_playbook: play.yml\n")
        return [fault for fault in map(unnoticed, steps(tmp_path / "outer.yml", WRITTEN)) if fault]

    return look


def test_a_playbook_that_notices_everything_is_right(faults):
    assert faults() == []


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        ("          ignore_unreachable: true\n", "", "Drain: it needs ignore_unreachable"),
        ("          register: drained\n", "", "Drain: it needs ignore_unreachable: true and register"),
        ("          become: true\n", "", "Drain: it needs become"),
        ("          become: true\n", "          become: true\n          run_once: true\n", "Drain: with run_once"),
        ("- hosts: localhost\n", "- hosts: localhost\n  connection: local\n", "Drain: what is around it says how to connect"),
        ("register: drained", "register: drained\n          vars: {ansible_connection: local}", "Drain: what is around it says how"),
        ('{step: "{{ drained }}"}', '{step: "{{ asked }}"}', "Drain: answered.yml is not given drained"),
        ('          vars: {step: "{{ drained }}"}\n', "", "Drain: answered.yml is not given drained"),
        ('{step: "{{ drained }}"}', '{step: "{{ drained }}"}\n          when: false', "Drain: answered.yml is not given drained"),
        ("answered.yml", "back/surge.yml", "Drain: nothing fails where drained has no answer"),
        ("lock_held", "lock_refusal", "Ask: nothing fails where asked has no answer"),
        ("that: answers", "that: others", "Ask: nothing fails where asked has no answer"),
        ("lock_held}", "lock_held}\n          when: false", "Ask: nothing fails where asked has no answer"),
        ("delegate_to: localhost", "delegate_to: gw1", "Write: it needs ignore_unreachable"),
    ],
)
def test_a_step_that_would_not_notice_is_found(faults, before, after, fault):
    assert any(fault in found for found in faults("play.yml", before, after)), faults("play.yml", before, after)


@pytest.mark.parametrize("strategy", WRITTEN)
def test_it_is_found_in_the_files_of_every_strategy(faults, strategy):
    found = faults(f"back/{strategy}.yml", "  ignore_unreachable: true\n")
    assert any(fault.startswith(f"{strategy}.yml: Put back: it needs ignore_unreachable") for fault in found)


def test_a_file_that_is_not_there_is_found(faults):
    with pytest.raises(FileNotFoundError, match=r"gone\.yml"):
        faults("play.yml", "answered.yml", "gone.yml")
