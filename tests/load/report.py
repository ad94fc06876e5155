# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What clients saw of a fleet over a period, and the arithmetic of it: how long until nobody got a version, when nobody was answered.

All moments are seconds since 1970, those of `time.time()`, so that they compare with the marks that a test makes itself.
A mark is `{"at": moment, "what": name}`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable

# What a client may meet; every request has exactly one of them.
OUTCOMES = ("complete", "broken", "short", "duplicated", "late", "refused", "unconnected")
# Refusals that are the fleet's limits at work, and no fault of it.
BUSY = ("429 queue_full", "429 too_many_requests_at_once")


@dataclasses.dataclass
class Record:
    """One request. `first` is its first token; an answer that is not streamed has it at its end."""

    began: float
    ended: float
    gateway: str
    model: str
    outcome: str
    streamed: bool = True
    first: float | None = None
    version: str | None = None

    @property
    def answered(self) -> bool:
        return self.first is not None


@dataclasses.dataclass
class Report:
    """The figures of a run. `version` is what `tell` called the answers, otherwise how those begin."""

    began: float
    ended: float
    requests: int = 0
    complete: int = 0
    broken: int = 0
    short: int = 0
    duplicated: int = 0
    late: int = 0
    unconnected: int = 0
    # All refusals, by status and code: {"429 queue_full": 3, "503 no_instance": 1}.
    refused: dict[str, int] = dataclasses.field(default_factory=dict)
    # How often a kept connection had just been closed, so that the request went out again on a new one.
    resent: int = 0
    longest_stall_s: float = 0.0
    longest_first_token_s: float = 0.0
    ttft_p50_s: float | None = None
    ttft_p95_s: float | None = None
    # {version: {"streams": answers, "first_began": moment, "last_began": moment, "last_ended": moment}}
    by_version: dict[str, dict] = dataclasses.field(default_factory=dict)
    # [{"at": moment, "gateway": address, "request_id": id, "kind": outcome, "what": text}]
    faults: list[dict] = dataclasses.field(default_factory=list)
    records: list[Record] = dataclasses.field(default_factory=list)

    @property
    def busy(self) -> int:
        """Refusals because of a full queue or a client's limit."""
        return sum(count for key, count in self.refused.items() if key in BUSY)

    @property
    def refused_5xx(self) -> int:
        return sum(count for key, count in self.refused.items() if key.startswith("5"))

    @property
    def refused_total(self) -> int:
        return sum(self.refused.values())

    @property
    def failed(self) -> int:
        """Requests that went wrong, limits at work apart."""
        return self.requests - self.complete - self.busy

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Report:
        values = json.loads(text)
        return cls(**{**values, "records": [Record(**record) for record in values["records"]]})


def percentile(values: Iterable[float], share: float) -> float | None:
    """The smallest of the values that so much of them does not exceed (nearest rank)."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)] if ranked else None


def by_version(records: Iterable[Record]) -> dict[str, dict]:
    """For each version how many answers it gave, and when the first and the last of them began."""
    versions: dict[str, dict] = {}
    for record in records:
        if record.version is None:
            continue
        seen = versions.setdefault(
            record.version, {"streams": 0, "first_began": record.began, "last_began": record.began, "last_ended": record.ended}
        )
        seen["streams"] += 1
        seen["first_began"] = min(seen["first_began"], record.began)
        seen["last_began"] = max(seen["last_began"], record.began)
        seen["last_ended"] = max(seen["last_ended"], record.ended)
    return versions


def first_began(report: Report, version: str) -> float | None:
    return report.by_version.get(version, {}).get("first_began")


def last_began(report: Report, version: str) -> float | None:
    return report.by_version.get(version, {}).get("last_began")


def at(marks: list[dict], what: str) -> float:
    """The moment of a mark; of the last where several have that name."""
    moments = [mark["at"] for mark in marks if mark["what"] == what]
    if not moments:
        raise ValueError(f"no mark is called {what!r}; there are: {', '.join(sorted({m['what'] for m in marks})) or 'none'}")
    return max(moments)


def lasted(report: Report, version: str, marks: list[dict], what: str) -> float:
    """Seconds from a mark to the last request that a version answered; at most 0 where none began after the mark.

    What the version answered before the mark is no measure of anything, but a version that never answered is: of a mistake.
    """
    last = last_began(report, version)
    if last is None:
        raise ValueError(f"no answer came from {version!r}; there are: {', '.join(sorted(report.by_version)) or 'none'}")
    return last - at(marks, what)


def gaps(report: Report, longer: float = 1.0, gateway: str | None = None, model: str | None = None) -> list[dict]:
    """The outages as clients saw them: `{"begin", "end", "seconds"}` of each period in which somebody asked and nobody was answered.

    Such a period ends with a first token, whoever gets it, and begins with the earliest request that had to wait for that, but
    not before the first token that came last. So a pause in which nobody asks is none, and neither is a time when all clients
    are busy with long answers.
    """
    asked = sorted((r for r in report.records if gateway in (None, r.gateway) and model in (None, r.model)), key=lambda r: r.began)
    answers = sorted(record.first for record in asked if record.answered)
    # After the last answer, an outage is as long as somebody still tries.
    last_try = max((record.ended for record in asked if not record.answered), default=report.began)
    found = []
    since = report.began
    for until in [*answers, last_try]:
        if until - since > longer:
            begin = _unanswered_since(asked, since, until)
            if until - begin > longer:
                found.append({"begin": begin, "end": until, "seconds": until - begin})
        since = max(since, until)
    return found


def _unanswered_since(asked: list[Record], since: float, until: float) -> float:
    """When the first of those who asked between two first tokens, or before that and waited, began to wait; `until` if nobody."""
    begun = [record for record in asked if record.began < until]
    waits = any(record.began <= since < (record.first if record.answered else record.ended) for record in begun)
    return since if waits else min((record.began for record in begun if record.began > since), default=until)


def unanswered(report: Report, **options) -> float:
    """Seconds of all gaps together."""
    return sum(gap["seconds"] for gap in gaps(report, **options))


def timeline(report: Report, marks: list[dict]) -> list[str]:
    """Marks, and the first and last requests of each version, in order: what happened when, in seconds since the load began."""
    moments = [(mark["at"], mark["what"]) for mark in marks]
    for name, seen in report.by_version.items():
        moments.append((seen["first_began"], f"first request that {name} answered"))
        moments.append((seen["last_began"], f"last request that {name} answered"))
    return [f"{moment - report.began:8.2f} s  {what}" for moment, what in sorted(moments)]
