# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The module as Ansible runs it: a process with its arguments as JSON, which may be killed at any moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
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
MODULE = REPO / "plugins/modules/model_artifact.py"
COLLECTIONS = REPO / ".venv/collections"


class Host:
    """A store on a real file system, and runs of the module on it."""

    def __init__(self, server: RangeServer, root: Path) -> None:
        self.server = server
        self.root = root

    def arguments(self, contents=None, **arguments) -> dict:
        contents = {"tiny.gguf": BODY} if contents is None else contents
        return {
            "store": str(self.root),
            "model": "tiny",
            "version": "1.0.0",
            "source": f"{self.server.url}/tiny",
            "sources": json.dumps({f"{self.server.url}/": {"timeout": 20, "retries": 0}}),
            "files": [entry(path, body) for path, body in contents.items()],
            "reserve": 0,
            "_ansible_remote_tmp": str(self.root.parent / "tmp"),
            **arguments,
        }

    def start(self, **arguments) -> subprocess.Popen:
        """A process that a test may kill."""
        environment = {**os.environ, "PYTHONPATH": str(COLLECTIONS)}
        process = subprocess.Popen(
            [sys.executable, str(MODULE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
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

    def call(self, contents=None, **arguments) -> dict:
        return module_process.call("model_artifact", self.arguments(contents, **arguments), dict(os.environ))


@pytest.fixture
def server():
    with RangeServer() as running:
        running.add("/tiny/tiny.gguf", BODY)
        yield running


@pytest.fixture
def host(server, tmp_path):
    return Host(server, tmp_path / "store")


def test_it_brings_a_version_and_then_has_nothing_to_do(host):
    result = host.call(_ansible_diff=True)
    assert result["changed"] and result["bytes_moved"] == len(BODY)
    assert result["path"] == str(host.root / "models/tiny/1.0.0")
    assert "tiny.gguf" in result["diff"]["after"] and result["diff"]["before"] == ""
    assert tree_of(host.root) == {"tiny.gguf": BODY}
    assert not host.call()["changed"]


def test_check_mode_says_what_would_move_and_moves_nothing(host):
    result = host.call(_ansible_check_mode=True, owner="not-yet-created", group="not-yet-created")
    real = host.call()
    assert len(host.server.requests) == 1
    for key in ("changed", "actions", "diff", "bytes_moved", "missing", "path"):
        assert result[key] == real[key]
    assert result["missing"] == [entry("tiny.gguf", BODY)]


def test_check_mode_leaves_no_trace(host):
    host.call(_ansible_check_mode=True)
    assert not host.root.exists() and not host.server.requests


def test_killed_in_the_middle_it_goes_on_where_it_was(host):
    gate = threading.Event()
    resource = host.server.add("/tiny/tiny.gguf", BODY, hold=gate, pause_at=1_500_000)
    process = host.start()
    part = host.root / "incoming" / f"{digest(BODY)}.part"
    while not part.exists() or part.stat().st_size < 1_000_000:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    arrived = part.stat().st_size
    gate.set()
    resource.hold = None
    assert tree_of(host.root) is None

    assert host.call(_ansible_check_mode=True)["bytes_moved"] == len(BODY) - arrived
    result = host.call()
    assert result["bytes_moved"] == len(BODY) - arrived
    assert host.server.ranges_asked()[-1] == f"bytes={arrived}-"
    assert tree_of(host.root) == {"tiny.gguf": BODY}


def test_a_wrong_digest_names_file_and_digests_and_leaves_nothing(host):
    host.server.add("/tiny/tiny.gguf", bytes(len(BODY)))
    result = host.call()
    assert result["failed"]
    assert (result["file"], result["expected"]) == ("tiny.gguf", digest(BODY))
    assert result["actual"] == digest(bytes(len(BODY)))
    assert all(result[key] in result["msg"] for key in ("file", "expected", "actual"))
    assert sorted(result["fault"]) == ["fix", "what", "where"]
    assert leftovers(host.root) == []


def test_a_file_cut_short_upstream_is_refused(host):
    host.server.add("/tiny/tiny.gguf", BODY[:-1])
    result = host.call()
    assert result["failed"] and str(len(BODY) - 1) in result["msg"]
    assert leftovers(host.root) == []


def test_two_runs_at_once_fetch_once(host):
    gate = threading.Event()
    host.server.add("/tiny/tiny.gguf", BODY, hold=gate)
    runs = [host.start(), host.start()]
    assert host.server.started.wait(30)
    gate.set()
    results = [host.result(run) for run in runs]
    assert sorted(result["changed"] for result in results) == [False, True]
    assert len(host.server.requests) == 1
    assert tree_of(host.root) == {"tiny.gguf": BODY}


def test_a_run_that_waits_for_one_that_comes_no_further_says_so(host):
    gate = threading.Event()
    host.server.add("/tiny/tiny.gguf", BODY, hold=gate)
    first = host.start()
    assert host.server.started.wait(30)
    second = host.call(lock_timeout=1)
    gate.set()
    assert "another run" in second["msg"] and "lock_timeout" in second["fault"]["fix"]
    assert host.result(first)["changed"]


def test_a_disk_too_small_is_noticed_before_the_first_byte(host, small_disk):
    host.root = small_disk / "store"
    host.server.add("/tiny/tiny.gguf", BODY * 2)
    result = host.call({"tiny.gguf": BODY * 2})
    assert result["failed"] and "free" in result["fault"]["fix"]
    assert result["needed"] == len(BODY) * 2 > result["free"]
    assert not host.server.requests


def test_a_disk_that_fills_up_meanwhile_gets_its_room_back(host, small_disk):
    host.root = small_disk / "store"
    gate = threading.Event()
    host.server.add("/tiny/tiny.gguf", BODY, hold=gate)
    process = host.start()
    assert host.server.started.wait(30)
    (small_disk / "somebody-else").write_bytes(bytes(2 << 20))
    gate.set()
    result = host.result(process)
    assert "no space left" in result["fault"]["what"] and "run again" in result["fault"]["fix"]
    assert str(host.root) in result["fault"]["where"]
    assert leftovers(host.root) == []


def test_files_of_the_host_itself_are_copied(host, tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(BODY)
    result = host.call(source=f"file://{tmp_path}/tiny.gguf", sources="{}")
    assert result["bytes_moved"] == len(BODY) and not host.server.requests
    assert tree_of(host.root) == {"tiny.gguf": BODY}


def test_depots_are_asked_before_the_source(host):
    depot = host.server.add(f"/depot/blobs/sha256/{digest(BODY)}", BODY)
    suppliers = [f"{host.server.url}/depot/"]
    assert host.call(suppliers=suppliers)["bytes_moved"] == len(BODY)
    assert [path for path, _headers in host.server.requests] == [f"/depot/blobs/sha256/{digest(BODY)}"]
    depot.statuses = [404]
    host.call(state="absent")
    assert host.call(suppliers=suppliers)["bytes_moved"] == len(BODY)
    assert host.server.requests[-1][0] == "/tiny/tiny.gguf"


def test_without_leave_the_source_is_not_asked(host):
    result = host.call(sources=None)
    assert result["failed"] and "suppliers" in result["fault"]["fix"] and not host.server.requests


def test_an_ollama_layout_takes_its_manifest_from_the_lockfile(host):
    manifest = {**entry("manifests/r/l/tiny/latest", b"{}"), "content": "{}"}
    blob = {**entry("blobs/sha256-1", BODY), "from": "tiny.gguf"}
    result = host.call(files=[manifest, blob])
    assert result["bytes_moved"] == len(BODY)
    assert tree_of(host.root) == {"manifests/r/l/tiny/latest": b"{}", "blobs/sha256-1": BODY}


def test_damage_is_found_named_and_mended(host):
    host.call()
    assert not host.call(state="verified")["changed"]
    blob = host.root / "blobs/sha256" / digest(BODY)
    blob.chmod(0o600)
    blob.write_bytes(bytes(len(BODY)))
    status = blob.stat()
    # A disk that loses bits changes no time; only reading finds it.
    os.utime(blob, ns=(status.st_atime_ns, int((host.root / "verified" / blob.name).read_text().split()[1])))
    assert not host.call()["bytes_moved"]
    looked = host.call(state="verified", _ansible_check_mode=True)
    assert looked["failed"] and blob.exists()
    result = host.call(state="verified")
    assert result["failed"] and "tiny.gguf" in result["msg"] and result["fault"]["fix"]
    assert result["damaged"] == looked["damaged"]
    assert result["damaged"][0]["actual"] == digest(bytes(len(BODY)))
    assert host.call()["bytes_moved"] == len(BODY)
    assert not host.call(state="verified").get("failed")


def test_verifying_what_is_not_there_fails_and_makes_nothing(host):
    result = host.call(state="verified")
    assert result["damaged"] == [{"path": "tiny.gguf", "expected": digest(BODY), "actual": "missing"}]
    assert not host.root.exists()


def test_it_takes_away_what_it_brought(host):
    host.call()
    announced = host.call(state="absent", files=[], _ansible_check_mode=True)
    assert tree_of(host.root) == {"tiny.gguf": BODY}
    result = host.call(state="absent", files=[])
    assert result["changed"] and result["actions"] == announced["actions"]
    assert leftovers(host.root) == []
    assert not host.call(state="absent", files=[])["changed"]


def test_removing_from_a_bare_host_makes_nothing(host):
    assert not host.call(state="absent")["changed"]
    assert not host.root.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        {"model": "../etc"},
        {"version": ".."},
        {"files": []},
        {"files": [{"path": "../../etc/cron.d/x", "size": 1, "sha256": "ab" * 32}]},
        {"files": [{"path": "a", "size": 1, "sha256": "../" + "a" * 61}]},
    ],
)
@pytest.mark.parametrize("check_mode", [True, False])
def test_what_leads_out_of_the_store_is_refused(host, arguments, check_mode):
    result = host.call(**arguments, _ansible_check_mode=check_mode)
    assert result["failed"] and "models.lock.yml" in result["fault"]["fix"]
    assert not host.root.exists()


def test_an_unknown_kind_of_source_is_refused(host):
    result = host.call(source="ftp://h/f")
    assert result["failed"] and result["fault"]["fix"]


def test_secrets_are_sent_and_never_shown(host):
    secret = {f"{host.server.url}/": {"token": "geheim", "headers": {"X-Team": "streng-geheim"}, "retries": 0}}
    result = host.call(sources=json.dumps(secret))
    assert host.server.requests[0][1]["authorization"] == "Bearer geheim"
    assert "geheim" not in json.dumps(result)
    for broken in ("geheim", '{"hf://": {"tokken": "geheim"}}', '{"hf://": {"token": ["geheim"]}}'):
        result = host.call(sources=broken, version="1.0.1")
        assert result["failed"] and "geheim" not in json.dumps(result)
