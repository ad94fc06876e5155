# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The peer program with the real libtorrent: several hosts on this machine, each at an address of its own."""

from __future__ import annotations

import hashlib
import json
import random

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.swarm_client import PeerGone, PeerRefused
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.swarm_torrent import encode, piece_length
from ansible_collections.localfirst.llm_fleet.tests.unit.support.fleet_ca import FleetCa
from ansible_collections.localfirst.llm_fleet.tests.unit.support.swarm_hosts import SwarmHosts, has_libtorrent

pytestmark = pytest.mark.skipif(not has_libtorrent(), reason="needs python3-libtorrent")
BODY = random.Random(1).randbytes(3_000_001)
DIGEST = hashlib.sha256(BODY).hexdigest()
PIECE = piece_length(len(BODY))


@pytest.fixture
def swarm():
    with SwarmHosts() as made:
        yield made


def here(status: dict) -> bool:
    return status["state"] == "here"


def test_two_hosts_get_a_content_from_one_and_it_is_on_the_disk_then(swarm):
    seed, *others = swarm.add(3)
    swarm.mesh()
    torrent = swarm.torrent(BODY)
    seed.seed(BODY, torrent)
    paths = [other.want(DIGEST, torrent) for other in others]
    for other, path in zip(others, paths):
        other.until(DIGEST, here)
        assert other.peer.flush(DIGEST) == [[0, len(BODY)]]
        assert path.read_bytes() == BODY
    assert seed.peer.status(DIGEST)["sent"] >= len(BODY)


def test_whoever_holds_a_certificate_of_another_ca_gets_nothing_and_gives_nothing(swarm):
    stranger_ca = FleetCa(swarm.folder, "stranger")
    seed, friend = swarm.add(2)
    (stranger,) = swarm.add(1, ca=stranger_ca)
    swarm.mesh()
    torrent = swarm.torrent(BODY)
    seed.seed(BODY, torrent)
    # It has the fleet's torrent, and shows a certificate of its own.
    stranger.want(DIGEST, torrent)
    friend.want(DIGEST, torrent)
    friend.until(DIGEST, here)
    assert stranger.peer.status(DIGEST)["received"] == 0 and stranger.peer.drop(DIGEST) == []
    before = friend.peer.status(DIGEST)["received"] + seed.peer.status(DIGEST)["sent"]
    stranger.seed(BODY, torrent)
    stranger.until(DIGEST, here)
    assert stranger.peer.status(DIGEST)["sent"] == 0
    assert friend.peer.status(DIGEST)["received"] + seed.peer.status(DIGEST)["sent"] == before


def test_a_certificate_of_the_fleet_that_is_not_for_contents_is_refused(swarm):
    seed, other = swarm.add(2)
    other.stop()
    other.pair = swarm.ca.issue("client", client=True)
    other.start()
    swarm.mesh()
    torrent = swarm.torrent(BODY)
    seed.seed(BODY, torrent)
    other.want(DIGEST, torrent)
    with pytest.raises(AssertionError):
        other.until(DIGEST, here, seconds=8)
    assert other.peer.status(DIGEST)["received"] == 0


def test_a_killed_program_goes_on_with_what_was_flushed(swarm):
    seed, other = swarm.add(2)
    other.stop()
    other.start(download=400_000)
    swarm.mesh()
    torrent = swarm.torrent(BODY)
    seed.seed(BODY, torrent)
    path = other.want(DIGEST, torrent)
    other.until(DIGEST, lambda status: status["done"] > len(BODY) / 3)
    kept = other.peer.flush(DIGEST)
    other.kill()
    other.start(download=0)
    assert other.peer.overview() == {"ok": True, "contents": {}, "leases": ["test"]}  # with whom it had met
    other.want(DIGEST, torrent, here=kept)
    done = other.until(DIGEST, here)
    assert sum(end - begin for begin, end in kept) > len(BODY) / 4
    assert done["received"] - done["wasted"] <= len(BODY) - sum(end - begin for begin, end in kept) + PIECE
    other.peer.flush(DIGEST)
    assert path.read_bytes() == BODY


def test_what_it_hands_on_is_handed_on_again_after_it_was_killed(swarm):
    seed, other = swarm.add(2)
    swarm.mesh()
    torrent = swarm.torrent(BODY)
    seed.seed(BODY, torrent)
    seed.kill()
    seed.start()
    other.want(DIGEST, torrent)
    other.until(DIGEST, here)


def test_one_that_is_started_anew_while_runs_need_it_goes_on(swarm):
    seed, other = swarm.add(2)
    swarm.mesh()
    torrent = swarm.torrent(BODY)
    seed.seed(BODY, torrent)
    seed.stop()
    seed.start(upload=50_000_000)
    assert seed.peer.overview()["leases"] == ["test"]
    other.want(DIGEST, torrent)
    other.until(DIGEST, here)


