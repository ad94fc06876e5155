# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Staging as Ansible runs it: processes that are watched by another one, and may be killed at any moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.tests.unit.support import module_process
from ansible_collections.localfirst.llm_fleet.tests.unit.support.range_server import RangeServer
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import (
    BODY,
    digest,
    entry,
    leftovers,
    tree_of,
)

REPO = Path(__file__).resolve().parents[4]
OTHER = BODY[::-1]
VERSIONS = {"1.0.0": {"config.json": b"{}", "tiny.gguf": BODY}, "1.1.0": {"config.json": b"{ }", "tiny.gguf": BODY}}


class Host:
    """A store, a depot for it, and runs of the modules."""

    def __init__(self, server: RangeServer, root: Path) -> None:
        self.server = server
        self.root = root

    def arguments(self, **arguments) -> dict:
        return {"store": str(self.root), "_ansible_remote_tmp": str(self.root.parent / "tmp"), **arguments}

    def start(self, module: str, **arguments) -> subprocess.Popen:
        """A process that a test may kill."""
        process = subprocess.Popen(
            [sys.executable, str(REPO / "plugins/modules" / f"{module}.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(REPO / ".venv/collections")},
        )
        process.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": self.arguments(**arguments)}).encode())
        process.stdin.close()
        return process

    @staticmethod
    def result(process: subprocess.Popen) -> dict:
        with process:
            output, errors = process.stdout.read(), process.stderr.read()
        assert output.strip(), errors.decode()
        return json.loads(output)

    def call(self, module: str, **arguments) -> dict:
        return module_process.call(module, self.arguments(**arguments), dict(os.environ))

    def wanted(self, versions=None, **arguments) -> dict:
        versions = VERSIONS if versions is None else versions
        artifacts = [
            {"model": "tiny", "version": version, "files": [entry(path, body) for path, body in contents.items()]}
            for version, contents in versions.items()
        ]
        given = {"suppliers": [self.server.url], "reserve": 0, "timeout": 20, "retries": 0, "artifacts": artifacts}
        return {**given, **arguments}

    def begin(self, versions=None, **arguments) -> subprocess.Popen:
        return self.start("model_stage", **self.wanted(versions, **arguments))

    def stage(self, versions=None, **arguments) -> dict:
        return self.call("model_stage", **self.wanted(versions, **arguments))

    def info(self, **arguments) -> dict:
        return self.call("model_stage_info", **arguments)

    def serve(self, *bodies: bytes, **faults) -> None:
        for body in bodies:
            self.server.add(f"/blobs/sha256/{digest(body)}", body, **faults)

    def asked(self) -> list[str]:
        return [path.rpartition("/")[2] for path, _headers in self.server.requests]


@pytest.fixture
def server():
    with RangeServer() as running:
        yield running


@pytest.fixture
def host(server, tmp_path):
    made = Host(server, tmp_path / "store")
    made.serve(b"{}", b"{ }", BODY, OTHER)
    return made


def test_several_versions_arrive_and_each_content_moves_once(host):
    result = host.stage(_ansible_diff=True)
    assert result["changed"] and result["bytes_moved"] == len(BODY) + 5
    assert sorted(host.asked()) == sorted(digest(body) for body in (b"{}", b"{ }", BODY))
    assert {version: tree_of(host.root, version) for version in VERSIONS} == VERSIONS
    assert [each["bytes_moved"] for each in result["artifacts"]] == [len(BODY) + 2, 3]
    assert [each["before"] for each in result["diff"]] == ["", ""]
    again = host.stage()
    assert not again["changed"] and again["bytes_moved"] == 0 and again["actions"] == []
    assert len(host.server.requests) == 3


def test_check_mode_says_the_same_and_leaves_no_trace(host):
    announced = host.stage(_ansible_check_mode=True, owner="not-yet-created")
    assert not host.root.exists() and not host.server.requests
    done = host.stage()
    for key in ("changed", "actions", "bytes_moved", "artifacts", "diff"):
        assert announced[key] == done[key]


def test_space_is_counted_for_all_versions_before_the_first_byte(host, small_disk):
    host.root = small_disk / "store"
    result = host.stage({"1.0.0": {"a": BODY}, "1.1.0": {"a": OTHER}})
    assert result["failed"] and result["needed"] == 2 * len(BODY) > result["free"]
    assert not host.server.requests and host.info()["fault"] == result["fault"]
    # What two versions share is needed once.
    assert host.stage({"1.0.0": {"a": BODY}, "1.1.0": {"b": BODY}})["bytes_moved"] == len(BODY)


def test_space_that_another_run_is_about_to_use_is_not_free(host, small_disk):
    host.root = small_disk / "store"
    gate = threading.Event()
    host.serve(BODY, hold=gate)
    first = host.begin({"1.0.0": {"a": BODY}})
    assert host.server.started.wait(30)
    second = host.stage({"1.1.0": {"a": OTHER}})
    gate.set()
    assert second["failed"] and "other runs" in second["fault"]["what"]
    assert host.result(first)["changed"] and digest(OTHER) not in host.asked()


def test_a_disk_that_fills_up_gets_its_room_back_and_everybody_is_told(host, small_disk):
    host.root = small_disk / "store"
    gate = threading.Event()
    host.serve(BODY, hold=gate)
    process = host.begin({"1.0.0": {"a": BODY}, "1.1.0": {"a": b"{}"}})
    assert host.server.started.wait(30)
    (small_disk / "somebody-else").write_bytes(bytes(2 << 20))
    gate.set()
    result = host.result(process)
    assert "no space left" in result["fault"]["what"] and "run again" in result["fault"]["fix"]
    told = host.info()
    assert (told["state"], told["fault"]) == ("failed", result["fault"])
    assert leftovers(host.root) == []
    (small_disk / "somebody-else").unlink()
    assert not host.stage({"1.0.0": {"a": BODY}, "1.1.0": {"a": b"{}"}}).get("failed")


def test_its_progress_can_be_watched(host):
    assert host.info()["state"] == "none"
    gate = threading.Event()
    host.serve(BODY, hold=gate, pause_at=1 << 20)
    process = host.begin({"1.0.0": {"tiny.gguf": BODY}})
    while (seen := host.info()).get("done_bytes", 0) < 1 << 20:
        assert process.poll() is None
    assert (seen["state"], seen["total_bytes"], seen["file"]) == ("running", len(BODY), "tiny 1.0.0: tiny.gguf")
    watching = host.start("model_stage_info", wait=60)
    gate.set()
    ended = host.result(watching)
    assert (ended["state"], ended["done_bytes"], ended["fault"]) == ("done", len(BODY), None)
    assert host.result(process)["changed"]


def test_a_named_run_is_told_from_the_ones_before_it(host):
    host.stage(run="first")
    assert host.info(run="second")["state"] == "none" and host.info(run="first")["state"] == "done"
    host.serve(OTHER, statuses=[404])
    assert host.stage({"2.0.0": {"a": OTHER}}, run="second")["failed"]
    assert host.info(run="second")["state"] == host.info()["state"] == "failed"
    assert host.info(run="first")["state"] == "done"


def test_killed_it_is_seen_to_be_and_the_next_run_goes_on(host):
    gate = threading.Event()
    host.serve(BODY, hold=gate, pause_at=1_500_000)
    process = host.begin({"1.0.0": {"tiny.gguf": BODY}})
    part = host.root / "incoming" / f"{digest(BODY)}.part"
    while not part.exists() or part.stat().st_size < 1_000_000:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert host.info(wait=30)["state"] == "interrupted"  # although nobody has waited for it yet
    process.wait()
    arrived = part.stat().st_size
    gate.set()
    host.serve(BODY)
    assert tree_of(host.root) is None
    result = host.stage({"1.0.0": {"tiny.gguf": BODY}})
    assert result["bytes_moved"] == len(BODY) - arrived
    assert host.server.ranges_asked()[-1] == f"bytes={arrived}-"
    told = host.info()
    assert (told["state"], told["done_bytes"], told["total_bytes"]) == ("done", *[len(BODY) - arrived] * 2)
    assert tree_of(host.root) == {"tiny.gguf": BODY}


def test_two_runs_share_the_work(host):
    gate = threading.Event()
    host.serve(BODY, hold=gate)
    first = host.begin({"1.0.0": {"a": BODY}}, run="one")
    assert host.server.started.wait(30)
    second = host.begin({"1.1.0": {"a": BODY, "b": OTHER}}, run="two")
    while digest(OTHER) not in host.asked():  # what is free is fetched while the other run is at work
        assert second.poll() is None
        time.sleep(0.01)
    while host.info(run="two")["state"] != "waiting":
        assert second.poll() is None
    assert tree_of(host.root, "1.1.0") is None
    gate.set()
    results = [host.result(first), host.result(second)]
    assert [each["bytes_moved"] for each in results] == [len(BODY), len(OTHER)]
    assert sorted(host.asked()) == sorted([digest(BODY), digest(OTHER)])
    assert tree_of(host.root, "1.1.0") == {"a": BODY, "b": OTHER}
    told = host.info(run="two")
    assert told["done_bytes"] == told["total_bytes"] == 2 * len(BODY)


def test_one_version_that_fails_keeps_no_other_from_arriving(host):
    host.serve(OTHER, statuses=[404] * 3)
    host.serve(b"{ }", statuses=[404] * 3)
    result = host.stage({"0.9.0": {"a": OTHER, "b": b"{ }"}, "1.0.0": VERSIONS["1.0.0"]})
    assert result["failed"] and len(result["faults"]) == 2
    assert tree_of(host.root, "0.9.0") is None and tree_of(host.root) == VERSIONS["1.0.0"]
    host.serve(OTHER, b"{ }")
    assert host.stage({"0.9.0": {"a": OTHER, "b": b"{ }"}})["bytes_moved"] == len(OTHER) + 3


def test_only_what_is_damaged_is_fetched_again(host):
    host.stage()
    blob = host.root / "blobs/sha256" / digest(BODY)
    blob.chmod(0o600)
    with blob.open("r+b") as handle:
        handle.write(b"!")
    announced = host.stage(_ansible_check_mode=True)
    assert announced["changed"] and "tiny.gguf" in announced["actions"][0]
    assert host.stage()["bytes_moved"] == len(BODY)
    assert {version: tree_of(host.root, version) for version in VERSIONS} == VERSIONS
    assert not host.stage()["changed"]


def test_a_depot_keeps_contents_only(host):
    result = host.stage(link=False)
    assert result["bytes_moved"] == len(BODY) + 5
    assert leftovers(host.root) == sorted(f"blobs/sha256/{digest(body)}" for body in (b"{}", b"{ }", BODY))
    assert not host.stage(link=False)["changed"]
    # The same store can become a node's without a byte.
    assert host.stage()["bytes_moved"] == 0 and tree_of(host.root) == VERSIONS["1.0.0"]


def test_a_limit_slows_it_down(host):
    began = time.monotonic()
    host.stage({"1.0.0": {"a": BODY}}, bandwidth=len(BODY))
    assert time.monotonic() - began >= 0.9


@pytest.mark.parametrize(
    "arguments",
    [{"run": "../x"}, {"suppliers": ["ftp://h"]}, {"suppliers": ["https://u:geheim@h"]}, {"sources": "geheim"}],
)
def test_what_cannot_be_meant_is_refused_before_anything_happens(host, arguments):
    result = host.stage(**arguments)
    assert result["failed"] and result["fault"]["fix"]
    assert "geheim" not in json.dumps({**result, "invocation": None})
    assert not host.root.exists() and not host.server.requests


def test_a_name_of_a_run_that_leads_elsewhere_is_no_name(host):
    assert host.info(run="../../etc/passwd")["failed"]
