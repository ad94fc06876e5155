# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Several pieces of the same work at once, of which none goes on once one has failed for good."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Callable, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Stopped(Exception):
    """Raised in work that is no longer wanted, because other work beside it failed."""


class SideBySide:
    """Does up to `at_once` pieces of work at a time. Work that takes long calls `go_on` now and then."""

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self._stopped = threading.Event()

    def go_on(self) -> None:
        """Return, or raise Stopped where the work has become pointless."""
        if self._stopped.is_set():
            raise Stopped

    def each(self, work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """The results in the order of `items`. An error stops everything else and is raised."""
        if self.at_once == 1:
            return [work(item) for item in items]
        with ThreadPoolExecutor(self.at_once, "beside") as executor:
            futures = [executor.submit(self._one, work, item) for item in items]
            try:
                wait(futures)
            except BaseException:
                self._stopped.set()
                raise
        # Those that were stopped say nothing of why.
        for error in (future.exception() for future in futures):
            if error is not None and not isinstance(error, Stopped):
                raise error
        return [future.result() for future in futures]

    def _one(self, work: Callable[[Item], Result], item: Item) -> Result:
        self.go_on()
        try:
            return work(item)
        except BaseException:
            # Here and at once: whoever has nothing to do takes the next item up right away.
            self._stopped.set()
            raise
