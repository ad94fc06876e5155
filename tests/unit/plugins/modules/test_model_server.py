# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The module as Ansible runs it: its process ends, the server that it started goes on."""

from __future__ import annotations

import errno
import http.client
import os
import signal
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import blob_service
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.blob_server import Tls
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.blob_service import BlobService, Wanted
from ansible_collections.localfirst.llm_fleet.tests.unit.support.fleet_ca import FleetCa
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import BODY, digest

MINE, THEIRS = "a1", "b2"


class Controller:
    """A store, certificates, and calls of the module."""

    def __init__(self, root: Path, run_module) -> None:
        self.root = root
        self.run_module = run_module
        self.run_dir = root / "serving"
        self.store = root / "store"
        self.ca = FleetCa(root)
        self.server = self.ca.issue("controller", client=False)
        self.client = self.ca.issue("gpu1", client=True)
        self.add(BODY)

    def add(self, body: bytes) -> None:
        blobs = self.store / "blobs" / "sha256"
        blobs.mkdir(parents=True, exist_ok=True)
        (blobs / digest(body)).write_bytes(body)

    def start(self, **arguments) -> dict:
        defaults = {
            "run_dir": str(self.run_dir),
            "address": "127.0.0.1",
            "store": str(self.store),
            "certificate": self.server.certificate,
            "key": self.server.key,
            "ca": self.ca.pem,
            "idle_timeout": 60,
        }
        return self.run_module("model_server", **{**defaults, **arguments})

    def stop(self, **arguments) -> dict:
        return self.run_module("model_server", state="stopped", run_dir=str(self.run_dir), **arguments)

    def get(self, url: str, body: bytes) -> bytes:
        context = ssl.create_default_context(cafile=self.ca.pem)
        context.load_cert_chain(self.client.certificate, self.client.key)
        parts = urlsplit(url)
        connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=20, context=context)
        connection.request("GET", f"/blobs/sha256/{digest(body)}")
        response = connection.getresponse()
        return response.read() if response.status == 200 else b""


    def service(self) -> BlobService:
        self.run_dir.mkdir(mode=0o700, exist_ok=True)
        return BlobService(self.run_dir)

    def wanted(self, port: int) -> Wanted:
        tls = Tls(self.server.certificate, self.server.key, self.ca.pem)
        return Wanted("127.0.0.1", port, str(self.store), tls, 60)


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@pytest.fixture
def controller(tmp_path, run_module):
    controller = Controller(tmp_path, run_module)
    yield controller
    controller.stop()


