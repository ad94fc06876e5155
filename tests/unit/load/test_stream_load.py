# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The load as a process beside a test, and as a program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.tests.load import stream_load
from ansible_collections.localfirst.llm_fleet.tests.load.report import gaps, last_began
from ansible_collections.localfirst.llm_fleet.tests.load.settings import LoadError, Settings, from_arguments, parser
from ansible_collections.localfirst.llm_fleet.tests.load.stream_load import StreamLoad, answer_prefix
from ansible_collections.localfirst.llm_fleet.tests.load.tally import live_line
from ansible_collections.localfirst.llm_fleet.tests.unit.load.conftest import TOKEN
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_bench import wait_until

PROGRAM = Path(stream_load.__file__).resolve()


@pytest.fixture
def options(gateway) -> dict:
    known = {"gateways": [gateway.address], "ca": gateway.authority.pem, "token": TOKEN, "models": ["tiny"]}
    return {**known, "clients": 4, "pause": 0.02, "retry": 0.02, "tokens": (12, 12), "seconds": 60, "timeout": 20}


@pytest.fixture
def program(gateway):
    """Run the program as a shell would; the token is in the environment unless there is another."""

    def run(*arguments: str, token: str = TOKEN) -> subprocess.CompletedProcess:
        given = ["--gateway", gateway.address, "--ca", gateway.authority.pem, "--model", "tiny", "--pause", "0.01"]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(
            [sys.executable, PROGRAM, *given, *arguments],
            env={**environment, "LLM_FLEET_TOKEN": token, "COLUMNS": "120"},
            capture_output=True,
            check=False,
        )
        # Not as text: that would turn the carriage returns into newlines.
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


def requests_of(gateway, more: int):
    goal = len(gateway.bodies) + more
    wait_until(lambda: len(gateway.bodies) >= goal)


def test_a_switch_between_versions_is_seen_from_outside(gateway, options):
    tell = {"1.0.0": answer_prefix(gateway.address, options["ca"], TOKEN, "tiny")}
    gateway.version = "1.1.0"
    tell["1.1.0"] = answer_prefix(gateway.address, options["ca"], TOKEN, "tiny@1.1.0")
    assert gateway.paths[-1] == "/m/tiny@1.1.0/v1/chat/completions"
    gateway.version = "1.0.0"
    with StreamLoad(**options, tell=tell) as load:
        requests_of(gateway, 20)
        before = time.time()
        gateway.version = "1.1.0"
        after = time.time()
        requests_of(gateway, 20)
    report = load.report
    assert report.requests == report.complete == len(gateway.bodies) - 2
    assert set(report.by_version) == {"1.0.0", "1.1.0"}
    assert last_began(report, "1.0.0") < after
    assert report.by_version["1.1.0"]["last_began"] > before
    assert report.began < before < after < report.ended
    assert gaps(report, longer=20) == []


def test_an_outage_is_as_long_as_nobody_is_answered(gateway, options):
    with StreamLoad(**options) as load:
        requests_of(gateway, 20)
        gateway.behaviours = ["503"]
        requests_of(gateway, 8)
        # By now those that were sent before the outage are over.
        middle = time.time()
        requests_of(gateway, 20)
        end = time.time()
        gateway.behaviours = ["good"]
        requests_of(gateway, 20)
    assert load.report.refused == {"503 no_instance": load.report.refused_5xx}
    assert load.report.complete == load.report.requests - load.report.refused_5xx
    seen = gaps(load.report, longer=(end - middle) / 2)
    assert any(gap["begin"] <= middle and gap["end"] >= end for gap in seen), (seen, middle, end)


def test_a_stream_that_is_open_at_the_end_ends_by_itself(gateway, options):
    gateway.go.clear()
    load = StreamLoad(**options, unstreamed=0)
    load.start()
    requests_of(gateway, 4)
    stopping = threading.Thread(target=load.stop)
    stopping.start()
    time.sleep(0.3)
    assert stopping.is_alive()
    gateway.go.set()
    stopping.join()
    assert (load.report.requests, load.report.complete) == (4, 4)
    assert load.stop() is load.report


def test_the_figures_while_it_runs(gateway, options):
    with StreamLoad(**options) as load:
        wait_until(lambda: load.now().get("complete", 0) > 10)
        gateway.behaviours = ["cut"]
        wait_until(lambda: load.now()["broken"] > 0)
    assert load.report.broken >= 1


def test_the_token_is_on_no_command_line(options):
    with StreamLoad(**options) as load:
        command = Path(f"/proc/{load._process.pid}/cmdline").read_bytes()
        assert b"stream_load.py" in command
        assert TOKEN.encode() not in command
    assert TOKEN not in repr(load.settings)


