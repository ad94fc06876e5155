# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The lookup in a real run of ansible-playbook: every worker tells the process that was started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.actor import FIELDS
from ansible_collections.localfirst.llm_fleet.tests.unit.conftest import REPO

LOOKUP = "{{ lookup('localfirst.llm_fleet.actor') }}"
WRITE = {"content": "{{ lookup('localfirst.llm_fleet.actor') | to_json }}\n"}
INTERPRETER = {"ansible_python_interpreter": "{{ ansible_playbook_python }}"}
PLAY = [
    {
        "hosts": "all",
        "gather_facts": False,
        "connection": "local",
        "vars": {"lazy": LOOKUP, "out": "{{ lookup('env', 'OUT') }}", **INTERPRETER},
        "tasks": [
            {
                "name": "In a loop, on every host",
                "ansible.builtin.copy": {**WRITE, "dest": "{{ out }}/{{ inventory_hostname }}-{{ item }}", "mode": "0600"},
                "loop": [1, 2],
            },
            {
                "name": "Delegated",
                "vars": INTERPRETER,
                "ansible.builtin.copy": {**WRITE, "dest": "{{ out }}/delegated", "mode": "0600"},
                "delegate_to": "localhost",
                "run_once": True,
            },
            {
                "name": "From a variable",
                "ansible.builtin.copy": {"content": "{{ lazy | to_json }}\n", "dest": "{{ out }}/lazy", "mode": "0600"},
                "run_once": True,
            },
        ],
    },
]


@pytest.fixture
def run(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "play.yml").write_text(yaml.safe_dump(PLAY))

    def started(*options: str) -> tuple[int, dict]:
        environment = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(REPO / ".venv/collections"),
            "ANSIBLE_LOCAL_TEMP": str(tmp_path / "tmp"),
            "ANSIBLE_REMOTE_TEMP": str(tmp_path / "tmp"),
            "OUT": str(out),
            "SUDO_USER": "ann",
        }
        program = Path(sys.executable).parent / "ansible-playbook"
        process = subprocess.Popen(
            [program, "play.yml", "-i", "one,two", *options],
            cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, output
        return process.pid, {path.name: json.loads(path.read_text()) for path in out.iterdir()}

    return started


def test_all_of_a_run_agree_on_the_process_that_was_started(run):
    pid, told = run()
    assert set(told) == {"one-1", "one-2", "two-1", "two-2", "delegated", "lazy"}
    first = told["lazy"]
    assert all(one == first for one in told.values()), told
    assert set(first) == set(FIELDS)
    assert first["process"].startswith(f"{pid}:") and first["place"]
    assert (first["user"], first["job"]) == ("ann", "")
    again, later = run("-e", "awx_job_id=17", "-e", "awx_user_name=zoe")
    assert (later["lazy"]["user"], later["lazy"]["job"]) == ("zoe", "17")
    assert later["lazy"]["process"] != first["process"] and later["lazy"]["process"].startswith(f"{again}:")
    assert later["lazy"]["place"] == first["place"]
