# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""How far a staging is, in a file that anybody may look into while it runs.

The staging counts bytes in memory, which costs nothing; a thread writes the count down once a second. The file is
replaced as a whole, so nobody ever reads half of it, and names the process, so that one that was killed is noticed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault

RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
NONE, WAITING, RUNNING, DONE, FAILED, INTERRUPTED = "none", "waiting", "running", "done", "failed", "interrupted"
UNDER_WAY = (WAITING, RUNNING)
INTERVAL = 1.0  # seconds between two writes
WINDOW = 10.0  # seconds that the rate is an average of
KEPT = 86400.0  # seconds for which the files of ended runs stay


def progress_path(incoming: Path, run: str | None) -> Path:
    """Where a run writes: a file of its own where it has a name, otherwise the one that all nameless runs share."""
    return incoming / (f"progress-{run}.json" if run else "progress.json")


class Progress:
    """What one staging has done, and what it still has to do.

    `advance` is called for every piece of a file, by whichever thread brings it, so it only adds. Everything else is up to
    the thread that writes.
    """

    def __init__(self, incoming: Path, run: str | None = None, clock: Callable[[], float] = time.time) -> None:
        self.incoming = incoming
        self.path = progress_path(incoming, run)
        self.draft = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        self.run = run
        self.clock = clock
        self.state = WAITING
        self.total = 0
        self.done = 0
        self.file = ""
        self.fault: Fault | None = None
        self.started = clock()
        self._samples: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
        self._ended = threading.Event()
        self._writing = threading.Lock()
        self._adding = threading.Lock()

    def advance(self, count: int) -> None:
        """So many more bytes are here; fewer than none when some were thrown away."""
        with self._adding:
            self.done += count

    @contextlib.contextmanager
    def written(self) -> Iterator[Progress]:
        """Keep the file up to date meanwhile; what ends the block with an error is in it, too."""
        self._forget_old_runs()
        self._write(first=True)
        thread = threading.Thread(target=self._keep_writing, name="progress", daemon=True)
        thread.start()
        try:
            yield self
            self.state = DONE
        except BaseException as error:
            self.state = FAILED
            self.fault = getattr(error, "fault", None) or Fault(
                str(error) or type(error).__name__, str(self.incoming.parent), "look at the result of the run, then run again"
            )
            raise
        finally:
            self._ended.set()
            thread.join()
            self._write()

    def as_dict(self) -> dict:
        return {
            "state": self.state,
            "run": self.run,
            "pid": os.getpid(),
            "born": born(os.getpid()),
            "started": self.started,
            "updated": self.clock(),
            "done_bytes": max(0, min(self.done, self.total)),
            "total_bytes": self.total,
            "rate": self._rate(),
            "file": self.file if self.state in UNDER_WAY else "",
            "fault": self.fault.as_dict() if self.fault else None,
        }

    def _rate(self) -> int:
        """Bytes a second: of late while it runs, of the whole run after it."""
        (first, before), (last, after) = self._samples[0], (time.monotonic(), self.done)
        if self.state not in UNDER_WAY:
            first, before = last - max(self.clock() - self.started, 1e-3), 0
        return max(0, int((after - before) / max(last - first, 1e-3)))

    def _keep_writing(self) -> None:
        while not self._ended.wait(INTERVAL):
            self._write()
            self._samples.append((time.monotonic(), self.done))
            while self._samples[0][0] < time.monotonic() - WINDOW:
                self._samples.popleft()

    def _write(self, first: bool = False) -> None:
        # A full disk is no reason to stop: the run itself meets it, and frees what it took before the last write.
        with self._writing, contextlib.suppress(OSError):
            if first or self._ours():
                self.draft.write_text(json.dumps(self.as_dict()))
                os.replace(self.draft, self.path)

    def _ours(self) -> bool:
        """Of several nameless runs at once, the one that began last has the file until it ends."""
        there = _read(self.path)
        return there is None or there.get("pid") == os.getpid() or state_of(there) not in UNDER_WAY

    def _forget_old_runs(self) -> None:
        for path in (*self.incoming.glob("progress-*.json"), *self.incoming.glob(".progress*.json.*")):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - KEPT:
                    path.unlink()


def read_progress(store: Path, run: str | None = None) -> dict:
    """What a run has written: the named one, or whichever began last. Nothing at all is the state "none"."""
    incoming = store / "incoming"
    paths = [progress_path(incoming, run)] if run else [incoming / "progress.json", *incoming.glob("progress-*.json")]
    found = [data for data in map(_read, paths) if data is not None]
    if not found:
        return {"state": NONE, "done_bytes": 0, "total_bytes": 0, "rate": 0, "file": "", "fault": None}
    latest = max(found, key=lambda data: data.get("started", 0))
    return {**latest, "state": state_of(latest)}


def state_of(data: dict) -> str:
    """The state that was written, or "interrupted" where whoever wrote it is gone."""
    state = str(data.get("state", NONE))
    if state in UNDER_WAY and born(data.get("pid")) != data.get("born"):
        return INTERRUPTED
    return state


def eta(data: dict) -> int | None:
    """Seconds that the rest will take, where that can be told."""
    rest = data.get("total_bytes", 0) - data.get("done_bytes", 0)
    if rest <= 0:
        return 0
    return -(-rest // data["rate"]) if data.get("rate") else None


def born(pid: object) -> str | None:
    """When a process began, in the kernel's ticks: a number that is used again belongs to another process."""
    try:
        # The name of the program stands in parentheses and may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # A zombie does nothing any more: its parent only has not looked yet.
    return None if fields[0] in "ZX" else fields[19]


def _read(path: Path) -> dict | None:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None
