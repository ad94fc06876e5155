# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Brings files from whichever hosts of the fleet have them, and what nobody has from the depot, over HTTP.

The host's peer program writes into the same part that HTTP would go on with. Who brought what makes no difference in the
end: the SHA-256 of the whole file decides, here as everywhere. Whatever is wrong with peers costs time only.

Several files are brought at once: while peers find each other for one, or it is verified, the line carries another.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Callable
from urllib.parse import urlsplit

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import Artifact, ArtifactError, File
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_fetch import Fetcher, Limiter
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_part import Part
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.origins import Suppliers
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.swarm_client import Peer, PeerGone, PeerRefused
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.swarm_torrent import fits
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.web import Interrupted, Request, Web

SMALLEST_FILE = 1 << 20  # a smaller file is here over HTTP before peers have found each other
LOOK = 0.5  # seconds between two looks
FLUSH = 5.0  # seconds of which a program that is killed loses what came
COMPLETE = 4  # how much longer peers may be silent as long as they have all of it among themselves
RESTART = 15.0  # seconds within which systemd has started the program again
AT_ONCE = 4  # files
SILENT = 6  # peers that were silent once are given that much less time with the next file
STALL = 10.0  # seconds for which HTTP waits at most where peers take the whole rate, or its server takes it for dead
TURNS = 3.0  # the last host gives peers up after this many times the patience of the first


