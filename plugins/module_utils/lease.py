# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""A lock on a gateway that ends by itself, and what the locks of several gateways amount to.

One file holds all of a lock: its owner, since when, until when, and whether somebody has asked the owner to stop. It is replaced as a
whole while the directory is locked, so nobody reads half of it, two callers never both get it, and a crash leaves the old one or the
new one. Time is the gateway's own: the clocks of two controllers need not agree.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import actor, directory_lock, whole_files

NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
OWNER = (*actor.FIELDS, "purpose")


class Damaged(ValueError):
    """A lock's file is there, and is no lock."""


class Lease:
    """One lock of one gateway."""

    def __init__(self, folder: str | Path, name: str, dry: bool = False, clock: Callable[[], float] = time.time) -> None:
        self.folder = Path(folder)
        self.name = name
        self.path = self.folder / f"{name}.json"
        self.dry = dry
        self.clock = clock

    def take(self, owner: Mapping[str, str], seconds: int, gone: Iterable[Mapping] = (), force: bool = False) -> dict:
        """Take the lock, or renew it where it is the owner's. Another one's living lock stays, and is told."""
        with self._alone():
            now, found = self.clock(), self._read(force)
            mine = found is not None and actor.same(found["owner"], owner)
            if found and not mine and not (self._over(found, now) or self._may_break(found, gone, force)):
                return self._result(found, found)
            wanted = {"format": 1, "owner": dict(owner), "since": now, "until": now + seconds, "lease": seconds, "stop": None}
            if mine:
                wanted.update(since=found["since"], stop=found["stop"])
            self._write(wanted)
            return self._result(found, wanted, taken=True, renewed=mine)

    def release(self, owner: Mapping[str, str], gone: Iterable[Mapping] = (), force: bool = False) -> dict:
        """Give the lock up. Another one's stays."""
        with self._alone():
            found = self._read()
            if found and not actor.same(found["owner"], owner) and not self._may_break(found, gone, force):
                return self._result(found, found)
            if not self.dry:
                self.path.unlink(missing_ok=True)
            return self._result(found, None)

    def ask_to_stop(self, who: Mapping[str, str]) -> dict:
        """Leave the owner a request to stop, which is there at the next renewal. The first one counts."""
        with self._alone():
            found = self._read()
            if found is None or found["stop"]:
                return self._result(found, found)
            stop = {key: who[key] for key in ("user", "job", "host")}
            wanted = {**found, "stop": {**stop, "since": self.clock()}}
            self._write(wanted)
            return self._result(found, wanted)

    def holder(self) -> dict | None:
        """Who has it, for whoever only wants to know."""
        return self._holder(self._read())

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep every other caller on this gateway out."""
        if self.dry and not self.folder.is_dir():
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with directory_lock.locked(self.folder):
            yield

    def _read(self, force: bool = False) -> dict | None:
        if not self.path.exists():
            return None
        try:
            return _parsed(whole_files.read(self.path))
        except ValueError as error:
            if force:
                return None
            raise Damaged(
                f"{self.path} is damaged: {error}. Where nothing runs that would hold it, remove it, or take it with take_over."
            ) from error

    def _write(self, document: dict) -> None:
        if self.dry:
            return
        # What a crash left. Nobody else writes now.
        for rest in self.folder.glob(f".{self.path.name}-*"):
            rest.unlink(missing_ok=True)
        whole_files.write(self.path, json.dumps(document, indent=1) + "\n", 0o640)

    @staticmethod
    def _over(document: dict, now: float) -> bool:
        return document["until"] <= now

    @staticmethod
    def _may_break(document: dict, gone: Iterable[Mapping], force: bool) -> bool:
        return force or any(actor.same(document["owner"], one) for one in gone)

    def _result(self, before: dict | None, after: dict | None, taken: bool = False, renewed: bool = False) -> dict:
        held = self._holder(after)
        lost = self._holder(before) if taken and not renewed else None
        actions = []
        if taken and not renewed:
            actions.append(f"take {self.name}" + (f" over from {actor.named(lost)}" if lost else ""))
        elif before and not after:
            actions.append(f"release {self.name} of {actor.named(before['owner'])}")
        elif before and after and after["stop"] != before["stop"]:
            actions.append(f"ask {actor.named(before['owner'])} to stop")
        stop = after["stop"] if after else None
        return {
            "changed": bool(actions),
            "actions": actions,
            "name": self.name,
            "taken": taken,
            "renewed": renewed,
            "holder": held,
            "taken_from": lost,
            "stop": {**stop, "since": _stamp(stop["since"])} if stop else None,
            "diff": {"before": _shown(before), "after": _shown(after)},
        }

    def _holder(self, document: dict | None) -> dict | None:
        if document is None:
            return None
        # A clock that was set back must not make a lease longer than it was meant to be.
        left = min(document["until"] - self.clock(), document["lease"])
        return {**document["owner"], "since": _stamp(document["since"]), "seconds_left": max(0, round(left))}


def decide(results: list[dict], here: Mapping[str, str] | None = None) -> dict:
    """What the answers of several gateways amount to.

    It is held where a majority of all gateways, silent ones included, have given it to this run. `have` names those gateways,
    `missing` is how many did not answer, and `holder` is who else has it, on most of them. With `here`, the actor of this run, it
    also says of whom it is certain that the run has ended (`gone`).
    """
    answers = [result for result in results if _answered(result)]
    have = [_gateway(result, number) for number, result in enumerate(results) if _answered(result) and result["taken"]]
    others = [result["holder"] for result in answers if not result["taken"] and result["holder"]]
    gone = [other for other in others if here is not None and actor.is_gone(other, here)]

    def weight(candidate: dict) -> tuple:
        # Who is still there counts for more than who is not.
        return candidate not in gone, sum(actor.same(candidate, each) for each in others), candidate["seconds_left"]

    holder = max(others, key=weight) if others else None
    return {
        "held": len(have) * 2 > len(results),
        "holder": holder,
        "holder_gone": holder is not None and holder in gone,
        "have": have,
        "missing": len(results) - len(answers),
        "gone": [one for number, one in enumerate(gone) if one not in gone[:number]],
        "stop": next((result["stop"] for result in answers if result["taken"] and result["stop"]), None),
    }


def refusal(results: list[dict], here: Mapping[str, str] | None = None) -> str:
    """Who holds it, for what, since when, how long still, and what to do; nothing where it is held by this run."""
    decided = decide(results, here)
    if decided["held"]:
        return ""
    holder = decided["holder"]
    if holder is None:
        return f"None of {len(results)} gateways said who holds the lock. Bring them back, or name them in llm_fleet_gateways_out."
    name = next(result["name"] for result in results if _answered(result) and not result["taken"])
    text = f"{actor.named(holder)} holds '{name}' since {holder['since']}, for {holder['purpose'] or 'an unknown purpose'}. "
    if decided["holder_gone"]:
        return text + "That run has ended without giving it up: take it over with -e take_over=true."
    left = holder["seconds_left"]
    return text + (
        f"Unless it is renewed, it is free in {left} s. " if left else "It is free now, unless it is renewed. "
    ) + "Wait for it, ask it to stop with rollback.yml, or take it over with -e take_over=true if you know that it is dead."


def _answered(result: Mapping[str, Any]) -> bool:
    return isinstance(result.get("taken"), bool) and not result.get("failed") and not result.get("unreachable")


def _gateway(result: Mapping[str, Any], number: int) -> str:
    """The item of a loop over gateways that the result is of, or else its place in the list."""
    item = result.get(result.get("ansible_loop_var") or "item")
    return str(item) if isinstance(item, str) else str(number)


def _parsed(text: str) -> dict:
    document = json.loads(text)
    if not isinstance(document, dict) or document.get("format") != 1:
        raise ValueError("it is of no format that is known here")
    if not all(isinstance(document.get(key), (int, float)) for key in ("since", "until", "lease")):
        raise ValueError("it has no times")
    owner = document.get("owner")
    if not isinstance(owner, dict) or not all(isinstance(owner.get(field), str) for field in OWNER):
        raise ValueError("it has no owner")
    stop = document.get("stop")
    if stop is not None and not (isinstance(stop, dict) and {"user", "job", "host", "since"} <= set(stop)):
        raise ValueError("its request to stop is not whole")
    return document


def _stamp(moment: float) -> str:
    return datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _shown(document: dict | None) -> str:
    if document is None:
        return ""
    owner, stop = document["owner"], document["stop"]
    lines = [f"held by {actor.named(owner)} since {_stamp(document['since'])} for {owner['purpose']}"]
    if stop:
        lines.append(f"asked to stop by {actor.named(stop)} at {_stamp(stop['since'])}")
    return "".join(f"{line}\n" for line in lines)
