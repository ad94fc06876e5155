# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The HTTP interface: Ollama's own API, and OpenAI's and Anthropic's, which llama-server answers behind it."""
from __future__ import annotations

import contextlib
import fnmatch
import http.client
import json
import math
import os
import select
import signal
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from scheduler import Runner, Scheduler, number, seconds, variable
from store import Model, Store, StoreError, is_cloud, parse_name, timestamp

VERSION = "0.33.0-double"
FOREVER = 10_982_000_000  # the year 2318: how the original shows that a model stays
PROXIED = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages")
LEFT_OUT = ("pull", "push", "create", "copy", "delete", "blobs", "me", "signout", "user", "experimental", "embeddings", "status")
ERRORS = {400: "invalid_request_error", 404: "not_found_error"}
OPTIONS = {"num_predict": "max_tokens", "temperature": "temperature", "seed": "seed", "stop": "stop", "top_p": "top_p"}


class Server(ThreadingHTTPServer):
    """Knows its connections, so that it can cut them."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], store: Store) -> None:
        self.store = store
        self.scheduler = Scheduler(store)
        self.connections: set[socket.socket] = set()
        super().__init__(address, Handler)

    def get_request(self) -> tuple:
        connection, address = super().get_request()
        self.connections.add(connection)
        return connection, address

    def shutdown_request(self, request: socket.socket) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def cut(self, *_signal: object) -> None:
        """What the original does when it is told to stop: it waits for nobody."""
        with contextlib.suppress(OSError):
            self.socket.close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.scheduler.close()
        os._exit(0)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        super().setup()
        # A piece of a stream leaves at once.
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    # Requests

    def do_GET(self) -> None:
        self._answer("GET")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._answer("POST")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.started = False
        try:
            if not self._origin_allowed():
                return self._send(403, b"", "text/plain")
            return self._route(method, path)
        except StoreError as error:
            return self._error(path, error.status, str(error))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        except (OSError, http.client.HTTPException) as error:
            # llama-server broke off.
            self.close_connection = True
            if not self.started:
                self._error(path, 500, f"an error was encountered while running the model: {error}")

    def _route(self, method: str, path: str) -> None:
        if path.startswith("/api/") and path.split("/")[2] in LEFT_OUT:
            raise StoreError("this double leaves that out", 501)
        known = {**ROUTES, **dict.fromkeys(PROXIED, ("POST", Handler._proxy))}
        if path.startswith("/v1/models/"):
            known[path] = ("GET", Handler._model)
        if path not in known:
            return self._send(404, b"404 page not found", "text/plain")
        wanted, action = known[path]
        if method != wanted:
            return self._send(405, b"405 method not allowed", "text/plain")
        return action(self)

    def _origin_allowed(self) -> bool:
        origin = self.headers.get("Origin", "")
        host = origin.partition("://")[2].rpartition(":")[0] or origin.partition("://")[2]
        patterns = [part for part in variable("OLLAMA_ORIGINS").split(",") if part]
        return (
            not origin
            or origin.partition("://")[2] == self.headers.get("Host")
            or host in ("localhost", "127.0.0.1", "0.0.0.0")
            or any(fnmatch.fnmatchcase(origin, pattern) for pattern in patterns)
        )

    # Ollama's own API

    def _hello(self) -> None:
        self._send(200, b"Ollama is running", "text/plain; charset=utf-8")

    def _version(self) -> None:
        self._json({"version": VERSION})

    def _tags(self) -> None:
        self._json({"models": [{
            "name": model.name.short,
            "model": model.name.short,
            "modified_at": timestamp(model.modified),
            "size": model.size,
            "digest": model.digest,
            "details": self.server.store.details(model),
        } for model in self.server.store.models()]})

    def _ps(self) -> None:
        loaded = sorted(self.server.scheduler.loaded.values(), key=lambda runner: -runner.expires)
        self._json({"models": [{
            "name": runner.model.name.short,
            "model": runner.model.name.short,
            "size": runner.model.size,
            "digest": runner.model.digest,
            "details": self.server.store.details(runner.model),
            "expires_at": timestamp(FOREVER if runner.expires == math.inf else runner.expires),
            "size_vram": 0,
            "context_length": runner.num_ctx,
        } for runner in loaded]})

    def _show(self) -> None:
        asked = self._asked()
        model = self._find(str(asked.get("model") or asked.get("name") or ""))
        weights, _projectors = self.server.store.weights(model)
        self._json({
            "modelfile": f"FROM {weights}\n",
            "details": self.server.store.details(model),
            "model_info": {},
            "capabilities": ["completion"],
            "modified_at": timestamp(model.modified),
        })

    def _generate(self) -> None:
        asked = self._asked()
        self._native(asked, "response", {"prompt": asked.get("prompt")} if asked.get("prompt") else None, "/v1/completions")

    def _chat(self) -> None:
        asked = self._asked()
        self._native(asked, "message", {"messages": asked["messages"]} if asked.get("messages") else None, "/v1/chat/completions")

    def _native(self, asked: dict, field: str, question: dict | None, path: str) -> None:
        """A request of Ollama's own kind. An empty one only loads the model, or unloads it."""
        model = self._find(str(asked.get("model") or ""))
        empty = {"model": asked["model"], "created_at": timestamp(time.time()), **_piece(field, ""), "done": True}
        if question is None and "keep_alive" in asked and seconds(asked["keep_alive"], 300) == 0:
            self.server.scheduler.unload(model)
            return self._json({**empty, "done_reason": "unload"})
        options = asked.get("options") or {}
        with self.server.scheduler.use(model, options, asked.get("keep_alive"), self._gone) as runner:
            if question is None:
                return self._json({**empty, "done_reason": "load"})
            question = {**question, **{OPTIONS[key]: value for key, value in options.items() if key in OPTIONS}}
            return self._stream_native(runner, asked, field, {**question, "stream": True}, path)

    def _stream_native(self, runner: Runner, asked: dict, field: str, question: dict, path: str) -> None:
        """llama-server's events as lines of JSON."""
        streamed, whole, reason = asked.get("stream", True), "", "stop"
        with contextlib.closing(self._ask(runner, path, json.dumps(question).encode())) as connection:
            answer = connection.getresponse()
            if answer.status != 200:
                raise StoreError(answer.read().decode(errors="replace").strip(), answer.status)
            if streamed:
                self._begin(200, "application/x-ndjson")
            for line in answer:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                choice = (json.loads(line[6:]).get("choices") or [{}])[0]
                text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
                reason = choice.get("finish_reason") or reason
                whole += text
                if streamed and text:
                    self._line({"model": asked["model"], "created_at": timestamp(time.time()), **_piece(field, text), "done": False})
        last = {"model": asked["model"], "created_at": timestamp(time.time()), "done": True, "done_reason": reason}
        if not streamed:
            return self._json({**last, **_piece(field, whole)})
        self._line({**last, **_piece(field, "")})
        return self._end()

    def _embed(self) -> None:
        asked = self._asked()
        model = self._find(str(asked.get("model") or ""))
        wanted = asked.get("input") or []
        with self.server.scheduler.use(model, asked.get("options") or {}, asked.get("keep_alive"), self._gone) as runner:
            if not wanted:
                return self._json({"model": asked["model"], "embeddings": []})
            with contextlib.closing(self._ask(runner, "/v1/embeddings", json.dumps({"input": wanted}).encode())) as connection:
                answer = connection.getresponse()
                body = answer.read()
            if answer.status != 200:
                raise StoreError(body.decode(errors="replace").strip(), answer.status)
        return self._json({"model": asked["model"], "embeddings": [entry["embedding"] for entry in json.loads(body)["data"]]})

    # OpenAI's and Anthropic's

    def _models(self) -> None:
        self._json({"object": "list", "data": [_listed(model) for model in self.server.store.models()]})

    def _model(self) -> None:
        self._json(_listed(self._find(self.path.partition("?")[0][len("/v1/models/"):])))

    def _proxy(self) -> None:
        model = self._find(str(self._asked().get("model") or ""))
        with (
            self.server.scheduler.use(model, {}, None, self._gone) as runner,
            contextlib.closing(self._ask(runner, self.path, self.body)) as connection,
        ):
            answer = connection.getresponse()
            kind = answer.headers.get("Content-Type", "application/json")
            if answer.length is not None:
                return self._send(answer.status, answer.read(), kind)
            self._begin(answer.status, kind)
            while piece := answer.read1(1 << 16):
                self._piece(piece)
            return self._end()

    def _ask(self, runner: Runner, path: str, body: bytes) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", runner.port)
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        return connection

    # Pieces

    def _asked(self) -> dict:
        if not self.body:
            raise StoreError("missing request body", 400)
        try:
            asked = json.loads(self.body)
        except ValueError as error:
            raise StoreError(str(error), 400) from error
        if not isinstance(asked, dict):
            raise StoreError("json: cannot unmarshal into a request", 400)
        return asked

    def _find(self, name: str) -> Model:
        if not name:
            raise StoreError("model is required", 400)
        if is_cloud(name):
            if number("OLLAMA_NO_CLOUD", 0):
                raise StoreError("ollama cloud is disabled: remote model is unavailable", 403)
            raise StoreError("this double knows no cloud", 502)
        if not parse_name(name).valid:
            raise StoreError(f"model '{name}' not found", 404)
        return self.server.store.find(name)

    def _gone(self) -> bool:
        """Whether the client has left."""
        try:
            readable, _, _ = select.select([self.connection], [], [], 0)
            return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)
        except (OSError, ValueError):
            return True

    def _error(self, path: str, status: int, message: str) -> None:
        error: dict = {"error": message}
        if path.startswith("/v1/"):
            error = {"error": {"message": message, "type": ERRORS.get(status, "api_error"), "param": None, "code": None}}
        if path == "/v1/messages":
            kinds = {**ERRORS, 403: "permission_error", 503: "overloaded_error"}
            error = {"type": "error", "error": {"type": kinds.get(status, "api_error"), "message": message}}
        with contextlib.suppress(OSError):
            self._json(error, status)

    def _json(self, data: dict, status: int = 200) -> None:
        self._send(status, json.dumps(data, separators=(",", ":")).encode(), "application/json; charset=utf-8")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.started = True
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _begin(self, status: int, kind: str) -> None:
        self.started = True
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _piece(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _line(self, data: dict) -> None:
        self._piece(json.dumps(data, separators=(",", ":")).encode() + b"\n")

    def _end(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, form: str, *values: object) -> None:
        print(f"[GIN] {self.client_address[0]} {form % values}", flush=True)


ROUTES = {
    "/": ("GET", Handler._hello),
    "/api/version": ("GET", Handler._version),
    "/api/tags": ("GET", Handler._tags),
    "/api/ps": ("GET", Handler._ps),
    "/api/show": ("POST", Handler._show),
    "/api/generate": ("POST", Handler._generate),
    "/api/chat": ("POST", Handler._chat),
    "/api/embed": ("POST", Handler._embed),
    "/v1/models": ("GET", Handler._models),
}


def _piece(field: str, text: str) -> dict:
    return {"message": {"role": "assistant", "content": text}} if field == "message" else {"response": text}


def _listed(model: Model) -> dict:
    return {"id": model.name.short, "object": "model", "created": int(model.modified), "owned_by": model.name.namespace}


def serve(address: tuple[str, int], store: Store) -> None:
    server = Server(address, store)
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, server.cut)
    print(f'level=INFO msg="Listening on {address[0]}:{address[1]} (version {VERSION})"', flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while True:
        signal.pause()
