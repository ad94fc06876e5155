# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""For how long peers are waited for, and what they, their program and depots may not cost.

What they bring is tested with real ones: modules/test_model_stage_peers.py.
"""

from __future__ import annotations

import errno
import json
import os

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import swarm_fetch
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import Artifact, ArtifactError, File
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_fetch import Limiter
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_part import Part
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.origins import Suppliers
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.swarm_client import Peer, PeerGone, PeerRefused
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.swarm_fetch import SwarmFetcher
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.swarm_torrent import make_torrent
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.web import DIRECT, Web
from ansible_collections.localfirst.llm_fleet.tests.unit.support.range_server import RangeServer
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import BODY, digest

PATIENCE = 60.0
CA = b"the fleet's CA"
FILE = File("tiny.gguf", len(BODY), digest(BODY))
ARTIFACT = Artifact("tiny", "1.0.0", "", (FILE,))
LONGEST = PATIENCE * swarm_fetch.TURNS + 1


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    sleep = None


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(swarm_fetch, "time", clock)
    return clock


def fetcher(host: str = "gpu1") -> SwarmFetcher:
    return SwarmFetcher([], Limiter(), Peer("/nowhere"), ca=b"", patience=PATIENCE, host=host)


def test_hosts_turn_to_the_depot_one_after_the_other(clock):
    hosts = [fetcher(f"gpu{number}") for number in range(50)]
    clock.now += PATIENCE
    assert not any(host.silence() for host in hosts)
    turns = []
    for _second in range(int(PATIENCE * swarm_fetch.TURNS)):
        clock.now += 1
        turns.append(sum(host.silence() > 0 for host in hosts))
    assert turns[-1] == 50 and len(set(turns)) > 20


def test_whoever_has_all_of_it_among_themselves_is_given_longer(clock):
    waiting = fetcher()
    clock.now += LONGEST
    assert waiting.silence() and not waiting.silence(times=4)


def test_peers_that_were_silent_once_are_given_less_time_with_the_next_file(clock):
    waiting = fetcher()
    clock.now += LONGEST
    assert waiting.silence()
    waiting.give_up()
    waiting.begin_to_wait()
    assert not waiting.silence()
    clock.now += LONGEST / swarm_fetch.SILENT
    assert waiting.silence()
    # They are there again.
    waiting.came()
    clock.now += LONGEST / swarm_fetch.SILENT
    assert not waiting.silence()


class Program(Peer):
    """A double of the peer program: it answers what a test gives, and otherwise that it has this file and its peers bring nothing."""

    def __init__(self, **answers) -> None:
        super().__init__("/nowhere")
        self.answers = answers
        self.here: list = []
        self.descriptor = -1
        self.asked: list[str] = []

    def ask(self, what, **arguments):
        self.asked.append(what if arguments or what != "status" else "overview")
        answer = self.answers.get(self.asked[-1], getattr(self, f"_{self.asked[-1]}"))
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if isinstance(answer, Exception):
            raise answer
        return answer(**arguments) if callable(answer) else answer

    def _want(self, path, here, **_arguments) -> dict:
        self.here, self.descriptor = here, os.open(path, os.O_RDWR)
        return {}

    def _overview(self) -> dict:
        return {"contents": {FILE.sha256: {}}}

    def _status(self, **_arguments) -> dict:
        return {"state": "bringing", "done": 0, "received": 0, "peers": 0, "copies": 0}

    def _flush(self, **_arguments) -> dict:
        return {"here": self.here}

    _drop = _flush

    def _seed(self, **_arguments) -> dict:
        return {}


@pytest.fixture
def depot(tmp_path):
    with RangeServer() as server:
        server.add(f"/blobs/sha256/{FILE.sha256}", BODY)
        server.add(f"/torrents/sha256/{FILE.sha256}.torrent", torrent(tmp_path, BODY))
        yield server


def torrent(folder, body: bytes) -> bytes:
    path = folder / "body"
    path.write_bytes(body)
    return make_torrent(path, CA)


def suppliers(*servers: RangeServer, pauses: list, host: str = "gpu1", **options) -> Suppliers:
    web = Web(**{"proxy": DIRECT, "timeout": 5, "retries": 2, "pause": pauses.append, **options})
    return Suppliers([server.url for server in servers], web, host)


def asking(program: Peer, *servers: RangeServer, limiter: Limiter | None = None, patience: float = 0, **options) -> SwarmFetcher:
    origin = suppliers(*servers, **{"pauses": [], **options})
    timing = {"patience": patience, "host": "gpu1", "pause": lambda _seconds: None}
    return SwarmFetcher([origin], limiter or Limiter(), program, ca=CA, **timing)


def first_of(server: RangeServer, *others: RangeServer, files: list[File]) -> str:
    """A host that begins with this server for each of these files."""
    urls = [each.url for each in (server, *others)]
    return next(
        host for host in map(str, range(999))
        if all(Suppliers(urls, None, host).torrents(file)[0].url.startswith(server.url) for file in files)
    )  # fmt: skip


STUCK = PeerRefused("drop: the disk did not take what has arrived within 30 seconds")


def gone(cause: Exception) -> PeerGone:
    error = PeerGone("it does not answer")
    error.__cause__ = cause
    return error


SILENT = gone(TimeoutError())


@pytest.mark.parametrize(
    "answers",
    [{"drop": STUCK}, {"status": SILENT, "drop": SILENT, "overview": [{"contents": {}}, SILENT]}],
    ids=["its disk stands still", "it hangs"],
)
def test_a_file_that_the_program_does_not_let_go_of_is_left_to_it(depot, tmp_path, answers):
    program, path = Program(**answers), tmp_path / f"{FILE.sha256}.part"
    path.write_bytes(bytes(1_000_000) + BODY[1_000_000:1_500_000])
    path.with_suffix(".have").write_text(json.dumps([[1_000_000, 1_500_000]]))
    with Part.take(path, FILE) as part:
        asking(program, depot).fetch(ARTIFACT, FILE, part)
        os.pwrite(program.descriptor, bytes(16384), 1 << 20)  # what it had in its queue all the time
        assert path.read_bytes() == BODY and "drop" in program.asked
        assert Part.take(path, FILE) is None
        assert not path.with_suffix(".part-new").exists()
    # What peers had brought was not lost by that.
    assert [headers.get("range") for _path, headers in depot.requests[1:]] == ["bytes=0-999999", "bytes=1500000-"]


@pytest.mark.parametrize("overview", [{"contents": {}}, gone(ConnectionRefusedError()), gone(FileNotFoundError())])
def test_a_program_that_ended_has_let_go(depot, tmp_path, overview):
    program = Program(drop=PeerRefused("unknown content"), overview=[{"contents": {}}, overview])
    with Part.take(tmp_path / f"{FILE.sha256}.part", FILE) as part:
        inode = os.fstat(part.handle.fileno()).st_ino
        asking(program, depot).fetch(ARTIFACT, FILE, part)
        assert os.fstat(part.handle.fileno()).st_ino == inode and part.path.read_bytes() == BODY


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to somebody else")
@pytest.mark.parametrize("drop", [{"here": []}, PeerRefused("unknown content")])
def test_a_file_that_was_the_programs_to_write_is_ours_again(depot, tmp_path, drop):
    """Its owner is who may write: a file that is still the program's is left to it by whoever comes later."""
    program = Program(drop=drop, overview={"contents": {}})
    program.user = 65534
    with Part.take(tmp_path / f"{FILE.sha256}.part", FILE) as part:
        inode = os.fstat(part.handle.fileno()).st_ino
        asking(program, depot).fetch(ARTIFACT, FILE, part)
        status = os.fstat(part.handle.fileno())
        assert os.fstat(program.descriptor).st_ino == inode == status.st_ino and status.st_uid == 0


