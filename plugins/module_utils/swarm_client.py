# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Talks to this host's peer program (role model_peer): a line of JSON there, a line of JSON back."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Callable

TIMEOUT = 60.0  # seconds for an answer: flushing waits for the disk


class PeerGone(Exception):
    """The program does not answer: it has not begun, has ended, was killed, or has other things to wait for."""

    @property
    def nobody(self) -> bool:
        """Whether there is none. One that says nothing in time may wait for its disk, while other runs need it."""
        return isinstance(self.__cause__, (FileNotFoundError, ConnectionRefusedError))


class PeerRefused(Exception):
    """The program answered that it cannot do this."""


class Peer:
    """The program behind one socket. Every request has a connection of its own, because the program may be started anew."""

    def __init__(self, path: str | Path, timeout: float = TIMEOUT) -> None:
        self.path = str(path)
        self.timeout = timeout
        self.user: int | None = None  # as whom it runs; known after the first answer

    def join(self, lease: str, peers: Iterable[tuple[str, int]]) -> None:
        """Keep the program there for this run, and tell it whom to dial."""
        self.ask("join", lease=lease, peers=[list(each) for each in peers])

    def leave(self, lease: str) -> int:
        """Give the lease back; returns how many others have one. With the last one the program ends."""
        return self.ask("leave", lease=lease)["leases"]

    def seed(self, digest: str, torrent: bytes, path: Path) -> None:
        """Hand a verified content on."""
        self.ask("seed", digest=digest, torrent=_text(torrent), path=str(path))

    def want(self, digest: str, torrent: bytes, path: Path, here: Iterable[Iterable[int]]) -> None:
        """Bring a content. `here`: what of it is there already."""
        self.ask("want", digest=digest, torrent=_text(torrent), path=str(path), here=[list(each) for each in here])

    def status(self, digest: str) -> dict:
        return self.ask("status", digest=digest)

    def overview(self) -> dict:
        """All contents and leases."""
        return self.ask("status")

    def flush(self, digest: str) -> list[list[int]]:
        """What is there, and in the file for everybody who reads it."""
        return self.ask("flush", digest=digest)["here"]

    def recheck(self, digest: str) -> None:
        self.ask("recheck", digest=digest)

    def drop(self, digest: str) -> list[list[int]]:
        """No longer bring or hand on; returns what is there."""
        return self.ask("drop", digest=digest)["here"]

    def ask(self, what: str, **arguments: Any) -> dict:
        """One request and its answer."""
        line = json.dumps({"do": what, **arguments}).encode() + b"\n"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(self.timeout)
                connection.connect(self.path)
                credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
                connection.sendall(line)
                with connection.makefile("rb") as stream:
                    answer = stream.readline()
        except OSError as error:
            raise PeerGone(f"{self.path}: {error.strerror or error}") from error
        try:
            told = json.loads(answer)
        except ValueError as error:
            raise PeerGone(f"{self.path}: it ended while it was asked") from error
        self.user = struct.unpack("3i", credentials)[1]
        if "error" in told:
            raise PeerRefused(told["error"])
        return told

    def wait(self, seconds: float, pause: Callable[[float], None] = time.sleep) -> None:
        """Until it answers; PeerGone where it does not within this time."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.overview()
                return
            except PeerGone:
                if time.monotonic() >= deadline:
                    raise
            pause(0.1)

    def may_write(self, descriptor: int) -> None:
        """Give a file to the program's user, where that is another one than ours."""
        if self.user is not None and self.user != os.geteuid():
            os.fchown(descriptor, self.user, -1)
            os.fchmod(descriptor, 0o600)


def _text(torrent: bytes) -> str:
    return base64.b64encode(torrent).decode()
