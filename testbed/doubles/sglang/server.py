# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The HTTP server of SGLang: its own API and OpenAI's, for one model, which llama-server computes behind it."""
from __future__ import annotations

import argparse
import contextlib
import json
import secrets
import time
import uuid
from collections.abc import Iterator

from metrics import Metrics
from runner import Piece, QueueFull, Refused, Runner, Slots
from web import Handler, Server

from sglang.admin import LEFT_OUT, SAID, Model
from sglang.requests import SglError, Wish, read_chat, read_completion, read_embedding, read_generate

VERSION = "0.5.6-double"
# How long a health check sleeps before it looks whether an answer came.
LOOK = 1.0
OPEN = ("/health", "/ready", "/metrics")


class Sglang(Server):
    def __init__(self, args: argparse.Namespace, runner: Runner) -> None:
        self.args, self.model = args, Model(runner, args.weight_version)
        self.starting, self.exiting = True, False
        self.slots = Slots(runner.slots, args.max_queued_requests)
        self.metrics = Metrics(engine_type="unified", model_name=args.served_model_name, pp_rank="0", tp_rank="0")
        super().__init__((args.host, args.port), SglangHandler)

    @property
    def in_flight(self) -> int:
        return self.slots.running + self.slots.waiting


class SglangHandler(Handler):
    server: Sglang

    def answer(self, method: str, path: str) -> None:
        if not self._allowed(method, path):
            return self.json({"error": "Unauthorized"}, 401)
        methods, action = self._route(path)
        if action is None:
            return self.json({"detail": "Not Found"}, 404)
        if ("GET" if method == "HEAD" else method) not in methods:
            return self.send(405, b'{"detail":"Method Not Allowed"}', "application/json", Allow=", ".join(methods))
        try:
            return action(self)
        except SglError as error:
            return self.json(error.body, error.status)

    def _route(self, path: str) -> tuple:
        if path in SAID:
            return ("GET", "POST"), lambda handler: handler.text(SAID[path])
        if path in LEFT_OUT:
            return ("GET", "POST"), lambda handler: handler.text("this double leaves that out", 501)
        if path.rstrip("/") == "/metrics":
            return ("GET",), SglangHandler._metrics if self.server.args.enable_metrics else None
        if path.startswith("/v1/models/"):
            return ("GET",), SglangHandler._model
        return ROUTES.get(path, ((), None))

    def _allowed(self, method: str, path: str) -> bool:
        key = self.server.args.api_key
        if not key or method == "OPTIONS" or path.startswith(OPEN):
            return True
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        given = [token if kind.lower() == "bearer" else "", self.headers.get("x-api-key", "")]
        return any(secrets.compare_digest(one.encode(), key.encode()) for one in given)

    # What tells of the server

    def _health(self) -> None:
        """As the original: at least a second, in which a busy server is asked nothing and an idle one computes a token."""
        if self.server.exiting or self.server.starting:
            return self.send(503)
        runner = self.server.model.runner
        time.sleep(LOOK)
        if not self.server.in_flight:
            try:
                compute(runner, self.server.args.is_embedding)
            except Refused:
                return self.send(503)
        return self.send(200)

    def _ping(self) -> None:
        self.send(200)

    def _model_info(self) -> None:
        args, model = self.server.args, self.server.model
        self.json({
            "model_path": model.path,
            "tokenizer_path": args.tokenizer_path,
            "is_generation": not args.is_embedding,
            "preferred_sampling_params": None,
            "weight_version": model.version,
        })

    def _server_info(self) -> None:
        # The key is among what it tells, as with the original.
        self.json({**vars(self.server.args), "status": "ready", "internal_states": [{}], "version": VERSION})

    def _weight_version(self) -> None:
        self.json({"weight_version": self.server.model.version})

    def _card(self) -> dict:
        name, args = self.server.args.served_model_name, self.server.args
        card = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "sglang", "root": name}
        return {**card, "parent": None, "max_model_len": args.context_length}

    def _models(self) -> None:
        self.json({"object": "list", "data": [self._card()]})

    def _model(self) -> None:
        name = self.path.partition("?")[0][len("/v1/models/") :]
        if name != self.server.args.served_model_name:
            what = {"message": f"The model '{name}' does not exist", "type": "invalid_request_error", "param": "model"}
            return self.json({"error": {**what, "code": "model_not_found"}}, 404)
        return self.json(self._card())

    def _metrics(self) -> None:
        slots = self.server.slots
        gauges = {"sglang:num_running_reqs": slots.running, "sglang:num_queue_reqs": slots.waiting, "sglang:token_usage": 0.0}
        self.text(self.server.metrics.render(**gauges), kind="text/plain; version=0.0.4; charset=utf-8")

    # What changes the server

    def _abort(self) -> None:
        if self._asked(empty=True).get("abort_all"):
            self.server.cut(self.connection)
        self.send(200)

    def _pause(self) -> None:
        self.server.slots.pause(True)
        self.json({"message": "Generation paused successfully.", "status": "ok"})

    def _continue(self) -> None:
        self.server.slots.pause(False)
        self.json({"message": "Generation continued successfully.", "status": "ok"})

    def _update_weights(self) -> None:
        asked = self._asked("model_path")
        good, message = self.server.model.swap(str(asked["model_path"]), asked.get("weight_version"))
        self.json({"success": good, "message": message, "num_paused_requests": 0}, 200 if good else 400)

    def _update_version(self) -> None:
        version = self._asked("new_version")["new_version"]
        self.server.model.version = version
        self.json({"success": True, "message": f"Weight version updated to {version}", "new_version": version})

    def _release(self) -> None:
        self.server.model.release()
        self.json(None)

    def _resume(self) -> None:
        self.server.model.resume()
        self.json(None)

    # What the model answers

    def _chat(self) -> None:
        asked = self._asked("messages")
        self._openai(asked, read_chat(asked, self.server.args), "chatcmpl", "chat.completion")

    def _completions(self) -> None:
        asked = self._asked("prompt")
        self._openai(asked, read_completion(asked, self.server.args), "cmpl", "text_completion")

    def _openai(self, asked: dict, wish: Wish, prefix: str, kind: str) -> None:
        chat = kind == "chat.completion"
        # The original takes any name for its model, and gives it back.
        name = asked.get("model") or self.server.args.served_model_name
        about = {"id": f"{prefix}-{uuid.uuid4()}", "created": int(time.time()), "model": name}

        def choice(text: str | None, finish: str | None, first: bool = False) -> dict:
            what = {"index": 0, "logprobs": None, "finish_reason": finish, "matched_stop": None}
            if not chat:
                return {**what, "text": text or ""}
            return {**what, "delta": {"role": "assistant", "content": ""} if first else {"content": text}}

        if not asked.get("stream"):
            pieces = list(self._pieces(wish))
            text, last = "".join(piece.text for piece in pieces), pieces[-1]
            said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            end = {"index": 0, **said, "logprobs": None, "finish_reason": last.finish, "matched_stop": None}
            metadata = {"weight_version": self.server.model.version}
            return self.json({"object": kind, **about, "choices": [end], "usage": last.usage, "metadata": metadata})
        about["object"] = f"{kind}.chunk" if chat else kind

        def chunks(pieces: Iterator[Piece]) -> Iterator[dict]:
            for number, piece in enumerate(pieces):
                if chat and number == 0:
                    yield {**about, "choices": [choice(None, None, first=True)], "usage": None}
                if piece.text:
                    yield {**about, "choices": [choice(piece.text, None)], "usage": None}
                if piece.finish:
                    yield {**about, "choices": [choice(None, piece.finish)], "usage": None}
                    if (asked.get("stream_options") or {}).get("include_usage"):
                        yield {**about, "choices": [], "usage": piece.usage}

        return self._stream(wish, chunks)

    def _generate(self) -> None:
        asked = self._asked("text")
        wish, name = read_generate(asked, self.server.args), uuid.uuid4().hex

        def shown(text: str, piece: Piece) -> dict:
            finish = {"type": piece.finish} if piece.finish else None
            usage = piece.usage or {"prompt_tokens": 0, "completion_tokens": 0}
            about = {"id": name, "finish_reason": finish, "weight_version": self.server.model.version}
            return {"text": text, "meta_info": {**about, **{key: usage[key] for key in ("prompt_tokens", "completion_tokens")}}}

        if not asked.get("stream"):
            pieces = list(self._pieces(wish))
            return self.json(shown("".join(piece.text for piece in pieces), pieces[-1]))

        def chunks(pieces: Iterator[Piece]) -> Iterator[dict]:
            whole = ""
            for piece in pieces:
                whole += piece.text
                yield shown(whole, piece)

        return self._stream(wish, chunks)

    def _embeddings(self) -> None:
        asked = self._asked("input")
        wanted = read_embedding(asked, self.server.args)
        with self._slot():
            try:
                found = self.server.model.runner.ask("/v1/embeddings", {"input": wanted})
            except Refused as error:
                raise SglError(f"Internal server error: {error}", 500) from error
        data = [{"embedding": entry["embedding"], "index": entry["index"], "object": "embedding"} for entry in found["data"]]
        name = asked.get("model") or self.server.args.served_model_name
        self.json({"data": data, "model": name, "object": "list", "usage": {**found["usage"], "completion_tokens": 0}})

    # Pieces

    def _asked(self, *needed: str, empty: bool = False) -> dict:
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if empty and not self.body:
            return {}
        if kind != "application/json":
            raise SglError("Unsupported Media Type: Only 'application/json' is allowed", 400)
        try:
            asked = json.loads(self.body)
        except ValueError as error:
            raise SglError(f"1 validation error:\n  JSON decode error: {error}", 400) from error
        missing = [key for key in needed if not isinstance(asked, dict) or asked.get(key) in (None, "", [])]
        if missing or not isinstance(asked, dict):
            where = ", ".join(missing)
            raise SglError(f"1 validation error:\n  {{'type': 'missing', 'loc': ('body', '{where}'), 'msg': 'Field required'}}", 400)
        return asked

    @contextlib.contextmanager
    def _slot(self) -> Iterator[None]:
        try:
            with self.server.slots.take():
                yield
        except QueueFull:
            raise SglError("The request queue is full.", 503) from None

    def _pieces(self, wish: Wish) -> Iterator[Piece]:
        """The answer as it comes; the last piece has the reason and the usage."""
        metrics, begun, first = self.server.metrics, time.monotonic(), None
        metrics.count("sglang:num_requests_total")
        with self._slot():
            runner = self.server.model.runner
            try:
                path, body = wish.validated(runner)
                last = Piece()
                for piece in runner.pieces(path, body):
                    if piece.text:
                        first = first or time.monotonic()
                        yield Piece(piece.text)
                    last = Piece("", piece.finish or last.finish, piece.usage or last.usage)
            except Refused as error:
                if error.status == 400:
                    raise SglError(str(error), 400) from error
                raise SglError(f"Internal server error: {error}", 500) from error
            if not last.finish or not last.usage:
                raise SglError("Internal server error: the scheduler is gone", 500)
            usage = {key: last.usage[key] for key in ("prompt_tokens", "completion_tokens", "total_tokens")}
            metrics.count("sglang:prompt_tokens_total", usage["prompt_tokens"])
            metrics.count("sglang:generation_tokens_total", usage["completion_tokens"])
            metrics.observe("sglang:time_to_first_token_seconds", (first or time.monotonic()) - begun)
            metrics.observe("sglang:e2e_request_latency_seconds", time.monotonic() - begun)
            yield last._replace(usage=usage)

    def _stream(self, wish: Wish, chunks) -> None:
        """What is wrong before the first token is told in the stream, after a 200; with the original, too."""
        self.begin_events()
        try:
            with contextlib.closing(self._pieces(wish)) as pieces:
                for chunk in chunks(pieces):
                    self.event(chunk)
        except SglError as error:
            self.event({"error": error.body})
        self.event("[DONE]")
        self.end_events()


