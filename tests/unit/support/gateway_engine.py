# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""A small engine for tests of the gateway: OpenAI's paths, an API key, streams, and trouble on demand."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """The gateway leaves whenever its client does."""


class Engine:
    """Answers on a free port of 127.0.0.1 for one model, and keeps what it was sent (health checks apart)."""

    def __init__(self, model: str, key: str = "engine-key") -> None:
        self.model = model
        self.key = key
        self.healthy = True
        self.requests: list[dict] = []
        # Requests wait here while it is cleared.
        self.go = threading.Event()
        self.go.set()
        # What happens to a request: answer, error, hang up, stream, cut (a stream that ends in the middle), reset (one that breaks).
        self.behaviour = "answer"
        self.pause = 0.1
        self.server = _Server(("127.0.0.1", 0), self._handler())
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self.go.set()
        self.server.shutdown()
        self.server.server_close()

    def _handler(engine):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_args):
                pass

            def reply(self, status: int, body: dict) -> None:
                data = json.dumps(body, separators=(",", ":")).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self):
                checks = {"/health": {"status": "ok"}, "/v1/models": {"data": [{"id": engine.model}]}}
                if self.path not in checks:
                    self.seen(b"")
                    return self.reply(200, {"leak": self.path})
                keyless = self.path == "/health" or not engine.key
                allowed = keyless or self.headers["Authorization"] == f"Bearer {engine.key}"
                return self.reply(200 if engine.healthy and allowed else 503, checks[self.path])

            def seen(self, body: bytes) -> None:
                engine.requests.append(
                    {"path": self.path, "headers": {k.lower(): v for k, v in self.headers.items()}, "body": body}
                )

            def body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") == "chunked":
                    body = b""
                    while size := int(self.rfile.readline(), 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                    return body
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))

            def do_POST(self):
                self.seen(self.body())
                engine.go.wait(30)
                if engine.key and self.headers["Authorization"] != f"Bearer {engine.key}":
                    self.reply(401, {"error": "no key"})
                elif engine.behaviour == "hang up":
                    self.close_connection = True
                elif engine.behaviour == "error":
                    self.reply(500, {"error": "out of memory"})
                elif engine.behaviour in ("stream", "cut", "reset"):
                    self.stream()
                else:
                    self.reply(200, {"model": engine.model, "port": engine.port})

            def leave(self) -> None:
                self.close_connection = True
                if engine.behaviour == "reset":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()

            def stream(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                whole = [*range(20), "[DONE]"]
                for number in whole if engine.behaviour == "stream" else whole[:4]:
                    event = f"data: {number}\n\n".encode()
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
                    self.wfile.flush()
                    time.sleep(engine.pause)
                if engine.behaviour == "stream":
                    self.wfile.write(b"0\r\n\r\n")
                else:
                    self.leave()

            do_PUT = do_DELETE = do_PATCH = do_POST

        return Handler
