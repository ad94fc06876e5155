# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Serves contents by their digest over HTTPS, to those who hold a certificate of the fleet's CA.

    GET, HEAD /blobs/sha256/<hex>     the same address that a depot serves, Range included

It stands in for a depot while a playbook runs, so it lives as long as somebody asks: after some minutes without a request
it ends by itself, whatever became of the playbook. Contents come from a store's blobs and from files named one by one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import ssl
import stat
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import NamedTuple

PIECE = 1 << 20
SILENCE = 60  # seconds that a connection may take for its handshake, or stay without a request or a byte
LOCATION = re.compile(r"/blobs/sha256/([0-9a-f]{64})")
RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")  # no file has more


class Tls(NamedTuple):
    """Files (PEM): the server's certificate and key, and the CA that signed it and must have signed those of its clients."""

    certificate: str
    key: str
    ca: str

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.certificate, self.key)
        context.load_verify_locations(self.ca)
        context.verify_mode = ssl.CERT_REQUIRED
        return context


class Contents:
    """What can be had, by digest: the blobs of a store, and files that a list names (`{digest: path}` as JSON)."""

    def __init__(self, store: str | None, listing: str | None = None) -> None:
        self.blobs = Path(store) / "blobs" / "sha256" if store else None
        self.listing = Path(listing) if listing else None
        self._lock = threading.Lock()
        self._read: tuple = ()
        self._files: dict[str, str] = {}

    def open(self, digest: str):
        """The content, opened and ready to be sent; None where there is none."""
        path = self.files().get(digest) or (self.blobs and self.blobs / digest)
        if not path:
            return None
        try:
            # Without O_NONBLOCK, a pipe by that name would wait for its writer for ever.
            number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            return None
        return os.fdopen(number, "rb", buffering=0)

    def files(self) -> dict[str, str]:
        """The list as it is now: a later run may have added to it."""
        if self.listing is None:
            return {}
        with self._lock:
            try:
                status = self.listing.stat()
                seen = (status.st_ino, status.st_mtime_ns, status.st_size)
                if seen != self._read:
                    self._files, self._read = json.loads(self.listing.read_text(encoding="utf-8")), seen
            except (OSError, ValueError):
                self._files, self._read = {}, ()
            return self._files


class _Idle(Exception):
    """Nobody has asked for a long time."""


class BlobServer(ThreadingMixIn, HTTPServer):
    """One process, a thread for each connection. `address` may be one that only others see (NAT): then it listens on all."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: str, port: int, tls: ssl.SSLContext, contents: Contents, idle_timeout: float) -> None:
        self.tls = tls
        self.contents = contents
        self.idle_timeout = idle_timeout
        self.active = 0
        self.used = time.monotonic()
        self._lock = threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            super().__init__((address, port), _Handler)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            super().__init__(("", port), _Handler)
        host = f"[{address}]" if ":" in address else address
        self.url = f"https://{host}:{self.server_port}"

    def server_bind(self) -> None:
        # HTTPServer's own would ask the name service who this is.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def serve(self) -> None:
        """Serve until nobody asks any more."""
        with contextlib.suppress(_Idle):
            self.serve_forever(poll_interval=0.2)
        self.server_close()

    def service_actions(self) -> None:
        with self._lock:
            if not self.active and time.monotonic() - self.used >= self.idle_timeout:
                raise _Idle

    @contextlib.contextmanager
    def request_counted(self):
        """While it is answered, the server is not idle, however long that takes."""
        with self._lock:
            self.active += 1
        try:
            yield
        finally:
            with self._lock:
                self.active -= 1
                self.used = time.monotonic()

    def finish_request(self, request, client_address) -> None:
        # In the thread of the connection: a client that does not finish its handshake delays nobody.
        request.settimeout(SILENCE)
        with self.tls.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request, client_address) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            return super().handle_error(request, client_address)
        # Refused certificates and broken connections: for whoever wonders why a host gets nothing.
        _log(f"{client_address[0]}: {error}")
        return None


def _log(line: str) -> None:
    """To the server's own log: whoever started it has sent its standard error there."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


class _Handler(BaseHTTPRequestHandler):
    server: BlobServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "llm_fleet", ""

    def do_GET(self) -> None:
        with self.server.request_counted():
            self._answer(with_body=True)

    def do_HEAD(self) -> None:
        with self.server.request_counted():
            self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        asked = LOCATION.fullmatch(self.path)
        content = self.server.contents.open(asked[1]) if asked else None
        if content is None:
            return self._short(HTTPStatus.NOT_FOUND)
        with content:
            tag, size = f'"{asked[1]}"', os.fstat(content.fileno()).st_size
            part = self._part(size, tag)
            if part is None:
                return self._short(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, **{"Content-Range": f"bytes */{size}"})
            first, end = part
            partial = (first, end) != (0, size)
            self.send_response(HTTPStatus.PARTIAL_CONTENT if partial else HTTPStatus.OK)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", tag)
            self.send_header("Content-Length", str(end - first))
            if partial:
                self.send_header("Content-Range", f"bytes {first}-{end - 1}/{size}")
            self.end_headers()
            if with_body:
                self._send(content, first, end)
        return None

    def _part(self, size: int, tag: str) -> tuple[int, int] | None:
        """(first byte, byte after the last) of what was asked for; None where there is no such part."""
        asked = RANGE.fullmatch(self.headers.get("Range", "").strip())
        # Several ranges at once, and a range of something else, are answered with the whole: RFC 9110, 14.2 and 13.1.5.
        if not asked or asked[0] == "bytes=-" or self.headers.get("If-Range", tag) != tag:
            return 0, size
        first, last = asked[1], asked[2]
        if not first:
            start, end = max(size - int(last), 0), size
        else:
            start, end = int(first), min(int(last), size - 1) + 1 if last else size
            if last and int(last) < start:
                return 0, size
        return (start, end) if start < end else None

    def _send(self, content, first: int, end: int) -> None:
        content.seek(first)
        buffer = memoryview(bytearray(min(PIECE, max(end - first, 1))))
        while first < end:
            count = content.readinto(buffer[: min(len(buffer), end - first)])
            if not count:
                # The file has become shorter: what was promised cannot be kept.
                self.close_connection = True
                return
            self.wfile.write(buffer[:count])
            first += count

    def _short(self, status: HTTPStatus, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format, *arguments) -> None:
        """One line for each answer, without headers."""
        _log(f"{self.client_address[0]}: {format % arguments}")
