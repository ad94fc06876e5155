# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The registry of tokens that every gateway keeps: who has one, since when, until when. Never the token itself.

A registry is {"generation": int, "tokens": [{"id", "client", "sha256", "issued", "expires", "replaced_by"}], "revoked": [sha256]};
"expires" and "replaced_by" may be null. It is plain data, and every function here returns a new one.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from datetime import datetime, timedelta, timezone
from typing import Any

PREFIX = "llmf_"
NEVER = 253402300799  # the last second of the year 9999
KEPT = timedelta(days=30)  # how long an ended token is still listed
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def empty() -> dict:
    """The registry of a fleet that has not issued a token."""
    return {"generation": 0, "tokens": [], "revoked": []}


def defects(registry: Any) -> str | None:
    """Why this is not a registry, or None."""
    if not isinstance(registry, dict) or not isinstance(registry.get("generation"), int):
        return "it has no generation"
    tokens, revoked = registry.get("tokens"), registry.get("revoked")
    if not isinstance(tokens, list) or not isinstance(revoked, list):
        return "it has no lists of tokens and revocations"
    for entry in tokens:
        if not isinstance(entry, dict) or not {"id", "client", "sha256", "issued", "expires"} <= set(entry):
            return "a token has no id, client, sha256, issued or expires"
        if not re.fullmatch(r"[0-9a-f]{64}", str(entry["sha256"])):
            return f"the sha256 of token {entry['id']} is malformed"
    return None


def merge(registries: list[dict]) -> dict:
    """The newest registry, less what any of them has revoked.

    Two of one generation come of two runs at once: their tokens unite, and the earlier end of a token wins.
    """
    known = [registry for registry in registries if registry] or [empty()]
    generation = max(registry["generation"] for registry in known)
    revoked = {digest for registry in known for digest in registry["revoked"]}
    tokens: dict[str, dict] = {}
    for registry in known:
        for entry in registry["tokens"] if registry["generation"] == generation else []:
            other = tokens.get(entry["sha256"], entry)
            tokens[entry["sha256"]] = min(entry, other, key=lambda one: (_end(one), str(one.get("replaced_by"))))
    kept = [entry for digest, entry in tokens.items() if digest not in revoked]
    return {"generation": generation, "tokens": _sorted(kept), "revoked": sorted(revoked)}


def issue(registry: dict, client: str, now: datetime, expires: datetime | None) -> tuple[dict, str, dict]:
    """(registry, token, entry) with a new token for a client."""
    token = PREFIX + secrets.token_urlsafe(32)
    entry = {
        "id": secrets.token_hex(4),
        "client": client,
        "sha256": hashlib.sha256(token.encode()).hexdigest(),
        "issued": stamp(now),
        "expires": stamp(expires) if expires else None,
        "replaced_by": None,
    }
    return _next(registry, [*registry["tokens"], entry], now), token, entry


def rotate(
    registry: dict, old: list[dict], now: datetime, overlap: timedelta, expires: datetime | None
) -> tuple[dict, str, dict]:
    """(registry, token, entry) with a new token in place of old ones of one client, which end after the overlap."""
    _issued, token, entry = issue(registry, old[0]["client"], now, expires)
    end, ids = now + overlap, {one["id"] for one in old}
    tokens = [
        {**one, "expires": stamp(min(end, moment(one["expires"]) or end)), "replaced_by": entry["id"]}
        if one["id"] in ids
        else one
        for one in registry["tokens"]
    ]
    return _next(registry, [*tokens, entry], now), token, entry


def revoke(registry: dict, tokens: list[dict], now: datetime) -> dict:
    """The registry without these tokens, which no merge brings back."""
    digests = {entry["sha256"] for entry in tokens}
    kept = [entry for entry in registry["tokens"] if entry["sha256"] not in digests]
    return {**_next(registry, kept, now), "revoked": sorted({*registry["revoked"], *digests})}


def select(registry: dict, client: str | None, token_id: str | None) -> list[dict]:
    """The tokens of a client, or the one with an id."""
    return [
        entry
        for entry in registry["tokens"]
        if (client is None or entry["client"] == client) and (token_id is None or entry["id"] == token_id)
    ]


def living(tokens: list[dict], now: datetime) -> list[dict]:
    """Those that have not ended."""
    return [entry for entry in tokens if _end(entry) > int(now.timestamp())]


def listing(registry: dict, now: datetime) -> list[dict]:
    """What may be shown of each token."""
    alive = {entry["id"] for entry in living(registry["tokens"], now)}
    return [
        {
            "client": entry["client"],
            "id": entry["id"],
            "issued": entry["issued"],
            "expires": entry["expires"] or "never",
            "state": ("replaced" if entry.get("replaced_by") else "valid") if entry["id"] in alive else "expired",
        }
        for entry in registry["tokens"]
    ]


def map_entries(registry: dict) -> dict[str, str]:
    """{sha256: client|end|id}: HAProxy's map of tokens. An ended one is in it, so that its client learns why."""
    return {entry["sha256"]: f"{entry['client']}|{_end(entry)}|{entry['id']}" for entry in registry["tokens"]}


def parse_end(text: str, now: datetime) -> datetime | None:
    """When a token ends: a date, a moment, a number of days, or `never` (None). Raises ValueError for anything else."""
    if text == "never":
        return None
    if re.fullmatch(r"\d{1,5}d?", text):
        return now + timedelta(days=int(text.rstrip("d")))
    end = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text))
    end = end if end.tzinfo else end.replace(tzinfo=timezone.utc)
    if end <= now:
        raise ValueError("it is in the past")
    return end


def parse_duration(text: str) -> timedelta:
    """A time such as 30m, 24h or 7d; 0 is none. Raises ValueError for anything else."""
    found = re.fullmatch(r"(\d{1,7})([smhd])", text) if text != "0" else re.fullmatch("(0)()", text)
    if not found:
        raise ValueError("it is no time")
    return timedelta(**{UNITS.get(found.group(2), "seconds"): int(found.group(1))})


def stamp(time: datetime) -> str:
    """A moment as the registry writes it."""
    return time.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(text: str | None) -> datetime | None:
    """The moment that a registry wrote."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc) if text else None


def _end(entry: dict) -> int:
    """When a token ends, in seconds since 1970."""
    end = moment(entry["expires"])
    return int(end.timestamp()) if end else NEVER


def _next(registry: dict, tokens: list[dict], now: datetime) -> dict:
    """The next generation with these tokens, less those that ended long ago."""
    kept = [entry for entry in tokens if _end(entry) > (now - KEPT).timestamp()]
    return {**registry, "generation": registry["generation"] + 1, "tokens": _sorted(kept)}


def _sorted(tokens: list[dict]) -> list[dict]:
    return sorted(tokens, key=lambda entry: (entry["client"], entry["issued"], entry["id"]))
