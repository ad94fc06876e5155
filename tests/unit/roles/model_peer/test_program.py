# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What the program keeps and forgets, with a double for what moves contents, and a clock of the test's own."""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.tests.unit.support.swarm_hosts import PROGRAM

TORRENT = "ZGU="


class Swarm:
    """Stands for the program's swarm: every content that is taken up has the state that the test says."""

    def __init__(self, trouble: type[Exception]) -> None:
        self.trouble = trouble
        self.contents: dict[str, Swarm.Content] = {}
        self.peers: set = set()

    class Content:
        state = "here"

        def status(self) -> dict:
            return {"state": self.state}

    def add(self, digest, _torrent, _path, _here) -> None:
        self.contents[digest] = self.Content()

    def content(self, digest):
        if digest not in self.contents:
            raise self.trouble("unknown content")
        return self.contents[digest]

    def drop(self, digest) -> list:
        self.content(digest)
        del self.contents[digest]
        return []

    def recheck(self, digest) -> None:
        self.content(digest).state = "checking"

    def watch(self) -> None:
        pass

    def moved(self) -> int:
        return 0


class Host:
    """Programs of one host, one after the other."""

    def __init__(self, module, folder: Path) -> None:
        self.module = module
        self.folder = folder
        self.state = folder / "state.json"
        self.now = 0.0
        self.start()

    def start(self) -> None:
        self.program = self.module.Program({"state": str(self.state)}, Swarm(self.module.Trouble), lambda: self.now)

    def ask(self, what: str, **arguments) -> dict:
        return self.program.answer({"do": what, **arguments})

    def seed(self, digest: str) -> Path:
        path = self.folder / digest
        path.write_bytes(b"all of it")
        assert self.ask("seed", digest=digest, torrent=TORRENT, path=str(path)) == {"ok": True}
        return path

    def want(self, digest: str) -> None:
        assert self.ask("want", digest=digest, torrent=TORRENT, path="/store/incoming/part") == {"ok": True}

    def later(self) -> None:
        self.now += self.module.FORGOTTEN + 1
        self.program.tick()

    def held(self) -> list[str]:
        return sorted(self.program.swarm.contents)


@pytest.fixture
def host(tmp_path, monkeypatch):
    names = ("program", "swarm")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "libtorrent", types.SimpleNamespace(torrent_handle=None, add_torrent_params=None))
    monkeypatch.syspath_prepend(PROGRAM)
    yield Host(importlib.import_module("program"), tmp_path)
    for name in names:
        sys.modules.pop(name, None)


def test_what_nobody_asks_about_is_forgotten_and_what_is_complete_is_not(host):
    host.want("complete")
    host.want("half")
    host.program.swarm.contents["half"].state = "bringing"
    host.later()
    assert host.held() == ["complete"]


def test_what_is_read_again_after_a_long_verification_is_not_forgotten_at_once(host):
    host.want("a")
    host.later()
    assert host.ask("recheck", digest="a") == {"ok": True}
    host.program.tick()
    assert host.held() == ["a"]
    host.later()
    assert host.held() == []


def test_a_blob_that_is_gone_ends_nothing(host):
    host.ask("join", lease="one", peers=[["10.0.0.1", 8446]])
    gone = host.seed("gone")
    host.seed("there")
    gone.unlink()
    host.start()
    assert host.held() == ["there"] and host.program.swarm.peers == {("10.0.0.1", 8446)}
    assert list(json.loads(host.state.read_text())["offers"]) == ["there"]
    assert "No such file" in host.ask("seed", digest="gone", torrent=TORRENT, path=str(gone))["error"]


def test_what_is_brought_anew_is_no_longer_handed_out_after_a_kill(host):
    host.seed("a")
    host.want("a")
    host.start()
    assert host.held() == []


@pytest.mark.parametrize("address", ["10.0.0.300", "1.2.3", "abc", "1::2::3", ""])
def test_a_peer_at_what_is_no_address_is_refused_by_name(host, address):
    host.ask("join", lease="one", peers=[["10.0.0.1", 8446]])
    answer = host.ask("join", lease="two", peers=[["10.0.0.2", 8446], [address, 8446]])
    assert f"{address!r}: that is no IP address" in answer["error"]
    assert host.program.swarm.peers == {("10.0.0.1", 8446)} and list(json.loads(host.state.read_text())["leases"]) == ["one"]


@pytest.mark.parametrize("port", [0, 65536, float("inf")])
def test_a_peer_at_what_is_no_port_is_refused(host, port):
    assert "error" in host.ask("join", lease="one", peers=[["10.0.0.2", port]]) and not host.program.swarm.peers


def test_a_peer_is_known_by_its_address_however_it_is_written(host):
    host.ask("join", lease="one", peers=[["FD00:0::5", 8446]])
    assert host.program.swarm.peers == {("fd00::5", 8446)}
