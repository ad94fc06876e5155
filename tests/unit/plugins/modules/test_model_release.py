# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The module as Ansible runs it, on a node whose containers are processes that really start, answer and stop."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import yaml

from ansible_collections.localfirst.llm_fleet.tests.unit.conftest import REPO
from ansible_collections.localfirst.llm_fleet.tests.unit.support.docker_node import KEY, Node

INTERFACES = {"llamacpp": yaml.safe_load((REPO / "plugins/module_utils/engine_profiles/llamacpp.yml").read_text())["http"]}
OLD, NEW = "tiny-0-a", "tiny-0-b"
RELEASES = {OLD: "aaaaaaaaaaaa", NEW: "bbbbbbbbbbbb"}
VERSIONS = {OLD: "1.0.0", NEW: "1.1.0"}
ACTOR = {"user": "ada", "host": "laptop", "job": "", "process": "4711"}


class Replica:
    """One replica, with a container for each of two releases, and calls of the module about it."""

    def __init__(self, folder: Path, run_module) -> None:
        self.node = Node(folder)
        self.run_module = run_module
        self.history_file = folder / "state" / "releases.jsonl"
        self.audit_file = folder / "log" / "audit.jsonl"
        self.instances = {name: self.instance(name, self.node.add(name, release)) for name, release in RELEASES.items()}

    @staticmethod
    def instance(name: str, port: int) -> dict:
        record = {
            "model": "tiny",
            "version": VERSIONS[name],
            "engine": "llamacpp",
            "context": 1,
            "parallel": 1,
            "files": [{"path": "f", "sha256": "f" * 64}],
            "container": {"port": 8080, "api_key_environment": "KEY"},
        }
        about = {"id": name, "model": "tiny", "replica": 0, "port": port, "version": VERSIONS[name], "release": RELEASES[name]}
        return {**about, "record": record}

    def call(self, new: str = "", old: str = "", **arguments) -> dict:
        given = {
            **({"instance": self.instances[new]} if new else {}),
            **({"other": self.instances[old]} if old else {}),
            "model": "tiny",
            "replica": 0,
            "interfaces": INTERFACES,
            "key": KEY,
            "address": "127.0.0.1",
            "ready_timeout": 20,
            "rollout": "r-1",
            "actor": ACTOR,
            "history_file": str(self.history_file),
            "audit_file": str(self.audit_file),
        }
        result = self.run_module("model_release", path=self.node.programs, **{**given, **arguments})
        assert KEY not in json.dumps(result)
        return result

    def history(self) -> list[dict]:
        return self._lines(self.history_file)

    def audit(self) -> list[dict]:
        return self._lines(self.audit_file)

    @staticmethod
    def _lines(path: Path) -> list[dict]:
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def outcomes(self) -> list[tuple[str, str]]:
        return [(entry["instance"], entry["outcome"]) for entry in self.history()]

    def good(self, name: str, rollout: str) -> None:
        assert self.call(name, outcome="good", rollout=rollout)["changed"]


@pytest.fixture
def replica(tmp_path, run_module):
    made = Replica(tmp_path, run_module)
    yield made
    made.node.stop()


def meanwhile(call) -> tuple[threading.Thread, dict]:
    """Begin a call, and go on."""
    result: dict = {}
    thread = threading.Thread(target=lambda: result.update(call()))
    thread.start()
    return thread, result


def test_it_starts_an_instance_and_is_done_when_that_is_ready(replica):
    replica.node.set(NEW, "loading")
    thread, result = meanwhile(lambda: replica.call(NEW))
    replica.node.wait_until_asked(NEW, "/health")
    assert thread.is_alive()
    replica.node.clear(NEW, "loading")
    thread.join()
    assert result["changed"] and result["instance"] == NEW and result["loading_seconds"] > 0
    assert result["actions"] == [f"start {NEW}", f"note {NEW}, release {RELEASES[NEW]}, as switched"]
    assert replica.node.state(NEW) == "running" and replica.node.told() == [f"start {NEW}"]


