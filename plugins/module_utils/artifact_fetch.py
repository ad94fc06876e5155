# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Downloads that survive interruptions: a model is many gigabytes, and lines break.

What has arrived lies in `<sha256>.part`, and beside it the server's validator (ETag or date), so that the next
attempt, in this run or a later one, from this place or another, asks for the rest only. Bytes are hashed on their way
to the disk, in a thread of their own: hashing, writing and receiving go on at the same time, and no byte is read twice.
"""

from __future__ import annotations

import fcntl
import math
import re
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import Artifact, ArtifactError, File, HostError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_files import CHUNK
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_part import Part
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.side_by_side import SideBySide
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.web import Interrupted, Request, Response, Web
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.web_file import FileAnswer

# No more digits than a file has: Python makes no number of thousands of them.
CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-\d{1,19}/(\d{1,19}|\*)")
FICLONE = 0x40049409  # linux/fs.h: both files share their blocks until one of them is written to
SMALLEST_PIECE = 4096
LAG = 0.5  # seconds by which a limited transfer may be behind its rate and still make up for it


class Limiter:
    """So many bytes a second for the whole process, or as many as there are (0)."""

    def __init__(
        self, rate: int = 0, clock: Callable[[], float] = time.monotonic, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self.rate = rate
        self.clock = clock
        self.pause = pause
        # Small enough that nobody at the other end takes a slow reader for a dead one.
        self.piece = min(CHUNK, max(SMALLEST_PIECE, rate // 8)) if rate else CHUNK
        self._due = clock()
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Wait until so many bytes more are within the rate."""
        wait = self.count(count)
        if wait > 0:
            self.pause(wait)

    def count(self, count: int, longest: float = math.inf) -> float:
        """Count bytes, whoever brought them; returns for how many seconds the next ones have to wait, `longest` at most."""
        if not self.rate:
            return 0
        with self._lock:
            now = self.clock()
            # What reading took is not waited for once more: a little of it may be made up for.
            self._due = min(max(self._due, now - LAG) + count / self.rate, now + longest)
            return self._due - now


@dataclass
class Offer:
    """One place that may have a file, and how it has done so far."""

    origin: Any
    web: Web
    index: int
    request: Request
    failures: int = 0
    used: bool = False  # a request that was used may have run out meanwhile: tokens and signed URLs do


class Fetcher:
    """Brings files from wherever they are to be had.

    An origin has `requests(artifact, file)`, the places to ask in this order, and `web(artifact)`, which asks them.
    """

    at_once = 1  # files; over HTTP one of them takes the whole line

    def __init__(self, origins: Iterable[Any], limiter: Limiter | None = None, advance: Callable[[int], None] | None = None) -> None:
        self.origins = list(origins)
        self.limiter = limiter or Limiter()
        self.from_peers = 0  # of the bytes that were brought
        self.troubles: list[str] = []  # why something came over HTTP although peers were asked
        self.advance = advance or (lambda _count: None)
        self.workers = SideBySide(self.at_once)
        self.hashing = ThreadPoolExecutor(self.at_once, "hashing")
        self._buffers = [memoryview(bytearray(self.limiter.piece)) for _buffer in range(2)]

    def fetch(self, artifact: Artifact, file: File, part: Part) -> int:
        """Bring a file into its part, complete and with the right digest; return the number of bytes that moved."""
        if part.has_another_writer:
            part.go_on_in_a_copy()
        part.begin(self.hashing, self.advance)
        part.note()
        if file.content is not None:
            part.restart()
            part.write(memoryview(file.content.encode()))
            return 0
        _Download(self, artifact, file, part).run()
        return part.received

    def arrived(self, artifact: Artifact, file: File, path: Path) -> None:
        """Called for each content that the store has, by now or already."""


