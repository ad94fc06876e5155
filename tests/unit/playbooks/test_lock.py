# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The lock playbook as an operator runs it, in a fleet of which no host answers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from ansible_collections.localfirst.llm_fleet.tests.unit.conftest import REPO
from ansible_collections.localfirst.llm_fleet.tests.unit.support.lock_builders import IMAGES, lock, locked, model
from ansible_collections.localfirst.llm_fleet.tests.unit.support.range_server import RangeServer
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import BODY, entry

SECRET = "geheim-und-lang"
UNREACHABLE = {"ansible_host": "127.0.0.1", "ansible_port": 9, "ansible_ssh_common_args": "-o ConnectTimeout=2"}


class Controller:
    """An inventory on disk, and runs of the playbook with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lockfile = folder / "models.lock.yml"
        self.catalog([])

    def catalog(self, models: list[dict]) -> None:
        variables = {
            "llm_fleet_models": models,
            "llm_fleet_engine_images": IMAGES,
            "llm_fleet_sources": {"http://": {"token": SECRET}},
        }
        groups = {"gateways": {"hosts": {"gw1": UNREACHABLE}}, "gpu_nodes": {"hosts": {"gpu1": UNREACHABLE}}}
        inventory = {"all": {"vars": variables, "children": groups}}
        (self.folder / "hosts.yml").write_text(yaml.safe_dump(inventory))

    def start(self, *options: str) -> subprocess.Popen:
        environment = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(REPO / ".venv/collections"),
            "ANSIBLE_LOCAL_TEMP": str(self.folder / "tmp"),
            "ANSIBLE_REMOTE_TEMP": str(self.folder / "tmp"),
            "ANSIBLE_SHOW_CUSTOM_STATS": "true",
            "ANSIBLE_NOCOLOR": "true",
        }
        program = Path(sys.executable).parent / "ansible-playbook"
        return subprocess.Popen(
            [program, "localfirst.llm_fleet.lock", "-i", self.folder / "hosts.yml", *options],
            env=environment,
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, *options: str) -> tuple[int, str]:
        process = self.start(*options)
        output, _none = process.communicate(timeout=400)
        return process.returncode, output


@pytest.fixture
def controller(tmp_path):
    (tmp_path / "inventory").mkdir()
    yield Controller(tmp_path / "inventory")
    # Workers of a controller that was killed are in sessions of their own, and wait for it without an end.
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(tmp_path / "inventory").encode() in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)


@pytest.fixture
def server():
    with RangeServer() as running:
        yield running


def changes(output: str) -> int:
    return sum(int(part) for line in output.splitlines() for part in _after(line, "changed="))


def _after(line: str, word: str) -> list[str]:
    return [piece.split()[0] for piece in line.split(word)[1:] if "unreachable=" in line]


def test_it_writes_the_lockfile_says_what_moved_and_shows_no_secret(controller, server):
    server.add("/tiny.gguf", BODY)
    wanted = [model("tiny", {"1.0.0": f"{server.url}/tiny.gguf"})]
    controller.catalog(wanted)
    code, output = controller.run("--check", "--diff", "-vvv")
    assert code == 0 and "+      size: 2097152" in output and not controller.lockfile.exists()
    assert SECRET not in output

    code, output = controller.run("-v")
    text = controller.lockfile.read_text()
    assert code == 0 and changes(output) == 1 and SECRET not in output
    assert locked(text)["tiny", "1.0.0"]["files"] == [entry("tiny.gguf", BODY)]
    assert json.dumps(text)[1:-1] in output  # set_stats, for those who open a commit
    assert any(headers.get("authorization") == f"Bearer {SECRET}" for _path, headers in server.requests)

    server.add("/tiny.gguf", BODY[::-1])
    code, output = controller.run()
    assert code == 0 and changes(output) == 0 and controller.lockfile.read_text() == text
    assert "tiny 1.0.0" in output and "1 changed (tiny.gguf)" in output


def test_nothing_is_dropped_while_hosts_are_silent_unless_it_is_allowed(controller, tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"a")
    (tmp_path / "b.gguf").write_bytes(b"b")
    sources = {"1.0.0": f"file://{tmp_path}/a.gguf", "1.1.0": f"file://{tmp_path}/b.gguf"}
    text = lock([model("tiny", sources)]).text
    controller.lockfile.write_text(text)
    controller.catalog([model("tiny", {"1.1.0": sources["1.1.0"]})])
    code, output = controller.run()
    assert code != 0 and "allow_drop" in output and controller.lockfile.read_text() == text
    assert controller.run("-e", "allow_drop=true")[0] == 0
    assert list(locked(controller.lockfile.read_text())) == [("tiny", "1.1.0")]


def test_a_lock_that_is_killed_leaves_the_lockfile_as_it_was(controller, server, tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"a")
    first = model("a", {"1.0.0": f"file://{tmp_path}/a.gguf"})
    text = lock([first]).text
    controller.lockfile.write_text(text)
    gate = threading.Event()
    server.add("/tiny.gguf", BODY, hold=gate, pause_at=len(BODY) // 2)
    controller.catalog([first, model("tiny", {"1.0.0": f"{server.url}/tiny.gguf"})])
    process = controller.start()
    incoming = controller.folder / ".store/incoming"
    for _attempt in range(1500):
        if incoming.is_dir() and any(path.stat().st_size for path in incoming.glob("*.part")):
            break
        threading.Event().wait(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)
    gate.set()
    assert controller.lockfile.read_text() == text
    assert controller.run()[0] == 0
    assert locked(controller.lockfile.read_text())["tiny", "1.0.0"]["files"] == [entry("tiny.gguf", BODY)]