def test_the_other_one_ends_its_requests_then_stops_and_only_then_the_new_one_starts(replica):
    replica.node.docker("start", OLD)
    replica.call(OLD)
    replica.node.forget()
    replica.node.set(OLD, "busy", 2)
    thread, result = meanwhile(lambda: replica.call(NEW, OLD))
    replica.node.wait_until_asked(OLD, "/metrics")
    assert thread.is_alive() and replica.node.told() == []
    replica.node.set(OLD, "busy", 0)
    thread.join()
    assert replica.node.told() == [f"stop {OLD} at 0", f"start {NEW}"]
    assert replica.node.state(OLD) == "exited" and replica.node.state(NEW) == "running"
    assert result["busy"] == 0 and result["stopping_seconds"] > 0 and "warnings" not in result


def test_an_engine_that_never_ends_is_stopped_with_a_warning(replica):
    replica.call(OLD)
    replica.node.set(OLD, "busy", 3)
    result = replica.call(NEW, OLD, idle_timeout=1)
    assert f"stop {OLD} at 3" in replica.node.told() and result["busy"] == 3
    assert f"{OLD} still worked at 3 requests" in str(result["warnings"])


def test_an_engine_without_a_count_is_not_waited_for(replica):
    replica.call(OLD)
    replica.node.set(OLD, "busy", 3)
    interfaces = {"llamacpp": {"ready": INTERFACES["llamacpp"]["ready"]}}
    result = replica.call(NEW, OLD, idle_timeout=600, interfaces=interfaces)
    assert f"stop {OLD} at 3" in replica.node.told() and result["busy"] == 0


def test_a_container_of_another_release_is_refused_before_anything_stops(replica):
    replica.call(OLD)
    replica.node.forget()
    wanted = {**replica.instances[NEW], "release": "cccccccccccc"}
    result = replica.call(old=OLD, instance=wanted)
    assert result["failed"] and NEW in result["msg"] and "Run site.yml" in result["msg"]
    assert f"runs release {RELEASES[NEW]}" in result["msg"] and "release cccccccccccc" in result["msg"]
    assert replica.node.told() == [] and replica.node.state(OLD) == "running"
    assert replica.history()[-1]["outcome"].startswith("failed: ")


def test_a_container_that_nobody_made_is_told(replica):
    result = replica.call(instance={**replica.instances[NEW], "id": "tiny-0-c"})
    assert result["failed"] and "tiny-0-c is not there" in result["msg"] and "Run site.yml" in result["msg"]


def test_one_that_stops_is_told_with_the_end_of_its_log_and_remembered_as_failed(replica):
    replica.node.set(NEW, "broken")
    result = replica.call(NEW, ready_timeout=600, why="a try")
    assert result["failed"] and f"{NEW} is not ready: its container stopped (exit code 3)" in result["msg"]
    assert "loading the weights\nno such tensor" in result["msg"] and result["actions"] == [f"start {NEW}"]
    assert [entry["outcome"] for entry in replica.history()] == [f"failed: {NEW} is not ready: its container stopped (exit code 3)"]
    noted = replica.audit()[-1]
    assert noted["result"].startswith(f"failed: {NEW} is not ready") and noted["what"] == "switch" and noted["why"] == "a try"
    assert "no such tensor" not in replica.history_file.read_text() + replica.audit_file.read_text()


def test_one_that_is_not_ready_in_time_has_failed(replica):
    replica.node.set(NEW, "loading")
    result = replica.call(NEW, ready_timeout=1)
    assert result["failed"] and "503" in result["msg"] and "after 1 seconds" in result["msg"]
    assert replica.history()[-1]["outcome"].startswith("failed: ")


