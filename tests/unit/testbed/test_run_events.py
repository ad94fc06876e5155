# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""With a real ansible-playbook: what the demo's callback writes while it runs is what the stories read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CALLBACKS = Path(__file__).resolve().parents[3] / "testbed" / "callbacks"
ROLLOUT = """
- name: Look once more, and plan without the rollout
  hosts: localhost
  gather_facts: false
  tasks:
    - ansible.builtin.set_fact:
        rollout: {model: tiny, strategy: surge, from_version: 1.0.0, to_version: 1.1.0, undo: false, canary: null, secret: hidden,
                  batches: [{number: 1, of: 1, new: [{host: gpu1, id: tiny-0-b}]}]}
        rollout_marks: [{at: 1, what: begin, batch: 0}]
    - ansible.builtin.set_fact:
        rollout_marks: "{{ rollout_marks + [{'at': 2, 'what': 'share 20', 'batch': 1}] }}"
        rollout_key: hidden
    - ansible.builtin.set_fact:
        rollout_gates: [{batch: 1, gate: probes, failures: [], summary: {}}]
    - ansible.builtin.set_fact: {rollout_back: too slow}
"""
UPGRADE = """
- name: Upgrade the nodes, a batch at a time
  hosts: localhost
  gather_facts: false
  tasks:
    - ansible.builtin.set_fact: {upgrade_wanted: [driver 1 -> 2], upgrade_batches: [[localhost]]}
    - name: Drain its instances
      ansible.builtin.include_tasks: steps.yml
    - name: Reboot
      ansible.builtin.reboot:
      when: false
    - ansible.builtin.set_fact: {upgrade_done: true}
    - ansible.builtin.set_fact: {upgrade_failure: "Start its engines: no"}
"""
STEPS = """
- name: Find reasons for a reboot
  ansible.builtin.set_fact: {key: hidden, nvidia_driver_reboot_reasons: [it is another]}
- name: Go on with what is there now
  ansible.builtin.set_fact: {nvidia_driver_reboot_reasons: []}
"""


@pytest.fixture
def written(tmp_path):
    """`written(playbook)` are the events of a run of it."""

    def run(playbook: str) -> list[dict]:
        file, events = tmp_path / "playbook.yml", tmp_path / "events"
        file.write_text(playbook)
        (tmp_path / "steps.yml").write_text(STEPS)
        environment = {
            **os.environ,
            "ANSIBLE_CALLBACK_PLUGINS": str(CALLBACKS),
            "ANSIBLE_CALLBACKS_ENABLED": "run_events",
            "LLM_FLEET_EVENTS": str(events),
        }
        command = [Path(sys.executable).parent / "ansible-playbook", "-i", "localhost,", "--connection=local", file]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "hidden" not in events.read_text() and "[WARNING]" not in done.stderr
        return [json.loads(line) for line in events.read_text().splitlines()]

    return run


def noted(events: list[dict]) -> list[dict]:
    """What was noted, without the tasks, and without when and where."""
    return [{key: event[key] for key in set(event) - {"at", "host"}} for event in events if "task" not in event]


def test_a_rollout_passes_on_what_its_coordinator_notes(written):
    events = noted(written(ROLLOUT))
    assert [set(event) for event in events] == [{"play"}, {"rollout"}, {"mark"}, {"mark"}, {"gate"}, {"back"}]
    assert events[1]["rollout"]["batches"] == [{"number": 1, "hosts": ["gpu1"]}]
    assert events[3]["mark"]["what"] == "share 20"


def test_an_upgrade_passes_on_what_nodes_lack_and_how_far_they_are(written):
    events = written(UPGRADE)
    assert noted(events) == [
        {"play": "Upgrade the nodes, a batch at a time"},
        {"batches": [["localhost"]]},
        {"lacks": ["driver 1 -> 2"]},
        # Not the one that did not happen, and not the end of the reasons.
        {"reboot": ["it is another"]},
        {"done": True},
        {"failure": "Start its engines: no"},
    ]
    tasks = [event["task"] for event in events if event.get("task")]
    assert tasks == ["Drain its instances", "Find reasons for a reboot", "Go on with what is there now", "Reboot"]
    assert {event["host"] for event in events if "play" not in event} == {"localhost"}
