# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Tokens: issued, rotated and revoked; and what becomes of registries that differ."""

from __future__ import annotations

import hashlib
import itertools
import json
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import client_registry as registry_of

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=timezone.utc)
DAY = timedelta(days=1)


def issued(*clients: str, expires: datetime | None = NOW + 90 * DAY) -> tuple:
    """(registry, tokens) with one token for each client."""
    registry, tokens = registry_of.empty(), []
    for client in clients:
        registry, token, _entry = registry_of.issue(registry, client, NOW, expires)
        tokens.append(token)
    return registry, tokens


def test_a_token_is_random_and_only_its_digest_is_kept():
    registry, tokens = issued("demo", "demo")
    assert len(set(tokens)) == 2
    assert all(token.startswith("llmf_") and len(token) >= 48 for token in tokens)
    text = json.dumps(registry)
    for token in tokens:
        assert hashlib.sha256(token.encode()).hexdigest() in text and token[5:] not in text
    assert registry["generation"] == 2
    assert registry_of.defects(registry) is None


def test_the_map_says_who_until_when_and_which():
    registry, (token, _endless) = issued("demo", "vip", expires=NOW + DAY)
    entry = registry_of.select(registry, "demo", None)[0]
    end = int((NOW + DAY).timestamp())
    assert registry_of.map_entries(registry)[hashlib.sha256(token.encode()).hexdigest()] == f"demo|{end}|{entry['id']}"
    endless, _tokens = issued("demo", expires=None)
    (line,) = registry_of.map_entries(endless).values()
    assert int(line.split("|")[1]) > end * 10


def test_rotation_ends_the_old_one_after_the_overlap():
    registry, _tokens = issued("demo", "vip")
    (old,) = registry_of.select(registry, "demo", None)
    rotated, token, new = registry_of.rotate(registry, [old], NOW, timedelta(hours=24), NOW + 90 * DAY)
    assert rotated["generation"] == registry["generation"] + 1
    (then,) = registry_of.select(rotated, None, old["id"])
    assert (then["expires"], then["replaced_by"]) == ("2026-05-05T12:00:00Z", new["id"])
    assert hashlib.sha256(token.encode()).hexdigest() == new["sha256"]
    assert {row["state"] for row in registry_of.listing(rotated, NOW) if row["client"] == "demo"} == {
        "valid",
        "replaced",
    }
    later = {row["id"]: row["state"] for row in registry_of.listing(rotated, NOW + 2 * DAY)}
    assert (later[old["id"]], later[new["id"]]) == ("expired", "valid")
    assert registry_of.select(rotated, "vip", None) == registry_of.select(registry, "vip", None)


def test_rotation_makes_no_token_live_longer():
    registry, _tokens = issued("demo", expires=NOW + timedelta(hours=1))
    rotated, _token, _new = registry_of.rotate(registry, registry["tokens"], NOW, timedelta(days=7), None)
    assert registry_of.select(rotated, None, registry["tokens"][0]["id"])[0]["expires"] == "2026-05-04T13:00:00Z"


def test_no_merge_brings_a_revoked_token_back():
    before, _tokens = issued("demo", "vip")
    after = registry_of.revoke(before, registry_of.select(before, "demo", None), NOW)
    stale, _token, _entry = registry_of.issue(before, "late", NOW, None)
    stale = {**stale, "generation": 99}
    for order in itertools.permutations([before, after, stale]):
        merged = registry_of.merge(list(order))
        assert {entry["client"] for entry in merged["tokens"]} == {"vip", "late"}
        assert merged["revoked"] == after["revoked"]


def test_the_newest_wins():
    first, _tokens = issued("demo")
    second, _token, _entry = registry_of.issue(first, "vip", NOW, None)
    assert registry_of.merge([first, second]) == registry_of.merge([second, first]) == second