def test_another_model_on_the_port_is_not_ready(replica):
    about = replica.node.folder / NEW / "about.json"
    about.write_text(about.read_text().replace('"model": "tiny"', '"model": "other"'))
    result = replica.call(NEW, ready_timeout=1)
    assert result["failed"] and '"id":"tiny"' in result["msg"]


@pytest.mark.parametrize("verb", ["stop", "start"])
def test_what_docker_refuses_is_told_in_its_words(replica, verb):
    replica.call(OLD)
    replica.node.set({"stop": OLD, "start": NEW}[verb], "refused")
    result = replica.call(NEW, OLD)
    assert result["failed"] and f"docker {verb}" in result["msg"] and f"cannot {verb} it" in result["msg"]
    assert f"cannot {verb} it" in replica.history()[-1]["outcome"]
    assert replica.node.state(NEW) == "created"


def test_a_second_call_does_nothing_and_notes_nothing(replica):
    replica.call(OLD)
    assert replica.call(NEW, OLD)["changed"]
    lines, told = replica.history(), replica.node.told()
    again = replica.call(NEW, OLD)
    assert not again["changed"] and again["actions"] == [] and again["instance"] == NEW
    assert replica.history() == lines and replica.node.told() == told
    assert len(replica.audit()) == len(lines)


def test_a_line_says_who_when_what_why_and_what_was_measured(replica):
    replica.call(OLD)
    replica.call(NEW, OLD, why="faster", gates={"ttft_p95": 0.4}, actor={**ACTOR, "job": "17"})
    line = replica.history()[-1]
    assert line.pop("at").endswith("Z")
    assert line == {
        "who": "ada@laptop job 17",
        "rollout": "r-1",
        "model": "tiny",
        "replica": 0,
        "instance": NEW,
        "release": RELEASES[NEW],
        "version": VERSIONS[NEW],
        "from_release": RELEASES[OLD],
        "outcome": "switched",
        "why": "faster",
        "gates": {"ttft_p95": 0.4},
    }
    noted = replica.audit()[-1]
    assert (noted["what"], noted["on"], noted["result"], noted["from"]) == ("switch", NEW, "ok", "laptop")
    assert noted["rollout"] == "r-1" and noted["from_release"] == RELEASES[OLD]


def test_nothing_that_is_written_has_the_key(replica):
    replica.call(OLD)
    replica.call(NEW, OLD)
    replica.node.set(NEW, "loading")
    assert replica.call(NEW, ready_timeout=1)["failed"]
    assert KEY not in replica.history_file.read_text() + replica.audit_file.read_text()


def test_good_is_noted_once_for_each_rollout(replica):
    replica.call(OLD)
    assert replica.call(OLD, outcome="good")["actions"] == [f"note {OLD}, release {RELEASES[OLD]}, as good"]
    assert not replica.call(OLD, outcome="good")["changed"]
    assert replica.outcomes() == [(OLD, "switched"), (OLD, "good")]
    assert replica.call(OLD, outcome="good", rollout="r-2")["changed"]
    assert replica.call(OLD, outcome="good", replica=1)["changed"]
    assert [entry["rollout"] for entry in replica.history()][1:] == ["r-1", "r-2", "r-1"]


def test_it_goes_back_to_the_instance_that_is_named(replica):
    replica.call(OLD)
    replica.call(NEW, OLD)
    replica.node.forget()
    result = replica.call(OLD, NEW, state="rolled_back", why="slow")
    assert result["changed"] and result["instance"] == OLD
    assert replica.node.told() == [f"stop {NEW} at 0", f"start {OLD}"]
    assert replica.outcomes()[-1] == (OLD, "rolled back")
    assert replica.audit()[-1]["what"] == "roll back" and replica.audit()[-1]["why"] == "slow"
    assert not replica.call(OLD, NEW, state="rolled_back", why="slow")["changed"]


