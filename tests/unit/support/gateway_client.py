# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""A client of the gateway for tests: tokens, requests as libraries send them, and bytes as attackers do."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import socket
import ssl
import time
from dataclasses import dataclass

CHAT = "/v1/chat/completions"
CONTEXT = ssl._create_unverified_context()
CONTEXT.set_alpn_protocols(["http/1.1"])


def token_line(token: str, client: str, ends_in: float = 3600) -> str:
    """A line of tokens.map."""
    return f"{hashlib.sha256(token.encode()).hexdigest()} {client}|{int(time.time() + ends_in)}|id\n"


@dataclass
class Answer:
    status: int
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def id(self) -> str:
        return self.headers["x-request-id"]

    def refused(self, status: int, code: str) -> str:
        """Check that this is a refusal in OpenAI's shape, and return its message."""
        assert self.status == status, (self.status, self.body)
        assert self.headers["content-type"] == "application/json"
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code", "request_id"}
        assert error["code"] == code
        assert error["request_id"] == self.id
        return error["message"]


@dataclass
class Client:
    port: int
    token: str | None = None

    def open(self, timeout: float = 20) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=timeout, context=CONTEXT)

    def headers(self) -> dict:
        return {"Authorization": f"Bearer {self.token}"} if self.token is not None else {}

    def ask(self, method: str, path: str, body=None, **headers) -> Answer:
        connection = self.open()
        data = (
            body if body is None or isinstance(body, bytes) or hasattr(body, "__next__") else json.dumps(body).encode()
        )
        sent = {**self.headers(), **{name.replace("_", "-"): value for name, value in headers.items()}}
        # A refusal may come, and the connection end, before all is sent: real clients read the answer then, as this does.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            connection.request(method, path, data, sent, encode_chunked=hasattr(data, "__next__"))
        connection._HTTPConnection__state = http.client._CS_REQ_SENT
        response = connection.getresponse()
        answer = Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        connection.close()
        return answer

    def chat(self, model: str = "tiny", **more) -> Answer:
        return self.ask("POST", CHAT, {"model": model, **more})

    def stream(self, model: str = "tiny"):
        """The connection and the response of a chat whose answer has begun."""
        connection = self.open()
        connection.request("POST", f"/m/{model}{CHAT}", b"{}", self.headers())
        return connection, connection.getresponse()

    def raw(self, data: bytes, timeout: float = 5, then: bytes = b"") -> bytes:
        """What comes back for these bytes, and others a little later, until the gateway closes or is silent."""
        answer = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout) as plain, CONTEXT.wrap_socket(plain) as sock:
            sock.sendall(data)
            if then:
                time.sleep(0.3)
                sock.sendall(then)
            try:
                while piece := sock.recv(65536):
                    answer += piece
            except (TimeoutError, ConnectionError, ssl.SSLError):
                pass
        return answer
