# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What TGI refuses of a request, and what llama-server is asked in its place."""
from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

from runner import Runner

# Beyond that many the original does not reserve tokens for an answer before it has begun.
CHUNK = 1024


class TgiError(Exception):
    """An error as TGI tells it; without a kind it is the web server's, as plain text."""

    def __init__(self, message: str, kind: str | None, status: int = 422) -> None:
        super().__init__(message)
        self.kind, self.status = kind, status


class Wish(NamedTuple):
    """One answer that somebody asks for: the path and the body for llama-server."""

    path: str
    body: dict
    args: SimpleNamespace

    def validated(self, runner: Runner) -> tuple[str, dict]:
        """The same, with the room that is left for the answer."""
        check_sampling(self.body, self.args)
        text = self.body["prompt"] if "prompt" in self.body else runner.prompt(self.body)
        length, wanted = len(runner.tokens(text)), self.body.get("max_tokens")
        total, longest = self.args.max_total_tokens, self.args.max_input_tokens
        new = min(max(total - length, 0) if wanted is None else wanted, CHUNK)
        if length + new > total:
            raise invalid(
                f"`inputs` tokens + `max_new_tokens` must be <= {total}. Given: {length} `inputs` tokens and {new} `max_new_tokens`"
            )
        if length > longest:
            raise invalid(f"`inputs` must have less than {longest} tokens. Given: {length}")
        room = max(total - length, 1)
        return self.path, {**self.body, "max_tokens": room if wanted is None else min(wanted, room)}


def invalid(message: str) -> TgiError:
    return TgiError(f"Input validation error: {message}", "validation")


def check_sampling(body: dict, args: SimpleNamespace) -> None:
    rules = (
        ("temperature", lambda value: value >= 0, "`temperature` must be strictly positive"),
        ("repeat_penalty", lambda value: value > 0, "`repetition_penalty` must be strictly positive"),
        ("frequency_penalty", lambda value: -2 <= value <= 2, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        ("top_p", lambda value: 0 < value < 1, "`top_p` must be > 0.0 and < 1.0"),
        ("top_k", lambda value: value > 0, "`top_k` must be strictly positive"),
        ("max_tokens", lambda value: value > 0, "`max_new_tokens` must be strictly positive"),
    )
    for name, good, message in rules:
        if name in body and not good(body[name]):
            raise invalid(message)
    stops = body.get("stop") or []
    if len(stops) > args.max_stop_sequences:
        raise invalid(f"`stop` supports up to {args.max_stop_sequences} stop sequences. Given: {len(stops)}")


def picked(asked: dict, names: dict[str, str]) -> dict:
    """The settings that are there, under llama-server's names; a value of another kind cannot be read."""
    found = {}
    for name, theirs in names.items():
        value = asked.get(name)
        if value is None:
            continue
        if name == "stop":
            value = [value] if isinstance(value, str) else value
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TgiError(f"Failed to deserialize the JSON body into the target type: {name}: invalid type", None)
        found[theirs] = value
    return found


COMMON = {"temperature": "temperature", "top_p": "top_p", "frequency_penalty": "frequency_penalty", "seed": "seed", "stop": "stop"}
OPENAI = {**COMMON, "max_tokens": "max_tokens"}
OWN = {**COMMON, "max_new_tokens": "max_tokens", "top_k": "top_k", "repetition_penalty": "repeat_penalty"}


def read_chat(asked: dict, args: SimpleNamespace) -> Wish:
    if not isinstance(asked["messages"], list):
        raise TgiError("Failed to deserialize the JSON body into the target type: messages: invalid type, expected a sequence", None)
    return Wish("/v1/chat/completions", {"messages": asked["messages"], **picked(asked, OPENAI)}, args)


def read_completions(asked: dict, args: SimpleNamespace) -> list[Wish]:
    if asked.get("suffix") is not None:
        raise TgiError("Suffix is not supported and can be achieved by preprocessing the prompt.", "suffix not supported")
    prompts = asked["prompt"] if isinstance(asked["prompt"], list) else [asked["prompt"]]
    if len(prompts) > args.max_client_batch_size:
        most = args.max_client_batch_size
        raise TgiError(f"Number of prompts exceeds the maximum allowed batch size of {most}", "batch size exceeded")
    return [Wish("/v1/completions", {"prompt": str(prompt), **picked(asked, OPENAI)}, args) for prompt in prompts]


def read_generate(asked: dict, args: SimpleNamespace) -> Wish:
    parameters = asked.get("parameters") or {}
    body = picked(parameters, OWN)
    if "temperature" not in body and not parameters.get("do_sample"):
        body["temperature"] = 0  # greedy, unless it is asked for
    elif body.get("temperature") == 0:
        raise invalid("`temperature` must be strictly positive")
    return Wish("/v1/completions", {"prompt": str(asked["inputs"]), **body}, args)
