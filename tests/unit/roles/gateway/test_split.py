# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Two releases of a model: who gets which, and what happens where one of them cannot answer."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_bench import wait_until
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_client import CHAT
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_rollout import NEW, Rollout


@pytest.fixture
def rollout(tmp_path, run_module):
    rollout = Rollout(tmp_path, run_module)
    rollout.bench.start()
    yield rollout
    rollout.stop()


def test_without_a_route_the_plan_decides(rollout):
    assert rollout.asks() == {"old": 12}


def test_all_or_nothing(rollout):
    rollout.route(0)
    assert rollout.asks() == {"old": 12}
    rollout.route(100)
    assert rollout.asks() == {"new": 12}


def test_a_share_is_thrown_anew_for_each_request(rollout):
    rollout.route(30)
    connection = rollout["demo"].open()
    answers = [rollout.ask_on(connection) for _ in range(400)]
    connection.close()
    assert {status for status, _who in answers} == {200}
    # 120 expected, 9 is one standard deviation.
    assert 75 < sum(who == "new" for _status, who in answers) < 165


def test_a_listed_client_always_gets_the_new_one_and_nobody_else_does(rollout):
    rollout.route(0, clients=["testers"])
    assert (rollout.asks("testers"), rollout.asks("demo")) == ({"new": 12}, {"old": 12})


def test_a_version_is_never_split(rollout):
    rollout.route(100, clients=["testers"])
    for client in ("demo", "testers"):
        assert [rollout.ask(client, f"tiny@{version}") for version in ("1.0.0", "1.1.0")] == ["old", "new"]
    rollout.drain(rollout.old)
    assert rollout.ask("demo", "tiny@1.0.0") == "no_instance"


def test_a_route_opens_no_door(rollout):
    rollout.route(100, clients=["stranger"])
    assert rollout.asks("stranger") == {"model_not_allowed": 12}


def test_the_log_says_which_release_was_taken(rollout):
    for share, release in ((0, "aaaaaaaaaaaa"), (100, "bbbbbbbbbbbb")):
        rollout.route(share)
        answer = rollout["demo"].chat()
        assert rollout.bench.logged(answer.id)["release"] == release


@pytest.mark.parametrize(("share", "stays"), [(100, "old"), (0, "new")])
def test_the_release_that_is_down_gives_way(rollout, share, stays):
    rollout.route(share, clients=["testers"])
    gone = rollout.new if stays == "old" else rollout.old
    gone.engines[0].healthy = False
    wait_until(lambda: rollout.bench.status(gone.backend, "tiny-0-a").startswith("DOWN"))
    assert (rollout.asks(), rollout.asks("testers")) == ({stays: 12}, {stays: 12} if stays == "old" else {"new": 12})
    gone.engines[0].healthy = True
    wait_until(lambda: rollout.bench.status(gone.backend, "tiny-0-a").startswith("UP"))
    assert stays not in rollout.asks()


def test_drained_is_down_too_and_nobody_left_is_503(rollout):
    rollout.route(50)
    rollout.drain(rollout.new)
    assert rollout.asks() == {"old": 12}
    rollout.drain(rollout.old)
    assert rollout.asks() == {"no_instance": 12}


def test_a_backend_that_this_process_does_not_have_gets_nothing(rollout):
    rollout.route(100, backend=f"{NEW}0", clients=["testers"])
    assert (rollout.asks(), rollout.asks("testers")) == ({"old": 12}, {"old": 12})


def test_lists_of_models_know_nothing_of_it(rollout):
    before = rollout["demo"].ask("GET", "/v1/models").json
    rollout.route(50, clients=["demo"])
    assert rollout["demo"].ask("GET", "/v1/models").json == before
    assert rollout["demo"].ask("POST", f"/m/tiny|50{CHAT}", {}).json["error"]["code"] == "model_not_found"
    rollout["demo"].chat("demo|tiny").refused(404, "model_not_found")
