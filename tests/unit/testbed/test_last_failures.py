# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The tasks that failed in Ansible's own log, as `make molecule` says them at its end."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTBED = Path(__file__).resolve().parents[3] / "testbed"
PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - {name: Goes well, ansible.builtin.command: "true"}
    - {name: Does not, ansible.builtin.command: "sh -c 'echo no space left >&2; exit 3'"}
"""


def failures(log: Path) -> str:
    return subprocess.run([TESTBED / "last_failures.sh", log], check=True, capture_output=True, text=True).stdout


def test_a_failed_task_is_told_with_what_it_said(tmp_path):
    (tmp_path / "play.yml").write_text(PLAY)
    environment = {**os.environ, "ANSIBLE_LOG_PATH": str(tmp_path / "log"), "ANSIBLE_CONFIG": str(TESTBED.parent / "ansible.cfg")}
    command = [Path(sys.executable).with_name("ansible-playbook"), "play.yml"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=False, capture_output=True)
    told = failures(tmp_path / "log")
    assert told.startswith("TASK [Does not]")
    assert "no space left" in told
    assert "Goes well" not in told


def test_without_a_log_nothing_is_told(tmp_path):
    assert failures(tmp_path / "none") == ""
