# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Puts a release's instances through their gates: ready, golden prompts, times, errors.

New and old are asked in the same minutes and in turn: what slows down the whole network then slows down both, and is not held
against the new one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import gates
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.golden import (
    MATCHERS,
    check_regex,
    mismatch,
    quoted,
    unsupported,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.inference_client import (
    CHAT,
    Answer,
    Inference,
    ask,
    engine_address,
    sendable,
)

NEW, OLD = "new", "old"
# After so many errors, a side that cannot pass any more is left alone: each could take as long as a request may.
ENDURED = 3
UNASKED = "not asked, because the instance is not ready"


class Settings(NamedTuple):
    """What to ask, how often, and what is expected. A target is {id, url, release}."""

    targets: list[dict[str, str]]
    baseline: list[dict[str, str]]
    model: str
    prompt: str
    smoke: list[dict[str, Any]]
    limits: dict[str, Any]
    key: str = ""
    path: str = CHAT
    samples: int = 20
    concurrency: int = 2
    max_tokens: int = 32
    timeout: int = 60


def faults(settings: Settings) -> list[str]:
    """What is wrong with the settings, without anything being asked; no sentence holds a prompt or the key."""
    found = []
    if not settings.targets:
        found.append("targets: there is none, so nothing would be measured; name the instances of the new release")
    if not settings.model:
        found.append("model: is empty; give the name that the engines serve it under")
    if not sendable(settings.key):
        found.append("key: cannot be sent in a header; use ASCII characters other than blanks")
    for name, least in (("samples", 1), ("concurrency", 1), ("max_tokens", 1), ("timeout", 1)):
        if getattr(settings, name) < least:
            found.append(f"{name}: must be at least {least}")
    if not settings.prompt.strip():
        found.append("prompt: is empty; leave it out for the default")
    for name, targets in (("targets", settings.targets), ("baseline", settings.baseline)):
        found += _target_faults(name, targets)
    for index, golden in enumerate(settings.smoke):
        found += _golden_faults(f"smoke[{index}]", golden)
    for name, limit in settings.limits.items():
        if limit is not None and (not limit >= 0 or (name == "error_rate" and limit > 1)):
            found.append(f"limits.{name}: must be {'from 0 to 1' if name == 'error_rate' else '0 or more'}")
    return found


def _target_faults(name: str, targets: list[dict[str, str]]) -> list[str]:
    found, known = [], set()
    for index, target in enumerate(targets):
        try:
            engine_address(target["url"])
        except ValueError as error:
            found.append(f"{name}[{index}].url: {error}; write one such as http://10.0.0.5:20000")
        if target["id"] in known:
            found.append(f"{name}[{index}].id: {target['id']} is there twice; name each instance once")
        known.add(target["id"])
    return found


def _golden_faults(where: str, golden: dict[str, Any]) -> list[str]:
    kinds = [kind for kind in MATCHERS if golden.get(kind) is not None]
    found = [] if golden["prompt"].strip() else [f"{where}.prompt: is empty; write what to ask"]
    if len(kinds) > 1:
        found.append(f"{where}: has {' and '.join(kinds)}; keep one of them")
    if (golden.get("max_tokens") or 1) < 1:
        found.append(f"{where}.max_tokens: must be at least 1")
    for kind in kinds:
        if not isinstance(golden[kind], dict) and not golden[kind].strip():
            found.append(f"{where}.{kind}: is empty; leave it out where any answer will do")
    if "regex" in kinds and check_regex(golden["regex"]):
        found.append(f"{where}.regex: is no regular expression ({check_regex(golden['regex'])}); write one as Python reads it")
    if "schema" in kinds:
        found += [f"{where}.schema: {fault}; leave it out" for fault in unsupported(golden["schema"])]
    return found


class ReleaseProbe:
    """One run through all gates."""

    def __init__(self, settings: Settings, asked: Callable[[Inference], Answer] = ask) -> None:
        self.settings = settings
        self.asked = asked
        self.samples: list[dict[str, Any]] = []
        sides = ((NEW, settings.targets), (OLD, settings.baseline))
        self.planned = {side: max(settings.samples, len(targets)) if targets else 0 for side, targets in sides}

    def run(self) -> dict[str, Any]:
        """Ask everything; what goes wrong on the way is a failure of the gates and no exception."""
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            unready = dict(zip((target["id"] for target in self.settings.targets), pool.map(self._unready, self.settings.targets)))
            ready = [target for target in self.settings.targets if not unready[target["id"]]]
            golden = self._golden(pool.map, unready)
            if ready:
                list(pool.map(self._pair, self._pairs(ready)))
        return self._result(unready, golden)

    def _ask(self, target: dict[str, str], prompt: str, max_tokens: int) -> tuple[Inference, Answer]:
        settings = self.settings
        inference = Inference(target["url"], settings.model, prompt, settings.key, settings.path, max_tokens, settings.timeout)
        return inference, self.asked(inference)

    def _unready(self, target: dict[str, str]) -> str:
        """Why a target is not ready; an empty string if it is. As long as a sample, so that no sample is the first of its kind."""
        _inference, answer = self._ask(target, self.settings.prompt, self.settings.max_tokens)
        named = answer.model in ("", self.settings.model)
        return "" if answer.ttft_s is not None and named else answer.error

    def _golden(self, each: Callable, unready: dict[str, str]) -> list[dict[str, Any]]:
        def judge(job: tuple[dict[str, str], int]) -> dict[str, Any]:
            target, index = job
            why = UNASKED if unready[target["id"]] else self._judge(target, self.settings.smoke[index])
            return {"target": target["id"], "index": index, "passed": not why, "why": why}

        return list(each(judge, [(target, index) for target in self.settings.targets for index in range(len(self.settings.smoke))]))

    def _judge(self, target: dict[str, str], golden: dict[str, Any]) -> str:
        inference, answer = self._ask(target, golden["prompt"], golden.get("max_tokens") or 64)
        if answer.error:
            return answer.error
        why = mismatch(golden, answer.text)
        if not why:
            return ""
        mask = inference.mask()
        said = f"; it is {quoted(mask.hide(answer.text))}" if answer.text.strip() else ""
        return f"{mask.hide(why)}{said}"

    def _pairs(self, ready: list[dict[str, str]]) -> Iterable[list[tuple[int, str, dict[str, str]]]]:
        """A request to each side; each side has the first turn as often as the other."""
        sides = {NEW: ready, OLD: self.settings.baseline}
        for number in range(max(self.planned.values())):
            pair = [(number, side, targets[number % len(targets)]) for side, targets in sides.items() if number < self.planned[side]]
            yield pair if number % 2 == 0 else pair[::-1]

    def _pair(self, pair: list[tuple[int, str, dict[str, str]]]) -> None:
        for number, side, target in pair:
            if self._lost(side):
                continue
            _inference, answer = self._ask(target, self.settings.prompt, self.settings.max_tokens)
            times = {"ttft_s": answer.ttft_s, "tpot_s": answer.tpot_s, "tokens": answer.tokens, "seconds": answer.seconds}
            known = {"target": target["id"], "release": target["release"], "side": side}
            self.samples.append({"number": number, **known, "ok": answer.ok, "error": answer.error, **times})

    def _lost(self, side: str) -> bool:
        """Whether a side has had more errors than it may have in all."""
        errors = sum(sample["side"] == side and not sample["ok"] for sample in list(self.samples))
        allowed = self.planned[side] * (self.settings.limits.get("error_rate") or 0)
        return errors >= ENDURED and errors > allowed

    def _result(self, unready: dict[str, str], golden: list[dict[str, Any]]) -> dict[str, Any]:
        self.samples.sort(key=lambda sample: (sample["number"], sample["side"]))
        samples = [{name: value for name, value in sample.items() if name != "number"} for sample in self.samples]
        sides = {side: [sample for sample in samples if sample["side"] == side] for side in (NEW, OLD)}
        releases = {target["id"]: target["release"] for target in self.settings.targets}
        failures = [f"ready: {name} ({releases[name]}) is not: {why}" for name, why in unready.items() if why]
        failures += [
            f"golden: {one['target']} ({releases[one['target']]}), smoke[{one['index']}]: {one['why']}"
            for one in golden
            if not one["passed"] and one["why"] != UNASKED
        ]
        notes = []
        if sides[NEW] or not failures:
            failures += gates.verdict(sides[NEW], sides[OLD], self.settings.limits)
            notes = gates.unjudged(sides[OLD], self.settings.limits)
        summary = {side: gates.summary(sides[side]) for side in (NEW, OLD)}
        return {"passed": not failures, "failures": failures, "notes": notes, "golden": golden, "samples": samples, "summary": summary}