def ends(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            # A zombie has ended, too: in a container nobody may have looked yet.
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_it_serves_after_the_module_has_ended(controller):
    started = controller.start()
    assert started["changed"] and started["url"].startswith("https://127.0.0.1:")
    assert controller.get(started["url"], BODY) == BODY
    assert (controller.run_dir.stat().st_mode & 0o777) == 0o700


def test_a_second_start_finds_the_first(controller):
    first, second = controller.start(), controller.start()
    assert not second["changed"] and second["actions"] == []
    assert (second["pid"], second["url"]) == (first["pid"], first["url"])


def test_a_second_start_adds_its_files(controller):
    first = controller.start()
    path = controller.root / "tiny.gguf"
    path.write_bytes(b"weights")
    second = controller.start(files={digest(b"weights"): str(path)})
    assert second["changed"] and second["pid"] == first["pid"]
    assert controller.get(first["url"], b"weights") == b"weights" and controller.get(first["url"], BODY) == BODY
    assert not controller.start(files={digest(b"weights"): str(path)})["changed"]


def test_another_certificate_needs_another_server(controller):
    first = controller.start()
    controller.server = controller.ca.issue("renewed", client=False)
    second = controller.start()
    assert second["changed"] and second["pid"] != first["pid"] and ends(first["pid"])
    assert controller.get(second["url"], BODY) == BODY


def test_stopping_it_twice_changes_nothing_the_second_time(controller):
    started = controller.start()
    assert controller.stop(lease=started["lease"])["changed"] and ends(started["pid"])
    again = controller.stop(lease=started["lease"])
    assert not again["changed"] and again["actions"] == []


def test_only_the_last_of_two_runs_stops_it(controller):
    first, second = controller.start(lease=MINE), controller.start(lease=THEIRS)
    assert not controller.stop(lease=MINE)["changed"]
    assert controller.get(second["url"], BODY) == BODY
    assert controller.stop(lease=THEIRS)["changed"] and ends(first["pid"])


def test_runs_that_start_it_at_once_share_one_server(controller):
    bodies = [f"weights {number}".encode() for number in range(4)]
    for body in bodies:
        (controller.root / digest(body)).write_bytes(body)

    def start(body: bytes) -> dict:
        return controller.start(files={digest(body): str(controller.root / digest(body))}, lease=digest(body)[:8])

    with ThreadPoolExecutor(len(bodies)) as executor:
        started = list(executor.map(start, bodies))
    assert len({each["pid"] for each in started}) == 1, started
    assert [controller.get(started[0]["url"], body) for body in bodies] == bodies
    with ThreadPoolExecutor(len(bodies)) as executor:
        stopped = list(executor.map(lambda body: controller.stop(lease=digest(body)[:8]), bodies))
    assert sum(each["changed"] for each in stopped) == 1 and ends(started[0]["pid"])


def test_a_run_that_holds_on_to_its_turn_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(blob_service, "TURN", 0)
    with BlobService(tmp_path).alone(), pytest.raises(ArtifactError) as caught, BlobService(tmp_path).alone():
        pass
    what, where, fix = caught.value.fault
    assert "another run" in what and where == str(tmp_path / "turn") and "fuser" in fix


def test_a_killed_server_is_started_anew(controller):
    first = controller.start()
    os.kill(first["pid"], signal.SIGKILL)
    assert ends(first["pid"])
    second = controller.start()
    assert second["changed"] and controller.get(second["url"], BODY) == BODY


def test_it_ends_by_itself(controller):
    started = controller.start(idle_timeout=1)
    assert ends(started["pid"])
    assert not controller.stop(lease=started["lease"])["changed"]


def test_one_whose_note_does_not_fit_on_the_disk_is_ended(controller, free_port, monkeypatch):
    write = blob_service._write

    def full(path, data):
        if path.name == "server.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, data)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(blob_service, "_write", full)
        controller.service().start(controller.wanted(free_port), {})
    # The port is free, and nobody is waited for.
    assert controller.service().running() is None
    assert controller.start(port=free_port)["port"] == free_port


@pytest.mark.parametrize("also_lost", [False, True])
def test_one_whose_starter_was_killed_before_the_note_is_found_and_replaced(controller, free_port, monkeypatch, also_lost):
    monkeypatch.setattr(blob_service, "PATIENCE", 1)
    starter = os.fork()
    if starter == 0:
        blob_service._write = lambda path, _data: path.name == "server.json" and os.kill(os.getpid(), signal.SIGKILL)
        try:
            controller.service().start(controller.wanted(free_port), {})
        finally:
            os._exit(1)
    os.waitpid(starter, 0)
    service = controller.service()
    found = service.running()
    assert Path(f"/proc/{found['pid']}/stat").exists() and not service.same(found, controller.wanted(free_port))
    if also_lost:
        (controller.run_dir / "lock").write_text("")
        with pytest.raises(ArtifactError) as caught:
            service.running()
        assert caught.value.fault.where == str(controller.run_dir / "lock") and "fuser" in caught.value.fault.fix
        service.kill(found)
        return
    assert controller.start(port=free_port, check_mode=True)["changed"]
    second = controller.start(port=free_port)
    assert second["pid"] != found["pid"] and ends(found["pid"]) and controller.get(second["url"], BODY) == BODY


def test_check_mode_starts_and_stops_nothing(controller):
    assert controller.start(check_mode=True)["changed"]
    assert not controller.run_dir.exists()
    missing = controller.start(check_mode=True, certificate="/nowhere/server.pem")
    assert missing["changed"] and missing["url"] == ""
    started = controller.start()
    assert not controller.start(check_mode=True)["changed"]
    assert controller.stop(check_mode=True)["changed"]
    assert controller.get(started["url"], BODY) == BODY


def test_a_taken_port_is_named(controller):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        failed = controller.start(port=taken.getsockname()[1])
    assert failed["failed"]
    assert "in use" in failed["fault"]["what"] and failed["fault"]["where"].startswith("127.0.0.1:")


def test_an_address_that_only_others_see_is_served_on_all_addresses(controller):
    started = controller.start(address="192.0.2.1")
    assert started["url"].startswith("https://192.0.2.1:")
    assert controller.get(started["url"].replace("192.0.2.1", "127.0.0.1"), BODY) == BODY


@pytest.mark.parametrize("problem", ["missing", "broken"])
def test_a_certificate_that_cannot_be_used_is_named(controller, problem):
    path = controller.root / "other.pem"
    if problem == "broken":
        path.write_text("no certificate")
    failed = controller.start(certificate=str(path))
    assert failed["failed"] and str(path) in failed["fault"]["where"]


@pytest.mark.parametrize("files", [{"tiny": "/models/tiny.gguf"}, {"a" * 64: "tiny.gguf"}])
def test_a_list_that_names_no_digest_or_no_path_is_refused(controller, files):
    assert controller.start(files=files)["fault"]["where"] == "files"
