# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The description of a content by which hosts bring it to each other: a torrent, BitTorrent v2, private, for the fleet's CA only.

A torrent is no anchor of trust. It tells peers in pieces what each of them has; whether the whole is right is decided by
the SHA-256 of the lockfile, as on every other way into a store.

All contents have the same name in their torrents: peers accept each other's certificates for that name, and for no other.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

NAME = "llm-fleet-content"
BLOCK = 16384  # what BitTorrent v2 hashes first
SMALLEST, LARGEST = 128 * 1024, 16 * 1024 * 1024  # bytes of a piece
PIECES = 2048  # as many of them as that allows: fewer keep peers waiting for each other, more cost messages
ROOT = b"11:pieces root32:"  # what comes before it in a torrent
HASHERS = min(4, os.cpu_count() or 1)


def piece_length(size: int) -> int:
    """Bytes of a piece, a power of two."""
    length = SMALLEST
    while length < LARGEST and length * PIECES < size:
        length *= 2
    return length


def make_torrent(path: Path, ca: bytes) -> bytes:
    """The torrent of a file, for those who hold a certificate of this CA (PEM). Reads all of the file."""
    size = path.stat().st_size
    if not size:
        raise ValueError("an empty file has no torrent")
    length = piece_length(size)
    with path.open("rb", buffering=0) as handle, ThreadPoolExecutor(HASHERS) as executor:
        pieces = list(executor.map(lambda begin: _piece(handle.fileno(), begin, min(length, size - begin), length), range(0, size, length)))
    if len(pieces) > 1:
        return _torrent(size, ca, _root(pieces, _root([bytes(32)] * (length // BLOCK), bytes(32))), b"".join(pieces))
    # Where there is one piece, its tree is no larger than the file.
    with path.open("rb") as handle:
        return _torrent(size, ca, _root(_leaves(handle.read()), bytes(32)), b"")


def fits(torrent: bytes, size: int, ca: bytes) -> bool:
    """Whether a torrent that is there is one of ours, for this CA and a content of this size: only its hashes are taken on trust."""
    begin = torrent.find(ROOT) + len(ROOT)
    count = -(-size // piece_length(size))
    pieces = torrent[-2 - 32 * count : -2] if count > 1 else b""
    return torrent == _torrent(size, ca, torrent[begin : begin + 32], pieces)


def _torrent(size: int, ca: bytes, root: bytes, pieces: bytes) -> bytes:
    info = {
        "file tree": {NAME: {"": {"length": size, "pieces root": root}}},
        "meta version": 2,
        "name": NAME,
        "piece length": piece_length(size),
        "private": 1,
        "ssl-cert": ca,
    }
    return encode({"info": info, "piece layers": {root: pieces} if pieces else {}})


def encode(value: Any) -> bytes:
    """Bencode: how torrents are written."""
    if isinstance(value, int):
        return b"i%de" % value
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        return b"%d:%s" % (len(value), value)
    if isinstance(value, Mapping):
        pairs = sorted((key.encode() if isinstance(key, str) else key, each) for key, each in value.items())
        return b"d" + b"".join(encode(key) + encode(each) for key, each in pairs) + b"e"
    raise TypeError(f"bencode has no {type(value).__name__}")


def _piece(descriptor: int, begin: int, count: int, length: int) -> bytes:
    """The root of one piece; threads read side by side."""
    data = bytearray(count)
    view, done = memoryview(data), 0
    while done < count:
        read = os.preadv(descriptor, [view[done:]], begin + done)
        if not read:
            raise ValueError("the file became shorter while it was read")
        done += read
    leaves = _leaves(view)
    return _root(leaves + [bytes(32)] * (length // BLOCK - len(leaves)), bytes(32))


def _leaves(data: Any) -> list[bytes]:
    return [hashlib.sha256(data[begin : begin + BLOCK]).digest() for begin in range(0, len(data), BLOCK)]


def _root(hashes: list[bytes], padding: bytes) -> bytes:
    """The root of a tree, filled up to a power of two with `padding`."""
    while len(hashes) > 1:
        if len(hashes) % 2:
            hashes = [*hashes, padding]
        hashes = [hashlib.sha256(hashes[index] + hashes[index + 1]).digest() for index in range(0, len(hashes), 2)]
        padding = hashlib.sha256(padding + padding).digest()
    return hashes[0]
