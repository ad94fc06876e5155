# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Routes in a file, in HAProxy's map and in the memory of a real HAProxy: they agree, whatever happened to one of them."""

from __future__ import annotations

import json
import threading

import pytest

from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_bench import HAPROXY
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_rollout import NEW, Rollout

pytestmark = pytest.mark.skipif(not HAPROXY, reason="there is no haproxy here: apt-get install haproxy")

MEMORY = "exchange the routes in HAProxy's memory"


@pytest.fixture
def rollout(tmp_path, run_module):
    rollout = Rollout(tmp_path, run_module)
    rollout.bench.start()
    yield rollout
    rollout.stop()


def memory(rollout) -> list:
    """The lines of HAProxy's map, without their addresses."""
    return sorted(line.split(" ", 1)[1] for line in rollout.bench.ask(f"show map {rollout.bench.routes}").splitlines() if line)


def test_a_route_is_kept_and_works_at_once_and_nothing_changes_twice(rollout):
    result = rollout.route(100, clients=["testers", "demo", "demo"], progress={"batch": 2, "none": None})
    route = {"backend": NEW, "share": 100, "clients": ["demo", "testers"], "progress": {"batch": 2, "none": None}}
    assert result["actions"] == [f"write {rollout.routes}", f"write {rollout.bench.routes}", MEMORY]
    assert (result["changed"], result["route"], result["routes"]) == (True, route, {"tiny": route})
    assert json.loads(rollout.routes.read_text()) == {"format": 1, "routes": {"tiny": route}}
    assert memory(rollout) == [f"demo|tiny {NEW}", f"testers|tiny {NEW}", f"tiny {NEW}|100"]
    assert (rollout.routes.stat().st_mode & 0o777, rollout.bench.routes.stat().st_mode & 0o777) == (0o640, 0o600)
    assert rollout.asks() == {"new": 12}
    again = rollout.route(100, clients=["demo", "testers"], progress={"batch": 2, "none": None})
    assert (again["changed"], again["actions"]) == (False, [])
    rollout.reload()
    assert rollout.asks() == {"new": 12}, "and it outlives a reload"


def test_progress_alone_leaves_haproxy_alone(rollout):
    rollout.route(5)
    assert rollout.route(5, progress={"batch": 3})["actions"] == [f"write {rollout.routes}"]


def test_each_model_has_its_own(rollout):
    rollout.route(5)
    rollout.route(7, model="other", backend="be_other_x")
    assert memory(rollout) == ["other be_other_x|7", f"tiny {NEW}|5"]
    result = rollout.route(model="tiny", state="absent")
    assert (result["route"], list(result["routes"])) == (None, ["other"])
    assert rollout.route(model="tiny", state="absent")["changed"] is False
    assert memory(rollout) == ["other be_other_x|7"]


def test_pruned_keeps_what_is_named(rollout):
    for model in ("tiny", "other", "third"):
        rollout.route(5, model=model)
    assert list(rollout.route(state="pruned", keep=["other", "unknown"])["routes"]) == ["other"]
    assert memory(rollout) == [f"other {NEW}|5"]
    assert rollout.route(state="pruned", keep=["other"])["changed"] is False
    assert rollout.route(state="pruned", keep=[])["routes"] == {}
    assert "keep" in rollout.route(state="pruned")["msg"]


def test_map_and_memory_are_repaired(rollout):
    rollout.route(5)
    rollout.bench.ask(f"clear map {rollout.bench.routes}")
    assert rollout.route(state="synced")["actions"] == [MEMORY]
    rollout.bench.routes.write_text("tiny be_wrong|99\n")
    assert rollout.route(5)["actions"] == [f"write {rollout.bench.routes}"]
    rollout.bench.routes.unlink()
    assert rollout.route(state="synced")["actions"] == [f"write {rollout.bench.routes}"]
    assert rollout.route(state="synced")["changed"] is False
    assert memory(rollout) == [f"tiny {NEW}|5"]


def test_a_fresh_gateway_gets_an_empty_map(rollout):
    rollout.bench.routes.unlink()
    result = rollout.route(state="synced")
    assert (result["actions"], result["routes"]) == ([f"write {rollout.bench.routes}"], {})
    assert rollout.bench.routes.exists() and not rollout.routes.exists()


def test_without_haproxy_the_files_are_written(rollout):
    rollout.bench.process.terminate()
    rollout.bench.process.wait()
    result = rollout.route(100)
    assert result["changed"] and "does not run" in result["actions"][2]
    assert rollout.route(100)["changed"] is False and rollout.route(100)["actions"] == []
    rollout.bench.start()
    assert rollout.asks() == {"new": 12}


def test_a_configuration_without_such_a_map_is_fine(rollout):
    config = rollout.bench.config.read_text()
    lines = [line for line in config.splitlines() if "routes.map" not in line]
    rollout.bench.config.write_text("\n".join(lines) + "\n")
    rollout.reload()
    result = rollout.route(100)
    assert result["changed"] and "no such map" in result["actions"][2]
    assert rollout.route(100)["actions"] == []
    rollout.bench.config.write_text(config)
    rollout.reload()
    assert rollout.asks() == {"new": 12}


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}', '{"format": 1, "routes": {"tiny": {"backend": "b"}}}'])
def test_a_damaged_file_is_an_error_and_not_overwritten(rollout, text):
    rollout.routes.write_text(text)
    result = rollout.route(5)
    assert result["failed"] and str(rollout.routes) in result["msg"] and "Copy it from another gateway" in result["msg"]
    assert rollout.routes.read_text() == text and memory(rollout) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": "a|b"},
        {"model": "a b"},
        {"backend": "x;show info"},
        {"clients": ["a|b"]},
        {"clients": ["a\nb"]},
        {"share": 101},
        {"share": -1},
    ],
)
def test_what_is_no_route_is_refused(rollout, wrong):
    result = rollout.route(**{"share": 5, **wrong})
    assert result["failed"] and "no route" in result["msg"]
    assert not rollout.routes.exists() and memory(rollout) == []


def test_odd_models_are_refused_in_every_state(rollout):
    assert rollout.route(state="absent", model="a|b")["failed"]
    assert rollout.route(state="pruned", keep=["a b"])["failed"]


def test_check_mode_and_diff(rollout):
    result = rollout.route(5, clients=["testers"], check_mode=True, diff=True)
    assert result["changed"] and len(result["actions"]) == 3
    assert not list(rollout.routes.parent.glob("routes.json*")) and memory(rollout) == []
    assert result["diff"] == {"before": "", "after": f"tiny: 5 % to {NEW}, always for testers\n"}
    assert result["routes"]["tiny"]["share"] == 5


def test_rollouts_of_many_models_at_once_lose_no_route(rollout):
    models = [f"model-{number}" for number in range(8)]
    threads = [threading.Thread(target=rollout.route, args=(5,), kwargs={"model": model}) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(json.loads(rollout.routes.read_text())["routes"]) == models
    assert len(memory(rollout)) == 8
