# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The router of TGI: its own API and OpenAI's, for one model, which llama-server computes behind it."""
from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Iterator
from types import SimpleNamespace

from metrics import Metrics
from runner import Piece, QueueFull, Refused, Runner, Slots
from validation import TgiError, Wish, read_chat, read_completions, read_generate
from web import Handler, Server

VERSION = "3.3.7"
FINGERPRINT = f"{VERSION}-native"
LEFT_OUT = ("/vertex", "/chat_tokenize", "/docs", "/api-doc/openapi.json")
CLOSED = ("/", "/generate", "/generate_stream", "/v1/chat/completions", "/v1/completions", "/vertex", "/invocations", "/tokenize")
OPENAI_REASONS = {"stop": "stop", "length": "length"}
OWN_REASONS = {"stop": "eos_token", "length": "length"}


class Router(Server):
    def __init__(self, args: SimpleNamespace, runner: Runner) -> None:
        self.args, self.runner = args, runner
        # The original refuses beyond so many at once; within that, how many compute follows from the memory.
        self.slots = Slots(runner.slots, max(args.max_concurrent_requests - runner.slots, 0))
        self.metrics = Metrics()
        super().__init__((args.hostname, args.port), TgiHandler)


class TgiHandler(Handler):
    server: Router

    def answer(self, method: str, path: str) -> None:
        actions = ROUTES.get(path)
        if path in LEFT_OUT:
            actions = {"POST": TgiHandler._left_out, "GET": TgiHandler._left_out}
        if actions is None:
            return self.send(404)
        action = actions.get("GET" if method == "HEAD" else method)
        if action is None:
            return self.send(405, Allow=",".join(actions))
        if method == "POST" and path in CLOSED and not self._allowed():
            return self.send(401)
        try:
            return action(self)
        except TgiError as error:
            self._failed(error)
            if error.kind is None:
                return self.text(str(error), error.status)
            return self.json({"error": str(error), "error_type": error.kind}, error.status)

    def _allowed(self) -> bool:
        key = self.server.args.api_key
        # The original does not mind letter case here.
        return not key or self.headers.get("Authorization", "").lower() == f"bearer {key}".lower()

    # What answers without the model

    def _health(self) -> None:
        if self.server.runner.process.poll() is not None:
            return self.json({"error": "unhealthy", "error_type": "healthcheck"}, 503)
        return self.send(200)

    def _models(self) -> None:
        name = self.server.args.model_id
        self.json({"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": name}]})

    def _info(self) -> None:
        args = self.server.args
        shown = ("max_concurrent_requests", "max_best_of", "max_stop_sequences", "max_input_tokens", "max_total_tokens")
        self.json({
            "model_id": args.model_id,
            "model_sha": None,
            "model_pipeline_tag": None,
            **{name: getattr(args, name) for name in shown},
            "validation_workers": args.validation_workers,
            "max_client_batch_size": args.max_client_batch_size,
            "router": "text-generation-router",
            "version": VERSION,
            "sha": None,
            "docker_label": None,
        })

    def _metrics(self) -> None:
        slots = self.server.slots
        self.text(self.server.metrics.render(tgi_batch_current_size=slots.running, tgi_queue_size=slots.waiting))

    def _left_out(self) -> None:
        self.text("this double leaves that out", 501)

    # What the model answers

    def _chat(self) -> None:
        asked = self._asked("messages")
        wish = read_chat(asked, self.server.args)
        model = asked.get("model") or "tgi"
        about = {
            "id": "",
            "created": int(time.time()),
            "model": self.server.args.model_id if model == "tgi" else model,
            "system_fingerprint": FINGERPRINT,
        }
        if not asked.get("stream"):
            whole = self._whole(wish)
            message = {"role": "assistant", "content": whole.text}
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": OPENAI_REASONS[whole.finish]}
            return self.json({"object": "chat.completion", **about, "choices": [choice], "usage": whole.usage})

        def chunks(piece: Piece) -> Iterator[dict]:
            chunk = {"object": "chat.completion.chunk", **about, "usage": None}
            choice = {"index": 0, "delta": {"role": "assistant", "content": piece.text}, "logprobs": None}
            yield {**chunk, "choices": [{**choice, "finish_reason": OPENAI_REASONS.get(piece.finish)}]}
            if piece.usage and (asked.get("stream_options") or {}).get("include_usage"):
                yield {**chunk, "choices": [], "usage": piece.usage}

        return self._stream(wish, chunks, openai=True)

    def _completions(self) -> None:
        asked = self._asked("prompt")
        wishes = read_completions(asked, self.server.args)
        about = {"id": "", "created": int(time.time()), "model": self.server.args.model_id, "system_fingerprint": FINGERPRINT}

        def choice(text: str, finish: str, index: int = 0) -> dict:
            return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}

        if not asked.get("stream"):
            found = [self._whole(wish) for wish in wishes]
            usage = {key: sum(whole.usage[key] for whole in found) for key in found[0].usage}
            choices = [choice(whole.text, OWN_REASONS[whole.finish], number) for number, whole in enumerate(found)]
            return self.json({"object": "text_completion", **about, "choices": choices, "usage": usage})
        if len(wishes) > 1:
            raise TgiError("this double streams one prompt at a time", "validation")

        def chunks(piece: Piece) -> Iterator[dict]:
            end = {"usage": piece.usage} if piece.usage else {}
            yield {"object": "text_completion", **about, "choices": [choice(piece.text, OWN_REASONS.get(piece.finish, ""))], **end}

        return self._stream(wishes[0], chunks, openai=True)

    def _generate(self, streamed: bool = False, listed: bool = False) -> None:
        asked = self._asked("inputs")
        wish = read_generate(asked, self.server.args)
        parameters = asked.get("parameters") or {}
        lead = asked["inputs"] if parameters.get("return_full_text") else ""
        if not streamed:
            whole = self._whole(wish)
            answer = {"generated_text": lead + whole.text}
            if parameters.get("details"):
                answer["details"] = self._details(whole, wish, {"prefill": [], "tokens": []})
            return self.json([answer] if listed else answer)
        count, text = 0, ""

        def chunks(piece: Piece) -> Iterator[dict]:
            nonlocal count, text
            count, text = count + 1, text + piece.text
            last = piece.usage is not None
            yield {
                "index": count,
                "token": {"id": 0, "text": piece.text, "logprob": 0.0, "special": False},
                "generated_text": lead + text if last else None,
                "details": self._details(piece, wish, {"input_length": piece.usage["prompt_tokens"]})
                if last and parameters.get("details") else None,
            }

        return self._stream(wish, chunks, openai=False)

    def _generate_stream(self) -> None:
        self._generate(streamed=True)

    def _compatible(self) -> None:
        self._generate(streamed=bool(self._asked("inputs").get("stream")), listed=True)

    def _invocations(self) -> None:
        asked = self._asked()
        action = next((action for key, action in BY_FIELD.items() if key in asked), None)
        if action is None:
            raise TgiError("data did not match any variant of untagged enum SagemakerRequest", None)
        action(self)

    def _tokenize(self) -> None:
        tokens, at, found = self._behind(lambda: self.server.runner.tokens(str(self._asked("inputs")["inputs"]))), 0, []
        for token in tokens:
            text = token["piece"] if isinstance(token["piece"], str) else bytes(token["piece"]).decode(errors="replace")
            found.append({"id": token["id"], "text": text, "start": at, "stop": at + len(text)})
            at += len(text)
        self.json(found)

    # Pieces

    def _asked(self, *needed: str) -> dict:
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            raise TgiError("Expected request with `Content-Type: application/json`", None, 415)
        if len(self.body) > self.server.args.payload_limit:
            raise TgiError("Failed to buffer the request body: length limit exceeded", None, 413)
        try:
            asked = json.loads(self.body)
        except ValueError as error:
            raise TgiError(f"Failed to parse the request body as JSON: {error}", None, 400) from error
        missing = [key for key in needed if not isinstance(asked, dict) or key not in asked]
        if missing or not isinstance(asked, dict):
            field = missing[0] if missing else "inputs"
            raise TgiError(f"Failed to deserialize the JSON body into the target type: missing field `{field}`", None)
        return asked

    @staticmethod
    def _details(piece: Piece, wish: Wish, more: dict) -> dict:
        tokens = piece.usage["completion_tokens"]
        return {"finish_reason": OWN_REASONS[piece.finish], "generated_tokens": tokens, "seed": wish.body.get("seed"), **more}

    def _behind(self, action):
        try:
            return action()
        except Refused as error:
            raise TgiError(f"Request failed during generation: {error}", "generation", 424) from error

    def _pieces(self, wish: Wish) -> Iterator[Piece]:
        """The answer as it comes; the last piece has the reason and the usage, and no text: the original's may have one."""
        runner, metrics, begun = self.server.runner, self.server.metrics, time.monotonic()
        metrics.count("tgi_request_count")
        try:
            with self.server.slots.take():
                started = time.monotonic()
                path, body = wish.validated(runner)
                last = Piece()
                for piece in runner.pieces(path, body):
                    if piece.text:
                        yield Piece(piece.text)
                    last = Piece("", piece.finish or last.finish, piece.usage or last.usage)
                if not last.finish or not last.usage:
                    raise TgiError("Incomplete generation", "incomplete_generation", 500)
                usage = {key: last.usage[key] for key in ("prompt_tokens", "completion_tokens", "total_tokens")}
                metrics.count("tgi_request_success")
                metrics.observe("tgi_request_generated_tokens", usage["completion_tokens"])
                metrics.observe("tgi_request_input_length", usage["prompt_tokens"])
                metrics.observe("tgi_request_queue_duration", started - begun)
                metrics.observe("tgi_request_inference_duration", time.monotonic() - started)
                metrics.observe("tgi_request_duration", time.monotonic() - begun)
                yield last._replace(usage=usage)
        except QueueFull:
            raise TgiError("Model is overloaded", "overloaded", 429) from None
        except Refused as error:
            if error.status == 400:
                raise TgiError(f"Template error: {error}", "template_error") from error
            raise TgiError(f"Request failed during generation: {error}", "generation", 424) from error

    def _whole(self, wish: Wish) -> Piece:
        found = list(self._pieces(wish))
        return found[-1]._replace(text="".join(piece.text for piece in found))

    def _stream(self, wish: Wish, chunks, openai: bool) -> None:
        """As the original, begin with 200 whatever comes: what is wrong is told in the stream."""
        self.begin_events(X_Accel_Buffering="no")
        try:
            with contextlib.closing(self._pieces(wish)) as pieces:
                for chunk in itertools.chain.from_iterable(map(chunks, pieces)):
                    # No space after the colon: so the original writes JSON, but not [DONE].
                    self.event(chunk, "data:")
        except TgiError as error:
            self._failed(error)
            told = {"error": {"message": str(error), "http_status_code": 422}}
            self.event(told if openai else {"error": str(error), "error_type": error.kind}, "data:")
        if openai:
            self.event("[DONE]")
        self.end_events()

    def _failed(self, error: TgiError) -> None:
        if error.kind:
            self.server.metrics.count("tgi_request_failure", err=error.kind)


ROUTES = {
    "/": {"GET": TgiHandler._health, "POST": TgiHandler._compatible},
    "/health": {"GET": TgiHandler._health},
    "/ping": {"GET": TgiHandler._health},
    "/info": {"GET": TgiHandler._info},
    "/metrics": {"GET": TgiHandler._metrics},
    "/v1/models": {"GET": TgiHandler._models},
    "/generate": {"POST": TgiHandler._generate},
    "/generate_stream": {"POST": TgiHandler._generate_stream},
    "/invocations": {"POST": TgiHandler._invocations},
    "/tokenize": {"POST": TgiHandler._tokenize},
    "/v1/chat/completions": {"POST": TgiHandler._chat},
    "/v1/completions": {"POST": TgiHandler._completions},
}
BY_FIELD = {"inputs": TgiHandler._compatible, "messages": TgiHandler._chat, "prompt": TgiHandler._completions}
