# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""One lock with many who want it: real processes at once, some of them killed, and a clock that the tests move."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import time

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import actor, lease
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lease import Lease

FORK = multiprocessing.get_context("fork")


def owner(user: str, **more) -> dict:
    return {"user": user, "job": "", "host": "ctl", "place": "boot:1", "process": f"{user}:1", "purpose": f"{user}'s rollout", **more}


ANN, BOB = owner("ann"), owner("bob")


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lock(tmp_path, clock):
    return Lease(tmp_path / "locks", "rollout-tiny", clock=clock)


def test_one_has_it_until_it_is_released(lock):
    taken = lock.take(ANN, 300)
    assert (taken["taken"], taken["renewed"], taken["changed"]) == (True, False, True)
    assert taken["actions"] == ["take rollout-tiny"] and taken["taken_from"] is None
    refused = lock.take(BOB, 300)
    assert (refused["taken"], refused["changed"], refused["actions"]) == (False, False, [])
    assert refused["holder"] == {**ANN, "since": "2027-01-15T08:00:00Z", "seconds_left": 300}
    assert lock.release(BOB)["holder"]["user"] == "ann" and lock.path.exists()
    released = lock.release(ANN)
    assert (released["changed"], released["holder"], lock.path.exists()) == (True, None, False)
    assert lock.release(ANN)["changed"] is False
    assert lock.take(BOB, 300)["taken"]


def test_a_lock_is_of_one_name(lock, tmp_path, clock):
    lock.take(ANN, 300)
    assert Lease(lock.folder, "plan", clock=clock).take(BOB, 300)["taken"]
    assert sorted(path.name for path in lock.folder.iterdir()) == ["plan.json", "rollout-tiny.json"]
    assert lock.path.stat().st_mode & 0o777 == 0o640


def test_renewing_moves_the_end_and_nothing_else(lock, clock):
    since = lock.take(ANN, 300)["holder"]["since"]
    clock.now += 200
    renewed = lock.take(ANN, 300)
    assert (renewed["taken"], renewed["renewed"], renewed["changed"], renewed["taken_from"]) == (True, True, False, None)
    assert (renewed["holder"]["since"], renewed["holder"]["seconds_left"]) == (since, 300)
    clock.now += 200
    assert lock.take(BOB, 300)["taken"] is False


def test_a_lease_that_has_ended_can_be_taken_over(lock, clock):
    lock.take(ANN, 300)
    clock.now += 299
    assert lock.take(BOB, 300)["holder"]["seconds_left"] == 1
    clock.now += 1
    taken = lock.take(BOB, 60)
    assert taken["taken"] and taken["taken_from"]["user"] == "ann" and taken["holder"]["seconds_left"] == 60
    assert taken["actions"] == ["take rollout-tiny over from ann on ctl"]
    assert lock.take(ANN, 300)["holder"]["user"] == "bob", "the first one learns that it has lost it"


def test_its_owner_may_be_late_while_nobody_else_comes(lock, clock):
    lock.take(ANN, 300)
    clock.now += 1000
    assert lock.take(ANN, 300)["renewed"]


def test_a_clock_that_was_set_back_makes_no_lease_longer_than_it_was_meant_to_be(lock, clock):
    lock.take(ANN, 300)
    clock.now -= 86400
    assert lock.take(BOB, 300)["holder"]["seconds_left"] == 300


def test_a_job_of_awx_is_one_owner_in_whichever_container(lock):
    job = owner("zoe", job="17")
    lock.take(job, 300)
    assert lock.take({**job, "host": "other", "place": "x", "process": "7:7"}, 300)["renewed"]
    assert lock.take({**job, "job": "18", "process": "8:8"}, 300)["taken"] is False


def test_the_dead_and_the_disregarded_are_no_obstacle(lock):
    lock.take(ANN, 300)
    assert lock.take(BOB, 300, gone=[owner("carol")])["taken"] is False
    taken = lock.take(BOB, 300, gone=[owner("carol"), ANN])
    assert taken["taken"] and taken["taken_from"]["user"] == "ann"
    forced = lock.take(ANN, 300, force=True)
    assert forced["taken"] and forced["taken_from"]["user"] == "bob"
    assert lock.release(BOB, force=True)["changed"] and not lock.path.exists()


