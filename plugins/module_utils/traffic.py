# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What HAProxy's counters say of a release: how many requests it had, how many failed, how long they waited for the first byte.

A snapshot is {backend: {counter: number, "latency_ms": number or None, "workers": {process id: {the same counters}}}}. A worker counts from
zero when it starts, and what it has counted is gone when it ends; that is why each one is told apart.

An error is an answer 5xx, from the engine or from HAProxy in its place (refused connection, silence, a queue that took too long), or a
stream that broke off after its headers. HAProxy counts both without the clients that left by themselves: those are in
`aborted_by_client`, whether they left while they waited, were served, or stood in the queue. `response_errors` is there to look at. It
overlaps with the other two.
"""

from __future__ import annotations

from collections.abc import Iterable

# Our name -> HAProxy's, in the row of a backend.
COUNTERS = {
    "requests": "req_tot",
    "responses_5xx": "hrsp_5xx",
    "connection_errors": "econ",
    "response_errors": "eresp",
    "aborted_by_server": "srv_abrt",
    "aborted_by_client": "cli_abrt",
}
ANSWERS = ("hrsp_1xx", "hrsp_2xx", "hrsp_3xx", "hrsp_4xx", "hrsp_5xx", "hrsp_other")


def snapshot(workers: dict[str, list[dict]], backends: Iterable[str]) -> dict:
    """The counters of backends, from the rows of `show stat` by process id. A backend that nobody has shows zeros."""
    return {backend: _counters({pid: _worker(rows, backend) for pid, rows in workers.items()}) for backend in backends}


def traffic_between(before: dict, after: dict) -> dict:
    """{backend: {requests, answers, errors, error_rate, latency_ms}} of what came between two snapshots of one gateway.

    What a worker did between the first snapshot and its end is not known, and not counted. error_rate is None without requests,
    latency_ms without answers of an engine. The latency is HAProxy's own average, which looks back over the last thousand requests.
    """
    return {backend: _between(before.get(backend, {}).get("workers", {}), now["workers"]) for backend, now in after.items()}


def traffic_sum(parts: list[dict]) -> dict:
    """What several gateways saw, as one: a list of results of traffic_between."""
    backends = sorted({backend for part in parts for backend in part})
    return {backend: _sum([part[backend] for part in parts if backend in part]) for backend in backends}


def _worker(rows: list[dict], backend: str) -> dict | None:
    """What one worker counted for a backend, None where it has no such backend."""
    own = [row for row in rows if row["pxname"] == backend]
    total = next((row for row in own if row["type"] == "1"), None)
    if total is None:
        return None
    # A backend's own average takes what never reached an engine for an answer after 0 ms; those of its servers do not.
    servers = [(_answers(row), float(row["rtime"] or 0)) for row in own if row["type"] == "2"]
    counters = {name: int(total[column] or 0) for name, column in COUNTERS.items()}
    return {**counters, "answers": sum(count for count, _rtime in servers), "latency_ms": _mean(servers)}


def _answers(row: dict) -> int:
    return sum(int(row[column] or 0) for column in ANSWERS)


def _counters(workers: dict[str, dict | None]) -> dict:
    known = {pid: worker for pid, worker in workers.items() if worker is not None}
    sums = {name: sum(worker[name] for worker in known.values()) for name in (*COUNTERS, "answers")}
    latency = _mean([(worker["answers"], worker["latency_ms"]) for worker in known.values()])
    return {**sums, "latency_ms": latency, "workers": known}


def _between(before: dict, after: dict) -> dict:
    """What workers counted between two looks."""
    parts = []
    for pid, now in after.items():
        then = before.get(pid, {})
        if any(then.get(name, 0) > now[name] for name in COUNTERS):
            then = {}  # the number of an ended process is another's by now
        new = {name: now[name] - then.get(name, 0) for name in (*COUNTERS, "answers")}
        parts.append({**new, "errors": new["responses_5xx"] + new["aborted_by_server"], "latency_ms": now["latency_ms"]})
    return _sum(parts)


def _sum(parts: list[dict]) -> dict:
    requests, answers, errors = (sum(part[name] for part in parts) for name in ("requests", "answers", "errors"))
    return {
        "requests": requests,
        "answers": answers,
        "errors": errors,
        "error_rate": round(errors / requests, 4) if requests else None,
        "latency_ms": _mean([(part["answers"], part["latency_ms"]) for part in parts]),
    }


def _mean(weighted: list[tuple]) -> float | None:
    """The mean of (weight, value); None where nothing has weight."""
    total = sum(weight for weight, value in weighted if value is not None)
    return round(sum(weight * value for weight, value in weighted if value is not None) / total, 1) if total else None
