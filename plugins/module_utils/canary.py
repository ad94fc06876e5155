# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Says from what clients really got whether a canary may go on. Pure: counters of the gateways in, sentences out."""

from __future__ import annotations

from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.traffic import traffic_between, traffic_sum

NOTHING = {"requests": 0, "answers": 0, "errors": 0, "error_rate": None, "latency_ms": None}
# Fewer answers of either release make no average that one could compare.
ENOUGH = 20
# What is a multiple of next to nothing is still next to nothing.
LEAST_DIFFERENCE_MS = 100


def canary_verdict(looks: list[list[dict]], backend: str, old_backend: str, gates: dict[str, Any], least: int) -> dict[str, Any]:
    """{requests, new, old, failures}: what came to both releases between the first look and the last, and what is wrong with it.

    looks: at each, the counters of every gateway, always in the same order. least: requests that the canary is to have; so many
    may fail as `error_rate` of them allows, so that one early error of few requests is no verdict yet.
    The latency is milliseconds to the first byte of an answer, compared with the old release's of the same minutes.
    """
    steps = [
        traffic_between(before, after)
        for earlier, later in zip(looks, looks[1:])
        for before, after in zip(earlier, later)
    ]
    both = traffic_sum(steps)
    new, old = both.get(backend, NOTHING), both.get(old_backend, NOTHING)
    failures = [*_errors(new, gates["error_rate"] or 0, least), *_latency(new, old, gates.get("slowdown"))]
    return {"requests": new["requests"], "new": new, "old": old, "failures": failures}


def _errors(new: dict[str, Any], rate: float, least: int) -> list[str]:
    allowed = int(round(rate * max(new["requests"], least), 6))  # 0.29 * 100 is 28.99… in binary
    if new["errors"] <= allowed:
        return []
    return [f"error_rate: {new['errors']} of {new['requests']} requests of clients failed, {allowed} may"]


def _latency(new: dict[str, Any], old: dict[str, Any], slowdown: float | None) -> list[str]:
    if slowdown is None or min(new["answers"], old["answers"]) < ENOUGH:
        return []
    allowed = max(old["latency_ms"] * slowdown, old["latency_ms"] + LEAST_DIFFERENCE_MS)
    if new["latency_ms"] <= allowed:
        return []
    return [
        f"slowdown: clients waited {new['latency_ms']:.0f} ms for the first byte, with the old release {old['latency_ms']:.0f} ms;"
        f" {slowdown:g} times that is allowed"
    ]
