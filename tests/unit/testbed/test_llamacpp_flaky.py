# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The double of a llama.cpp that crashes: when it does, and that it is the server with the same arguments until then."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DOUBLE = Path(__file__).resolve().parents[3] / "testbed/doubles/llamacpp_flaky/llamacpp_flaky.sh"
# In place of llama-server: it logs what a test writes into a file, and ends on SIGTERM as the original does.
SERVER = f"""#!{sys.executable}
import json, os, signal, sys, time
folder = os.environ["STANDIN"]
def end(*_signal):
    print("cleaning up before exit...", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
with open(f"{{folder}}/arguments", "w") as file:
    json.dump(sys.argv[1:], file)
with open(f"{{folder}}/requests") as requests:
    while True:
        print(requests.read(), end="", flush=True)
        time.sleep(0.01)
"""
# One request of llama-server 0.7.0 (build 11669).
ANSWERED = """\
0.01.016.599 I slot get_availabl: id  0 | task -1 | selected slot by LRU, n_tokens = 0, t_last = -1
0.01.016.662 I slot launch_slot_: id  0 | task 0 | processing task, is_child = 0
0.01.018.877 I slot print_timing: id  0 | task 0 | prompt eval time =       1.35 ms /     7 tokens (    0.19 ms per token)
0.01.018.880 I slot print_timing: id  0 | task 0 |        eval time =       0.83 ms /     4 tokens (    0.28 ms per token)
0.01.018.880 I slot print_timing: id  0 | task 0 |       total time =       2.19 ms /    11 tokens
0.01.018.881 I slot print_timing: id  0 | task 0 |    graphs reused =          3
0.01.019.056 I slot      release: id  0 | task 0 | stop processing: n_tokens = 10, truncated = 0
"""
LEFT = """\
0.02.016.662 I slot launch_slot_: id  1 | task 9 | processing task, is_child = 0
0.02.019.056 I slot      release: id  1 | task 9 | stop processing: n_tokens = 10, truncated = 0
"""


class Flaky:
    def __init__(self, folder: Path, limit: int | None) -> None:
        self.folder = folder
        server = folder / "llama-server"
        server.write_text(SERVER)
        server.chmod(0o755)
        self.requests = (folder / "requests").open("w")
        environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "TMPDIR": str(folder), "STANDIN": str(folder)}
        environment.pop("FLAKY_REQUESTS", None)
        if limit is not None:
            environment["FLAKY_REQUESTS"] = str(limit)
        self.output = (folder / "output").open("w")
        self.process = subprocess.Popen([DOUBLE, "-m", "a model.gguf", "--port", "1"], env=environment,
                                        stdout=self.output, stderr=subprocess.STDOUT, start_new_session=True)
        self.until(lambda: (folder / "arguments").exists() and (folder / "arguments").read_text().endswith("]"))

    def log(self, text: str) -> None:
        self.requests.write(text)
        self.requests.flush()

    @property
    def printed(self) -> str:
        return (self.folder / "output").read_text()

    def until(self, true, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, self.printed
            time.sleep(0.02)

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.requests.close()
        self.output.close()


@pytest.fixture
def flaky(tmp_path):
    """`flaky(3)`: one that crashes after three requests."""
    started = []

    def start(limit: int | None = None) -> Flaky:
        started.append(Flaky(tmp_path, limit))
        return started[-1]

    yield start
    for one in started:
        one.close()


def test_the_server_gets_the_same_arguments(flaky, tmp_path):
    flaky()
    assert json.loads((tmp_path / "arguments").read_text()) == ["-m", "a model.gguf", "--port", "1"]


def test_it_crashes_once_it_has_answered_so_many(flaky):
    double = flaky(3)
    double.log(ANSWERED * 2)
    double.until(lambda: double.printed.endswith(ANSWERED * 2))
    assert double.process.poll() is None
    double.log(ANSWERED)
    assert double.process.wait(20) == 128 + signal.SIGKILL
    assert "3 requests answered" in double.printed


def test_it_answers_twenty_where_nothing_else_is_said(flaky):
    double = flaky()
    double.log(ANSWERED * 20)
    assert double.process.wait(20) == 128 + signal.SIGKILL
    assert "20 requests answered" in double.printed


def test_requests_whose_client_left_do_not_count(flaky):
    double = flaky(2)
    double.log(LEFT * 5 + ANSWERED + LEFT)
    double.until(lambda: double.printed.endswith(LEFT))
    time.sleep(0.4)  # longer than it waits before it crashes
    assert double.process.poll() is None
    double.log(ANSWERED)
    assert double.process.wait(20) == 128 + signal.SIGKILL


def test_it_ends_as_the_server_does_when_it_is_told_to(flaky):
    double = flaky(2)
    double.log(ANSWERED)
    double.until(lambda: double.printed.endswith(ANSWERED))
    double.process.terminate()
    assert double.process.wait(20) == 0
    assert double.printed.endswith("cleaning up before exit...\n")