def test_a_request_to_stop_reaches_the_owner_and_no_later_one(lock, clock):
    assert lock.ask_to_stop(BOB)["changed"] is False, "there is nobody to stop"
    lock.take(ANN, 300)
    asked = lock.ask_to_stop(BOB)
    assert asked["changed"] and asked["actions"] == ["ask ann on ctl to stop"]
    stop = {"user": "bob", "job": "", "host": "ctl", "since": "2027-01-15T08:00:00Z"}
    clock.now += 10
    assert lock.ask_to_stop(owner("carol"))["changed"] is False
    for _twice in range(2):
        assert lock.take(ANN, 300)["stop"] == stop
    assert lock.take(BOB, 300)["taken"] is False
    lock.release(ANN)
    assert lock.take(ANN, 300)["stop"] is None
    lock.ask_to_stop(BOB)
    assert lock.take(BOB, 300, force=True)["stop"] is None


def test_a_dry_run_says_the_same_and_leaves_all_as_it_is(lock, clock):
    def dry():
        return Lease(lock.folder, lock.name, dry=True, clock=clock)

    assert dry().take(ANN, 300)["taken"] and not lock.folder.exists()
    lock.take(ANN, 300)
    before = lock.path.read_text()
    for wet in (
        dry().take(ANN, 10), dry().take(BOB, 10), dry().take(BOB, 10, force=True), dry().release(ANN), dry().ask_to_stop(BOB)
    ):
        assert isinstance(wet["changed"], bool)
    assert dry().take(BOB, 10, force=True)["actions"] == ["take rollout-tiny over from ann on ctl"]
    assert dry().release(ANN)["changed"] and dry().ask_to_stop(BOB)["changed"]
    assert lock.path.read_text() == before


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", '{"format": 2}', '{"format": 1, "since": 1, "until": 2, "lease": 1, "owner": {}}'])
def test_a_damaged_lock_is_an_error_until_somebody_takes_it_over(lock, text):
    lock.folder.mkdir()
    lock.path.write_bytes(text.encode("latin-1"))
    for call in (lambda: lock.take(ANN, 300), lambda: lock.release(ANN, force=True), lambda: lock.ask_to_stop(ANN)):
        with pytest.raises(lease.Damaged, match=r"rollout-tiny\.json"):
            call()
    assert lock.take(ANN, 300, force=True)["taken"]
    assert lock.take(ANN, 300)["renewed"]


def contend(folder, name, barrier, answers) -> None:
    barrier.wait()
    answers.put((name, Lease(folder, "plan").take(owner(name), 300)["taken"]))


@pytest.mark.parametrize("before", ["nobody", "an ended lease"])
def test_of_many_at_once_exactly_one_gets_it(tmp_path, before):
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        if before != "nobody":
            Lease(folder, "plan", clock=lambda: 0.0).take(owner("old"), 1)
        barrier, answers = FORK.Barrier(20), FORK.Queue()
        callers = [FORK.Process(target=contend, args=(folder, f"caller{n}", barrier, answers)) for n in range(20)]
        for caller in callers:
            caller.start()
        told = dict(answers.get(timeout=60) for _caller in callers)
        for caller in callers:
            caller.join()
        [winner] = [name for name, taken in told.items() if taken]
        assert Lease(folder, "plan").take(owner("late"), 1)["holder"]["user"] == winner


def work_on(folder) -> None:
    lock = Lease(folder, "plan")
    while True:
        lock.take(owner("restless"), 300)
        lock.ask_to_stop(BOB)
        lock.release(owner("restless"))


