# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Hosts are looked at while files come to them, and some looks fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ansible_collections.localfirst.llm_fleet.tests.unit.conftest import REPO

# What the modules would say. The second look at a host fails, and as many after it as its file `failing` says; the fourth sees the end.
ANSWERS = {
    "model_stage": 'answer = {"actions": ["bring 10 bytes"], "bytes_moved": 10}',
    "model_stage_info": """
looks = Path(given["store"]) / "looks"
look = int(looks.read_text()) + 1 if looks.exists() else 1
looks.write_text(str(look))
if 2 <= look < 2 + int((looks.parent / "failing").read_text()):
    answer = {"failed": True, "msg": "Timeout (12s) waiting for privilege escalation prompt"}
else:
    ended = look >= 4
    answer = {"state": "done" if ended else "running", "done_bytes": 10 if ended else 5, "total_bytes": 10, "rate": 1, "eta_s": 1}
""",
}
MODULE = """#!/usr/bin/python
# WANT_JSON
import json
import sys
from pathlib import Path

given = json.loads(Path(sys.argv[1]).read_text())
{answer}
print(json.dumps({{"changed": False, **answer}}))
"""
STAGE = """
- hosts: all
  gather_facts: false
  tasks:
    - block:
        - ansible.builtin.import_role: {name: localfirst.llm_fleet.model_store, tasks_from: stage}
          vars:
            model_store_artifacts: [{model: tiny, version: 1.0.0, files: []}]
            model_store_dir: "{{ playbook_dir }}/{{ inventory_hostname }}"
      rescue:
        - ansible.builtin.fail: {msg: "{{ ansible_failed_result.msg }}"}
"""


@pytest.fixture
def staging(tmp_path):
    """`staging(gpu1=0, gpu2=1)`: brings something to these hosts, at which so many looks fail; returns status and output."""
    collection = tmp_path / "collections/ansible_collections/localfirst/llm_fleet"
    (collection / "plugins/modules").mkdir(parents=True)
    for path in [*REPO.glob("[a-z]*"), *REPO.glob("plugins/[a-z]*"), *REPO.glob("plugins/modules/*.py")]:
        place = collection / path.relative_to(REPO)
        if not place.exists():
            place.symlink_to(path)
    for name, answer in ANSWERS.items():
        module = collection / "plugins/modules" / f"{name}.py"
        module.unlink()
        module.write_text(MODULE.format(answer=answer))
    (tmp_path / "play.yml").write_text(STAGE)

    def run(**failing: int) -> tuple[int, str]:
        here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"vars": here, "hosts": {host: {} for host in failing}}}))
        for host, count in failing.items():
            (tmp_path / host).mkdir()
            (tmp_path / host / "failing").write_text(str(count))
        environment = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(tmp_path / "collections"),
            "ANSIBLE_LOCAL_TEMP": str(tmp_path / "tmp"),
            "ANSIBLE_REMOTE_TEMP": str(tmp_path / "tmp"),
            "ANSIBLE_ASYNC_DIR": str(tmp_path / "async"),
            "ANSIBLE_NOCOLOR": "true",
        }
        # Looks follow each other at once: nothing else is under way.
        command = [Path(sys.executable).parent / "ansible-playbook", "-i", "hosts.yml", "play.yml", "-e", '{"__model_store_pause": 0}']
        done = subprocess.run(command, env=environment, cwd=tmp_path, text=True, capture_output=True, check=False, timeout=300)
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    return run


def test_a_look_that_fails_is_made_again(staging):
    status, said = staging(gpu1=0, gpu2=4)
    assert status == 0 and "gpu1 10 bytes in" in said and "gpu2 10 bytes in" in said, said


def test_a_host_that_cannot_be_looked_at_fails_alone(staging):
    status, said = staging(gpu1=0, gpu2=99)
    assert status == 2, said
    assert "gpu2: 5 times in a row it could not be seen" in said and "escalation prompt. Mend that, and run again" in said
    assert "gpu1 10 bytes in" in said, said