def test_a_piece_that_became_wrong_is_found_and_comes_again_alone(swarm):
    seed, other = swarm.add(2)
    swarm.mesh()
    torrent = swarm.torrent(BODY)
    seed.seed(BODY, torrent)
    path = other.folder / f"{DIGEST}.part"
    path.write_bytes(BODY[:700_000] + bytes(4) + BODY[700_004:])
    other.peer.want(DIGEST, torrent, path, [[0, len(BODY)]])
    other.until(DIGEST, here)
    other.peer.recheck(DIGEST)
    done = other.until(DIGEST, lambda status: here(status) and status["received"] > 0)
    other.peer.flush(DIGEST)
    assert path.read_bytes() == BODY and done["received"] <= PIECE


def test_silence_is_told(swarm):
    seed, other = swarm.add(2)
    swarm.mesh()
    torrent = swarm.torrent(BODY)
    other.want(DIGEST, torrent)
    status = other.until(DIGEST, lambda status: status["state"] == "bringing")
    assert status["copies"] < 1 and status["done"] == 0
    assert other.peer.drop(DIGEST) == []
    with pytest.raises(PeerRefused, match="unknown content"):
        other.peer.status(DIGEST)
    assert seed.peer.overview()["contents"] == {}


def test_it_ends_with_the_last_lease_and_leaves_nothing(swarm):
    (host,) = swarm.add(1)
    host.meet(lease="one")
    host.meet(lease="two")
    assert host.peer.leave("one") == 1 and host.peer.leave("two") == 0
    assert host.process.wait(10) == 0
    assert sorted(path.name for path in host.folder.iterdir()) == ["config", "log"]
    with pytest.raises(PeerGone):
        host.peer.overview()


def test_it_ends_by_itself_when_nobody_asks_and_nothing_moves(swarm):
    (host,) = swarm.add(1)
    host.stop()
    host.start(idle=1)
    host.meet()
    assert host.process.wait(20) == 0


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"do": "fly"}, "unknown request"),
        ({"do": "seed", "digest": "a"}, "KeyError"),
        ({"do": "want", "digest": "a", "path": "/nowhere/a", "torrent": "bm8="}, "no torrent"),
    ],
)
def test_what_makes_no_sense_is_refused_and_it_goes_on(swarm, request_, said):
    (host,) = swarm.add(1)
    with pytest.raises(PeerRefused, match=said):
        host.peer.ask(request_.pop("do"), **request_)
    assert host.peer.overview()["contents"] == {}


def test_one_peer_that_cannot_be_called_ends_nothing(swarm):
    """What it took up from an earlier version may name what libtorrent does not even take for an address.

    It comes after all addresses here, so it is not this one's turn to wait for being called.
    """
    seed, other = swarm.add(2)
    other.stop()
    leases = {"test": [["9.0.0.300", 8446], [seed.address, 8446], ["10.0.0.1", 99999]]}
    (other.folder / "state").write_text(json.dumps({"leases": leases, "offers": {}}))
    other.start()
    torrent = swarm.torrent(BODY)
    seed.meet(other)
    seed.seed(BODY, torrent)
    other.want(DIGEST, torrent)
    other.until(DIGEST, here)
    assert (other.folder / "log").read_text().count("9.0.0.300, port 8446, cannot be called") == 1


@pytest.mark.parametrize("address", ["192.0.2.1", "taken"])
def test_where_it_cannot_listen_it_says_so_and_ends(swarm, address):
    host, other = swarm.add(2)
    other.stop()
    other.address = host.address if address == "taken" else address
    with pytest.raises(PeerGone):
        other.start(wait=3)
    assert other.process.wait(20) == 1
    assert f"cannot listen at {other.address}:8446" in (other.folder / "log").read_text()


def test_a_torrent_that_is_open_to_others_is_refused(swarm):
    (host,) = swarm.add(1)
    torrent = swarm.torrent(BODY)
    opened = [
        # A key of the same length, which nobody knows, takes another one's place.
        torrent.replace(b"8:ssl-cert", b"8:ssl-nope"),
        torrent.replace(b"7:privatei1e", b"7:prifatei1e"),
        swarm.torrent(BODY, FleetCa(swarm.folder, "stranger")),
        b"d" + encode({"announce": "http://10.9.9.9/a"})[1:-1] + torrent[1:],
        torrent[:-1] + encode({"url-list": "http://10.9.9.9/b"})[1:],
    ]
    for each in opened:
        assert each != torrent
        with pytest.raises(PeerRefused, match="only private torrents"):
            host.want(DIGEST, each)
    host.want(DIGEST, torrent)


def test_a_file_that_is_larger_than_its_torrent_says_is_not_handed_out(swarm):
    (host,) = swarm.add(1)
    with pytest.raises(PeerRefused, match="the torrent is for"):
        host.seed(BODY + b"more", swarm.torrent(BODY))