def test_whoever_is_killed_leaves_a_whole_lock_or_none_and_nothing_else(tmp_path):
    lock = Lease(tmp_path, "plan")
    for attempt in range(20):
        worker = FORK.Process(target=work_on, args=(tmp_path,))
        worker.start()
        time.sleep(0.01 + attempt * 0.003)
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        assert lock.take(owner("next"), 300, force=True)["taken"]
        assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_what_a_crash_left_is_removed(lock):
    lock.take(ANN, 300)
    (lock.folder / ".rollout-tiny.json-abc123").write_text("half")
    lock.take(ANN, 300)
    assert [path.name for path in lock.folder.iterdir()] == ["rollout-tiny.json"]
    assert json.loads(lock.path.read_text())["owner"] == ANN


def answers(*of: str | None, here=ANN) -> list[dict]:
    """What a loop over gateways registers: whose lock each has; None does not answer."""
    rows = []
    for number, user in enumerate(of):
        holder = {**owner(user), "since": "2027-01-15T08:00:00Z", "seconds_left": 100 + number} if user else None
        row = {"taken": user == here["user"], "holder": holder, "stop": None, "name": "plan"} if user else {"unreachable": True}
        rows.append({**row, "item": f"gw{number}", "ansible_loop_var": "item"})
    return rows


@pytest.mark.parametrize(
    ("of", "held", "have", "missing", "holder"),
    [
        (["ann"], True, 1, 0, None),
        (["bob"], False, 0, 0, "bob"),
        (["ann", "bob"], False, 1, 0, "bob"),
        (["ann", "ann", "bob"], True, 2, 0, "bob"),
        (["ann", None], False, 1, 1, None),
        (["ann", "ann", None], True, 2, 1, None),
        (["ann", "bob", "bob", "carol"], False, 1, 0, "bob"),
        ([None, None], False, 0, 2, None),
        ([], False, 0, 0, None),
    ],
)
def test_a_majority_of_all_gateways_decides(of, held, have, missing, holder):
    decided = lease.decide(answers(*of))
    assert (decided["held"], len(decided["have"]), decided["missing"]) == (held, have, missing)
    assert (decided["holder"] or {}).get("user") == holder
    assert decided["have"] == [f"gw{number}" for number, user in enumerate(of) if user == "ann"]


def test_an_answer_that_failed_is_none_and_a_stop_is_passed_on():
    row = answers("ann")[0]
    assert lease.decide([{**row, "failed": True}])["held"] is False
    stop = {"user": "bob", "since": "2027-01-15T08:00:00Z"}
    assert lease.decide([*answers("ann", "ann"), {**row, "stop": stop}])["stop"] == stop
    assert lease.decide([{"taken": True, "holder": None, "stop": None}])["have"] == ["0"]


def test_the_refusal_says_who_what_since_when_how_long_and_what_to_do():
    assert lease.refusal(answers("ann")) == ""
    text = lease.refusal(answers("bob", "ann"))
    for words in ("bob on ctl", "'plan'", "bob's rollout", "2027-01-15T08:00:00Z", "100 s", "rollback.yml", "take_over=true"):
        assert words in text
    assert "llm_fleet_gateways_out" in lease.refusal(answers(None))


def test_a_holder_that_was_killed_here_is_recognised(lock):
    here = actor.current({}, os.environ)
    process = subprocess.Popen(["sleep", "600"])
    dead = {**here, "user": "dora", "process": actor.look(process.pid).identity, "purpose": "a rollout"}
    lock.take(dead, 300)
    me = {**here, "purpose": "another"}
    refused = [lock.take(me, 300)]
    alive = lease.decide(refused, here)
    assert (alive["gone"], alive["holder_gone"]) == ([], False) and "Wait" in lease.refusal(refused, here)
    process.kill()
    process.wait()
    decided = lease.decide(refused, here)
    assert decided["holder_gone"] and [one["user"] for one in decided["gone"]] == ["dora"]
    assert "has ended" in lease.refusal(refused, here) and "Wait" not in lease.refusal(refused, here)
    assert lease.decide(refused)["gone"] == []
    taken = lock.take(me, 300, gone=decided["gone"])
    assert taken["taken"] and taken["taken_from"]["user"] == "dora"
