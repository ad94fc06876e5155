# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Counts what clients meet while they meet it, and shows it: as figures, and as a line for somebody who watches a rollout."""

from __future__ import annotations

import collections
import dataclasses
import time

from ansible_collections.localfirst.llm_fleet.tests.load.report import OUTCOMES, Record, Report, by_version, percentile
from ansible_collections.localfirst.llm_fleet.tests.load.verdict import Verdict
from ansible_collections.localfirst.llm_fleet.tests.load.versions import Versions

MOST_FAULTS = 50
# Refusals come in floods, and must leave room for what is worse.
MOST_REFUSALS = 20
SHOWN_FAULTS = 10
RECENT = 5.0
BAR = 10


@dataclasses.dataclass(eq=False)
class Request:
    """A request on its way. Moments are monotonic here, and turned into those of the clock in the report."""

    gateway: str
    model: str
    streamed: bool
    verdict: Verdict
    began: float
    status: int = 0
    code: str = ""
    request_id: str = ""
    # Why there was no connection.
    unconnected: str = ""

    @property
    def outcome(self) -> str:
        if self.unconnected:
            return "unconnected"
        return "refused" if self.status not in (0, 200) else self.verdict.outcome

    @property
    def what(self) -> str:
        if self.unconnected:
            return self.unconnected
        return f"{self.status} {self.code}".strip() if self.outcome == "refused" else self.verdict.what


class Tally:
    def __init__(self, tell: dict[str, str]) -> None:
        self.versions = Versions(tell)
        self.open: set[Request] = set()
        self.counts = dict.fromkeys(OUTCOMES, 0)
        self.refused: collections.Counter = collections.Counter()
        self.resent = 0
        self.longest_stall = 0.0
        self.longest_wait = 0.0
        self._begun = time.monotonic()
        self._clock = time.time() - self._begun
        self._faults: list[dict] = []
        self._ended: list[tuple[Request, float]] = []
        self._recent: collections.deque = collections.deque()

    @property
    def requests(self) -> int:
        return sum(self.counts.values())

    def begin(self, request: Request) -> None:
        self.open.add(request)

    def end(self, request: Request, now: float) -> None:
        self.open.discard(request)
        self._ended.append((request, now))
        outcome, verdict = request.outcome, request.verdict
        self.counts[outcome] += 1
        if outcome == "refused":
            self.refused[request.what] += 1
        elif outcome != "unconnected":
            self.versions.learn(verdict.prefix)
            self._recent.append((now, verdict.prefix))
            self.longest_stall = max(self.longest_stall, verdict.stall)
            if request.streamed:
                # Who never got a first token waited for it all the same.
                self.longest_wait = max(self.longest_wait, (verdict.first or now) - request.began)
        if outcome != "complete":
            self._note(request, outcome)

    def _note(self, request: Request, outcome: str) -> None:
        refusal = outcome in ("refused", "unconnected")
        of_kind = sum(fault["kind"] in ("refused", "unconnected") for fault in self._faults) if refusal else 0
        if len(self._faults) < MOST_FAULTS and of_kind < MOST_REFUSALS:
            self._faults.append(
                {
                    "at": self._moment(request.began),
                    "gateway": request.gateway,
                    "request_id": request.request_id,
                    "kind": outcome,
                    "what": request.what,
                }
            )

    def _moment(self, monotonic: float) -> float:
        return round(self._clock + monotonic, 4)

    def _record(self, request: Request, ended: float) -> Record:
        verdict = request.verdict
        return Record(
            began=self._moment(request.began),
            ended=self._moment(ended),
            gateway=request.gateway,
            model=request.model,
            outcome=request.outcome,
            streamed=request.streamed,
            first=self._moment(verdict.first) if verdict.first is not None else None,
            version=self.versions.name(verdict.prefix),
        )

    def report(self, records: bool = True) -> Report:
        """What was seen up to now, without the requests that are still open."""
        waits = [
            request.verdict.first - request.began
            for request, _ended in self._ended
            if request.streamed and request.verdict.first is not None
        ]
        all_records = [self._record(*ended) for ended in self._ended]
        counts = {name: count for name, count in self.counts.items() if name != "refused"}
        p50, p95 = percentile(waits, 0.5), percentile(waits, 0.95)
        return Report(
            began=self._moment(self._begun),
            ended=self._moment(time.monotonic()),
            requests=self.requests,
            **counts,
            refused=dict(self.refused),
            resent=self.resent,
            longest_stall_s=round(self.longest_stall, 4),
            longest_first_token_s=round(self.longest_wait, 4),
            ttft_p50_s=round(p50, 4) if p50 is not None else None,
            ttft_p95_s=round(p95, 4) if p95 is not None else None,
            by_version=by_version(all_records),
            faults=self._faults,
            records=all_records if records else [],
        )

    def shares(self) -> dict[str, float]:
        """What part of the answers that ran within the last seconds each version gave."""
        now = time.monotonic()
        while self._recent and self._recent[0][0] < now - RECENT:
            self._recent.popleft()
        texts = [text for _ended, text in self._recent] + [request.verdict.prefix for request in self.open]
        names = collections.Counter(name for name in map(self.versions.name, texts) if name)
        return {name: count / sum(names.values()) for name, count in sorted(names.items())}

    def now(self) -> dict:
        """The running figures, cheap enough for every second."""
        return {
            "seconds": round(time.monotonic() - self._begun, 1),
            "open": len(self.open),
            "requests": self.requests,
            **self.counts,
            "longest_stall_s": round(self.longest_stall, 3),
            "longest_first_token_s": round(self.longest_wait, 3),
            "shares": self.shares(),
        }


