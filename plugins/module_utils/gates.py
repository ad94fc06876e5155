# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Says whether a release may serve, from what was measured of it. Pure: samples and limits in, sentences out.

A sample is a dict with `target`, `ok`, `error` (why it is not ok), `ttft_s` (seconds to the first token) and `tpot_s` (seconds for
each further one); figures that an answer does not give are None. Limits are a dict with any of `ttft_p95`, `tpot_p95`,
`error_rate` and `slowdown`. Where nothing could be measured, nothing passes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

# The p95 of fewer is little more than the slowest of them, and no measure for others.
ENOUGH = 10
MEASURES = {"ttft": "to the first token", "tpot": "for each further token"}
REASONS = 3  # of errors, in one sentence


def percentile(values: Sequence[float], p: float) -> float | None:
    """The value that `p` per cent of the others do not exceed; None without values.

    By linear interpolation between the two nearest: in order and counted from 0, it is the one at p / 100 * (n - 1). So
    0 is the least, 50 the median and 100 the greatest, and p95 of 20 values lies 5 % of the way from the 19th to the 20th.
    """
    if not 0 <= p <= 100:
        raise ValueError(f"there is no percentile {p}: from 0 to 100")
    if not values:
        return None
    ordered = sorted(values)
    place = p / 100 * (len(ordered) - 1)
    below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
    return below + (above - below) * (place - math.floor(place))


def summary(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How many requests, how many of them in vain, and the times of the others."""
    errors = sum(not sample["ok"] for sample in samples)
    figures: dict[str, Any] = {"requests": len(samples), "errors": errors, "error_rate": errors / len(samples) if samples else None}
    for measure in MEASURES:
        for p in (50, 95):
            found = percentile(_times(samples, measure), p)
            figures[f"{measure}_p{p}_s"] = None if found is None else round(found, 6)
    return figures


def verdict(new: Sequence[dict[str, Any]], old: Sequence[dict[str, Any]], limits: dict[str, Any]) -> list[str]:
    """Why the new release does not pass; nothing if it does.

    `slowdown` compares with the old release where that has ENOUGH good samples; `unjudged` says where it has not.
    """
    if not any(sample["ok"] for sample in new):
        return [f"error_rate: not one of {len(new)} requests to the new release was answered completely{_reasons(new)}"]
    failures = [*_error_rate(new, limits.get("error_rate") or 0), *_silent(new)]
    for measure in MEASURES:
        failures += _limit(new, measure, limits.get(f"{measure}_p95"))
        failures += _slowdown(new, old, measure, limits.get("slowdown"))
    return failures


def unjudged(old: Sequence[dict[str, Any]], limits: dict[str, Any]) -> list[str]:
    """What was to be judged and was not, and why; so that a missing comparison is seen."""
    if limits.get("slowdown") is None:
        return []
    return [
        f"slowdown: seconds {words} were not compared: {len(found)} samples of the old release show them, {ENOUGH} are needed"
        for measure, words in MEASURES.items()
        for found in [_times(old, measure)]
        if not _comparable(found)
    ]


def _comparable(times: Sequence[float]) -> bool:
    """Whether the old release's times are a measure for the new one's. Nothing is a multiple of zero."""
    return len(times) >= ENOUGH and percentile(times, 95) > 0


def _times(samples: Sequence[dict[str, Any]], measure: str) -> list[float]:
    """The times of what was answered completely: an answer that broke off is no fast one."""
    found = (sample.get(f"{measure}_s") for sample in samples if sample["ok"])
    return [value for value in found if value is not None]


def _error_rate(new: Sequence[dict[str, Any]], allowed: float) -> list[str]:
    bad = [sample for sample in new if not sample["ok"]]
    rate = len(bad) / len(new)
    if rate <= allowed:
        return []
    worst, count = Counter(sample.get("target") for sample in bad).most_common(1)[0]
    where = f", {count} of them at {worst}" if worst else ""
    return [f"error_rate: {len(bad)} of {len(new)} requests failed ({rate:.1%}){where}, {allowed:.1%} are allowed{_reasons(bad)}"]


def _silent(new: Sequence[dict[str, Any]]) -> list[str]:
    """A target that gave nothing but errors does not pass, however many others there are to make up for it."""
    good = {sample.get("target") for sample in new if sample["ok"]}
    silent = dict.fromkeys(sample.get("target") for sample in new if sample.get("target") not in good)
    return [f"error_rate: {target} answered none of its requests completely" for target in silent]


def _reasons(bad: Sequence[dict[str, Any]]) -> str:
    """The most frequent reasons, with how often each was given."""
    counted = Counter(sample["error"] for sample in bad if sample.get("error")).most_common(REASONS)
    return ": " + "; ".join(f"{count} x {reason}" for reason, count in counted) if counted else ""


def _limit(new: Sequence[dict[str, Any]], measure: str, allowed: float | None) -> list[str]:
    if allowed is None:
        return []
    times = _times(new, measure)
    if not times:
        return [_unmeasured(f"{measure}_p95", measure)]
    found = percentile(times, 95)
    if found <= allowed:
        return []
    return [
        f"{measure}_p95: {_seconds(found)} {MEASURES[measure]} (p95 of {len(times)} samples{_slowest(new, measure)}), "
        f"{_seconds(allowed)} is allowed"
    ]


def _slowdown(new: Sequence[dict[str, Any]], old: Sequence[dict[str, Any]], measure: str, allowed: float | None) -> list[str]:
    before = _times(old, measure)
    if allowed is None or not _comparable(before):
        return []
    times = _times(new, measure)
    if not times:
        return [_unmeasured("slowdown", measure)]
    found, reference = percentile(times, 95), percentile(before, 95)
    if found <= allowed * reference:
        return []
    return [
        f"slowdown: {_seconds(found)} {MEASURES[measure]} (p95 of {len(times)} samples{_slowest(new, measure)}), "
        f"{found / reference:.3g} times the {_seconds(reference)} of the old release, {allowed:g} times is allowed"
    ]


def _unmeasured(gate: str, measure: str) -> str:
    return f"{gate}: no answer shows how long it takes {MEASURES[measure]}; have them longer than one token"


def _slowest(samples: Sequence[dict[str, Any]], measure: str) -> str:
    """The target with the greatest p95 of its own."""
    by_target: dict[Any, list] = {}
    for sample in samples:
        by_target.setdefault(sample.get("target"), []).append(sample)
    worst = {target: percentile(_times(own, measure), 95) for target, own in by_target.items()}
    known = {target: value for target, value in worst.items() if target is not None and value is not None}
    if not known:
        return ""
    target = max(known, key=known.__getitem__)
    return f", {target}: {_seconds(known[target])}" if len(known) > 1 else f", {target}"


def _seconds(value: float) -> str:
    """Four digits are enough to see by how much a limit is missed."""
    return f"{value:.4g} s"
