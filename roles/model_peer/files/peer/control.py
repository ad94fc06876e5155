# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""How the program is told what to do: a socket of this host, a line of JSON in, a line of JSON out.

Only root is answered, and whoever runs the program.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import struct
from typing import Callable

LONGEST = 64 * 1024 * 1024  # bytes of a line: a torrent of a very large file is some megabytes
SLOW = 10.0  # seconds that whoever asked may take to read the answer


class Control:
    """The socket, and those who are connected to it."""

    def __init__(self, path: str, answer: Callable[[dict], dict]) -> None:
        self.path = path
        self.answer = answer
        self.selector = selectors.DefaultSelector()
        self.buffers: dict[socket.socket, bytearray] = {}
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            self.listener.bind(path)
        finally:
            os.umask(before)
        self.listener.listen(16)
        self.selector.register(self.listener, selectors.EVENT_READ)

    def serve(self, seconds: float) -> None:
        """Answer those who ask within this time."""
        for key, _events in self.selector.select(seconds):
            if key.fileobj is self.listener:
                self._accept()
            else:
                self._read(key.fileobj)

    def close(self) -> None:
        for connection in list(self.buffers):
            self._forget(connection)
        self.listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    def _accept(self) -> None:
        connection, _address = self.listener.accept()
        size = struct.calcsize("3i")
        _process, user, _group = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        if user not in (0, os.getuid()):
            connection.close()
            return
        connection.settimeout(SLOW)
        self.buffers[connection] = bytearray()
        self.selector.register(connection, selectors.EVENT_READ)

    def _read(self, connection: socket.socket) -> None:
        buffer = self.buffers[connection]
        try:
            data = connection.recv(1 << 20)
            buffer += data
            if not data or len(buffer) > LONGEST:
                self._forget(connection)
                return
            while b"\n" in buffer:
                line, _newline, rest = bytes(buffer).partition(b"\n")
                buffer[:] = rest
                connection.sendall(json.dumps(self._answer(line)).encode() + b"\n")
        except OSError:
            self._forget(connection)

    def _answer(self, line: bytes) -> dict:
        try:
            asked = json.loads(line)
            if not isinstance(asked, dict):
                raise ValueError("no object")
        except (RecursionError, ValueError) as error:
            return {"error": f"this is no JSON object: {error}"}
        return self.answer(asked)

    def _forget(self, connection: socket.socket) -> None:
        self.selector.unregister(connection)
        del self.buffers[connection]
        connection.close()
