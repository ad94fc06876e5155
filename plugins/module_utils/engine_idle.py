# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Asks engines how many requests they still work at. Gateways know of those that came through them; an engine knows all."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.request import Request

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.engine_probe import REQUEST_TIMEOUT, Target, ask

PAUSE = 0.25
# A value may hold whatever it likes, quoted.
LABELS = r'(?:\{(?:[^"}]|"(?:[^"\\]|\\.)*")*\})?'


def metric_sum(text: str, name: str) -> float | None:
    """The sum of a metric over its labels, in Prometheus' text format; None where it is not there.

    Source: https://prometheus.io/docs/instrumenting/exposition_formats/
    """
    found = re.findall(rf"^{re.escape(name)}[ \t]*{LABELS}[ \t]+(\S+)", text, re.MULTILINE)
    try:
        total = sum(map(float, found))
    except ValueError:
        return None
    # NaN and Inf are values of the format, and no number of anything.
    return total if found and math.isfinite(total) else None


def in_flight(target: Target, interface: dict[str, Any]) -> int | None:
    """Requests that an engine works at; None where it does not say: its profile names no metric, or it does not answer."""
    busy, path = interface.get("busy"), interface.get("metrics")
    if not busy or not path:
        return None
    status, text, trouble = ask(target, Request(target.url + path), REQUEST_TIMEOUT)
    if "timed out" in trouble:
        return 1  # so busy that it has no time to say so
    count = metric_sum(text, busy["metric"]) if status == 200 else None
    return None if count is None else round(count)


def wait_idle(
    targets: Iterable[tuple[Target, dict[str, Any]]],
    timeout: float,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> dict[str, int]:
    """Waits until no engine has a request; {instance: requests} of those that still have some when the time is over.

    targets: each with what the plan's `engines` says of it. One that does not say is not waited for.
    """
    deadline = clock() + timeout
    waiting = list(targets)
    while True:
        counts = {target.id: in_flight(target, interface) for target, interface in waiting}
        waiting = [(target, interface) for target, interface in waiting if counts[target.id]]
        if not waiting or clock() >= deadline:
            return {target.id: counts[target.id] for target, _interface in waiting}
        pause(PAUSE)
