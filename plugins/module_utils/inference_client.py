# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Asks an OpenAI-compatible engine for one streamed answer, and measures it as a client would see it.

An answer is complete only with a reason to finish, as many tokens as were asked for (unless the model itself came to an end), and
[DONE]. Anything else is an error with a reason: an engine that stops in mid-sentence still answers 200. What goes wrong is
part of what is measured, so nothing here raises for it.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.masking import Mask

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
PATHS = (CHAT, COMPLETIONS)
# Models that think first stream their thoughts under one of these names; they are tokens, and no part of the answer.
THOUGHTS = ("reasoning_content", "reasoning")
LINE_LIMIT = 1 << 20
REFUSAL_LIMIT = 1 << 16
SHOWN = 200
HOST = re.compile(r"([0-9a-z_-]{1,63}\.)*[0-9a-z_-]{1,63}|[0-9a-f]*:[0-9a-f:.]+(%[0-9a-z._-]+)?")
SENDABLE = re.compile(r"[\x21-\x7e]*")


class Inference(NamedTuple):
    """One request to one engine."""

    url: str
    model: str
    prompt: str
    key: str = ""
    path: str = CHAT
    max_tokens: int = 32
    timeout: float = 60

    def body(self) -> bytes:
        """What is sent. Temperature and seed make the answer the same each time, as far as an engine can."""
        asked = {"messages": [{"role": "user", "content": self.prompt}]} if self.path == CHAT else {"prompt": self.prompt}
        fixed = {"temperature": 0, "seed": 0, "stream": True, "stream_options": {"include_usage": True}}
        return json.dumps({"model": self.model, **asked, "max_tokens": self.max_tokens, **fixed}).encode()

    def mask(self) -> Mask:
        """Engines quote in their errors what they were sent, also in the forms that JSON and Python give it."""
        forms = {self.prompt, json.dumps(self.prompt)[1:-1], json.dumps(self.prompt, ensure_ascii=False)[1:-1], repr(self.prompt)[1:-1]}
        return Mask([self.key, *forms])


class Answer(NamedTuple):
    """What came back. Times are in seconds since the request began; None where an answer does not show them."""

    error: str  # why it is not complete; empty if it is
    text: str
    model: str  # as the engine named it; empty if it did not
    tokens: int
    seconds: float
    ttft_s: float | None
    tpot_s: float | None

    @property
    def ok(self) -> bool:
        return not self.error


class Broken(Exception):
    """What keeps an answer from being complete."""


def engine_address(url: str) -> tuple[str, int]:
    """Host and port of http://host:port; ValueError for anything else."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme != "http" or not HOST.fullmatch(host) or parts.username is not None or parts.path.strip("/") or parts.query:
        raise ValueError("it is no http://address:port")
    return host, parts.port or 80


def sendable(key: str) -> bool:
    """Whether a key can be sent in a header."""
    return SENDABLE.fullmatch(key) is not None


def ask(inference: Inference) -> Answer:
    """Send a request and read its answer to the end."""
    stream = Stream(inference)
    try:
        stream.run()
        error = stream.shortcoming()
    except Broken as broken:
        error = str(broken)
    except socket.timeout:
        error = f"{'no more than ' if stream.began else ''}{stream.progress()} within {inference.timeout:g} seconds"
    except (OSError, http.client.HTTPException) as broken:
        said = getattr(broken, "strerror", None) or str(broken) or type(broken).__name__
        error = f"{said}, after {stream.progress()}" if stream.began else said
    return stream.answer(shortened(inference.mask().hide(error)))


def shortened(text: str) -> str:
    """A text on one line, and not all of it where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