def live_line(now: dict, width: int) -> str:
    """The figures of `Tally.now` as one line, with as much as the terminal has room for: what clients see.

    Without `shares` there is nothing of versions in it.
    """
    broken = now["broken"] + now["short"] + now["duplicated"]
    minutes, seconds = divmod(int(now["seconds"]), 60)
    counts = [f"open {now['open']:>2}", f"complete {now['complete']}", f"broken {broken}", f"refused {now['refused']}"]
    # Without a fault to show, what counts it is only something more to read.
    counts += [f"{name} {now[name]}" for name in ("late", "unconnected") if now[name]]
    clock, figures, stall = f"{minutes:02}:{seconds:02}", " · ".join(counts), f"longest stall {now['longest_stall_s']:.2f} s"
    bars, shares = [], []
    if "shares" in now:
        bars = ["  ".join(f"{name[:16]} {_bar(share)} {share:4.0%}" for name, share in now["shares"].items()) or "no answer yet"]
        shares = ["  ".join(f"{name[:10]} {share:.0%}" for name, share in now["shares"].items()) or "no answer yet"]
    columns = [
        [f"what clients see {clock}", *bars, figures, stall],
        [f"clients {clock}", *shares, figures, stall],
        [clock, *shares, figures],
    ]
    lines = [" │ ".join(line) for line in columns]
    return next((line for line in lines if len(line) <= width), lines[-1][:width])


def _bar(share: float) -> str:
    full = round(share * BAR)
    return "█" * full + "░" * (BAR - full)


def summary(report: Report) -> str:
    """A report for a reader."""
    counts = ", ".join(f"{getattr(report, name)} {name}" for name in OUTCOMES if name != "refused")
    refused = ", ".join(f"{count} x {what}" for what, count in sorted(report.refused.items())) or "none"
    ttft = "none" if report.ttft_p50_s is None else f"p50 {report.ttft_p50_s:.3f} s, p95 {report.ttft_p95_s:.3f} s"
    lines = [
        f"{report.requests} requests in {report.ended - report.began:.0f} s: {counts}; refused: {refused}",
        f"first token: {ttft}, longest {report.longest_first_token_s:.3f} s; longest silence within an answer "
        f"{report.longest_stall_s:.3f} s",
    ]
    for name, seen in sorted(report.by_version.items(), key=lambda item: item[1]["first_began"]):
        first, last = seen["first_began"] - report.began, seen["last_began"] - report.began
        lines.append(f"{name}: {seen['streams']} answers, the first began at {first:.1f} s, the last at {last:.1f} s")
    for fault in report.faults[:SHOWN_FAULTS]:
        seconds, identity = fault["at"] - report.began, fault["request_id"] or "no id"
        lines.append(f"at {seconds:.1f} s, {fault['gateway']}: {fault['kind']}: {fault['what']} ({identity})")
    if len(report.faults) > SHOWN_FAULTS:
        lines.append(f"and {len(report.faults) - SHOWN_FAULTS} faults more in the report")
    return "\n".join(f"  {line}" for line in lines)
