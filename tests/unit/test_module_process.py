# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A fork of the process that stays is what a new process would have been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from ansible_collections.localfirst.llm_fleet.tests.unit.support import module_process

TELL = """
import json, os, signal, sys
handled = [str(signal.getsignal(sign)) for sign in (signal.SIGCHLD, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM)]
json.dump([sys.stdin.read(), sys.argv, sys.path[0], dict(os.environ), os.getcwd(), __name__, __file__, handled], sys.stdout)
print("an error", file=sys.stderr)
sys.exit(3)
"""


@pytest.fixture
def run(tmp_path):
    """Runs a program as a file of its own."""

    def run(program: str, text: str = "", **variables: str) -> subprocess.CompletedProcess:
        file = tmp_path / "program.py"
        file.write_text(program)
        return module_process.run(file, text, {**os.environ, **variables})

    return run


@pytest.fixture(params=[signal.SIG_IGN, signal.default_int_handler], ids=["in the background", "at a terminal"])
def started(request, monkeypatch):
    """The process that stays, started by a run of tests that ignores an interrupt, as one in the background does, or does not."""
    before = signal.signal(signal.SIGINT, request.param)
    forks = module_process._Forks()
    monkeypatch.setattr(module_process, "_forks", lambda: forks)
    yield
    forks.close()
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("started")
def test_it_sees_what_a_new_process_sees(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(TELL, "{}\n" * 100_000, OWN="its own")
    environment = {**os.environ, "OWN": "its own", "PYTHONPATH": str(module_process.COLLECTIONS)}
    command = [sys.executable, str(tmp_path / "program.py")]
    other = subprocess.run(command, input="{}\n" * 100_000, env=environment, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (other.returncode, other.stderr) == (3, "an error\n")
    assert json.loads(done.stdout) == json.loads(other.stdout)


def test_nothing_of_a_call_is_left_for_the_next(run):
    begin = "import os, sys, ansible.module_utils.basic as basic; "
    run(f"{begin} os.environ['LEFT'] = basic.LEFT = sys.LEFT = 'something'")
    told = run(f"{begin} print(*(hasattr(each, 'LEFT') for each in (basic, sys)), 'LEFT' in os.environ)")
    assert told.stdout == "False False False\n"


def test_an_error_is_told_and_what_was_to_be_done_at_the_end_is_done(run):
    done = run("import atexit; atexit.register(print, 'tidied up'); raise ValueError('no such thing')")
    assert done.returncode == 1 and done.stdout == "tidied up\n" and done.stderr.endswith("ValueError: no such thing\n")


def test_a_signal_is_told(run):
    assert run(f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})").returncode == -signal.SIGKILL


def test_it_waits_for_whoever_still_writes_to_its_output(run):
    done = run("import os, time\nif os.fork() == 0: time.sleep(0.3)\nprint('written')")
    assert done.returncode == 0 and done.stdout == "written\n" * 2


def test_several_at_once_get_their_own_answers(run, tmp_path):
    (tmp_path / "echo.py").write_text("import sys; print(sys.stdin.read(), end='')")
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda number: module_process.run(tmp_path / "echo.py", str(number), dict(os.environ)), range(24))
    assert [answer.stdout for answer in answers] == [str(number) for number in range(24)]
