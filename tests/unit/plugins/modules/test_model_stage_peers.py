# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Staging where hosts bring each other files: real peer programs, a web server for a depot, and what goes wrong between them."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.swarm_torrent import piece_length
from ansible_collections.localfirst.llm_fleet.tests.unit.support import module_process
from ansible_collections.localfirst.llm_fleet.tests.unit.support.fleet_ca import FleetCa
from ansible_collections.localfirst.llm_fleet.tests.unit.support.range_server import RangeServer
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import digest, entry, leftovers, tree_of
from ansible_collections.localfirst.llm_fleet.tests.unit.support.swarm_hosts import SwarmHost, SwarmHosts, has_libtorrent

pytestmark = pytest.mark.skipif(not has_libtorrent(), reason="needs python3-libtorrent")
REPO = Path(__file__).resolve().parents[4]
BODY = random.Random(3).randbytes(3_000_001)
OTHER = random.Random(4).randbytes(2_000_000)
PIECE = piece_length(len(BODY))
FILES = {"config.json": b"{}", "tiny.gguf": BODY}


class Fleet:
    """A depot and nodes."""

    def __init__(self, swarm: SwarmHosts, server: RangeServer) -> None:
        self.swarm = swarm
        self.server = server

    def serve(self, *bodies: bytes, torrents: bool = True, ca: FleetCa | None = None) -> None:
        """What the depot has over HTTP."""
        for body in bodies:
            self.server.add(f"/blobs/sha256/{digest(body)}", body)
            if torrents and len(body) > 2:
                self.server.add(f"/torrents/sha256/{digest(body)}.torrent", self.swarm.torrent(body, ca))

    def store(self, node: SwarmHost) -> Path:
        return node.folder / "store"

    def arguments(self, node: SwarmHost, files=None, **arguments) -> dict:
        artifact = {"model": "tiny", "version": "1.0.0", "files": [entry(path, body) for path, body in (files or FILES).items()]}
        given = {
            "store": str(self.store(node)), "artifacts": [artifact], "suppliers": [self.server.url], "reserve": 0, "retries": 0,
            "timeout": 20, "ca_path": self.swarm.ca.pem, "peer": node.peer.path, "peer_patience": 60,
            "_ansible_remote_tmp": str(node.folder / "tmp"),
        }
        return {**given, **arguments}

    def stage(self, node: SwarmHost, files=None, **arguments) -> dict:
        return module_process.call("model_stage", self.arguments(node, files, **arguments), dict(os.environ))

    def begin(self, node: SwarmHost, files=None, **arguments) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, str(REPO / "plugins/modules/model_stage.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(REPO / ".venv/collections")},
        )
        process.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": self.arguments(node, files, **arguments)}).encode())
        process.stdin.close()
        return process

    def over_http(self, body: bytes) -> list[str | None]:
        """The ranges of a content that were asked of the depot."""
        return [headers.get("range") for path, headers in self.server.requests if path == f"/blobs/sha256/{digest(body)}"]


def ended(process: subprocess.Popen) -> dict:
    with process:
        output, errors = process.stdout.read(), process.stderr.read()
    assert output.strip(), errors.decode()
    return json.loads(output)


@pytest.fixture
def fleet():
    with SwarmHosts() as swarm, RangeServer() as server:
        yield Fleet(swarm, server)


def test_nodes_bring_each_other_what_the_seed_has_and_hand_it_on(fleet):
    seed, first, second = fleet.swarm.add(3)
    fleet.swarm.mesh()
    fleet.serve(b"{}", BODY)
    seed.seed(BODY, fleet.swarm.torrent(BODY))
    result = fleet.stage(first)
    assert result["changed"] and result["bytes_from_peers"] >= len(BODY) and fleet.over_http(BODY) == []
    assert tree_of(fleet.store(first)) == FILES
    assert leftovers(fleet.store(first)) == sorted(
        [f"blobs/sha256/{digest(body)}" for body in FILES.values()] + [f"models/tiny/1.0.0/{path}" for path in FILES]
    )
    # The first one hands on what it has, so that the second needs no seed.
    seed.stop()
    second.meet(first)
    result = fleet.stage(second)
    assert result["bytes_from_peers"] >= len(BODY) and fleet.over_http(BODY) == []
    assert not fleet.stage(second)["changed"]