@pytest.mark.parametrize("after", [0, 1], ids=["before it wants the file", "while it comes"])
def test_a_disk_that_is_too_full_for_the_note_takes_the_file_from_the_program(depot, tmp_path, monkeypatch, after):
    """It would go on to write where nobody finds it, on a disk that is full."""
    monkeypatch.setattr(swarm_fetch, "FLUSH", -1)
    replace, notes = os.replace, []

    def full(source, target):
        notes.append(target)
        if len(notes) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    program = Program()
    with Part.take(tmp_path / f"{FILE.sha256}.part", FILE) as part, pytest.raises(ArtifactError, match=r"(?i)no space"):
        asking(program, depot, patience=60).fetch(ARTIFACT, FILE, part)
    assert program.asked[-1] == "drop" and not part.path.exists()


def test_whatever_ends_the_fetching_takes_the_file_from_the_program(depot, tmp_path):
    program = Program(status={"state": "bringing"})  # of a version that says other things
    with Part.take(tmp_path / f"{FILE.sha256}.part", FILE) as part:
        with pytest.raises(KeyError):
            asking(program, depot, patience=60).fetch(ARTIFACT, FILE, part)
        assert program.asked[-1] == "drop" and part.path.exists()


def test_what_peers_bring_is_within_the_limit_of_the_host(depot, tmp_path):
    waited: list[float] = []
    limiter = Limiter(1000, clock=lambda: 0.0, pause=waited.append)
    program = Program(status=[{**Program()._status(), "received": 3000}, {**Program()._status(), "received": 4000, "state": "here"}])
    with Part.take(tmp_path / f"{FILE.sha256}.part", FILE) as part:
        part.handle.write(BODY)
        asking(program, depot, limiter=limiter, patience=60).fetch(ARTIFACT, FILE, part)
    limiter.take(1)
    assert waited == [pytest.approx(4.001)]


