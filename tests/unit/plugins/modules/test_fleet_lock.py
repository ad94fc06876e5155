# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The module as Ansible runs it; the lock itself is in test_lease.py."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ansible_collections.localfirst.llm_fleet.tests.unit.support import module_process

ANN = {"user": "ann", "job": "", "host": "ctl", "place": "boot:1", "process": "1:1", "purpose": "rollout of tiny 1.1.0"}
BOB = {**ANN, "user": "bob", "process": "2:2"}


@pytest.fixture
def call(tmp_path):
    # Not `run_module`: its first parameter is called as this module's option is.
    def run(owner: dict, state: str = "taken", name: str = "rollout-tiny", check_mode=False, diff=False, **more) -> dict:
        arguments = {"name": name, "owner": owner, "state": state, "dir": str(tmp_path / "locks"), **more}
        arguments |= {"_ansible_remote_tmp": str(tmp_path), "_ansible_check_mode": check_mode, "_ansible_diff": diff}
        return module_process.call("fleet_lock", arguments, dict(os.environ))

    return run


def test_taken_renewed_refused_and_released(call):
    assert call(ANN)["changed"]
    renewed = call(ANN, lease=60)
    assert (renewed["taken"], renewed["renewed"], renewed["changed"]) == (True, True, False)
    refused = call(BOB)
    assert "failed" not in refused and (refused["taken"], refused["changed"]) == (False, False)
    assert (refused["holder"]["user"], refused["holder"]["purpose"]) == ("ann", ANN["purpose"])
    assert 0 < refused["holder"]["seconds_left"] <= 60
    assert call(BOB, "stop_asked")["changed"] and call(ANN)["stop"]["user"] == "bob"
    assert call(BOB, "released")["changed"] is False
    assert call(ANN, "released")["changed"] and call(ANN, "released")["changed"] is False


def test_taking_over(call):
    call(ANN)
    assert call(BOB, gone=[ANN])["taken_from"]["user"] == "ann"
    assert call(ANN, take_over=True)["taken_from"]["user"] == "bob"


def test_waiting_for_another_run_that_gives_it_back_or_does_not(call):
    call(ANN)
    assert call(BOB, wait=1)["taken"] is False
    with ThreadPoolExecutor() as side:
        waiting = side.submit(call, BOB, wait=120)
        time.sleep(1.5)
        assert not waiting.done() and call(ANN, "released")["changed"]
        assert waiting.result()["taken"] and waiting.result()["taken_from"] is None
    assert call(ANN, wait=120, check_mode=True)["taken"] is False


def test_waiting_for_a_lease_that_ends(call):
    call(ANN, lease=2)
    assert call(BOB, wait=120)["taken_from"]["user"] == "ann"


def test_check_mode_and_diff(call, tmp_path):
    would = call(ANN, check_mode=True, diff=True)
    assert (would["taken"], would["changed"], would["actions"]) == (True, True, ["take rollout-tiny"])
    assert would["diff"]["before"] == "" and "ann on ctl" in would["diff"]["after"]
    assert not (tmp_path / "locks").exists()
    call(ANN)
    assert call(BOB, check_mode=True)["taken"] is False
    assert call(ANN, "released", check_mode=True)["changed"] and call(ANN)["renewed"]


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "a b", "x" * 129, "a\n"])
def test_odd_names_are_refused(call, name, tmp_path):
    result = call(ANN, name=name)
    assert result["failed"] and "name" in result["msg"] and not (tmp_path / "locks").exists()


@pytest.mark.parametrize(
    "owner", [{}, {"purpose": "x"}, {**ANN, "place": ""}, {**ANN, "process": ""}, {**ANN, "user": ["a"]}]
)
def test_who_cannot_be_told_apart_gets_no_lock(call, owner, tmp_path):
    result = call(owner)
    assert result["failed"] and "owner" in result["msg"] and not (tmp_path / "locks").exists()


def test_whoever_has_a_name_may_ask_for_a_stop(call):
    call(ANN)
    assert call({**BOB, "place": "", "process": ""}, "stop_asked")["stop"]["user"] == "bob"


def test_other_faults_say_where(call, tmp_path):
    assert "lease" in call(ANN, lease=0)["msg"]
    assert "gone[1]" in call(ANN, gone=[BOB, {}])["msg"]
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in call(ANN, dir=str(tmp_path / "file"))["msg"]
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "rollout-tiny.json").write_text("{")
    damaged = call(ANN)
    assert damaged["failed"] and "rollout-tiny.json" in damaged["msg"] and "take_over" in damaged["msg"]


def test_a_disk_without_room_is_no_lock(call, small_disk):
    with open(small_disk / "rest", "wb") as rest, pytest.raises(OSError):
        while True:
            rest.write(b"0" * 65536)
            rest.flush()
    result = call(ANN, dir=str(small_disk / "locks"))
    assert result["failed"] and "space" in result["msg"]


