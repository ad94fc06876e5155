# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""A web server that answers what a test tells it to, and a proxy that passes everything on; both on real sockets."""

from __future__ import annotations

import base64
import contextlib
import http.client
import select
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class Reply:
    """One answer. `declared` is a Content-Length that is not true; `held` keeps the body back until it is set."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    declared: int | None = None
    held: threading.Event | None = None
    chunked: bool = False


@dataclass
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]


class ScriptedServer:
    """Gives for each path its replies, one a request; the last one stays."""

    def __init__(self, tls=None, address: str = "127.0.0.1") -> None:
        self.replies: dict[str, list[Reply]] = {}
        self.seen: list[Seen] = []
        self.httpd = _Server6((address, 0), _bound(_Handler, self)) if ":" in address else _Server((address, 0), _bound(_Handler, self))
        if tls is not None:
            self.httpd.socket = tls.wrap_socket(self.httpd.socket, server_side=True)
        host = f"[{address}]" if ":" in address else address
        self.url = f"{'https' if tls else 'http'}://{host}:{self.httpd.server_port}"
        threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(self, *_error) -> None:
        self.httpd.shutdown()
        self.httpd.server_close()

    def on(self, path: str, *replies: Reply) -> str:
        """The URL of a path, with what it answers."""
        self.replies[path] = list(replies)
        return f"{self.url}{path}"

    def redirect(self, path: str, target: str, status: int = 302) -> str:
        return self.on(path, Reply(status=status, headers={"Location": target}))

    def last(self, header: str) -> str | None:
        return self.seen[-1].headers.get(header.lower())


class ForwardingProxy:
    """An HTTP proxy: requests for http are passed on, CONNECT makes a tunnel. `refuses` is a status for everybody."""

    def __init__(self, password: str = "", refuses: int = 0) -> None:
        self.seen: list[Seen] = []
        self.refuses = refuses
        self.wanted = "Basic " + base64.b64encode(password.encode()).decode() if password else ""
        self.httpd = _Server(("127.0.0.1", 0), _bound(_ProxyHandler, self))
        self.address = f"127.0.0.1:{self.httpd.server_port}"
        self.url = f"http://{f'{password}@' if password else ''}{self.address}"
        threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __enter__(self) -> ForwardingProxy:
        return self

    def __exit__(self, *_error) -> None:
        self.httpd.shutdown()
        self.httpd.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address) -> None:
        """A client that leaves, or that does not trust the certificate, is what many tests are about."""


class _Server6(_Server):
    address_family = socket.AF_INET6


def _bound(kind: type, server) -> type:
    return type(kind.__name__, (kind,), {"script": server})


class _Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def note(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.script.seen.append(Seen(self.command, self.path, headers))

    def send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(reply.body) if reply.declared is None else reply.declared))
        self.end_headers()
        if reply.held is not None:
            reply.held.wait(20)
        if self.command != "HEAD":
            # A chunk that announces more than follows is how a chunked answer breaks off.
            self.wfile.write(b"%x\r\n%b" % (len(reply.body) + 1, reply.body) if reply.chunked else reply.body)
        self.close_connection = self.close_connection or reply.declared is not None or reply.chunked

    def log_message(self, *_arguments) -> None:
        """Requests are kept in `seen`."""


class _Handler(_Quiet):
    script: ScriptedServer

    def do_GET(self) -> None:
        self.note()
        replies = self.script.replies.get(self.path.partition("?")[0], [Reply(status=404)])
        with contextlib.suppress(ConnectionError):
            self.send(replies.pop(0) if len(replies) > 1 else replies[0])

    do_HEAD = do_GET


class _ProxyHandler(_Quiet):
    script: ForwardingProxy

    def _admitted(self) -> bool:
        self.note()
        status = self.script.refuses
        if self.script.wanted and self.headers.get("Proxy-Authorization") != self.script.wanted:
            status = 407
        if status:
            self.send(Reply(status=status))
        return not status

    def do_GET(self) -> None:
        if self._admitted():
            headers = {name: value for name, value in self.headers.items() if not name.lower().startswith("proxy-")}
            target = urlsplit(self.path)
            onward = http.client.HTTPConnection(target.netloc)
            onward.request(self.command, target._replace(scheme="", netloc="").geturl(), headers=headers)
            answer = onward.getresponse()
            passed = {name: answer.headers[name] for name in ("Location", "ETag", "Content-Type") if name in answer.headers}
            self.send(Reply(answer.read(), answer.status, passed))
            onward.close()

    def do_CONNECT(self) -> None:
        if not self._admitted():
            return
        target = urlsplit(f"//{self.path}")
        with socket.create_connection((target.hostname, target.port)) as onward:
            self.send_response(200)
            self.end_headers()
            ends = {self.connection: onward, onward: self.connection}
            while True:
                for end in select.select(list(ends), [], [], 20)[0] or [None]:
                    data = end.recv(65536) if end else b""
                    if not data:
                        self.close_connection = True
                        return
                    ends[end].sendall(data)
