# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""An HTTPS server that answers chat completions as llama-server behind the gateway does, or does one thing of it wrong."""

from __future__ import annotations

import json
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ansible_collections.localfirst.llm_fleet.tests.unit.support.fleet_ca import FleetCa

WORDS = {"1.0.0": "rila toze sazugu gapi tur ", "1.1.0": "mavete bolu kidi nesa fogu "}
BEHAVIOURS = (
    *("good", "usage", "cut", "cut event", "silent end", "no done", "no finish", "error then done", "aborted", "not json"),
    *("few", "many", "other id", "two choices", "event after finish", "event after done", "two dones"),
    *("no last chunk", "surplus", "no length", "no http", "hang up", "stall", "endless"),
    *("503", "429 queue_full", "429 too_many_requests_at_once", "502 page"),
)


class Gateway:
    """`behaviours` are those of the next requests, one each; the last one stays. `version` is what answers."""

    def __init__(self, folder: Path) -> None:
        self.authority = FleetCa(folder)
        pair = self.authority.issue("gateway", client=False)
        self.behaviours = ["good"]
        self.version = "1.0.0"
        self.stall = 0.4
        # Streams wait here after their first tokens while it is cleared.
        self.go = threading.Event()
        self.go.set()
        self.bodies: list[dict] = []
        self.paths: list[str] = []
        self.tokens: set[str] = set()
        self.connections: list = []
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), type("Bound", (_Handler,), {"gateway": self}))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate, pair.key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.address = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.go.set()
        self._server.shutdown()
        self._server.server_close()

    def note(self, handler: BaseHTTPRequestHandler, body: dict) -> str:
        with self._lock:
            self.bodies.append(body)
            self.paths.append(handler.path)
            self.tokens.add(handler.headers["Authorization"])
            self.connections.append(handler.client_address)
            return self.behaviours.pop(0) if len(self.behaviours) > 1 else self.behaviours[0]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address) -> None:
        """Clients that do not trust the certificate, or are gone, are what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    gateway: Gateway

    def log_message(self, *_arguments) -> None:
        """Nobody reads it."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        # Read before anything waits: the version is chosen when the request arrives.
        self.words = WORDS[self.gateway.version]
        self.does = self.gateway.note(self, body)
        if self.does == "hang up":
            self.close_connection = True
        elif self.does == "no http":
            self.close_connection = True
            self.wfile.write(b"SSH-2.0-surprise\r\n\r\n")
        elif self.does[:3].isdigit():
            self.refuse(*self.does.split(" "))
        elif body["stream"]:
            self.stream(body["max_tokens"])
        else:
            self.whole(body["max_tokens"])

    def head(self, status: int, kind: str, length: int | None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("X-Request-ID", f"request-{len(self.gateway.bodies)}")
        if length is not None:
            self.send_header("Content-Length", str(length))
        elif self.does != "no length":
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def refuse(self, status: str, code: str = "no_instance") -> None:
        page = b"<html>" if code == "page" else json.dumps({"error": {"message": "no", "code": code}}).encode()
        self.head(int(status), "application/json", len(page))
        self.wfile.write(page)

    def text(self, tokens: int) -> list[str]:
        words = self.words.split()
        return [f" {words[number % len(words)]}" for number in range(tokens)]

    def whole(self, tokens: int) -> None:
        given = tokens + {"few": -1, "many": 1}.get(self.does, 0)
        message = {"role": "assistant", "content": "".join(self.text(given))}
        answer = {"choices": [{"index": 0, "finish_reason": "length", "message": message}], "usage": {"completion_tokens": given}}
        data = json.dumps({"error": {"code": "oops"}} if self.does == "error then done" else answer).encode()
        self.head(200, "application/json", len(data))
        self.wfile.write(data[:-5] if self.does == "cut" else data)
        self.close_connection = self.does == "cut"

    def event(self, delta: dict, reason: str | None = None, identity: str = "one", index: int = 0) -> None:
        choices = [{"index": index, "delta": delta, "finish_reason": reason}]
        self.data(json.dumps({"id": identity, "choices": choices}))

    def data(self, text: str, end: str = "\n\n") -> None:
        piece = f"data: {text}{end}".encode()
        self.wfile.write(piece if self.does == "no length" else b"%x\r\n%b\r\n" % (len(piece), piece))

    def stream(self, tokens: int) -> None:
        does = self.does
        self.head(200, "text/event-stream", None)
        self.event({"role": "assistant", "content": None})
        given = tokens + {"few": -1, "many": 1}.get(does, 0)
        for number, word in enumerate(self.text(given)):
            if number == 3:
                self.gateway.go.wait(30)
            if number == 3 and self.goes_wrong():
                return
            self.event({"content": word}, identity="two" if does == "other id" and number > 2 else "one")
            if does == "two choices":
                self.event({"content": word}, index=1)
        self.last_events()

    def goes_wrong(self) -> bool:
        """In the middle of the text; true where nothing follows."""
        does = self.does
        if does == "not json":
            self.data("{")
        elif does == "stall":
            time.sleep(self.gateway.stall)
        elif does == "endless":
            time.sleep(5)
        elif does == "error then done":
            self.data(json.dumps({"error": {"message": "secret prompt", "code": "EngineDeadError"}}))
            self.data("[DONE]")
            self.wfile.write(b"0\r\n\r\n")
        elif does == "silent end":
            self.wfile.write(b"0\r\n\r\n")
        elif does == "cut event":
            self.data('{"id":', end="")
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = does == "cut"
        return does in ("cut", "error then done", "silent end", "endless", "cut event")

    def last_events(self) -> None:
        does = self.does
        if does != "no finish":
            self.event({}, "abort" if does == "aborted" else "length")
        if does == "usage":
            self.data('{"id": "one", "choices": [], "usage": {"completion_tokens": 3}}')
        if does == "event after finish":
            self.event({})
        if does != "no done":
            self.data("[DONE]")
        if does == "two dones":
            self.data("[DONE]")
        if does == "event after done":
            self.event({"content": " more"})
        if does in ("no last chunk", "no length"):
            self.close_connection = True
        else:
            self.wfile.write(b"0\r\n\r\n" + (b"2\r\nhi\r\n" if does == "surplus" else b""))
