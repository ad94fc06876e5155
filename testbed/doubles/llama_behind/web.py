# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""An HTTP server that knows which of its connections are busy, and requests with what every double needs to answer them."""
from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[Handler]) -> None:
        self.connections: set[socket.socket] = set()
        self.busy: set[socket.socket] = set()
        self.draining = False
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    def get_request(self) -> tuple:
        connection, address = super().get_request()
        self.connections.add(connection)
        return connection, address

    def shutdown_request(self, request: socket.socket) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def drain(self, seconds: float) -> bool:
        """Accept nobody, let those in flight end; False where some had not after so many seconds."""
        self.draining = True
        self.shutdown()
        self.socket.close()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for connection in self.connections - self.busy:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            if not self.busy:
                return True
            time.sleep(0.05)
        return False

    def cut(self, *spared: socket.socket) -> None:
        for connection in self.connections.difference(spared):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class Handler(BaseHTTPRequestHandler):
    """A double implements `answer`, which gets the method and the path without its query."""

    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        super().setup()
        # A piece of a stream leaves at once.
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def answer(self, method: str, path: str) -> None:
        raise NotImplementedError

    def handle_any(self) -> None:
        self.server.busy.add(self.connection)
        self.started = False
        try:
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.answer(self.command, self.path.partition("?")[0])
        except OSError:
            # The client has left.
            self.close_connection = True
        finally:
            self.server.busy.discard(self.connection)
            self.close_connection |= self.server.draining

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = handle_any

    def json(self, data: object, status: int = 200) -> None:
        self.send(status, json.dumps(data, separators=(",", ":")).encode(), "application/json")

    def text(self, text: str, status: int = 200, kind: str = "text/plain; charset=utf-8") -> None:
        self.send(status, text.encode(), kind)

    def send(self, status: int, body: bytes = b"", kind: str | None = None, **headers: str) -> None:
        self.started = True
        self.send_response(status)
        if kind:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def begin_events(self, **headers: str) -> None:
        self.started = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def event(self, data: object, lead: str = "data: ") -> None:
        """One event of a stream: JSON, or a word as it is."""
        text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
        body = f"{lead}{text}\n\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(body), body))

    def end_events(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def end_headers(self) -> None:
        if self.server.draining:
            self.send_header("Connection", "close")
        super().end_headers()

    def log_message(self, form: str, *values: object) -> None:
        print(f"{self.client_address[0]} {form % values}", flush=True)