def test_it_goes_back_to_what_was_good_last(replica):
    replica.good(OLD, "r-1")
    replica.call(NEW, OLD, rollout="r-2")
    both = list(replica.instances.values())
    result = replica.call(old=NEW, state="rolled_back", instances=both, rollout="r-2")
    assert result["instance"] == OLD and replica.node.state(OLD) == "running" and replica.node.state(NEW) == "exited"


def test_it_goes_back_to_another_release_than_the_one_that_it_leaves_although_that_was_good(replica):
    replica.good(OLD, "r-1")
    replica.call(NEW, OLD, outcome="good", rollout="r-2")
    both = list(replica.instances.values())
    assert replica.call(old=NEW, state="rolled_back", instances=both)["instance"] == OLD


def test_where_nothing_was_good_it_says_so_and_stops_nothing(replica):
    replica.call(NEW)
    replica.node.forget()
    both = list(replica.instances.values())
    result = replica.call(old=NEW, state="rolled_back", instances=both)
    assert result["failed"] and str(replica.history_file) in result["msg"] and "is none" in result["msg"] and "rollout.yml" in result["msg"]
    assert replica.node.told() == [] and replica.node.state(NEW) == "running"


def test_where_the_good_one_is_no_longer_planned_it_names_it(replica):
    replica.good(OLD, "r-1")
    result = replica.call(old=NEW, state="rolled_back", instances=[replica.instances[NEW]])
    assert result["failed"] and f"release {RELEASES[OLD]} (1.0.0)" in result["msg"] and "no instance" in result["msg"]


def test_forward_it_goes_to_what_is_named_only(replica):
    replica.good(OLD, "r-1")
    result = replica.call(instances=list(replica.instances.values()))
    assert result["failed"] and "`instance` is missing" in result["msg"]


@pytest.mark.parametrize("state", ["present", "rolled_back"])
def test_check_mode_says_what_it_would_do_and_does_not_wait(replica, state):
    replica.call(OLD)
    replica.node.set(OLD, "busy", 3)
    replica.node.forget()
    lines = replica.history()
    result = replica.call(NEW, OLD, state=state, check_mode=True, diff=True, idle_timeout=600)
    noted = {"present": "switched", "rolled_back": "rolled back"}[state]
    assert result["changed"] and result["actions"] == [f"stop {OLD}", f"start {NEW}", f"note {NEW}, release {RELEASES[NEW]}, as {noted}"]
    assert result["diff"] == {"before": {NEW: "created", OLD: "running"}, "after": {NEW: "running", OLD: "exited"}}
    assert replica.node.told() == [] and replica.history() == lines and replica.node.state(OLD) == "running"


def test_check_mode_knows_of_containers_that_are_still_to_come(replica):
    result = replica.call(instance={**replica.instances[NEW], "id": "tiny-0-c"}, check_mode=True)
    assert "failed" not in result and result["actions"][0] == "start tiny-0-c"


def test_a_difference_is_shown_only_where_there_is_one(replica):
    replica.call(OLD)
    changed = replica.call(NEW, OLD, diff=True)["diff"]
    assert changed == {"before": {NEW: "created", OLD: "running"}, "after": {NEW: "running", OLD: "exited"}}
    same = replica.call(NEW, OLD, diff=True)["diff"]
    assert same["before"] == same["after"]


def test_a_full_disk_keeps_no_replica_from_going_back(replica, small_disk):
    replica.history_file = small_disk / "releases.jsonl"
    replica.audit_file = small_disk / "audit.jsonl"
    replica.good(OLD, "r-1")
    replica.call(NEW, OLD, rollout="r-2")
    lines = replica.history()
    with pytest.raises(OSError):
        (small_disk / "somebody-else").write_bytes(bytes(4 << 20))
    both = list(replica.instances.values())
    result = replica.call(old=NEW, state="rolled_back", instances=both, rollout="r-2")
    assert "failed" not in result and replica.node.state(OLD) == "running" and replica.node.state(NEW) == "exited"
    assert str(replica.history_file) in str(result["warnings"])
    assert replica.history() == lines
