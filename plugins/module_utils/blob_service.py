# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Keeps one blob server running while playbooks need it: starts it, finds it again, and stops it after the last of them.

    lock          held by the server for as long as it lives: no process number can lie about that. Its process is in it
    turn          held by whoever starts the server, adds to it or stops it
    server.json   what it was started with, its process and its URL
    files.json    files that it serves by digest; a later run adds its own
    leases/<id>   one for each run that still needs it
    server.log    who asked for what

The server is a fork of the process that starts it, so it needs no file of the collection, and goes on after its end.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import whole_files
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.blob_server import BlobServer, Contents, Tls

PATIENCE = 10.0  # seconds for a server to come up or to go
TURN = 60.0  # seconds to wait while other runs start or stop it


class Wanted(NamedTuple):
    """What a server is started with. One that differs in any of it is replaced."""

    address: str
    port: int
    store: str | None
    tls: Tls
    idle_timeout: int

    def fingerprint(self) -> str:
        """Of the settings and of the certificate: a renewed one is only served by a new server."""
        try:
            certificates = [Path(path).read_bytes() for path in (self.tls.certificate, self.tls.ca)]
        except OSError as error:
            raise ArtifactError.from_os_error(error, self.tls.certificate) from error
        text = json.dumps([self.address, self.port, self.store, *self.tls, self.idle_timeout]).encode()
        return hashlib.sha256(b"\0".join([text, *certificates])).hexdigest()


class BlobService:
    """The server of one directory."""

    def __init__(self, run_dir: str | Path) -> None:
        self.run_dir = Path(run_dir)
        self.lock = self.run_dir / "lock"
        self.note = self.run_dir / "server.json"
        self.listing = self.run_dir / "files.json"
        self.leases = self.run_dir / "leases"

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """One run at a time looks at the server and does something about it."""
        self.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        deadline = time.monotonic() + TURN
        with open(self.run_dir / "turn", "a", encoding="ascii") as handle:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    pass
                if time.monotonic() > deadline:
                    what = f"another run has been starting or stopping the file server for {TURN:.0f} seconds"
                    raise ArtifactError(what, handle.name, "look at who has that file open (fuser), and run again when it has ended")
                time.sleep(0.05)
            yield

    def running(self) -> dict | None:
        """What the server was started with; None where none runs. One whose starter was killed has no note, and is never the same."""
        if not self.run_dir.is_dir():
            return None
        with self._lock() as lock:
            if lock is not None:
                return None
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError):
                return json.loads(self.note.read_text(encoding="utf-8"))
            # It holds the lock already, and whoever started it is about to write.
            time.sleep(0.05)
        with contextlib.suppress(OSError, ValueError):
            return {"pid": int(self.lock.read_text(encoding="ascii")), "url": "", "port": 0, "fingerprint": ""}
        fix = "see which process has that file open (fuser), end it, and run again"
        raise ArtifactError("a server holds this lock, and neither it nor server.json says which process it is", str(self.lock), fix)

    def same(self, note: dict | None, wanted: Wanted) -> bool:
        return note is not None and note["fingerprint"] == wanted.fingerprint()

    def lacking(self, files: dict[str, str]) -> dict[str, str]:
        """The files that the list does not have yet."""
        listed = self._listed()
        return {digest: path for digest, path in files.items() if listed.get(digest) != path}

    def start(self, wanted: Wanted, files: dict[str, str]) -> dict:
        """Have such a server running, with these files among what it serves."""
        note = self.running()
        if note is not None and not self.same(note, wanted):
            self.kill(note)
            note = None
        if note is None:
            for lease in self.leases.glob("*"):
                lease.unlink()
            _write(self.listing, files)
            return self._launch(wanted)
        if self.lacking(files):
            _write(self.listing, {**self._listed(), **files})
        return note

    def lease(self, name: str | None) -> str:
        """Say that somebody needs the server, and by which name it is given back."""
        name = name or secrets.token_hex(8)
        self.leases.mkdir(mode=0o700, exist_ok=True)
        (self.leases / name).touch(mode=0o600)
        return name

    def give_back(self, name: str | None) -> list[str]:
        """Drop a lease; returns those that are left. Without a name all are dropped."""
        for lease in self.leases.glob(name or "*"):
            lease.unlink()
        return self.held()

    def held(self) -> list[str]:
        return sorted(path.name for path in self.leases.glob("*"))

    def kill(self, note: dict) -> None:
        """End the server. It holds the lock, so its process number is its own."""
        deadline = time.monotonic() + PATIENCE
        number = signal.SIGTERM
        while True:
            with contextlib.suppress(ProcessLookupError):
                os.kill(note["pid"], number)
            with self._lock() as lock:
                if lock is not None:
                    return
            if time.monotonic() > deadline:
                raise ArtifactError(f"process {note['pid']} does not end", str(self.run_dir), "end it by hand")
            if time.monotonic() > deadline - PATIENCE / 2:
                number = signal.SIGKILL
            time.sleep(0.05)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[int | None]:
        """The lock, or None where a server has it."""
        handle = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield handle
        except BlockingIOError:
            yield None
        finally:
            # Where a server was forked meanwhile, it has the lock from here on.
            os.close(handle)

    def _launch(self, wanted: Wanted) -> dict:
        self.note.unlink(missing_ok=True)
        with self._lock() as lock:
            if lock is None:
                raise ArtifactError("somebody else starts a server there at this moment", str(self.run_dir), "run again")
            server = self._server(wanted)
            log = os.open(self.run_dir / "server.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
            os.ftruncate(lock, 0)  # what an earlier server wrote
            pid = os.fork()
            if pid == 0:
                _live(server, lock, log)
            os.close(log)
            server.server_close()
            try:
                note = {"pid": pid, "url": server.url, "port": server.server_port, "fingerprint": wanted.fingerprint()}
                _write(self.note, note)
            except BaseException:
                # Nobody would know of it, and it would keep its port.
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise
            return note

    def _server(self, wanted: Wanted) -> BlobServer:
        try:
            context = wanted.tls.context()
        except OSError as error:
            raise ArtifactError(
                f"certificate, key or CA cannot be used: {error.strerror or error}",
                ", ".join(wanted.tls),
                "remove the certificate and its key, and they are made anew",
            ) from error
        contents = Contents(wanted.store, str(self.listing))
        try:
            return BlobServer(wanted.address, wanted.port, context, contents, wanted.idle_timeout)
        except OSError as error:
            raise ArtifactError(
                f"it is not possible to listen there: {(error.strerror or str(error)).lower()}",
                f"{wanted.address}:{wanted.port}",
                "take another port, or 0 for any that is free",
            ) from error

    def _listed(self) -> dict[str, str]:
        try:
            return json.loads(self.listing.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}


def _live(server: BlobServer, lock: int, log: int) -> NoReturn:
    """The life of the server's process. It never returns into the program that it is a copy of."""
    code = 1
    try:
        os.setsid()
        with contextlib.suppress(OSError):  # a full disk: whoever started it will say so
            os.write(lock, str(os.getpid()).encode())
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        # Whoever started this waits for these to close.
        os.dup2(log, 1)
        os.dup2(log, 2)
        for number in map(int, os.listdir("/proc/self/fd")):
            if number > 2 and number not in (lock, server.fileno()):
                with contextlib.suppress(OSError):
                    os.close(number)
        server.serve()
        code = 0
    finally:
        os._exit(code)


def _write(path: Path, data: dict) -> None:
    whole_files.write(path, json.dumps(data, sort_keys=True), 0o600)
