# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Waiting for engines: real HTTP, and containers whose fate a test writes down."""

from __future__ import annotations

import itertools
import json
import threading
import time as clock
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.engine_probe import (
    PRELOADS,
    RESTARTS,
    Container,
    Target,
    Waiter,
    failed_check,
    make_target,
)
from ansible_collections.localfirst.llm_fleet.tests.unit.support.range_server import RangeServer

UP = Container("running", "healthy")
LOADING = Container("running", "starting")


@pytest.fixture
def engine():
    with RangeServer() as running:
        running.add("/health", b"{}")
        running.add("/v1/models", b'{"data":[{"id":"tiny"}]}')
        yield running


class Time:
    """A clock that moves only when somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def pause(self, seconds: float) -> None:
        self.now += seconds


def wait(targets, *moments: dict, timeout=60, during=lambda now: None) -> tuple[dict, float]:
    """Wait while containers go through `moments` (the last one stays); return the outcome and how long it took."""
    time, story = Time(), itertools.chain(moments, itertools.repeat(moments[-1]))

    def look(names):
        during(time.now)
        moment = next(story)
        return {name: moment[name] for name in names}

    return Waiter(look, clock=lambda: time.now, pause=time.pause).wait(targets, timeout), time.now


def target(engine, *checks, id="tiny-0-a", key=""):
    return Target(id, engine.url, list(checks), key)


def instance(**changes):
    record = {
        "model": "tiny",
        "version": "1.0.0",
        "engine": "llamacpp",
        "context": 1,
        "parallel": 1,
        "files": [{"path": "f", "sha256": "f" * 64}],
        "container": {"port": 8080, "api_key_environment": "KEY"},
    }
    return {"id": "tiny-0-a", "model": "tiny", "port": 20000, "record": record, **changes}


def test_a_target_is_where_gateways_ask_and_what_the_profile_says():
    interfaces = {"llamacpp": {"ready": [{"path": "/v1/models", "contains": '"id":"{model}"', "status": 200}]}}
    made = make_target(instance(), interfaces, {"tiny": "geheim"}, "10.0.0.5")
    assert made.url == "http://10.0.0.5:20000" and made.key == "geheim"
    assert made.checks == [{"path": "/v1/models", "contains": '"id":"tiny"', "status": 200}]
    assert make_target(instance(), interfaces, {}, "fd00::5").url == "http://[fd00::5]:20000"


def test_an_instances_own_checks_come_first():
    made = make_target(instance(ready=[{"path": "/mine"}]), {"llamacpp": {"ready": [{"path": "/all"}]}}, {}, "h")
    assert [check["path"] for check in made.checks] == ["/mine"]


def test_an_engine_without_an_api_key_is_sent_none():
    one = instance()
    one["record"]["container"]["api_key_environment"] = None
    assert make_target(one, {}, {"tiny": "geheim"}, "h").key == ""


def test_ready_is_when_all_checks_hold(engine):
    checks = [{"path": "/health", "status": 200}, {"path": "/v1/models", "contains": '"id":"tiny"'}]
    assert wait([target(engine, *checks)], {"tiny-0-a": UP}) == ({}, 0)


def test_another_model_on_the_port_is_not_ready(engine):
    outcome, took = wait([target(engine, {"path": "/v1/models", "contains": '"id":"other"'})], {"tiny-0-a": UP})
    assert "does not contain" in outcome["tiny-0-a"] and "60 seconds" in outcome["tiny-0-a"]
    assert took == 60


def test_a_status_is_compared_as_the_profile_says(engine):
    engine.add("/busy", statuses=[204] * 9)
    assert "204 in place of 200" in failed_check(target(engine), {"path": "/busy"}).reason
    assert failed_check(target(engine), {"path": "/busy", "status": 204}) is None
    assert "404 in place of 200" in failed_check(target(engine), {"path": "/none"}).reason
    assert failed_check(target(engine), {"path": "/none", "status": 404, "contains": None}) is None


def test_it_waits_for_an_engine_that_loads(engine):
    engine.add("/health", b"{}", statuses=[503] * 7)
    assert wait([target(engine, {"path": "/health"})], {"tiny-0-a": LOADING}) == ({}, 7)


def test_it_waits_for_a_port_that_opens_late(engine):
    engine.httpd.server_close()
    outcome, took = wait([target(engine, {"path": "/health"})], {"tiny-0-a": LOADING}, timeout=5)
    assert "refused" in outcome["tiny-0-a"].lower() and took == 5


def test_an_engine_that_accepts_and_says_nothing_is_not_ready(engine, monkeypatch):
    gate = threading.Event()
    engine.add("/health", b"{}", hold=gate, pause_at=0)
    monkeypatch.setattr("ansible_collections.localfirst.llm_fleet.plugins.module_utils.engine_probe.REQUEST_TIMEOUT", 0.2)
    assert "timed out" in failed_check(target(engine), {"path": "/health"}).reason
    gate.set()


def test_the_key_goes_to_the_engine_only(engine):
    with RangeServer() as other:
        other.add("/health", redirect=f"{engine.url}/health")
        assert failed_check(target(other, key="geheim"), {"path": "/health"}) is None
        assert other.requests[0][1]["authorization"] == "Bearer geheim"
    assert "authorization" not in engine.requests[0][1]


def test_proxies_of_the_node_have_no_part_in_it(engine, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert failed_check(target(engine), {"path": "/health"}) is None


@pytest.mark.parametrize(
    ("container", "why"),
    [
        (Container("absent"), "gone"),
        (Container("exited", exit_code=3), "exit code 3"),
        (Container("dead", out_of_memory=True), "out of memory"),
        (Container("restarting", restarts=RESTARTS, exit_code=1), f"stopped {RESTARTS} times (exit code 1)"),
    ],
)
def test_what_will_not_get_better_is_not_waited_for(engine, container, why):
    outcome, took = wait([target(engine, {"path": "/none"})], {"tiny-0-a": LOADING}, {"tiny-0-a": container})
    assert why in outcome["tiny-0-a"] and took == 0


def test_restarts_of_earlier_days_do_not_count(engine):
    old = Container("running", "starting", restarts=100)
    engine.add("/health", b"{}", statuses=[503] * 3)
    assert wait([target(engine, {"path": "/health"})], {"tiny-0-a": old}, {"tiny-0-a": old._replace(restarts=102)})[0] == {}


def test_one_that_fails_does_not_hide_the_others(engine):
    engine.add("/slow", b"", statuses=[503] * 4)
    targets = [target(engine, {"path": "/slow"}, id="a"), target(engine, {"path": "/none"}, id="b")]
    moments = [{"a": LOADING, "b": LOADING}, {"a": LOADING, "b": Container("exited", exit_code=1)}]
    outcome, took = wait(targets, *moments)
    assert list(outcome) == ["b"] and took == 4


def test_without_checks_the_health_of_the_container_decides(engine):
    loading, healthy = {"tiny-0-a": LOADING}, {"tiny-0-a": UP}
    assert wait([target(engine)], loading, loading, loading, healthy) == ({}, 2)
    assert wait([target(engine)], {"tiny-0-a": Container("running")}) == ({}, 0)
    assert "unhealthy" in wait([target(engine)], {"tiny-0-a": Container("running", "unhealthy")}, timeout=3)[0]["tiny-0-a"]
    assert wait([], {}) == ({}, 0)


LOCKED, OTHER = "a" * 64, "b" * 64


def test_other_files_than_those_that_were_locked_are_told_at_once_with_both_digests(engine):
    engine.add("/api/tags", json.dumps({"models": [{"digest": OTHER}]}, separators=(",", ":")).encode())
    check = {"path": "/api/tags", "contains": f'"digest":"{LOCKED}"', "final": True}
    outcome, took = wait([target(engine, check)], {"tiny-0-a": UP})
    assert LOCKED in outcome["tiny-0-a"] and OTHER in outcome["tiny-0-a"] and took == 0


def test_an_engine_that_is_not_up_yet_has_said_nothing_final(engine):
    engine.add("/api/tags", f'"digest":"{LOCKED}"'.encode(), statuses=[503] * 4)
    check = {"path": "/api/tags", "contains": f'"digest":"{LOCKED}"', "final": True}
    assert wait([target(engine, check)], {"tiny-0-a": UP}) == ({}, 4)


class LazyEngine:
    """Loads its model when it is asked to, as Ollama does. `refusals` are answered first, one a request."""

    def __init__(self, refusals=()) -> None:
        self.loaded, self.refusals, self.bodies = False, list(refusals), []
        self.go = threading.Event()
        self.go.set()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(200, b'{"models":[{"name":"tiny:latest"}]}' if owner.loaded else b'{"models":[]}')

            def do_POST(self) -> None:
                owner.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                if owner.refusals:
                    return self.answer(500, json.dumps({"error": owner.refusals.pop(0)}).encode())
                owner.go.wait(20)
                owner.loaded = True
                return self.answer(200, b"{}")

            def answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments) -> None:
                pass

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_port}"
        threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def wait(self, seconds: float = 20, during=lambda: None) -> dict:
        one = instance(port=self.httpd.server_port)
        ready = [{"path": "/api/ps", "contains": '"name":"{model}:latest"'}]
        preload = {"path": "/api/generate", "body": '{{"model":"{model}"}}'}
        made = make_target(one, {"llamacpp": {"ready": ready, "preload": preload}}, {}, "127.0.0.1")

        def pause(_seconds: float) -> None:
            during()
            clock.sleep(0.02)

        return Waiter(lambda names: dict.fromkeys(names, UP), pause=pause).wait([made], seconds)


@pytest.fixture
def lazy():
    made = []

    def make(*refusals) -> LazyEngine:
        made.append(LazyEngine(refusals))
        return made[-1]

    yield make
    for one in made:
        one.go.set()
        one.httpd.shutdown()
        one.httpd.server_close()


def test_an_engine_that_loads_on_request_is_asked_once(lazy):
    engine = lazy()
    engine.go.clear()
    rounds = itertools.count()
    assert engine.wait(during=lambda: engine.go.set() if next(rounds) == 10 else None) == {}
    assert engine.bodies == [{"model": "tiny"}]


def test_a_model_that_is_loaded_is_left_alone(lazy):
    engine = lazy()
    engine.loaded = True
    assert engine.wait() == {} and engine.bodies == []


def test_a_model_that_does_not_load_at_first_is_asked_for_again(lazy):
    engine = lazy("no GPU is free")
    assert engine.wait() == {} and len(engine.bodies) == 2


def test_a_model_that_never_loads_is_given_up_with_what_the_engine_says(lazy):
    engine = lazy(*["out of memory"] * 99)
    assert "does not load" in (why := engine.wait()["tiny-0-a"]) and "out of memory" in why
    assert len(engine.bodies) == PRELOADS


def test_what_the_engine_said_is_told_when_time_runs_out(lazy):
    engine = lazy(*["out of memory"] * 99)
    assert "out of memory" in engine.wait(0.2)["tiny-0-a"]
