# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""An engine for tests of what measures engines: OpenAI's streams on a real socket, and everything that can go wrong with them.

It stands for vllm, llama.cpp and the like, whose streams differ in what `Reply` lets a test choose. It computes nothing:
an answer is the words that it is told to say.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DONE = "data: [DONE]\n\n"


@dataclass
class Reply:
    """One answer. Without `words` it has as many as were asked for, and is cut off by that (finish_reason length)."""

    words: list[str] | None = None
    finish: str | None = None  # "" for none at all
    status: int = 200
    body: str = ""  # of a refusal; "%s" becomes what the engine was sent
    model: str | None = None  # None: as asked; "" for none at all
    usage: int | None = None
    delta: str = "content"  # where a chat's words are
    first_after: float = 0  # seconds before the first word
    pause: float = 0  # and before each of the others
    ending: str = DONE  # what comes after the words
    cut: bool = False  # the connection breaks off before the ending
    hang_up: bool = False  # without a word
    lead: str = ""  # comes before everything else
    hold: threading.Event | None = field(default=None, repr=False)  # the second word waits for it


class OpenAIEngine:
    """Answers on a free port of 127.0.0.1. `replies` are used one a request, the last one stays; or `choose` picks one."""

    def __init__(self, *replies: Reply, key: str = "") -> None:
        self.replies = list(replies) or [Reply()]
        self.choose = None  # a function of the prompt
        self.key = key
        self.requests: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.httpd = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"engine": self}))
        self.url = f"http://127.0.0.1:{self.httpd.server_port}"
        threading.Thread(target=self.httpd.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> OpenAIEngine:
        return self

    def __exit__(self, *_error) -> None:
        self.httpd.shutdown()
        self.httpd.server_close()

    def next_reply(self, request: dict, headers: dict[str, str]) -> Reply:
        with self.lock:
            self.requests.append(request)
            self.headers.append(headers)
            if self.choose:
                return self.choose(prompt_of(request))
            return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


def prompt_of(request: dict) -> str:
    return request["messages"][-1]["content"] if "messages" in request else request["prompt"]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address) -> None:
        """A client that gives up is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: OpenAIEngine

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        request = {"path": self.path, **json.loads(data)}
        reply = self.engine.next_reply(request, {name.lower(): value for name, value in self.headers.items()})
        self.close_connection = True
        if reply.hang_up:
            return
        if self.engine.key and self.headers["Authorization"] != f"Bearer {self.engine.key}":
            reply = Reply(status=401, body='{"error": {"message": "no such key"}}')
        if reply.status != 200:
            self.refuse(reply.status, reply.body.replace("%s", data.decode()).encode())
        else:
            self.stream(request, reply)

    def refuse(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, request: dict, reply: Reply) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        chat = self.path == "/v1/chat/completions"
        asked = request["max_tokens"]
        words = [f"w{number} " for number in range(asked)] if reply.words is None else reply.words
        finish = reply.finish if reply.finish is not None else "length" if reply.words is None else "stop"
        self.send(reply.lead)
        if chat:
            self.event(request, reply, {"delta": {"role": "assistant", "content": None}})
        time.sleep(reply.first_after)
        for number, word in enumerate(words):
            if number and reply.hold:
                reply.hold.wait(20)
            time.sleep(reply.pause if number else 0)
            self.event(request, reply, {"delta": {reply.delta: word}} if chat else {"text": word})
        if reply.cut:
            return
        if finish:
            self.event(request, reply, {"delta": {}, "finish_reason": finish} if chat else {"text": "", "finish_reason": finish})
        if reply.usage is not None:
            self.event(request, reply, None, usage={"completion_tokens": reply.usage})
        self.send(reply.ending)
        self.wfile.write(b"0\r\n\r\n")

    def event(self, request: dict, reply: Reply, choice: dict | None, **rest) -> None:
        model = request["model"] if reply.model is None else reply.model
        named = {"model": model} if model else {}
        choices = [] if choice is None else [{"index": 0, "finish_reason": None, **choice}]
        self.send(f"data: {json.dumps({'id': 'x', **named, 'choices': choices, **rest})}\n\n")

    def send(self, text: str) -> None:
        data = text.encode()
        if data:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def log_message(self, *_arguments) -> None:
        """Requests are kept in `requests`."""
