# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What SGLang refuses of a request, and what llama-server is asked in its place."""
from __future__ import annotations

import argparse
import math
from http import HTTPStatus
from typing import NamedTuple

from runner import Runner

COMMON = {"temperature": (0, math.inf), "frequency_penalty": (-2, 2), "presence_penalty": (-2, 2), "min_p": (0, 1)}
KEPT = (*COMMON, "top_p", "top_k", "seed", "stop", "tools", "tool_choice")


class SglError(Exception):
    """An error as SGLang tells it in most places."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
        kinds = {400: "BadRequestError", 500: "InternalServerError"}
        kind = kinds.get(status, HTTPStatus(status).phrase)
        self.body = {"object": "error", "message": message, "type": kind, "param": None, "code": status}


class Wish(NamedTuple):
    """One answer that somebody asks for: the path and the body for llama-server."""

    path: str
    body: dict
    context: int

    def validated(self, runner: Runner) -> tuple[str, dict]:
        """The same, with the room that is left for the answer."""
        text = self.body["prompt"] if "prompt" in self.body else runner.prompt(self.body)
        length, wanted = len(runner.tokens(text)), self.body.get("max_tokens")
        if length >= self.context:
            raise SglError(f"The input ({length} tokens) is longer than the model's context length ({self.context} tokens).", 400)
        if wanted is not None and length + wanted > self.context:
            raise SglError(
                f"Requested token count exceeds the model's maximum context length of {self.context} tokens. "
                f"You requested a total of {length + wanted} tokens: {length} tokens from the input messages and {wanted} tokens "
                "for the completion. Please reduce the number of tokens in the input messages or the completion to fit within the limit.",
                400,
            )
        return self.path, {**self.body, "max_tokens": self.context - length if wanted is None else wanted}


def checked(asked: dict) -> dict:
    """The settings that are there."""
    for name, (least, most) in COMMON.items():
        value = asked.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most):
            raise SglError(f"{name} must be in [{least}, {most}], got {value}.", 400)
    top_p = asked.get("top_p")
    if top_p is not None and not 0 < top_p <= 1:
        raise SglError(f"top_p must be in (0, 1], got {top_p}.", 400)
    return {name: asked[name] for name in KEPT if asked.get(name) is not None}


def most_tokens(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise SglError(f"max_new_tokens must be at least 0, got {value}.", 400)
    return value


def generation_only(args: argparse.Namespace) -> None:
    if args.is_embedding:
        raise SglError("This model does not appear to be a generation model by default. Please do not launch with --is-embedding", 400)


def read_chat(asked: dict, args: argparse.Namespace) -> Wish:
    generation_only(args)
    if not isinstance(asked["messages"], list):
        raise SglError("1 validation error:\n  {'type': 'list_type', 'loc': ('body', 'messages')}", 400)
    wanted = most_tokens(asked.get("max_completion_tokens") or asked.get("max_tokens"))
    limit = {} if wanted is None else {"max_tokens": wanted}
    return Wish("/v1/chat/completions", {"messages": asked["messages"], **checked(asked), **limit}, args.context_length)


def read_completion(asked: dict, args: argparse.Namespace) -> Wish:
    generation_only(args)
    if not isinstance(asked["prompt"], str):
        raise SglError("this double takes one text as the prompt", 400)
    limit = most_tokens(asked.get("max_tokens"))
    body = {"prompt": asked["prompt"], **checked(asked), "max_tokens": 16 if limit is None else limit}
    return Wish("/v1/completions", body, args.context_length)


def read_generate(asked: dict, args: argparse.Namespace) -> Wish:
    generation_only(args)
    sampling = asked.get("sampling_params") or {}
    limit = most_tokens(sampling.get("max_new_tokens", 128))
    body = {"prompt": str(asked["text"]), **checked(sampling)}
    return Wish("/v1/completions", body if limit is None else {**body, "max_tokens": limit}, args.context_length)


def read_embedding(asked: dict, args: argparse.Namespace) -> object:
    if not args.is_embedding:
        raise SglError(
            "This model does not appear to be an embedding model by default. Please add `--is-embedding` when launching the server or "
            "try another model.",
            400,
        )
    return asked["input"]
