# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What the marks of a rollout's report and the requests of its clients say of its time. Pure: no I/O.

A mark is `{"at": seconds since 1970, "what": text, "batch": number}`, as playbooks/tasks/rollout/ writes it: `begin`, and in each batch
`loaded X stopped Y` (seconds of its slowest engine), `drained Z`, and `share N` (per cent) whenever requests are sent elsewhere; `back` is
the moment in which a rollout knew that it had failed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ansible_collections.localfirst.llm_fleet.tests.load.report import Record, at

LOADED = re.compile(r"loaded (\S+) stopped (\S+)")
DRAINED = re.compile(r"drained (\S+)")


def rollout_times(marks: list[dict], began: float, ended: float, hosts: int) -> dict[str, float]:
    """Where the seconds of a rollout went that ended well. `began` and `ended` are the moments of the whole run.

    fixed_s is what comes before the first batch and after the last one, however many hosts there are. Of the rest, what engines
    load, what streams in flight last, and what the canary is watched for, would take as long if somebody did it by hand: all else
    is overhead, with the stopping of engines and the gates' probes.
    """
    mine = [mark for mark in marks if mark["batch"]]
    if not mine or any(mark["what"] == "back" for mark in marks):
        raise ValueError("these are not the marks of a rollout that ended well")
    loads = [[float(figure) for figure in found] for mark in mine for found in LOADED.findall(mark["what"])]
    batches = mine[-1]["at"] - at(marks, "begin")
    parts = {
        "load_s": sum(load for load, _stop in loads),
        "drain_s": sum(float(figure) for mark in mine for figure in DRAINED.findall(mark["what"])),
        "canary_s": canary_seconds(mine),
    }
    overhead = batches - sum(parts.values())
    return {
        "total_s": ended - began,
        "fixed_s": ended - began - batches,
        **parts,
        "stop_s": sum(stop for _load, stop in loads),
        "overhead_s": overhead,
        "overhead_per_host_s": overhead / hosts,
    }


def canary_seconds(marks: list[dict]) -> float:
    """How long the canary was watched: from the share that it gets once it has loaded, to the same share when that is noted as over."""
    first = [mark for mark in marks if mark["batch"] == marks[0]["batch"]]
    loaded = next((number for number, mark in enumerate(first) if LOADED.match(mark["what"])), len(first))
    shares = [mark["at"] for mark in first[loaded:] if mark["what"].startswith("share ")]
    # Without a canary there is one: the batch's own.
    return shares[1] - shares[0] if len(shares) > 2 else 0.0


def rollback_times(marks: list[dict], records: Iterable[Record], old: str) -> dict[str, float]:
    """Seconds from the failed gate until the last request began that the old release did not answer completely; and until that ended.

    So a client who met a fault counts like one whom the bad release answered. 0 where none came after the gate.
    """
    failed = at(marks, "back")
    others = [record for record in records if record.version != old or record.outcome != "complete"]
    if not others:
        raise ValueError("no client was on the new release: there was nobody to bring back")
    return {
        "rollback_s": max(0.0, max(record.began for record in others) - failed),
        "last_ended_s": max(0.0, max(record.ended for record in others) - failed),
    }