def test_files_of_a_version_come_at_once(fleet):
    seed, node = fleet.swarm.add(2)
    seed.stop()
    seed.start(upload=500_000)
    fleet.swarm.mesh()
    bodies = (BODY, OTHER)
    fleet.serve(b"{}", *bodies)
    for body in bodies:
        seed.seed(body, fleet.swarm.torrent(body))
    files = {"config.json": b"{}", "a.gguf": BODY, "b.gguf": OTHER}
    run = fleet.begin(node, files)
    for body in bodies:
        node.until(digest(body), lambda status: status["done"] > 0)
    assert [node.peer.status(digest(body))["state"] for body in bodies] == ["bringing", "bringing"]
    result = ended(run)
    assert result.get("changed"), result
    assert tree_of(fleet.store(node)) == files and fleet.over_http(BODY) == fleet.over_http(OTHER) == []
    assert result["bytes_moved"] == result["bytes_from_peers"] + 2
    # Told in the order of the lockfile, in whatever order they were complete.
    told = [action.split(": ")[1].split(" (")[0] for action in result["actions"]]
    assert told[:3] == ["fetch a.gguf", "fetch b.gguf", "fetch config.json"]


def test_what_peers_do_not_bring_comes_from_the_depot_and_only_that(fleet):
    seed, node = fleet.swarm.add(2)
    seed.stop()
    seed.start(upload=400_000)
    fleet.swarm.mesh()
    fleet.serve(b"{}", BODY)
    seed.seed(BODY, fleet.swarm.torrent(BODY))
    run = fleet.begin(node, peer_patience=5)
    node.until(digest(BODY), lambda status: status["done"] > len(BODY) / 3)
    seed.kill()
    result = ended(run)
    assert result.get("changed"), result
    assert tree_of(fleet.store(node)) == FILES and result["bytes_from_peers"] > len(BODY) / 4
    assert result["bytes_moved"] < 1.5 * len(BODY)  # pieces that were on their way when the seed went are brought again
    assert fleet.over_http(BODY) and None not in fleet.over_http(BODY)
    # By now it hands on what came that way, too.
    assert node.peer.status(digest(BODY))["state"] == "here"


def test_without_a_program_it_is_the_depots_turn(fleet, monkeypatch):
    (node,) = fleet.swarm.add(1)
    fleet.serve(b"{}", BODY)
    node.kill()
    result = fleet.stage(node)
    assert result["changed"] and result["bytes_from_peers"] == 0 and tree_of(fleet.store(node)) == FILES


@pytest.mark.parametrize("torrents", ["none", "another CA's"])
def test_without_a_torrent_of_the_fleet_peers_are_not_asked(fleet, torrents):
    (node,) = fleet.swarm.add(1)
    fleet.serve(b"{}", BODY, torrents=torrents != "none", ca=FleetCa(fleet.swarm.folder, "other"))
    result = fleet.stage(node)
    assert result["changed"] and result["bytes_from_peers"] == 0 and fleet.over_http(BODY) == [None]