def test_a_load_ends_with_the_process_that_started_it(gateway, options):
    starter = (
        "import json, os, sys; from ansible_collections.localfirst.llm_fleet.tests.load.stream_load import StreamLoad; "
        "load = StreamLoad(**json.load(sys.stdin)); load.start(); print(load._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", starter],
        input=json.dumps(options),
        env={**os.environ, "PYTHONPATH": str(PROGRAM.parents[2] / ".venv" / "collections")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip().isdigit(), done.stderr
    process = Path("/proc") / done.stdout.strip()
    wait_until(lambda: not process.exists() or "State:\tZ" in (process / "status").read_text())


def test_it_ends_after_its_time_and_the_report_is_there_all_the_same(options):
    with StreamLoad(**{**options, "seconds": 0.5}) as load:
        load._process.wait()
    assert load.report.complete == load.report.requests > 0
    # Far less than the 60 s that it may take otherwise, and far more than any machine is late by.
    assert max(record.began for record in load.report.records) < load.report.began + 20


def test_a_load_that_cannot_start_says_why(options, tmp_path):
    (tmp_path / "empty.pem").write_text("")
    load = StreamLoad(**{**options, "ca": tmp_path / "empty.pem"})
    with pytest.raises(LoadError, match="did not start"):
        load.start()
    with pytest.raises(LoadError, match="was not started"):
        StreamLoad(**options).stop()


def test_settings_survive_the_command_line(options, monkeypatch):
    monkeypatch.setenv("LLM_FLEET_TOKEN", TOKEN)
    rare = {"seed": 7, "unstreamed": 0.5, "by_path": 0.25, "stall": 3.5, "exact": False, "resend": False, "requests": 11}
    given = {**options, **rare, "models": ["a", "b@1.0.0"], "gateways": ["[::1]:44", "gw"], "tell": {"1.0.0": "-- = x", "2": "sha256:ab"}}
    settings = Settings(**{**given, "models": tuple(given["models"]), "gateways": tuple(given["gateways"])})
    assert from_arguments(parser("").parse_args(settings.arguments())) == settings


def test_the_program_counts_and_says_so(gateway, program, tmp_path):
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    done = program("--requests", "7", "--token-file", str(tmp_path / "token"), "--report", str(tmp_path / "report.json"), token="")
    assert done.returncode == 0, done.stderr
    assert "7 requests" in done.stdout
    assert "7 complete" in done.stdout
    assert json.loads((tmp_path / "report.json").read_text())["complete"] == 7
    assert gateway.tokens == {f"Bearer {TOKEN}"}
    assert TOKEN not in done.stdout + (tmp_path / "report.json").read_text()


def test_a_fault_is_its_exit_status(gateway, program):
    gateway.behaviours = ["cut", "good"]
    done = program("--requests", "5", "--unstreamed", "0", "--clients", "1")
    assert done.returncode == 1
    assert "broken: cut before" in done.stdout
    gateway.behaviours = ["429 queue_full", "good"]
    done = program("--requests", "5")
    assert done.returncode == 0
    assert "1 x 429 queue_full" in done.stdout


def test_without_a_token_it_says_what_to_do(program):
    done = program(token="")
    assert done.returncode == 2
    assert "LLM_FLEET_TOKEN" in done.stderr
    assert program("--token-file", "/nowhere/token").returncode == 2


def test_the_live_line_is_written_over(program):
    done = program("--requests", "4", "--live")
    assert done.stdout.startswith("\rwhat clients see 00:00 │ no answer yet")
    *lines, rest = done.stdout.split("\x1b[K")
    assert all(line.startswith("\r") and "\n" not in line for line in lines)
    assert "complete 4" in lines[-1]
    assert rest.startswith("\n  4 requests")


@pytest.mark.parametrize("width", [200, 130, 90, 60, 20])
def test_the_live_line_shows_what_there_is_room_for(width):
    counts = {"complete": 1200, "broken": 1, "short": 1, "duplicated": 0, "refused": 3, "late": 0, "unconnected": 0}
    line = live_line({**counts, "seconds": 75.2, "open": 9, "longest_stall_s": 0.31, "shares": {"1.0.0": 0.38, "1.1.0": 0.62}}, width)
    assert len(line) <= width
    assert "01:15" in line
    if width > 60:
        assert "broken 2" in line and "refused 3" in line and "62%" in line
        assert "late" not in line
    if width > 130:
        assert "1.1.0 ██████░░░░  62%" in line and "longest stall 0.31 s" in line


def test_the_live_line_goes_without_versions():
    counts = {"complete": 1200, "broken": 0, "short": 0, "duplicated": 0, "refused": 0, "late": 0, "unconnected": 0}
    line = live_line({**counts, "seconds": 75.2, "open": 9, "longest_stall_s": 0.31}, 130)
    assert line == "what clients see 01:15 │ open  9 · complete 1200 · broken 0 · refused 0 │ longest stall 0.31 s"