class _Download:
    """One file, and the places that have not failed yet."""

    def __init__(self, fetcher: Fetcher, artifact: Artifact, file: File, part: Part) -> None:
        self.fetcher = fetcher
        self.artifact = artifact
        self.file = file
        self.part = part
        self.errors: list[ArtifactError] = []
        self.second_try = False
        self.furthest = part.position
        self.offers: list[Offer] | None = None

    def run(self) -> None:
        while self.part.position < self.file.size or not self._right():
            if self.offers is None:
                self.offers = self._all_offers()
            if not self.offers:
                self._give_up()
            self._ask(self.offers[0])

    def _all_offers(self) -> list[Offer]:
        offers = []
        for origin in self.fetcher.origins:
            try:
                requests, web = origin.requests(self.artifact, self.file), origin.web(self.artifact)
            except ArtifactError as error:
                self.errors.append(error)
                continue
            offers += [Offer(origin, web, index, request) for index, request in enumerate(requests)]
        if not offers and not self.errors:
            self.errors.append(
                ArtifactError("there is no place to bring it from", self.file.path, "give suppliers, or sources and a source")
            )
        return offers

    def _ask(self, offer: Offer) -> None:
        try:
            with offer.web.open(offer.request, self.part.continuing(offer.request.where)) as answer:
                self._begin(answer, offer)
                self._copy(answer)
            self.part.come_from(offer.request.where)
        except Interrupted as interruption:
            self._again(offer, interruption)
        except _WrongSize as error:
            self._drop(offer, self.file.wrong_size(error.actual, offer.request.where))
        except HostError:
            raise
        except ArtifactError as error:
            if not (offer.used and error.details.get("status") in (401, 403) and self._renew(offer)):
                self._drop(offer, error)

    def _renew(self, offer: Offer) -> bool:
        """Ask for the place again: its token or signature may have run out on the way."""
        try:
            offer.request = offer.origin.requests(self.artifact, self.file)[offer.index]
        except (ArtifactError, IndexError):
            return False
        offer.used = False
        return True

    def _begin(self, answer: Response, offer: Offer) -> None:
        """Check what is about to be sent, and start over where it does not continue."""
        part, total = self.part, answer.headers.get("Content-Length")
        if answer.status == 206:
            found = CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            if found is None or int(found[1]) != part.position:
                part.restart()
                raise Interrupted(
                    ArtifactError("the server sent another range than was asked for", offer.request.where, "look at that server")
                )
            total = found[2] if found[2] != "*" else None
        if total is not None and total != str(self.file.size):
            raise _WrongSize(total)
        if answer.status != 206 and (part.position or part.present):
            part.restart()
        etag = answer.headers.get("ETag", "")
        # A weak ETag says "about the same", which is not good enough to glue bytes together.
        part.validate(offer.request.where, etag if etag.startswith('"') else answer.headers.get("Last-Modified", ""))

    def _copy(self, answer: Response) -> None:
        part, limiter, buffers = self.part, self.fetcher.limiter, self.fetcher._buffers
        local = isinstance(answer.raw, FileAnswer)
        if local and part.position == 0 and part.limit == self.file.size and self._clone(answer.raw):
            return
        turn, end = 0, part.limit
        while count := answer.readinto(buffers[turn]):
            if part.position + count > end:
                if end < self.file.size:  # a server that sends more than the hole: what follows is here
                    count = end - part.position
                    part.write(buffers[turn][:count])
                    break
                part.restart()
                raise _WrongSize(f"more than {self.file.size}")
            part.write(buffers[turn][:count])
            if not local:
                limiter.take(count)
            turn = 1 - turn  # the other one has been hashed by now
        if part.position == end:
            part.skip_present()
        if part.position < end:
            raise Interrupted(ArtifactError("the connection ended early", answer.request.where, "run again"))

    def _clone(self, source: FileAnswer) -> bool:
        """Share the blocks of a file of this host, where the file system can; then it only has to be read."""
        try:
            fcntl.ioctl(self.part.handle, FICLONE, source.handle.fileno())
        except OSError:
            return False
        self.part.read_what_is_there()
        return True

    def _right(self) -> bool:
        """Whether what is complete is right, too; otherwise it is thrown away."""
        actual = self.part.hexdigest()
        if actual == self.file.sha256:
            return True
        first, *mixed = self.part.sources or [""]
        if (not self.part.resumed and not mixed) or self.second_try:
            offer = next((offer for offer in self.offers or () if offer.request.where == self.part.last), None)
            if offer is not None:
                self._drop(offer, self.file.wrong_digest(actual, offer.request.where))
        else:
            # What lay here may be at fault (another source, a power cut), so every place gets one fair try.
            self.second_try = True
        self.part.restart()
        # An empty file is complete as soon as it begins, so asking for it again would never end.
        if self.file.size == 0:
            raise self.file.wrong_digest(actual, first or self.file.path)
        return False

    def _again(self, offer: Offer, interruption: Interrupted) -> None:
        """Only attempts that came no further count: a long download over a bad line does end."""
        further = self.part.position > self.furthest
        self.furthest = max(self.furthest, self.part.position)
        if interruption.error.details.get("status") == 416:
            # There is nothing after what we have: what we have is not this file.
            self.part.restart()
        self.part.come_from(offer.request.where)
        offer.used = True
        offer.failures = 0 if further else offer.failures + 1
        if offer.failures > offer.web.retries:
            self._drop(offer, self._stopped(interruption.error))
            return
        # The next place has its turn; only when all of them failed is there something to wait for.
        self.offers.append(self.offers.pop(self.offers.index(offer)))
        failures = min(each.failures for each in self.offers)
        if failures or len(self.offers) == 1:
            offer.web.pause(interruption.wait(failures))

    def _stopped(self, error: ArtifactError) -> ArtifactError:
        if not self.part.position:
            return error
        what = f"it stopped after {self.part.position} of {self.file.size} bytes ({error.fault.what})"
        return ArtifactError(what, error.fault.where, "run again: it goes on where it stopped", **error.details)

    def _drop(self, offer: Offer, error: ArtifactError) -> None:
        self.errors.append(error)
        self.offers.remove(offer)

    def _give_up(self) -> None:
        """Say what every place said; bytes that are wrong weigh more than bytes that did not come."""
        worst = next((error for error in self.errors if "expected" in error.details), self.errors[-1])
        if self.part.position == 0 and not self.part.present:
            self.part.discard()
        what, where, fix = worst.fault
        if len(self.errors) > 1:
            said = "; ".join(f"{error.fault.where}: {error.fault.what}" for error in self.errors)
            what = f"it cannot be had from any of {len(self.errors)} places: {said}"
        if not what.startswith(self.file.path):
            what = f"{self.file.path}: {what}"
        raise ArtifactError(what, where, fix, **{"file": self.file.path, **worst.details})


class _WrongSize(Exception):
    """A place has another file by that name."""

    def __init__(self, actual: str) -> None:
        self.actual = actual
        super().__init__(actual)
