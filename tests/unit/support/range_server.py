# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""A real web server for tests: ranges, ETags and redirects as RFC 9110 has them, and faults on demand."""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Resource:
    """What a path answers, and what goes wrong with it."""

    body: bytes = b""
    etag: str | None = None  # None: a strong one made of the body; "" for none at all
    ranges: bool = True
    statuses: list[int] = field(default_factory=list)  # answered first, one a request
    cuts: list[int] = field(default_factory=list)  # bytes after which the first answers break off
    redirect: str = ""
    declared: int | str | None = None  # a Content-Length that is not true
    chunked: bool = False
    hold: threading.Event | None = None  # the body waits for it ...
    pause_at: int = 1  # ... after so many bytes
    range_shift: int = 0  # answers another range than was asked for
    range_first: str = ""  # what it says that the range begins with

    def tag(self) -> str:
        return f'"{hashlib.sha256(self.body).hexdigest()[:16]}"' if self.etag is None else self.etag


class RangeServer:
    """Serves `resources` by path on a free port of 127.0.0.1 and keeps every request in `requests`."""

    def __init__(self, tls=None) -> None:
        self.resources: dict[str, Resource] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.sent = 0
        self.started = threading.Event()  # set as soon as a body has begun
        owner = self

        class Handler(_Handler):
            server_owner = owner

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.httpd.daemon_threads = True
        scheme = "http"
        if tls is not None:
            scheme = "https"
            self.httpd.socket = tls.wrap_socket(self.httpd.socket, server_side=True)
        self.url = f"{scheme}://127.0.0.1:{self.httpd.server_port}"
        self.thread = threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def __enter__(self) -> RangeServer:
        return self

    def __exit__(self, *_error) -> None:
        self.httpd.shutdown()
        self.httpd.server_close()

    def add(self, path: str, body: bytes = b"", **faults) -> Resource:
        self.resources[path] = Resource(body, **faults)
        return self.resources[path]

    def ranges_asked(self) -> list[str | None]:
        return [headers.get("range") for _path, headers in self.requests]


class _Handler(BaseHTTPRequestHandler):
    server_owner: RangeServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        owner = self.server_owner
        owner.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        resource = owner.resources.get(self.path)
        if resource is None:
            return self._short(404)
        if resource.statuses:
            return self._short(resource.statuses.pop(0))
        if resource.redirect:
            return self._short(302, Location=resource.redirect)
        first, end = self._range(resource)
        if first >= len(resource.body) > 0:
            return self._short(416, **{"Content-Range": f"bytes */{len(resource.body)}"})
        return self._body(resource, first, end)

    def _range(self, resource: Resource) -> tuple[int, int]:
        whole = (0, len(resource.body))
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        # RFC 9110, 13.1.5: with another validator the whole representation is sent.
        if not asked or not resource.ranges or self.headers.get("If-Range", resource.tag()) != resource.tag():
            return whole
        if asked[2] and (resource.chunked or resource.declared is not None):
            return whole  # one that does not know its size, or lies about it
        return int(asked[1]), min(int(asked[2]) + 1, len(resource.body)) if asked[2] else len(resource.body)

    def _body(self, resource: Resource, first: int, end: int) -> None:
        total = len(resource.body)
        shifted = max(first - resource.range_shift, 0)
        body = resource.body[shifted:end]
        part = (first, end) != (0, total)
        self.send_response(206 if part else 200)
        if part:
            self.send_header("Content-Range", f"bytes {resource.range_first or shifted}-{end - 1}/{total}")
        if resource.tag():
            self.send_header("ETag", resource.tag())
        if resource.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(body) if resource.declared is None else resource.declared))
        self.end_headers()
        cut = resource.cuts.pop(0) if resource.cuts else None
        self._send(resource, body if cut is None else body[:cut], ended=cut is None)
        if cut is not None or resource.declared is not None:
            self.close_connection = True

    def _send(self, resource: Resource, data: bytes, ended: bool) -> None:
        try:
            pause = resource.pause_at
            for start, end in ((0, pause), (pause, len(data))):
                piece = data[start:end]
                if piece:
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if resource.chunked else piece)
                    self.server_owner.sent += len(piece)
                    self.server_owner.started.set()
                if resource.hold is not None and start == 0:
                    self.wfile.flush()
                    resource.hold.wait(20)
            if resource.chunked and ended:
                self.wfile.write(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _short(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments) -> None:
        """Requests are kept in `requests`."""