class SwarmFetcher(Fetcher):
    """A fetcher that asks peers first. `patience`: seconds without progress after which it is the depot's turn."""

    at_once = AT_ONCE

    def __init__(
        self,
        origins: Iterable[Any],
        limiter: Limiter,
        peer: Peer,
        *,
        ca: bytes,
        patience: float,
        host: str,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(origins, limiter)
        self.peer = peer
        self.ca = ca
        self.pause = pause
        # Not all hosts turn to the depot at once: what the first ones bring from there, the others get from them.
        turn = int(hashlib.sha256(host.encode()).hexdigest(), 16) % 1000 / 1000
        self._patience = patience * (1 + turn * (TURNS - 1))
        self._silent = False
        self._moved = time.monotonic()  # when anything came last, of whichever file
        self._torrents: dict[str, bytes | None] = {}
        self._mute: set[str] = set()  # suppliers that did not answer when they were asked last
        self._depot = threading.Lock()
        self._counting = threading.Lock()

    def fetch(self, artifact: Artifact, file: File, part: Part) -> int:
        torrent = self._torrent(artifact, file)
        if torrent is None:
            return self._from_depot(artifact, file, part)
        task = _Bringing(self, file, part, torrent)
        try:
            right = task.run()
        finally:
            with self._counting:
                self.from_peers += task.received
        return task.received if right else task.received + self._from_depot(artifact, file, part)

    def begin_to_wait(self) -> None:
        """Peers are asked for one more file."""
        self._moved = time.monotonic()

    def came(self) -> None:
        """Peers brought something."""
        self._moved, self._silent = time.monotonic(), False

    def silence(self, times: float = 1) -> float:
        """For how many seconds peers have brought nothing, where that is too long, and otherwise 0. `times`: as long as usual.

        They have few hands: as long as they bring one file, another one's turn will come.
        """
        silent = time.monotonic() - self._moved
        if silent <= self._patience * times / (SILENT if self._silent else 1):
            return 0
        return silent

    def give_up(self) -> None:
        """Peers are not to be waited for with this file."""
        self._silent = True

    def _from_depot(self, artifact: Artifact, file: File, part: Part) -> int:
        """One file at a time, as where there are no peers."""
        with self._depot:
            self.workers.go_on()
            return super().fetch(artifact, file, part)

    def arrived(self, artifact: Artifact, file: File, path: Path) -> None:
        """Hand on what is verified. That this fails is no fault of the staging."""
        torrent = self._torrent(artifact, file)
        if torrent is not None:
            try:
                self.peer.seed(file.sha256, torrent, path)
            except (PeerGone, PeerRefused):
                return

    def _torrent(self, artifact: Artifact, file: File) -> bytes | None:
        """How peers bring a content, as a depot tells it; None where none does."""
        if file.content is not None or file.size < SMALLEST_FILE:
            return None
        if file.sha256 not in self._torrents:
            self._torrents[file.sha256] = self._offered(artifact, file)
        return self._torrents[file.sha256]

    def _offered(self, artifact: Artifact, file: File) -> bytes | None:
        for origin in self.origins:
            if isinstance(origin, Suppliers):
                web, requests = origin.web(artifact), origin.torrents(file)
                ask = functools.partial(self._ask_each, web, requests, file)
                known = all(_host(request) in self._mute for request in requests)
                with contextlib.suppress(ArtifactError, Interrupted):
                    # Once a run there is patience with suppliers that are all silent.
                    return ask() if known else web.patiently(ask)
        return None

    def _ask_each(self, web: Web, requests: list[Request], file: File) -> bytes | None:
        """One attempt at each supplier, in turn. Whoever did not answer is not asked again while others do."""
        interruption = None
        for request in [each for each in requests if _host(each) not in self._mute] or requests:
            try:
                torrent = web.get_once(request, limit=64 << 20).body
            except Interrupted as error:
                self._mute.add(_host(request))
                interruption = interruption or error
                continue
            except ArtifactError:
                torrent = b""
            self._mute.discard(_host(request))
            if fits(torrent, file.size, self.ca):
                return torrent
        if interruption and all(_host(each) in self._mute for each in requests):
            raise interruption
        return None


class _Bringing:
    """One file, by peers."""

    def __init__(self, fetcher: SwarmFetcher, file: File, part: Part, torrent: bytes) -> None:
        self.fetcher = fetcher
        self.peer = fetcher.peer
        self.file = file
        self.part = part
        self.torrent = torrent
        self.received = 0
        self.earlier = 0  # of these, what came before the program was started anew
        self.counted = 0  # bytes that progress knows of

    def run(self) -> bool:
        """Whether it is complete and right. Otherwise the part says what of it is there."""
        self.counted = sum(end - begin for begin, end in self.part.held())
        try:
            self._want()
            for attempt in range(2):
                if not self._watch():
                    return False
                self.part.hold(self.peer.flush(self.file.sha256))
                if self._right():
                    return True
                # The pieces that were here before were taken on trust: one of them is wrong. All are read, and that one comes again.
                if attempt == 0:
                    self.peer.recheck(self.file.sha256)
            self._trouble("what peers brought is wrong, twice")
            self._drop()
            self.part.begin(self.fetcher.hashing, self.fetcher.advance)
            self.part.restart()
        except (PeerGone, PeerRefused) as error:
            self._trouble(str(error))
            self._drop()
        except BaseException:
            if self.part.closed:
                # The disk is full, and the part was thrown away. What the program still wrote to it, nobody could find.
                with contextlib.suppress(PeerGone, PeerRefused):
                    self.peer.drop(self.file.sha256)
            else:
                self._drop()
            raise
        return False

    def _want(self) -> None:
        self.peer.wait(RESTART, self.fetcher.pause)
        here = self.part.held()
        # Before anything is written: whoever comes after a kill must not take holes for contents.
        self.part.hold(here)
        self.peer.may_write(self.part.handle.fileno())
        self.peer.want(self.file.sha256, self.torrent, self.part.path, here)

    def _watch(self) -> bool:
        """Until all of it is here (true), or peers are silent (false)."""
        seen = None
        flushed = time.monotonic()
        self.fetcher.begin_to_wait()
        while True:
            self.fetcher.workers.go_on()
            now = time.monotonic()
            try:
                status = self.peer.status(self.file.sha256)
                if now - flushed > FLUSH and status["state"] == "bringing":
                    self.part.hold(self.peer.flush(self.file.sha256))
                    flushed = now
            except (PeerGone, PeerRefused):
                # It was started anew and knows nothing of this: it goes on with what is on the disk.
                if self.fetcher.silence():
                    return self._give_up("the peer program of this host went away, and did not come back")
                self.earlier = self.received
                self._want()
                continue
            received = self.earlier + status["received"]
            self.fetcher.limiter.count(max(0, received - self.received), STALL)
            self.received = received
            self._count(status["done"])
            if status["state"] == "here":
                return True
            if status["state"] == "failed":
                self._failed(status)
                return False
            before, seen = seen, (status["done"], status["received"])
            if before is not None and (before != seen or status["state"] == "checking"):
                self.fetcher.came()
            elif silent := self.fetcher.silence(COMPLETE if status["copies"] >= 1 else 1):
                return self._give_up(f"{status['peers']} peers brought nothing for {silent:.0f} seconds")
            self.fetcher.pause(LOOK)

    def _give_up(self, why: str) -> bool:
        self._trouble(why)
        self._drop()
        self.fetcher.give_up()
        return False

    def _failed(self, status: dict) -> None:
        """The program could not write. A full disk is that for HTTP too; with anything else HTTP has its try."""
        if status["errno"] in (errno.ENOSPC, errno.EDQUOT):
            self._drop()
            self.part.discard()
            error = OSError(status["errno"], os.strerror(status["errno"]))
            raise ArtifactError.from_os_error(error, self.part.path.parent)
        self._trouble(f"the peer program of this host could not write: {status['trouble']}")
        self._drop()

    def _trouble(self, why: str) -> None:
        self.fetcher.troubles.append(f"{self.file.path}: {why}")

    def _drop(self) -> None:
        """Take the file back from the program. Two that write to it would make bytes wrong that were hashed on their way."""
        try:
            self.part.hold(self.peer.drop(self.file.sha256))
            free = True
        except (PeerGone, PeerRefused):
            free = self._let_go()
        if free:
            self.part.take_back()
        else:
            self.part.go_on_in_a_copy()
        self._count(sum(end - begin for begin, end in self.part.held()))

    def _let_go(self) -> bool:
        """Whether the program, which did not say so, has no hand on the file: it ended, or was started anew."""
        try:
            return self.file.sha256 not in self.peer.overview()["contents"]
        except PeerRefused:
            return False
        except PeerGone as error:
            return error.nobody

    def _right(self) -> bool:
        self.part.begin(self.fetcher.hashing, self.fetcher.advance)
        return self.part.position == self.file.size and self.part.hexdigest() == self.file.sha256

    def _count(self, done: int) -> None:
        self.fetcher.advance(done - self.counted)
        self.counted = done


def _host(request: Request) -> str:
    return urlsplit(request.url).netloc
