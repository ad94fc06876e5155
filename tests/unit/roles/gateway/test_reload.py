# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Requests on connections that are older than a reload: the process that a reload left behind answers them, and answers well."""

from __future__ import annotations

import collections
import contextlib
import http.client
import shutil
import subprocess
import threading

import pytest

from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_bench import wait_until
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_client import CHAT
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_rollout import NEW, OLD, Rollout


@pytest.fixture
def rollout(tmp_path, run_module):
    rollout = Rollout(tmp_path, run_module)
    rollout.bench.start()
    yield rollout
    rollout.stop()


class Asking:
    """Clients that go on asking, each in a thread of its own, until nobody wants it any more."""

    def __init__(self, *clients) -> None:
        self.statuses: collections.Counter = collections.Counter()
        self.done = threading.Event()
        self.threads = [threading.Thread(target=client, args=(self,)) for client in clients]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_error) -> None:
        self.done.set()
        for thread in self.threads:
            thread.join()


def test_kept_connections_get_no_refusal_over_many_reloads(rollout):
    def keep(asking: Asking) -> None:
        """Keeps its connection as long as the gateway does. That ends it between two requests, so the next one may find it closed."""
        connection = rollout["demo"].open()
        while not asking.done.is_set():
            try:
                asking.statuses[rollout.ask_on(connection)[0]] += 1
            except (OSError, http.client.HTTPException):
                connection.close()

    def prepare(asking: Asking) -> None:
        """Opens a connection for later."""
        while not asking.done.is_set():
            connection = rollout.waiting()
            asking.done.wait(0.2)
            with contextlib.suppress(OSError, http.client.HTTPException):
                asking.statuses[rollout.ask_on(connection)[0]] += 1
            connection.close()

    with Asking(keep, keep, prepare, prepare) as asking:
        for _ in range(8):
            rollout.reload()
    assert set(asking.statuses) == {200}


@pytest.mark.skipif(not shutil.which("curl"), reason="curl speaks HTTP/2 for this test")
def test_http2_clients_get_no_refusal_over_many_reloads(rollout):
    options = ["-sk", "--http2", "--rate", "100/s", "-o", "/dev/null", "-w", "%{http_version} %{http_code}\n", "-d", "{}"]
    url = f"https://127.0.0.1:{rollout.bench.port}/m/tiny{CHAT}?[1-250]"
    command = ["curl", *options, "-H", "Authorization: Bearer llmf_demo", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as curl:
        while curl.poll() is None:
            rollout.reload()
        assert collections.Counter(curl.stdout.read().splitlines()) == {"2 200": 250}


def test_a_process_that_a_reload_left_behind_still_refuses_what_would_wait(tmp_path, run_module):
    rollout = Rollout(tmp_path, run_module)
    rollout.old.queue, rollout.old.slots = 0, 1
    rollout.write()
    rollout.bench.start()
    engine = rollout.old.engines[0]
    first, second, third = (rollout.waiting() for _ in range(3))
    rollout.reload()
    engine.go.clear()
    busy = threading.Thread(target=rollout.ask_on, args=(first,))
    busy.start()
    wait_until(lambda: engine.requests)
    assert rollout.ask_on(second)[0] == 429
    engine.go.set()
    busy.join()
    assert rollout.ask_on(third) == (200, "old")
    for connection in (first, second, third):
        connection.close()
    rollout.stop()


def test_a_route_counts_for_a_process_that_a_reload_left_behind(rollout):
    first, second = rollout.waiting(), rollout.waiting()
    rollout.reload()
    assert rollout.ask_on(first) == (200, "old")
    result = rollout.route(100)
    assert [action for action in result["actions"] if "old process" in action], result
    assert rollout.ask_on(second) == (200, "new")
    assert first.sock is None and second.sock is None, "the gateway has ended both connections"


def test_a_process_that_is_older_than_the_new_backend_goes_on_with_the_old_one(rollout):
    rollout.write(rollout.old)
    rollout.reload()
    waiting = rollout.waiting()
    rollout.write()
    rollout.reload()
    wait_until(lambda: rollout.bench.ask("show stat").count(NEW) > 1)
    rollout.route(100)
    assert rollout.ask_on(waiting) == (200, "old")
    waiting.close()


def test_a_route_to_a_backend_that_is_not_there_yet_does_no_harm_after_a_reload(rollout):
    rollout.write(rollout.old)
    rollout.reload()
    rollout.route(100)
    waiting = rollout.waiting()
    rollout.write()
    rollout.reload()
    assert rollout.ask_on(waiting) == (200, "old")
    waiting.close()


def test_a_pruned_route_stays_where_the_plan_of_that_time_leads_to_drained_servers(rollout):
    rollout.route(100)
    waiting = rollout.waiting()
    rollout.call("gateway_server", servers=[f"{OLD}/tiny-0-a"], state="drain", dump_command=["true"])
    # The plan names the new release now.
    rollout.write(rollout.old, rollout.new)
    rollout.reload()
    assert rollout.route(state="pruned", keep=[])["changed"] is True
    assert rollout.asks() == {"new": 12}
    assert rollout.ask_on(waiting) == (200, "new")
    assert rollout.route(state="synced")["changed"] is False
    waiting.close()


def test_absent_reaches_a_process_that_a_reload_left_behind(rollout):
    rollout.route(100)
    waiting = rollout.waiting()
    rollout.reload()
    rollout.route(model="tiny", state="absent")
    assert rollout.ask_on(waiting) == (200, "old")
    waiting.close()


def test_a_process_in_which_the_new_servers_were_not_ready_goes_on_with_the_old_one(rollout):
    server = f"{NEW}/tiny-0-a"
    rollout.drain(rollout.new)
    first, second = rollout.waiting(), rollout.waiting()
    rollout.reload()
    assert rollout.call("gateway_server", servers=[server], state="ready", dump_command=["true"])["changed"] is True
    rollout.route(100)
    assert (rollout.asks(), rollout.ask_on(first)) == ({"new": 12}, (200, "old"))
    assert rollout.route(100)["changed"] is False
    first.close()
    second.close()
