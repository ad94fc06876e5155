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
from collections.abc import Callable, Iterable
from typing import Any

# Bits of srv_admin_state: forced by somebody, inherited, or from the configuration.
MAINT = 0x01 | 0x02 | 0x04 | 0x20
DRAIN = 0x08 | 0x10
# How long a socket that refuses may belong to an HAProxy that reloads. One that has ended refuses too.
RELOAD_SECONDS = 2.0


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

    def uptime(self) -> int:
        """Whole seconds since the current worker started."""
        found = re.search(r"^Uptime_sec: (\d+)$", self.ask("show info"), re.MULTILINE)
        if not found:
            raise RuntimeFailure(f"HAProxy does not say how long it runs on {self.path}")
        return int(found.group(1))

    def pid(self) -> str:
        """The process id of the current worker."""
        found = re.search(r"^Pid: (\d+)$", self.ask("show info"), re.MULTILINE)
        if not found:
            raise RuntimeFailure(f"HAProxy does not say its process id on {self.path}")
        return found.group(1)

    def started(self) -> float | None:
        """When the current worker started, in seconds since 1970, at the latest; None where none runs."""
        try:
            return time.time() - self.uptime()
        except RuntimeFailure:
            return None

    def old_workers(self) -> list[str]:
        """Process ids of workers that only serve what they had before the last reload."""
        if not self.master:
            return []
        old = self._send(self.master, "show proc").partition("# old workers")[2]
        return re.findall(r"^(\d+)\s+worker\b", old, re.MULTILINE)

    def stat(self, pid: str = "") -> list[dict]:
        """The rows of `show stat`: frontends (type 0), backends (1) and servers (2)."""
        return list(csv.DictReader(io.StringIO(self.ask("show stat", pid).lstrip("# "))))

    def servers(self, pid: str = "") -> dict[tuple[str, str], dict]:
        """{(backend, server): row of `show stat`}."""
        return {(row["pxname"], row["svname"]): row for row in self.stat(pid) if row.get("type") == "2"}

    def states(self) -> dict[tuple[str, str], str]:
        """{(backend, server): ready, drain or maint}, whatever the health check says."""
        lines = [line.split() for line in self.ask("show servers state").splitlines()]
        admin = {(words[1], words[3]): int(words[6]) for words in lines if len(words) > 6 and words[0] != "#"}
        return {key: "maint" if bits & MAINT else "drain" if bits & DRAIN else "ready" for key, bits in admin.items()}

    def in_flight(self, servers: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """How many requests each server still has, in all workers. Unknown servers have none."""
        counts = dict.fromkeys(servers, 0)
        for rows in self._of_all(self.servers).values():
            for key in counts:
                row = rows.get(key)
                counts[key] += int(row["scur"] or 0) + int(row["qcur"] or 0) if row else 0
        return counts

    def may_come(self, servers: Iterable[tuple[str, str]], settle: int) -> bool:
        """Whether an old worker may still bring these servers a request, on a connection that it accepted shortly before the reload."""
        old = self.old_workers() if self.uptime() < settle else []
        return any(set(servers) & set(self._of_old(pid, self.servers) or {}) for pid in old)

    def _of_all(self, look: Callable[[str], Any]) -> dict[str, Any]:
        """{process id: what a look at this worker finds}; "" is the current one.

        It comes first: were the list of old ones made before, a reload in between would hide a worker from both looks.
        """
        found = {"": look("")}
        found.update((pid, self._of_old(pid, look)) for pid in self.old_workers())
        return {pid: one for pid, one in found.items() if one is not None}

    def _of_old(self, pid: str, look: Callable[[str], Any]) -> Any:
        """What a look at an old worker finds; None if it has ended meanwhile."""
        try:
            return look(pid)
        except RuntimeFailure:
            if pid in self.old_workers():
                raise
            return None

    def stats(self) -> dict[str, list[dict]]:
        """{process id: rows of `show stat`} of all workers, the current one under its process id too."""
        pid = self.pid()
        rows = self._of_all(self.stat)
        if self.pid() != pid:  # a reload in between: the rows may be those of either
            return self.stats()
        return {old or pid: found for old, found in rows.items()}

    def usable(self, pid: str) -> set[str]:
        """The backends that have a server for a request in an old worker. Nothing of it has changed since the reload."""
        rows = self._of_old(pid, self.stat) or []
        return {row["pxname"] for row in rows if row["type"] == "1" and (int(row["act"] or 0) or int(row["bck"] or 0))}

    def set_state(self, server: tuple[str, str], state: str) -> None:
        """ready, drain or maint; in old workers too where HAProxy does that. 2.6 answers "Proxy is disabled" there."""
        command = f"set server {'/'.join(server)} state {state}"
        self.tell(command)
        if state != "ready":
            for pid in self.old_workers():
                self._of_old(pid, lambda pid: self.ask(command, pid))

    def read_map(self, path: str, pid: str = "") -> dict[str, str] | None:
        """The entries of a map in memory, or None where the running configuration has no such map."""
        text = self.ask(f"show map {path}", pid)
        if text.startswith("Unknown map"):
            return None
        words = (line.split(" ", 2) for line in text.splitlines() if line)
        return {word[1]: word[2] if len(word) > 2 else "" for word in words}

    def maps(self, path: str) -> dict[str, dict[str, str]]:
        """{process id: entries of a map} of the workers that have it; "" is the current one."""
        return self._of_all(lambda pid: self.read_map(path, pid))

    def outdated(self, path: str, entries: dict[str, str]) -> list[str]:
        """The workers ("" is the current one) that have this map with other entries."""
        return [pid for pid, held in self.maps(path).items() if held != entries]

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

    @staticmethod
    def _connect(sock: socket.socket, path: str) -> None:
        """While HAProxy reloads, there is a moment in which its sockets are there and take nobody."""
        deadline = time.monotonic() + RELOAD_SECONDS
        while True:
            try:
                return sock.connect(path)
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _send(self, path: str, line: str) -> str:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(self.timeout)
            try:
                self._connect(sock, path)
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
