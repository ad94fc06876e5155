# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What a real HAProxy counts: each way in which a release can fail is one error, and a client that leaves is none."""

from __future__ import annotations

import http.client
import shutil
import subprocess
import threading
import time

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.traffic import traffic_between
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_bench import HAPROXY, wait_until
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_client import CHAT
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_rollout import NEW, OLD, Rollout

pytestmark = pytest.mark.skipif(not HAPROXY, reason="there is no haproxy here: apt-get install haproxy")


@pytest.fixture
def rollout(tmp_path, run_module):
    rollout = Rollout(tmp_path, run_module, gateway_timeout_engine=2, gateway_timeout_queue=1, gateway_timeout_connect=1)
    rollout.old.slots = 1
    rollout.write()
    rollout.bench.start()
    yield rollout
    rollout.stop()


def look(rollout, **more) -> dict:
    result = rollout.call("gateway_traffic", backends=[OLD, NEW], **more)
    assert not result.get("failed") and result["changed"] is False, result
    return result["counters"]


def seen(rollout, before: dict, requests: int) -> dict:
    """The counters of the old release since `before`, once so many requests have ended."""

    def ended():
        now = traffic_between(before, look(rollout))[OLD]
        return now if now["requests"] == requests else None

    return wait_until(ended)


def read_stream(rollout) -> None:
    connection, response = rollout["demo"].stream()
    with pytest.raises(http.client.IncompleteRead):
        response.read()
    connection.close()


def test_answers_and_how_long_they_took(rollout):
    before = look(rollout)
    threading.Timer(0.4, rollout.old.engines[0].go.set).start()
    rollout.old.engines[0].go.clear()
    rollout.asks(times=2)
    now = look(rollout)
    new = traffic_between(before, now)
    assert (new[OLD]["requests"], new[OLD]["answers"], new[OLD]["errors"], new[NEW]["requests"]) == (2, 2, 0, 0)
    # One answer took 400 ms, the other nothing.
    assert 150 <= new[OLD]["latency_ms"] <= 400
    assert now[NEW]["latency_ms"] is None
    (worker,) = now[OLD]["workers"].values()
    assert worker["requests"] == now[OLD]["requests"]


@pytest.mark.parametrize("behaviour", ["error", "hang up", "cut", "reset", "silent", "refused", "drained"])
def test_each_failure_is_one_error(rollout, behaviour):
    engine = rollout.old.engines[0]
    before = look(rollout)
    engine.behaviour = behaviour
    if behaviour in ("cut", "reset"):
        read_stream(rollout)
    else:
        if behaviour == "silent":
            engine.go.clear()
        elif behaviour == "refused":
            engine.stop()
        elif behaviour == "drained":
            rollout.drain(rollout.old)
        assert rollout["demo"].ask("POST", f"/m/tiny{CHAT}", {}).status >= 500
        engine.go.set()
    new = seen(rollout, before, 1)
    assert (new["errors"], new["error_rate"]) == (1, 1)
    assert new["answers"] == (behaviour in ("error", "cut", "reset"))


def test_a_queue_that_takes_too_long_is_an_error_of_who_waited(rollout):
    before = look(rollout)
    rollout.old.engines[0].go.clear()
    first = threading.Thread(target=rollout.ask)
    first.start()
    wait_until(lambda: rollout.old.engines[0].requests)
    assert rollout["demo"].ask("POST", f"/m/tiny{CHAT}", {}).status == 503
    rollout.old.engines[0].go.set()
    first.join()
    assert seen(rollout, before, 2)["errors"] == 1


@pytest.mark.parametrize("where", ["stream", "waiting", "queue"])
def test_a_client_that_leaves_is_no_error(rollout, where):
    engine = rollout.old.engines[0]
    before = look(rollout)
    if where == "stream":
        engine.behaviour = "stream"
        connection, _response = rollout["demo"].stream()
    else:
        engine.go.clear()
        connection = rollout["demo"].open()
        if where == "queue":
            first = threading.Thread(target=rollout.ask)
            first.start()
            wait_until(lambda: engine.requests)
        connection.request("POST", f"/m/tiny{CHAT}", b"{}", rollout["demo"].headers())
        time.sleep(0.3)
    connection.close()
    if where == "queue":
        time.sleep(0.3)
        engine.go.set()
        first.join()
    new = seen(rollout, before, 2 if where == "queue" else 1)
    assert new["errors"] == 0
    assert look(rollout)[OLD]["aborted_by_client"] == 1
    engine.go.set()


@pytest.mark.skipif(not shutil.which("curl"), reason="curl speaks HTTP/2 for this test")
def test_an_http2_client_that_leaves_is_no_error(rollout):
    before = look(rollout)
    rollout.old.engines[0].behaviour = "stream"
    url = f"https://127.0.0.1:{rollout.bench.port}/m/tiny{CHAT}"
    command = ["curl", "-sk", "--http2", "-m", "0.4", "-H", "Authorization: Bearer llmf_demo", "-d", "{}", url]
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode != 0
    assert seen(rollout, before, 1)["errors"] == 0


def test_a_reload_loses_nothing_of_a_worker_that_goes_on(rollout):
    rollout.asks(times=4)
    before = look(rollout)
    waiting, other = rollout.waiting(), rollout.waiting()
    rollout.reload()
    assert rollout.ask_on(waiting) == (200, "old")
    rollout.asks(times=2)
    after = look(rollout)
    assert len(after[OLD]["workers"]) == 2 and traffic_between(before, after)[OLD]["requests"] == 3
    for connection in (waiting, other):
        connection.close()


def test_without_haproxy(rollout, tmp_path):
    nowhere = {"socket": str(tmp_path / "none")}
    assert look(rollout, check_mode=True, **nowhere)[OLD]["requests"] == 0
    assert "does not answer" in rollout.call("gateway_traffic", backends=[OLD], **nowhere)["msg"]
    assert look(rollout, check_mode=True)[OLD]["workers"]