class Stream:
    """One answer while it arrives."""

    def __init__(self, inference: Inference) -> None:
        self.inference = inference
        self.parts: list[str] = []
        self.model = ""
        self.finish = ""
        self.deltas = 0
        self.usage: int | None = None
        self.began = False  # the engine has accepted the request
        self.begin = time.monotonic()
        self.first: float | None = None
        self.last: float | None = None

    @property
    def tokens(self) -> int:
        """As the engine counts them, where it does: a piece of a stream may hold several."""
        return self.deltas if self.usage is None else self.usage

    def progress(self) -> str:
        """How far the answer has come, for messages."""
        if self.deltas:
            return f"{self.deltas} piece{'s' if self.deltas > 1 else ''} of the answer"
        return "its beginning" if self.began else "nothing"

    def run(self) -> None:
        """Take in the answer up to [DONE]; Broken, OSError or HTTPException if it does not come to that."""
        host, port = engine_address(self.inference.url)
        connection = http.client.HTTPConnection(host, port, timeout=self.inference.timeout)
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        if self.inference.key:
            headers["Authorization"] = f"Bearer {self.inference.key}"
        try:
            connection.connect()
            # The connection forgets its socket once it has answered for the last time.
            sock = connection.sock
            sock.settimeout(self.rest())
            connection.request("POST", self.inference.path, self.inference.body(), headers)
            sock.settimeout(self.rest())
            with connection.getresponse() as response:
                if response.status != 200:
                    sock.settimeout(self.rest())
                    raise Broken(f"HTTP {response.status}: {_said(response.read(REFUSAL_LIMIT))}")
                self.began = True
                for kind, data in events(self.lines(response, sock)):
                    if data == "[DONE]":
                        return
                    self.take(kind, data)
            raise Broken(f"the stream ended without [DONE], after {self.progress()}")
        finally:
            connection.close()

    def rest(self) -> float:
        """Seconds that the request still has."""
        rest = self.begin + self.inference.timeout - time.monotonic()
        if rest <= 0:
            raise socket.timeout
        return rest

    def lines(self, response: http.client.HTTPResponse, sock: socket.socket) -> Iterator[str]:
        """Each line as it comes. A socket knows a time for one read only, so it gets what is left before each."""
        while True:
            sock.settimeout(self.rest())
            line = response.readline(LINE_LIMIT)
            if not line:
                return
            if len(line) >= LINE_LIMIT:
                raise Broken(f"a line of the stream is longer than {LINE_LIMIT} bytes")
            yield line.decode("utf-8", "replace").rstrip("\r\n")

    def take(self, kind: str, data: str) -> None:
        """Note what one event says."""
        now = time.monotonic() - self.begin
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            event = None
        if kind == "error" or not isinstance(event, dict) or event.get("error") or event.get("object") == "error":
            what = "the engine reports an error" if kind == "error" or isinstance(event, dict) else "an event is no JSON"
            raise Broken(f"{what}, after {self.progress()}: {_said(data.encode())}")
        self.model = self._text(event, "model") or self.model
        if self.model and self.model != self.inference.model:
            raise Broken(f"the answer is by the model '{self.model}' and not by '{self.inference.model}'")
        usage = event.get("usage")
        counted = usage.get("completion_tokens") if isinstance(usage, dict) else None
        if isinstance(counted, int):
            self.usage = counted
        choices = event.get("choices")
        if isinstance(choices, list) and choices and isinstance(choices[0], dict):
            self._take_choice(choices[0], now)

    def _take_choice(self, choice: dict[str, Any], now: float) -> None:
        self.finish = self._text(choice, "finish_reason") or self.finish
        delta = choice.get("delta")
        holder = choice if self.inference.path == COMPLETIONS else delta if isinstance(delta, dict) else {}
        text = self._text(holder, "text" if self.inference.path == COMPLETIONS else "content")
        self.parts.append(text)
        if text or any(self._text(holder, name) for name in THOUGHTS):
            self.deltas += 1
            self.last = now
            if self.first is None:
                self.first = now

    @staticmethod
    def _text(holder: dict[str, Any], name: str) -> str:
        value = holder.get(name)
        return value if isinstance(value, str) else ""

    def shortcoming(self) -> str:
        """What a stream that came to its [DONE] lacks; an empty string if nothing."""
        if not self.finish:
            return f"the stream gives no finish_reason, after {self.progress()}"
        if not self.deltas:
            return f"the answer is empty (finish_reason {self.finish})"
        wanted = self.inference.max_tokens
        if self.finish != "stop" and self.tokens < wanted:
            return f"the answer is short: {self.tokens} of {wanted} tokens (finish_reason {self.finish})"
        return ""

    def answer(self, error: str) -> Answer:
        """All of it, with its times."""
        tpot = None
        # What comes in one piece does not show how long each token took.
        if self.deltas > 1 and self.tokens > 1:
            tpot = round((self.last - self.first) / (self.tokens - 1), 6)
        ttft = None if self.first is None else round(self.first, 6)
        seconds = round(time.monotonic() - self.begin, 6)
        return Answer(error, "".join(self.parts), self.model, self.tokens, seconds, ttft, tpot)


def events(lines: Iterator[str]) -> Iterator[tuple[str, str]]:
    """(kind, data) of each event of a stream. Older versions of llama.cpp put an error in a field of that name."""
    kind, data = "", []
    for line in lines:
        field, _colon, value = line.partition(":")
        value = value[1:] if value.startswith(" ") else value
        if field == "event":
            kind = value
        elif field == "data":
            data.append(value)
        elif field == "error":
            kind, data = "error", [value]
        elif not line:
            if data:
                yield kind, "\n".join(data)
            kind, data = "", []


def _said(body: bytes) -> str:
    """What an engine says went wrong."""
    text = body.decode("utf-8", "replace")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return text or "nothing"
    if isinstance(said, dict):
        said = said.get("error") or said
        if isinstance(said, dict):
            said = said.get("message") or said
    return said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
