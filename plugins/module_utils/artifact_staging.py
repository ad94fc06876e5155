# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Brings several artifacts into a store: every content once, beside any number of other runs that do the same.

The store's lock is held to look and to claim, and to link a tree. In between, each content is brought under a lock of
its own: what another run already brings is left to it, and waited for at the end.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import (
    Artifact,
    ArtifactError,
    File,
    HostError,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_fetch import Fetcher
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_part import Part
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_store import Store
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_survey import (
    ABSENT,
    SOUND,
    UNREAD,
    Survey,
    content_action,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.progress import RUNNING, WAITING, Progress

PAUSE = 0.2  # seconds between two looks at what other runs bring
ROUNDS = 5  # how often a content may vanish between its arrival and its link


@dataclass
class _Brought:
    """What became of one content."""

    file: File
    here: bool = True  # False: another run is bringing it
    actions: list[str] = field(default_factory=list)
    bytes_moved: int = 0
    error: ArtifactError | None = None


class Staging:
    """One run for some artifacts on one store."""

    def __init__(
        self,
        store: Store,
        artifacts: Iterable[Artifact],
        *,
        link: bool = True,
        reserve: int = 0,
        lock_timeout: float = 3600,
        progress: Progress | None = None,
    ) -> None:
        self.store = store
        self.artifacts = list(artifacts)
        self.link = link
        self.reserve = reserve
        self.lock_timeout = lock_timeout
        self.progress = progress or Progress(store.incoming)
        self.errors: list[ArtifactError] = []
        self._counted: dict[str, int] = {}  # bytes of the total that each content stands for
        self._counting = threading.Lock()

    def look(self) -> list[Survey]:
        """What there is to do; changes nothing, and needs no store."""
        surveys = self._surveys()
        self.store.check_space(surveys, self.reserve, self.store.claims.live(sweep=False))
        return surveys

    def run(self, fetcher: Fetcher) -> list[Survey]:
        """Do it, and return what was done for each artifact."""
        self.store.prepare()
        with self.progress.written():
            with self.store.locked(self.lock_timeout):
                surveys = self._surveys()
                self.store.check_space(surveys, self.reserve, self.store.claims.live())
                claim = self.store.claims.hold({file.sha256: file.size for each in self.artifacts for file in each.contents})
            with claim.held():
                self._begin(surveys, fetcher)
                self._bring_all(list(zip(self.artifacts, surveys)), fetcher)
            if self.errors:
                raise _all_of(self.errors)
        return surveys

    def _surveys(self) -> list[Survey]:
        counted: set[str] = set()
        return [self.store.survey(artifact, self.link, counted) for artifact in self.artifacts]

    def _begin(self, surveys: list[Survey], fetcher: Fetcher) -> None:
        self._counted = {file.sha256: self.store.rest(file) for found in surveys for file in found.missing}
        self.progress.total = sum(self._counted.values())
        self.progress.state = RUNNING
        fetcher.advance = self.progress.advance
        for found in surveys:
            # From here on these say what was done, and no longer what there is to do.
            found.actions, found.bytes_moved = [], 0

    def _bring_all(self, left: list[tuple[Artifact, Survey]], fetcher: Fetcher) -> None:
        """Artifact by artifact, so that one is complete early; what is busy elsewhere comes last."""
        patience, rounds = _Patience(self.lock_timeout), 0
        while left:
            waiting, vanished = [], False
            for artifact, found in left:
                try:
                    busy = self._bring(artifact, found, fetcher)
                    if not busy and self._finish(artifact, found):
                        continue
                    vanished = vanished or not busy
                    waiting.append((artifact, found))
                except HostError:
                    raise
                except ArtifactError as error:
                    self.errors.append(error)
            left = waiting
            rounds += vanished
            if rounds > ROUNDS:
                raise ArtifactError(
                    "contents vanish as soon as they are here", str(self.store.blobs), "find out what removes them, then run again"
                )
            if left and not vanished:
                self.progress.state = WAITING
                patience.wait(self._sizes(left), str(self.store.incoming))
                self.progress.state = RUNNING

    def _bring(self, artifact: Artifact, found: Survey, fetcher: Fetcher) -> list[File]:
        """Bring the contents of an artifact; returns those that another run is bringing."""
        brought = fetcher.workers.each(functools.partial(self._try_one, artifact, fetcher), artifact.contents)
        for each in brought:
            found.actions += each.actions
            found.bytes_moved += each.bytes_moved
        errors = [each.error for each in brought if each.error]
        if errors:
            raise _all_of(errors)
        return [each.file for each in brought if not each.here]

    def _try_one(self, artifact: Artifact, fetcher: Fetcher, file: File) -> _Brought:
        """What is wrong with one file does not keep the others; what is wrong with the host does."""
        brought = _Brought(file)
        try:
            self._bring_one(artifact, brought, fetcher)
        except HostError:
            raise
        except ArtifactError as error:
            brought.error = error
        return brought

    def _bring_one(self, artifact: Artifact, brought: _Brought, fetcher: Fetcher) -> None:
        store, file = self.store, brought.file
        if store.state(file) == SOUND:
            self._count_as_here(file)
            fetcher.arrived(artifact, file, store.blob(file))
            return
        part = Part.take(store.part(file), file)
        if part is None:
            brought.here = False
            return
        with part:
            state = store.state(file)  # whoever had the part before may have finished it
            self.progress.file = f"{artifact.title}: {file.path}"
            if state == UNREAD:
                brought.actions.append(content_action(file, state, file.size))
                state = SOUND if store.read_again(file) == file.sha256 else ABSENT
            if state == SOUND:
                part.discard()
                self._count_as_here(file)
                fetcher.arrived(artifact, file, store.blob(file))
                return
            rest = store.rest(file)
            with self._counting:
                if self._counted.pop(file.sha256, None) is None:
                    self.progress.total += rest
            brought.actions.append(content_action(file, state, rest))
            brought.bytes_moved = fetcher.fetch(artifact, file, part)
            store.adopt(part)
            fetcher.arrived(artifact, file, store.blob(file))

    def _count_as_here(self, file: File) -> None:
        """What another run brought meanwhile was counted as ours to bring."""
        with self._counting:
            counted = self._counted.pop(file.sha256, 0)
        self.progress.advance(counted)

    def _finish(self, artifact: Artifact, found: Survey) -> bool:
        """Link the tree, or correct owners where there is none; False where a content is gone again."""
        with self.store.locked(self.lock_timeout):
            now = self.store.survey(artifact, self.link)
            if now.missing or now.unread:
                return False
            if self.link and now.actions:
                try:
                    self.store.link(artifact, now)
                except FileNotFoundError:  # somebody found a content damaged at this very moment
                    return False
            elif now.actions:
                self.store.own(now)
            found.actions += now.actions
        if not found.actions:
            found.before = found.after
        return True

    def _sizes(self, left: list[tuple[Artifact, Survey]]) -> int:
        return sum(self.store.rest(file) for artifact, _found in left for file in artifact.contents)


class _Patience:
    """Waits for other runs as long as they come further."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.seen: int | None = None
        self.since = time.monotonic()

    def wait(self, sizes: int, where: str) -> None:
        if sizes != self.seen:
            self.seen, self.since = sizes, time.monotonic()
        elif time.monotonic() - self.since >= self.timeout:
            raise ArtifactError(
                f"another run brings the same files and has come no further for {self.timeout:g} seconds",
                where,
                "look at that run, or raise lock_timeout",
            )
        time.sleep(PAUSE)


def _all_of(errors: list[ArtifactError]) -> ArtifactError:
    """One error for several files: the first, with all that was said."""
    first, *more = errors
    if not more:
        return first
    said = "; ".join(f"{error.fault.where}: {error.fault.what}" for error in errors)
    faults = [fault for error in errors for fault in error.details.get("faults", [error.fault.as_dict()])]
    details = {**first.details, "faults": faults}
    return ArtifactError(f"{len(faults)} faults: {said}", first.fault.where, first.fault.fix, **details)
