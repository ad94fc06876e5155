# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Who runs a playbook is told apart from others by real processes: forks, the killed, and those of other users."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import actor

FORKS = """
import os, sys
sys.path.insert(0, {path!r})
from ansible_collections.localfirst.llm_fleet.plugins.module_utils import actor
def told():
    print(actor.current({{}}, {{}})["process"], flush=True)
def fork(then):
    pid = os.fork()
    if not pid:
        os.setsid()
        then()
        os._exit(0)
    os.waitpid(pid, 0)
told()
fork(told)
fork(lambda: fork(told))
"""


@pytest.fixture
def here():
    return actor.current({}, os.environ)


@pytest.fixture
def sleeper():
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def of(here, pid) -> dict:
    return {**here, "process": actor.look(pid).identity}


def test_awx_says_who_it_is_and_otherwise_the_login_does():
    variables = {"awx_job_id": 17, "awx_user_name": "zoe"}
    login = {"SUDO_USER": "ann", "USER": "root"}
    assert [actor.current(variables, login)[key] for key in ("user", "job")] == ["zoe", "17"]
    older = {"tower_job_id": 18, "tower_user_name": "tim"}
    assert [actor.current(older, login)[key] for key in ("user", "job")] == ["tim", "18"]
    seen = actor.current({"awx_user_name": "nobody's"}, login)
    assert (seen["user"], seen["job"], seen["host"]) == ("ann", "", socket.gethostname())
    assert actor.current({}, {"USER": "bob"})["user"] == "bob"
    assert actor.current({}, {})["user"]
    assert all(isinstance(value, str) for value in seen.values()) and tuple(seen) == actor.FIELDS


def test_forks_in_sessions_of_their_own_are_the_process_that_was_started(tmp_path):
    program = tmp_path / "forks.py"
    path = next(path for path in sys.path if path.endswith(".venv/collections"))
    program.write_text(FORKS.format(path=path))
    started = subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True)
    told = started.communicate()[0].split()
    assert len(told) == 3 and len(set(told)) == 1
    assert told[0].partition(":")[0] == str(started.pid)


def test_a_running_process_is_not_gone_and_a_killed_one_is(here, sleeper):
    there = of(here, sleeper.pid)
    assert not actor.is_gone(there, here)
    sleeper.kill()
    # Its parent has not asked for it yet: the pid is still taken.
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert actor.is_gone(there, here)
    sleeper.wait()
    assert actor.is_gone(there, here)


def test_another_process_with_the_same_pid_is_not_it(here, sleeper):
    there = of(here, sleeper.pid)
    assert actor.is_gone({**there, "process": f"{sleeper.pid}:1"}, here)


def test_elsewhere_nothing_is_certain(here, sleeper):
    there = of(here, sleeper.pid)
    sleeper.kill()
    sleeper.wait()
    assert not actor.is_gone({**there, "place": "another boot"}, here)
    assert not actor.is_gone({**there, "place": ""}, {**here, "place": ""})
    for odd in ("", "x:1", ":", "0:1"):
        assert not actor.is_gone({**there, "process": odd}, here)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_process_of_another_user_is_not_gone(here):
    ask = "from ansible_collections.localfirst.llm_fleet.plugins.module_utils import actor; import os, sys; os.setuid(65534)\n" \
          "print(actor.is_gone({'place': 'x', 'process': sys.argv[1]}, {'place': 'x'}))"
    path = next(path for path in sys.path if path.endswith(".venv/collections"))

    def answer(process: str) -> str:
        asked = [sys.executable, "-c", ask, process]
        return subprocess.run(asked, env={"PYTHONPATH": path}, text=True, stdout=subprocess.PIPE, check=True).stdout.strip()

    assert [answer(here["process"]), answer(f"{os.getpid()}:1")] == ["False", "True"]


def test_a_name_with_spaces_and_brackets_confuses_nobody(tmp_path, here):
    program = tmp_path / "a) S 1 (b"
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([program, "600"])
    try:
        assert actor.look(process.pid).parent == os.getpid()
    finally:
        process.kill()
        process.wait()


def test_the_same_run_is_the_same_process_or_the_same_job(here, sleeper):
    mine, other = {**here}, of(here, sleeper.pid)
    job = {**here, "job": "17"}
    assert actor.same(mine, dict(mine)) and not actor.same(mine, other)
    assert not actor.same(mine, {**mine, "place": "another boot"})
    assert actor.same(job, {**job, "place": "another container", "process": "7:7"})
    assert not actor.same({**job, **of(here, sleeper.pid), "job": "17"}, {**job, "job": "18"})
    assert not actor.same({**other, "job": "17"}, {**job, "user": "somebody else"})
    # Nothing is known of either: they are not one.
    unknown = {**here, "place": "", "process": ""}
    assert not actor.same(unknown, unknown) and not actor.identified(unknown)


def test_what_is_no_actor_is_refused(here):
    assert actor.checked({**here, "job": 17, "more": "x"}) == {**here, "job": "17"}
    for nobody in ({}, {**here, "user": ""}, {**here, "process": None}, {**here, "host": ["a"]}):
        with pytest.raises(ValueError, match="lookup"):
            actor.checked(nobody)


def test_for_people():
    assert actor.named({"user": "ann", "job": "", "host": "ctl"}) == "ann on ctl"
    assert actor.named({"user": "ann", "job": "17", "host": "ctl"}) == "ann (job 17) on ctl"