def test_peers_that_take_all_of_the_rate_do_not_stop_http_for_good():
    waited: list[float] = []
    limiter = Limiter(1000, clock=lambda: 0.0, pause=waited.append)
    for _look in range(100):
        limiter.count(1000, swarm_fetch.STALL)
    limiter.take(1)
    assert waited == [pytest.approx(swarm_fetch.STALL + 0.001)]


@pytest.fixture
def other(tmp_path):
    with RangeServer() as server:
        yield server


def test_a_supplier_that_is_down_is_not_waited_for_while_another_has_the_torrent(depot, other, tmp_path):
    second = File("b", len(BODY), digest(b"b"))
    depot.add(f"/torrents/sha256/{second.sha256}.torrent", torrent(tmp_path, BODY))
    for file in (FILE, second):
        other.add(f"/torrents/sha256/{file.sha256}.torrent", statuses=[503] * 9)
    pauses: list[float] = []
    fetcher = asking(Program(), other, depot, pauses=pauses, host=first_of(other, depot, files=[FILE, second]))
    for file in (FILE, second):
        fetcher.arrived(ARTIFACT, file, tmp_path)
    assert fetcher.peer.asked == ["seed", "seed"]
    assert not pauses and len(other.requests) == 1


def test_suppliers_that_are_all_down_are_waited_for_once_a_run(depot, tmp_path):
    second = File("b", len(BODY), digest(b"b"))
    path = f"/torrents/sha256/{second.sha256}.torrent"
    resource = depot.resources[f"/torrents/sha256/{FILE.sha256}.torrent"]
    resource.statuses = [503, 503, 503]
    depot.add(path, statuses=[503])
    pauses: list[float] = []
    fetcher = asking(Program(), depot, pauses=pauses)
    fetcher.arrived(ARTIFACT, FILE, tmp_path)
    assert len(pauses) == 2 and len(depot.requests) == 3
    fetcher.arrived(ARTIFACT, second, tmp_path)
    assert len(pauses) == 2 and len(depot.requests) == 4 and not fetcher.peer.asked
    # One that is there again is asked as ever.
    third = File("c", len(BODY), digest(b"c"))
    depot.add(f"/torrents/sha256/{third.sha256}.torrent", torrent(tmp_path, BODY))
    fetcher.arrived(ARTIFACT, third, tmp_path)
    assert fetcher.peer.asked == ["seed"]
