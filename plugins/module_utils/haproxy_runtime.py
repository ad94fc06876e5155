# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""A small client of HAProxy's runtime sockets.

After a reload the old process still serves the streams that it has. It no longer answers on the runtime socket, only through the
master's. Whoever waits until a server has no request any more, or takes a token away, has to think of it too.
"""

from __future__ import annotations

import csv
import io
import re
import socket
import time
from collections.abc import Iterable

# Bits of srv_admin_state: forced by somebody, inherited, or from the configuration.
MAINT = 0x01 | 0x02 | 0x04 | 0x20
DRAIN = 0x08 | 0x10


class RuntimeFailure(Exception):
    """HAProxy does not answer, or refuses a command."""


class HAProxyRuntime:
    """Talks to the worker that answers, and to the old ones that still serve streams."""

    def __init__(self, path: str, master: str = "", timeout: float = 30) -> None:
        self.path = path
        self.master = master
        self.timeout = timeout

    def ask(self, command: str, pid: str = "") -> str:
        """The answer to a command, from the current worker or from the old one `pid`."""
        path, line = (self.master, f"@!{pid} {command}") if pid else (self.path, command)
        return self._send(path, line)

    def tell(self, command: str, pid: str = "") -> None:
        """Run a command that answers nothing when it succeeds."""
        answer = self.ask(command, pid).strip()
        if answer:
            raise RuntimeFailure(f"HAProxy refused {_shown(command)}: {answer}")

    def runs(self) -> bool:
        """Whether a worker answers."""
        try:
            return "Pid" in self.ask("show info")
        except RuntimeFailure:
            return False

    def started(self) -> float | None:
        """When the current worker started, in seconds since 1970, at the latest; None where none runs."""
        try:
            found = re.search(r"^Uptime_sec: (\d+)$", self.ask("show info"), re.MULTILINE)
        except RuntimeFailure:
            return None
        return time.time() - int(found.group(1)) if found else None

    def old_workers(self) -> list[str]:
        """Process ids of workers that only serve what they had before the last reload."""
        if not self.master:
            return []
        old = self._send(self.master, "show proc").partition("# old workers")[2]
        return re.findall(r"^(\d+)\s+worker\b", old, re.MULTILINE)

    def servers(self, pid: str = "") -> dict[tuple[str, str], dict]:
        """{(backend, server): row of `show stat`}."""
        text = self.ask("show stat", pid).lstrip("# ")
        rows = csv.DictReader(io.StringIO(text))
        return {(row["pxname"], row["svname"]): row for row in rows if row.get("type") == "2"}

    def states(self) -> dict[tuple[str, str], str]:
        """{(backend, server): ready, drain or maint}, whatever the health check says."""
        lines = [line.split() for line in self.ask("show servers state").splitlines()]
        admin = {(words[1], words[3]): int(words[6]) for words in lines if len(words) > 6 and words[0] != "#"}
        return {key: "maint" if bits & MAINT else "drain" if bits & DRAIN else "ready" for key, bits in admin.items()}

    def in_flight(self, servers: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """How many requests each server still has, in all workers. Unknown servers have none."""
        counts = dict.fromkeys(servers, 0)
        for pid in ["", *self.old_workers()]:
            rows = self._old(pid) if pid else self.servers()
            for key in counts:
                row = rows.get(key)
                counts[key] += int(row["scur"] or 0) + int(row["qcur"] or 0) if row else 0
        return counts

    def _old(self, pid: str) -> dict[tuple[str, str], dict]:
        """The servers of an old worker; none if it has ended meanwhile."""
        try:
            return self.servers(pid)
        except RuntimeFailure:
            if pid in self.old_workers():
                raise
            return {}

    def set_state(self, server: tuple[str, str], state: str) -> None:
        """ready, drain or maint; in old workers too, whose connections may still bring a request."""
        command = f"set server {'/'.join(server)} state {state}"
        self.tell(command)
        if state == "ready":
            return
        for pid in self.old_workers():
            if server in self._old(pid):
                self.ask(command, pid)

    def read_map(self, path: str, pid: str = "") -> dict[str, str] | None:
        """The entries of a map in memory, or None where the running configuration has no such map."""
        text = self.ask(f"show map {path}", pid)
        if text.startswith("Unknown map"):
            return None
        words = (line.split(" ", 2) for line in text.splitlines() if line)
        return {word[1]: word[2] if len(word) > 2 else "" for word in words}

    def outdated(self, path: str, entries: dict[str, str]) -> list[str]:
        """The workers ("" is the current one) that have this map with other entries."""
        return [pid for pid in ["", *self.old_workers()] if self._read_old(path, pid) not in (None, entries)]

    def _read_old(self, path: str, pid: str) -> dict[str, str] | None:
        """A map of a worker; None if it has ended meanwhile."""
        try:
            return self.read_map(path, pid)
        except RuntimeFailure:
            if not pid or pid in self.old_workers():
                raise
            return None

    def replace_map(self, path: str, entries: dict[str, str], pid: str = "") -> None:
        """Exchange all entries of a map at once."""
        try:
            self._replace_map(path, entries, pid)
        except RuntimeFailure:
            if not pid or pid in self.old_workers():
                raise

    def _replace_map(self, path: str, entries: dict[str, str], pid: str) -> None:
        answer = self.ask(f"prepare map {path}", pid)
        found = re.search(r"version created: (\d+)", answer)
        if not found:
            raise RuntimeFailure(f"HAProxy does not prepare {path}: {answer.strip()}")
        version = found.group(1)
        for key, value in entries.items():
            self.tell(f"add map @{version} {path} {_escaped(key)} {_escaped(value)}", pid)
        self.tell(f"commit map @{version} {path}", pid)

    def _send(self, path: str, line: str) -> str:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(self.timeout)
            try:
                sock.connect(path)
                sock.sendall(f"{line}\n".encode())
                # The master's socket waits for more until it is told that there is none.
                sock.shutdown(socket.SHUT_WR)
                answer = bytearray()
                while piece := sock.recv(65536):
                    answer += piece
            except OSError as error:
                raise RuntimeFailure(f"HAProxy does not answer on {path}: {error}") from error
        return answer.decode(errors="replace")


def _escaped(word: str) -> str:
    """A word of a command as HAProxy's command line reads it."""
    return re.sub(r"([\\ ;<])", r"\\\1", word)


def _shown(command: str) -> str:
    """A command without its values, which may be secret."""
    return " ".join(command.split()[:4])