def test_a_killed_program_is_asked_again_and_goes_on(fleet):
    seed, node = fleet.swarm.add(2)
    node.stop()
    node.start(download=300_000)
    fleet.swarm.mesh()
    fleet.serve(b"{}", BODY)
    seed.seed(BODY, fleet.swarm.torrent(BODY))
    run = fleet.begin(node)
    part = fleet.store(node) / "incoming" / f"{digest(BODY)}.have"
    deadline = time.monotonic() + 60
    while not (part.exists() and json.loads(part.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    node.kill()
    node.start(download=0)
    result = ended(run)
    assert result.get("changed"), result
    assert tree_of(fleet.store(node)) == FILES and fleet.over_http(BODY) == []


def test_a_killed_run_leaves_what_the_next_one_goes_on_with(fleet):
    seed, node = fleet.swarm.add(2)
    node.stop()
    node.start(download=300_000)
    fleet.swarm.mesh()
    fleet.serve(b"{}", BODY)
    seed.seed(BODY, fleet.swarm.torrent(BODY))
    run = fleet.begin(node)
    note = fleet.store(node) / "incoming" / f"{digest(BODY)}.have"
    deadline = time.monotonic() + 60
    while not (note.exists() and json.loads(note.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    run.kill()
    run.wait()
    kept = sum(end - begin for begin, end in json.loads(note.read_text()))
    seen = fleet.stage(node, _ansible_check_mode=True)
    assert seen["bytes_moved"] == len(BODY) - kept and "continue tiny.gguf" in " ".join(seen["actions"])
    # Over HTTP this time: only what is not there is asked for.
    node.stop()
    before = fleet.server.sent
    result = fleet.stage(node, peer=None)
    assert result["bytes_moved"] == len(BODY) - kept and fleet.server.sent - before == len(BODY) - kept
    assert tree_of(fleet.store(node)) == FILES


def test_a_piece_that_became_wrong_meanwhile_comes_again_alone(fleet):
    seed, node = fleet.swarm.add(2)
    fleet.swarm.mesh()
    fleet.serve(b"{}", BODY)
    seed.seed(BODY, fleet.swarm.torrent(BODY))
    incoming = fleet.store(node) / "incoming"
    incoming.mkdir(parents=True)
    # What an earlier run left, with four bytes that a disk has lost.
    (incoming / f"{digest(BODY)}.part").write_bytes(BODY[:1_000_000] + bytes(4) + BODY[1_000_004:])
    (incoming / f"{digest(BODY)}.have").write_text(json.dumps([[0, len(BODY)]]))
    result = fleet.stage(node)
    assert tree_of(fleet.store(node)) == FILES and fleet.over_http(BODY) == []
    assert 0 < result["bytes_from_peers"] <= PIECE


def test_a_version_that_shares_files_with_another_brings_only_the_rest(fleet):
    seed, node = fleet.swarm.add(2)
    fleet.swarm.mesh()
    fleet.serve(b"{}", BODY, OTHER)
    for body in (BODY, OTHER):
        seed.seed(body, fleet.swarm.torrent(body))
    fleet.stage(node)
    next_version = {"model": "tiny", "version": "1.1.0", "files": [entry("a.gguf", BODY), entry("b.gguf", OTHER)]}
    result = fleet.stage(node, artifacts=[next_version])
    assert len(OTHER) <= result["bytes_from_peers"] < len(OTHER) + len(BODY) / 2


def test_wrong_bytes_of_a_torrent_are_found_by_the_lockfiles_digest(fleet):
    """A torrent that a depot made of other bytes: peers agree on them, and the digest does not."""
    seed, node = fleet.swarm.add(2)
    fleet.swarm.mesh()
    fleet.serve(b"{}", BODY)
    wrong = BODY[:-1] + bytes([BODY[-1] ^ 1])
    torrent = fleet.swarm.torrent(wrong)
    fleet.server.add(f"/torrents/sha256/{digest(BODY)}.torrent", torrent)
    path = seed.folder / "wrong"
    path.write_bytes(wrong)
    seed.peer.seed(digest(BODY), torrent, path)
    result = fleet.stage(node)
    assert result.get("changed"), result
    assert tree_of(fleet.store(node)) == FILES and fleet.over_http(BODY) == [None]


def test_a_full_disk_fails_as_over_http_and_leaves_nothing(fleet, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root, to make a small file system")
    seed, node = fleet.swarm.add(2)
    seed.stop()
    seed.start(upload=1_000_000)
    fleet.swarm.mesh()
    fleet.serve(b"{}", BODY)
    seed.seed(BODY, fleet.swarm.torrent(BODY))
    fleet.store(node).mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(fleet.store(node))])
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    try:
        # What fills the disk after the look at its space.
        (fleet.store(node) / "else").write_bytes(bytes(800_000))
        run = fleet.begin(node)
        node.until(digest(BODY), lambda status: status["done"] > 500_000)
        (fleet.store(node) / "filler").write_bytes(bytes(1_500_000))
        result = ended(run)
        assert result.get("failed") and result["fault"]["what"] == "no space left on device", result
        assert not list((fleet.store(node) / "incoming").glob("*.part"))
    finally:
        node.stop()
        subprocess.run(["umount", "-l", str(fleet.store(node))], check=True)


def test_check_mode_needs_neither_program_nor_certificates(fleet):
    (node,) = fleet.swarm.add(1)
    node.stop()
    result = fleet.stage(node, ca_path="/nowhere/ca.pem", peer="/nowhere/control", _ansible_check_mode=True)
    assert result["changed"] and result["bytes_moved"] == len(BODY) + 2 and not fleet.store(node).exists()
