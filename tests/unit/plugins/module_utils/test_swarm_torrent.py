# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Torrents, beside those that libtorrent itself makes of the same files."""

from __future__ import annotations

import json
import random
import subprocess

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.swarm_torrent import (
    BLOCK,
    LARGEST,
    NAME,
    SMALLEST,
    encode,
    fits,
    make_torrent,
    piece_length,
)
from ansible_collections.localfirst.llm_fleet.tests.unit.support.swarm_hosts import PYTHON, has_libtorrent

CA = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
# What libtorrent reads in a torrent, and what it makes of the same file.
THEIRS = """
import json, os, sys
import libtorrent as lt
torrent, path = sys.argv[1:]
mine = lt.bdecode(open(torrent, "rb").read())
info = lt.torrent_info(torrent)
files = lt.file_storage()
lt.add_files(files, path)
made = lt.create_torrent(files, info.piece_length(), lt.create_torrent.v2_only)
lt.set_piece_hashes(made, os.path.dirname(path))
theirs = made.generate()
root = lambda torrent: list(torrent[b"info"][b"file tree"].values())[0][b""][b"pieces root"].hex()
layers = lambda torrent: [each.hex() for each in torrent.get(b"piece layers", {}).values()]
print(json.dumps({
    "roots": [root(mine), root(theirs)], "layers": [layers(mine), layers(theirs)], "private": info.priv(), "name": info.name(),
    "v1": info.info_hashes().has_v1(), "ca": mine[b"info"][b"ssl-cert"].decode(),
}))
"""


@pytest.mark.skipif(not has_libtorrent(), reason="needs python3-libtorrent")
@pytest.mark.parametrize("size", [1, BLOCK, SMALLEST - 1, SMALLEST, SMALLEST + 1, 3 * SMALLEST, 5 * SMALLEST + 17, 8 * SMALLEST])
def test_a_torrent_is_the_one_that_libtorrent_makes(tmp_path, size):
    path, torrent = tmp_path / "file", tmp_path / "torrent"
    path.write_bytes(random.Random(size).randbytes(size))
    torrent.write_bytes(make_torrent(path, CA))
    done = subprocess.run([PYTHON, "-c", THEIRS, torrent, path], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert told["roots"][0] == told["roots"][1] and told["layers"][0] == told["layers"][1]
    assert told["private"] and not told["v1"] and told["name"] == NAME and told["ca"] == CA.decode()


def test_an_empty_file_has_none(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="empty"):
        make_torrent(tmp_path / "file", CA)


@pytest.mark.parametrize("size", [1, 10**6, 10**8, 10**9, 10**10, 10**11, 10**12])
def test_pieces_are_neither_too_many_nor_too_large(size):
    length = piece_length(size)
    assert SMALLEST <= length <= LARGEST and length & (length - 1) == 0
    if SMALLEST < length < LARGEST:
        assert 1000 < size / length <= 2048


def test_a_torrent_fits_one_ca_and_one_size(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(300_000))
    torrent = make_torrent(path, CA)
    assert fits(torrent, 300_000, CA)
    assert not fits(torrent, 300_001, CA) and not fits(torrent, 30_000, CA) and not fits(torrent, 300_000, CA + b"\n")
    assert not fits(b"<html>", 300_000, CA)


def test_what_says_more_than_ours_or_something_else_does_not_fit(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(300_000))
    ours, strangers = make_torrent(path, CA), make_torrent(path, b"another CA")
    # A torrent of somebody else that says what is looked for where nobody reads it.
    assert not fits(b"d" + encode({"aaa": {"length": 200_000, "ssl-cert": CA}})[1:-1] + strangers[1:], 200_000, CA)
    assert not fits(b"d" + encode({"announce": "http://10.0.0.1/"})[1:-1] + ours[1:], 300_000, CA)
    assert not fits(ours[:-1] + encode({"url-list": "http://10.0.0.1/"})[1:], 300_000, CA)
    assert not fits(ours[:-1], 300_000, CA) and not fits(b"", 300_000, CA)


@pytest.mark.parametrize("size", [1, SMALLEST, SMALLEST + 1, 5 * SMALLEST + 17])
def test_ours_fits_whatever_its_size(tmp_path, size):
    path = tmp_path / "file"
    path.write_bytes(random.Random(size).randbytes(size))
    assert fits(make_torrent(path, CA), size, CA)


def test_bencode_sorts_by_bytes_and_refuses_what_it_has_no_word_for():
    assert encode({"b": b"\xff", "a": -1, "aa": {"x": "é"}}) == "d1:ai-1e2:aad1:x2:ée1:b1:".encode() + b"\xffe"
    with pytest.raises(TypeError, match="float"):
        encode({"a": 1.5})