def compute(runner: Runner, embedding: bool) -> None:
    """One token, to see whether it still computes."""
    if embedding:
        runner.ask("/v1/embeddings", {"input": "a"})
    else:
        runner.ask("/v1/completions", {"prompt": "a", "max_tokens": 1})


BOTH, GET, POST = ("GET", "POST"), ("GET",), ("POST",)
ROUTES = {
    "/health": (GET, SglangHandler._health),
    "/health_generate": (GET, SglangHandler._health),
    "/ping": (GET, SglangHandler._ping),
    "/get_model_info": (GET, SglangHandler._model_info),
    "/model_info": (GET, SglangHandler._model_info),
    "/get_server_info": (GET, SglangHandler._server_info),
    "/server_info": (GET, SglangHandler._server_info),
    "/get_weight_version": (GET, SglangHandler._weight_version),
    "/v1/models": (GET, SglangHandler._models),
    "/v1/chat/completions": (POST, SglangHandler._chat),
    "/v1/completions": (POST, SglangHandler._completions),
    "/v1/embeddings": (POST, SglangHandler._embeddings),
    "/invocations": (POST, SglangHandler._chat),
    "/generate": (("POST", "PUT"), SglangHandler._generate),
    "/abort_request": (POST, SglangHandler._abort),
    "/pause_generation": (POST, SglangHandler._pause),
    "/continue_generation": (POST, SglangHandler._continue),
    "/update_weights_from_disk": (POST, SglangHandler._update_weights),
    "/update_weight_version": (POST, SglangHandler._update_version),
    "/release_memory_occupation": (BOTH, SglangHandler._release),
    "/resume_memory_occupation": (BOTH, SglangHandler._resume),
}
