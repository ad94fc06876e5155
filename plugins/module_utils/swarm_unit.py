# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Starts this host's peer program for a run, and ends it after the last one. Nothing of it stays: its unit lies below /run."""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Callable

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import whole_files
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.swarm_client import Peer, PeerGone, PeerRefused

START = 30.0  # seconds that the program may take to answer
END = 30.0  # seconds that it may take to end
AGAIN = 5.0  # seconds within which systemd has started one again that was killed
UNKNOWN = ["?"]  # leases of a program that is there and does not tell them: other runs may need it


class PeerUnit:
    """The program under systemd. `command` runs a program and returns its exit status, output and errors."""

    def __init__(
        self,
        unit: Path,
        settings: Path,
        peer: Peer,
        command: Callable[[list[str]], tuple[int, str, str]],
        lock: Path,
    ) -> None:
        self.unit = unit
        self.settings = settings
        self.peer = peer
        self.command = command
        self.lock = lock
        # There from before unit and settings are written until the program answers that was started with them.
        self.begun = settings.with_suffix(".begun")

    def join(self, lease: str, peers: list[tuple[str, int]], text: str, settings: Mapping[str, Any]) -> bool:
        """Have the program there for this run, as this run has it; returns whether it was started."""
        with self._alone():
            leases = self._settled()
            started = leases is None or leases is UNKNOWN or self._differs(text, settings)
            if started:
                self._start(text, settings, taking_up=bool(leases))
            try:
                self.peer.join(lease, peers)
            except (PeerGone, PeerRefused) as error:
                raise self._fault(str(error)) from error
            return started

    def leave(self, lease: str) -> bool:
        """Give it back; returns whether that was the last run, and the program is gone."""
        with self._alone():
            self._settled()
            left = self._left(lease)
            if left or not self.unit.exists():
                return False
            self._until_gone()
            self._systemctl("stop", self.unit.name)
            self.unit.unlink(missing_ok=True)
            self.settings.unlink(missing_ok=True)
            self.begun.unlink(missing_ok=True)
            # systemd removes the directory of a user that was made for the unit, and leaves the link to it.
            link = Path(self.peer.path).parent
            if link.is_symlink() and not link.exists():
                link.unlink()
            self._systemctl("daemon-reload")
            return True

    def _left(self, lease: str) -> int:
        """How many other leases there are, once this one is given back."""
        try:
            return self.peer.leave(lease)
        except PeerGone as error:
            if error.nobody:
                return 0
            said = str(error)
        except PeerRefused as error:
            said = str(error)
        fix = f"it ends by itself once nothing moves; to end it now, where no other run needs it: systemctl stop {self.unit.name}"
        raise ArtifactError(f"the peer program does not take the lease of this run back, and goes on: {said}", self.unit.name, fix)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One run at a time starts it or ends it."""
        with open(self.lock, "a", encoding="ascii") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _settled(self) -> list[str] | None:
        """Its leases; None where it is not there. One that was killed comes back with the leases that it had."""
        if self.unit.exists():
            with contextlib.suppress(PeerGone, PeerRefused):
                self.peer.wait(AGAIN)
        return self._leases()

    def _leases(self) -> list[str] | None:
        try:
            return self.peer.overview()["leases"]
        except PeerGone as error:
            return None if error.nobody else UNKNOWN
        except PeerRefused:
            return UNKNOWN

    def _differs(self, text: str, settings: Mapping[str, Any]) -> bool:
        """From what it was started with. After a run that was killed in between, the files say what it should have been."""
        return self.begun.exists() or whole_files.read(self.unit) != text or whole_files.read(self.settings) != _json(settings)

    def _start(self, text: str, settings: Mapping[str, Any], taking_up: bool) -> None:
        """`taking_up`: other runs need it, or were killed while they did. What it keeps for them survives a restart, and no stop."""
        if not taking_up:
            self._systemctl("stop", self.unit.name, may_fail=True)
        for path, content in ((self.begun, ""), (self.settings, _json(settings)), (self.unit, text)):
            whole_files.write(path, content, 0o644)
        self._systemctl("daemon-reload")
        # One that failed too often would not be started again otherwise.
        self._systemctl("reset-failed", self.unit.name, may_fail=True)
        self._systemctl("restart" if taking_up else "start", self.unit.name)
        try:
            self.peer.wait(START)
        except (PeerGone, PeerRefused) as error:
            raise self._fault(str(error)) from error
        self.begun.unlink(missing_ok=True)

    def _until_gone(self) -> None:
        deadline = time.monotonic() + END
        while time.monotonic() < deadline and self._leases() is not None:
            time.sleep(0.1)

    def _systemctl(self, *arguments: str, may_fail: bool = False) -> None:
        code, _output, errors = self.command(["systemctl", *arguments])
        if code and not may_fail:
            raise self._fault(errors.strip() or f"systemctl {' '.join(arguments)} failed")

    def _fault(self, what: str) -> ArtifactError:
        said = self.command(["journalctl", "--unit", self.unit.name, "--lines", "5", "--output", "cat", "--no-pager"])[1].strip()
        told = f"; it said: {' | '.join(said.splitlines())}" if said else ""
        return ArtifactError(
            f"the peer program does not run: {what}{told}", self.unit.name, f"look at journalctl -u {self.unit.name}, then run again"
        )


def _json(settings: Mapping[str, Any]) -> str:
    return json.dumps(dict(settings), indent=1, sort_keys=True) + "\n"
