# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What an operator may write into the catalog about rollouts of a model: how it goes, and what has to hold."""

from __future__ import annotations

from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import golden, words
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.client_registry import parse_duration
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.rollout_strategy import STRATEGIES
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.schema import (
    Check,
    anything,
    either,
    list_of,
    number,
    one_of,
    optional,
    record,
    required,
    show,
    text,
    whole,
    wrong,
)

_PER_CENT = text("(?:100|[1-9][0-9]?)%", "a share", "per cent, as in 25%")


def _count_or_share(value: Any, where: str, faults: list[Fault]) -> int | str | None:
    """A number of replicas, or a share of them."""
    if isinstance(value, str):
        return _PER_CENT(value, where, faults)
    mine: list[Fault] = []
    found = whole(1, 100_000)(value, where, mine)
    faults += [fault._replace(fix="write a number of replicas, or a share of them such as 25%") for fault in mine]
    return found


def duration(value: Any, where: str, faults: list[Fault]) -> int | None:
    """A time such as 10m, in seconds."""
    try:
        return int(parse_duration(value if isinstance(value, str) else "").total_seconds())
    except ValueError:
        # What was cleaned once is clean: defaults go through their checks as well.
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        return wrong(faults, f"{show(value)} is no time", where, "write a number and a unit, as in 30s, 10m or 2h")


def _golden(value: Any, where: str, faults: list[Fault]) -> dict | None:
    """A prompt, and what its answer has to be: one way of saying it."""
    clean = _SMOKE(value, where, faults)
    if clean is None:
        return None
    clean = {key: found for key, found in clean.items() if found is not None}
    ways = [way for way in golden.MATCHERS if way in clean]
    if len(ways) > 1:
        return wrong(faults, f"{' and '.join(ways)} both say what to expect", where, "keep one of them")
    if "regex" in clean:
        why = golden.check_regex(clean["regex"])
        if why:
            return wrong(faults, f"it is no regular expression: {why}", f"{where}.regex", "mend it: it is searched in the answer")
    if "schema" in clean:
        unknown = golden.unsupported(clean["schema"])
        if unknown:
            what = f"not supported in a schema: {', '.join(unknown)}"
            return wrong(faults, what, f"{where}.schema", "docs/rollout.md lists what is; or use regex")
    return clean


_SMOKE = record({
    "prompt": required(words.PROSE),
    "expect": optional(words.PROSE),
    "exact": optional(words.PROSE),
    "regex": optional(words.PROSE),
    "schema": optional(anything),
    "max_tokens": optional(whole(1, 100_000)),
})
SMOKE: Check = list_of(_golden)

_SECONDS = number(0.0001, 3600)
GATES: Check = record({
    # What an engine that computes embeddings only cannot be asked.
    "path": optional(one_of("/v1/chat/completions", "/v1/completions", "none"), default="/v1/chat/completions"),
    "ttft_p95": optional(_SECONDS),
    "tpot_p95": optional(_SECONDS),
    "error_rate": optional(number(0, 1), default=0.01),
    "slowdown": optional(number(1, 1000)),
    "samples": optional(whole(1, 10_000), default=20),
    "concurrency": optional(whole(1, 256), default=2),
    "max_tokens": optional(whole(2, 100_000), default=32),
    "timeout": optional(whole(1, 3600), default=60),
})

_CANARY = record({
    "share": optional(whole(0, 100), default=5),
    "clients": optional(list_of(words.CLIENT_NAME), default=[]),
    "bake": optional(duration, default="5m"),
    "min_requests": optional(whole(0, 1_000_000), default=100),
})
ROLLOUT: Check = record({
    "strategy": optional(one_of(*STRATEGIES), default="auto"),
    "batches": optional(list_of(_count_or_share, least=1), default=[1, "25%", "100%"]),
    "max_unavailable": optional(_count_or_share, default="25%"),
    "canary": optional(either("none", _CANARY), default={}),
})


def canary_faults(model: dict, where: str, clients: list[str]) -> list[Fault]:
    """Clients that get a new release first have to exist."""
    canary = model["rollout"]["canary"]
    named = canary["clients"] if isinstance(canary, dict) else []
    return [
        Fault(f"unknown client {show(name)}", f"{where}.rollout.canary.clients", "name clients of llm_fleet_clients")
        for name in named
        if name not in clients
    ]
