# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A llama-server that computes for a double: starts it, asks it, reads its streams, hands out its slots.

    LLAMA_SERVER   the command that starts llama-server (default: llama-server)
"""
from __future__ import annotations

import contextlib
import http.client
import json
import os
import shlex
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from gguf_file import write_gguf
from model_dir import BadWeights, ModelDir

STEP = 0.05


class Refused(Exception):
    """llama-server answered with an error, or not at all."""

    def __init__(self, message: str, status: int = 500) -> None:
        super().__init__(message)
        self.status = status


class QueueFull(Exception):
    """Nobody else may wait."""


class Piece(NamedTuple):
    """What one event of a stream says."""

    text: str = ""
    finish: str | None = None
    usage: dict | None = None


class Runner:
    """One llama-server with one model; each of its slots has `context` tokens."""

    def __init__(self, model: ModelDir, context: int, slots: int, embeddings: bool = False) -> None:
        self.model, self.context, self.slots = model, context, slots
        self.folder = tempfile.TemporaryDirectory(prefix="double-")
        weights = Path(self.folder.name) / "model.gguf"
        write_gguf(model, weights)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = shlex.split(os.environ.get("LLAMA_SERVER", "llama-server"))
        command += ["--model", str(weights), "--host", "127.0.0.1", "--port", str(self.port), "--alias", "behind"]
        # Several threads would wait for each other in a loop, and on a busy machine for seconds.
        command += ["--ctx-size", str(context * slots), "--parallel", str(slots), "--no-slots", "--threads", "1"]
        command += ["--embeddings", "--pooling", "last"] if embeddings else []
        quiet = {"LLAMA_ARG_OFFLINE": "1", "LLAMA_ARG_UI": "0", "LLAMA_ARG_WEBUI": "0", "LLAMA_CACHE": self.folder.name}
        self.process = subprocess.Popen(command, env={**os.environ, **quiet}, stdin=subprocess.DEVNULL)

    def wait(self, given_up: Callable[[], bool]) -> bool:
        """Wait until it is ready; False where somebody gave up meanwhile."""
        while not given_up():
            if self.process.poll() is not None:
                self.stop()
                raise BadWeights(f"llama-server ended with {self.process.returncode} while it loaded the model")
            with contextlib.suppress(OSError, http.client.HTTPException), self.send("GET", "/health") as answer:
                if answer.status == 200:
                    return True
            time.sleep(STEP)
        return False

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()

    @contextlib.contextmanager
    def send(self, method: str, path: str, body: dict | None = None) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        with contextlib.closing(connection):
            content = json.dumps(body) if body is not None else None
            connection.request(method, path, content, {"Content-Type": "application/json"})
            yield connection.getresponse()

    def ask(self, path: str, body: dict) -> dict:
        with failures(), self.send("POST", path, body) as answer:
            text = answer.read()
            if answer.status != 200:
                raise Refused(said(text), answer.status)
            return json.loads(text)

    def pieces(self, path: str, body: dict) -> Iterator[Piece]:
        """The answer of /v1/chat/completions or /v1/completions, as it comes."""
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        with failures(), self.send("POST", path, body) as answer:
            if answer.status != 200:
                raise Refused(said(answer.read()), answer.status)
            while line := answer.readline():
                if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                    yield piece(json.loads(line[len(b"data: ") :]))

    def tokens(self, text: str) -> list[dict]:
        """The tokens of a text, with their ids and pieces."""
        return self.ask("/tokenize", {"content": text, "parse_special": True, "with_pieces": True})["tokens"]

    def prompt(self, asked: dict) -> str:
        """The text that the model reads for a conversation."""
        return self.ask("/apply-template", {key: asked[key] for key in ("messages", "tools") if asked.get(key)})["prompt"]


@contextlib.contextmanager
def failures() -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise Refused(f"the model broke off: {error!r}") from error


def said(body: bytes) -> str:
    """The message in an error of llama-server."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace").strip()


def piece(event: dict) -> Piece:
    if "error" in event:
        raise Refused(str((event["error"] or {}).get("message")))
    choice = (event.get("choices") or [{}])[0]
    text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
    return Piece(text, choice.get("finish_reason"), event.get("usage"))


class Slots:
    """Who computes and who waits. `most_waiting` is None where the queue has no end."""

    def __init__(self, count: int, most_waiting: int | None) -> None:
        self.count, self.most_waiting = count, most_waiting
        self.running = self.waiting = 0
        self.paused = False
        self.changed = threading.Condition()

    @contextlib.contextmanager
    def take(self) -> Iterator[None]:
        with self.changed:
            if not self._free():
                if self.most_waiting is not None and self.waiting >= self.most_waiting:
                    raise QueueFull
                self.waiting += 1
                self.changed.wait_for(self._free)
                self.waiting -= 1
            self.running += 1
        try:
            yield
        finally:
            with self.changed:
                self.running -= 1
                self.changed.notify_all()

    def pause(self, paused: bool) -> None:
        with self.changed:
            self.paused = paused
            self.changed.notify_all()

    def _free(self) -> bool:
        return self.running < self.count and not self.paused
