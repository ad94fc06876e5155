# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What an answer was, as its client saw it: complete, or what is wrong with it."""

from __future__ import annotations

import dataclasses
import json

# The first of these that is true of an answer is its outcome.
FAULTS = ("broken", "duplicated", "short", "late")
PREFIX = 40
PROPER_REASONS = ("length", "stop")


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a request asked for. `exact`: the engine was told not to stop sooner, and sends one event for each token."""

    tokens: int
    exact: bool = True
    stall: float = 10.0


class Verdict:
    """Is told of each event when it comes, and of the end; says what the answer was. Moments are those of one clock."""

    def __init__(self, expected: Expected) -> None:
        self.expected = expected
        self.tokens = 0
        self.text = ""
        self.first: float | None = None
        self.stall = 0.0
        self._last: float | None = None
        self._id: str | None = None
        self._reason: str | None = None
        self._done = False
        self._wrong: dict[str, str] = {}

    @property
    def outcome(self) -> str:
        return next((kind for kind in FAULTS if kind in self._wrong), "complete")

    @property
    def what(self) -> str:
        return "; ".join(self._wrong[kind] for kind in FAULTS if kind in self._wrong)

    @property
    def prefix(self) -> str:
        """How the answer begins: with a fixed prompt and temperature 0, it tells one version from another."""
        return self.text.lstrip()[:PREFIX]

    def event(self, data: bytes, now: float) -> None:
        """One event of a streamed answer."""
        self._mind_the_gap(now)
        if self._done:
            return self._blame("broken", "an event after [DONE]")
        if data == b"[DONE]":
            self._done = True
            return None
        content = self._parsed(data)
        if content is None:
            return None
        choices = content.get("choices")
        if not choices:
            # Usage comes so, after the end of the text. All else without a choice says nothing to a reader of the text.
            return None
        if self._reason is not None:
            self._blame("broken", "an event after the one with finish_reason")
        self._compare(content.get("id"), choices)
        self._read(choices[0], now)
        return None

    def whole(self, body: bytes, now: float) -> None:
        """All of an answer that was not streamed."""
        self._last = now
        content = self._parsed(body)
        if content is None:
            return
        choices = content.get("choices")
        if not choices:
            return self._blame("broken", "the answer has no choices")
        self._compare(content.get("id"), choices)
        self._done = True
        self.first = now
        self.text = str((choices[0].get("message") or {}).get("content") or "")
        self._reason = choices[0].get("finish_reason")
        self.tokens = (content.get("usage") or {}).get("completion_tokens", self.expected.tokens if self.text else 0)

    def end(self, why: str, now: float) -> None:
        """The answer is over. `why` says what is wrong with the end of the HTTP body, or nothing."""
        self._mind_the_gap(now)
        asked = self.expected.tokens
        if why:
            self._blame("broken", f"{why}, after {self.tokens} of {asked} tokens")
        if self._reason is None:
            self._blame("broken", f"no finish_reason, after {self.tokens} of {asked} tokens")
        elif self._reason not in PROPER_REASONS:
            self._blame("broken", f"finish_reason {str(self._reason)[:40]}")
        if not self._done:
            self._blame("broken", "no [DONE]")
        if self.tokens > asked:
            self._blame("duplicated", f"{self.tokens} tokens, more than the {asked} asked for")
        elif self.tokens < (asked if self.expected.exact else 1) and "broken" not in self._wrong:
            self._blame("short", f"{self.tokens} of {asked} tokens")

    def _blame(self, kind: str, what: str) -> None:
        """Keep the first of each kind: what follows is often its consequence."""
        self._wrong.setdefault(kind, what)

    def _mind_the_gap(self, now: float) -> None:
        gap = now - self._last if self._last is not None else 0.0
        self.stall = max(self.stall, gap)
        if gap > self.expected.stall:
            self._blame("late", f"{gap:.1f} s of silence after {self.tokens} tokens")
        self._last = now

    def _parsed(self, data: bytes) -> dict | None:
        try:
            content = json.loads(data)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            return self._blame("broken", "an event or body that is not a JSON object")
        choices = content.get("choices") or []
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            return self._blame("broken", "choices that are not a list of objects")
        if content.get("error"):
            error = content["error"] if isinstance(content["error"], dict) else {}
            said = error.get("code") or error.get("type") or "without a code"
            return self._blame("broken", f"an error in place of an answer, after {self.tokens} tokens: {str(said)[:60]}")
        return content

    def _compare(self, identity: str | None, choices: list) -> None:
        if self._id is None:
            self._id = identity
        if identity != self._id:
            self._blame("duplicated", f"another answer's id after {self.tokens} tokens")
        if len(choices) > 1 or choices[0].get("index", 0) != 0:
            self._blame("duplicated", f"a second choice after {self.tokens} tokens, where one was asked for")

    def _read(self, choice: dict, now: float) -> None:
        delta = choice.get("delta") or {}
        piece = delta.get("content") or delta.get("reasoning_content")
        if piece:
            self.tokens += 1
            if self.first is None:
                self.first = now
            if len(self.text) < 2 * PREFIX:
                self.text += piece
        if choice.get("finish_reason") is not None:
            self._reason = choice["finish_reason"]