def test_two_runs_at_once_lose_no_token():
    base, _tokens = issued("demo")
    left, _token, one = registry_of.issue(base, "left", NOW, None)
    right, _token, two = registry_of.issue(base, "right", NOW, None)
    merged = registry_of.merge([left, right])
    assert {entry["id"] for entry in merged["tokens"]} >= {one["id"], two["id"]}
    assert merged == registry_of.merge([right, left])


def test_what_ended_long_ago_is_forgotten_with_the_next_change():
    registry, _tokens = issued("old", expires=NOW + DAY)
    for days, kept in ((20, True), (40, False)):
        later, _token, _entry = registry_of.issue(registry, "new", NOW + days * DAY, None)
        assert bool(registry_of.select(later, "old", None)) is kept


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("2027-01-01", "2027-01-01T00:00:00Z"),
        ("2027-01-01T10:00:00Z", "2027-01-01T10:00:00Z"),
        ("2027-01-01T10:00:00+02:00", "2027-01-01T08:00:00Z"),
        ("2027-01-01 10:00", "2027-01-01T10:00:00Z"),
        ("90", "2026-08-02T12:00:00Z"),
        ("90d", "2026-08-02T12:00:00Z"),
    ],
)
def test_ends(text, end):
    assert registry_of.stamp(registry_of.parse_end(text, NOW)) == end


def test_never_is_no_end():
    assert registry_of.parse_end("never", NOW) is None


@pytest.mark.parametrize(
    "text", ["", "tomorrow", "2026-01-01", "2026-05-04T11:59:59Z", "-5", "1y", "2027-13-01", "24h"]
)
def test_no_ends(text):
    with pytest.raises(ValueError):
        registry_of.parse_end(text, NOW)


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("0s", 0), ("90s", 90), ("30m", 1800), ("24h", 86400), ("7d", 604800)]
)
def test_durations(text, seconds):
    assert registry_of.parse_duration(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "24", "h", "1w", "-1h", "1.5h", "24 h"])
def test_no_durations(text):
    with pytest.raises(ValueError):
        registry_of.parse_duration(text)


@pytest.mark.parametrize(
    "broken",
    [
        None,
        [],
        {},
        {"generation": 1},
        {"generation": "1", "tokens": [], "revoked": []},
        {"generation": 1, "tokens": {}, "revoked": []},
        {"generation": 1, "tokens": [{"id": "x"}], "revoked": []},
        {
            "generation": 1,
            "tokens": [{"id": "x", "client": "c", "sha256": "short", "issued": "", "expires": None}],
            "revoked": [],
        },
    ],
)
def test_what_is_no_registry_is_said_to_be_none(broken):
    assert registry_of.defects(broken)


# Whatever happens in which order, on whichever gateway: revoked stays revoked, and merging is a matter of content alone.

steps = st.lists(st.tuples(st.sampled_from(["issue", "revoke", "rotate", "fork"]), st.integers(0, 3)), max_size=12)


@given(steps)
def test_histories_merge_to_one_registry(history):
    branches, revoked = [registry_of.empty()], set()
    for action, number in history:
        branch = number % len(branches)
        registry = branches[branch]
        if action == "fork":
            branches.append(registry)
        elif action == "issue":
            branches[branch] = registry_of.issue(registry, f"c{number}", NOW, None)[0]
        elif registry["tokens"] and action == "rotate":
            branches[branch] = registry_of.rotate(registry, registry["tokens"][:1], NOW, DAY, None)[0]
        elif registry["tokens"]:
            revoked.add(registry["tokens"][0]["sha256"])
            branches[branch] = registry_of.revoke(registry, registry["tokens"][:1], NOW)
    merged = registry_of.merge(branches)
    assert merged == registry_of.merge(branches[::-1]) == registry_of.merge([merged, *branches])
    assert revoked <= set(merged["revoked"])
    assert not revoked & {entry["sha256"] for entry in merged["tokens"]}
    assert not revoked & set(registry_of.map_entries(merged))
