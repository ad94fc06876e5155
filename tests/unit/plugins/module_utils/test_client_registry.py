# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from ansible_collections.localfirst.llm_fleet.plugins.module_utils import client_registry as registry
from hypothesis import given
from hypothesis import strategies as st

NOW = 1_790_000_000
HOUR = 3600


def issued(client: str, base: dict = registry.EMPTY, expires: int | None = None) -> registry.Change:
    return registry.issue(base, client, NOW, expires)


def digests(known: dict) -> set:
    return set(registry.map_entries(known))


def test_a_token_is_long_random_and_kept_as_its_digest_only():
    first, second = issued("demo"), issued("demo")
    assert first.token != second.token
    assert first.token.startswith("llmf_") and len(first.token) >= 5 + 43  # 32 bytes in base64
    assert first.token not in str(first.registry)
    assert digests(first.registry) == {registry.digest(first.token)}


def test_each_change_makes_a_new_generation():
    change = issued("demo")
    assert change.registry["generation"] == 1
    chosen, _faults = registry.choose(change.registry, "demo", "", NOW)
    assert registry.revoke(change.registry, chosen).registry["generation"] == 2
    assert registry.rotate(change.registry, chosen, NOW, None, HOUR).registry["generation"] == 2
    assert registry.rotate(change.registry, chosen, NOW, None, 0).registry["generation"] == 2


def test_revoked_is_gone_and_remembered():
    change = issued("demo", issued("other").registry)
    gone, _faults = registry.choose(change.registry, "demo", "", NOW)
    after = registry.revoke(change.registry, gone).registry
    assert registry.digest(change.token) not in digests(after)
    assert after["revoked"] == [registry.digest(change.token)]
    assert len(after["tokens"]) == 1


def test_no_gateway_brings_a_revoked_token_back():
    """One gateway missed the revocation, and another one is newer than it but missed it too."""
    change = issued("demo")
    chosen, _faults = registry.choose(change.registry, "demo", "", NOW)
    told = registry.revoke(change.registry, chosen).registry
    newer = {**issued("other", change.registry).registry, "generation": 9}
    for order in ([told, newer, None], [None, newer, told], [change.registry, told, newer]):
        merged = registry.merge(order)
        assert registry.digest(change.token) not in digests(merged)
        assert len(merged["tokens"]) == 1 and merged["generation"] == 9


def test_two_people_at_once_lose_nothing():
    base = issued("demo").registry
    one, two = issued("one", base), issued("two", base)
    merged = registry.merge([one.registry, two.registry])
    assert {registry.digest(one.token), registry.digest(two.token)} <= digests(merged)
    assert merged == registry.merge([two.registry, one.registry])


def test_rotation_ends_the_old_token_later_or_at_once():
    old = issued("demo", expires=NOW + 90 * 86400)
    chosen, _faults = registry.choose(old.registry, "", registry.digest(old.token)[:8], NOW)
    later = registry.rotate(old.registry, chosen, NOW, None, HOUR)
    entries = {token["sha256"]: token for token in later.registry["tokens"]}
    assert entries[registry.digest(old.token)]["expires"] == NOW + HOUR
    assert entries[registry.digest(later.token)]["expires"] is None
    at_once = registry.rotate(old.registry, chosen, NOW, None, 0)
    assert digests(at_once.registry) == {registry.digest(at_once.token)}
    assert registry.digest(old.token) in at_once.registry["revoked"]


def test_rotation_never_lengthens_a_life():
    old = issued("demo", expires=NOW + 60)
    chosen, _faults = registry.choose(old.registry, "demo", "", NOW)
    after = registry.rotate(old.registry, chosen, NOW, None, HOUR).registry
    assert {token["expires"] for token in after["tokens"]} == {NOW + 60, None}


def test_what_is_chosen_must_be_there():
    known = issued("demo").registry
    assert registry.choose(known, "demo", "", NOW)[1] == []
    assert "'nobody' has no token" in registry.choose(known, "nobody", "", NOW)[1][0].what
    assert "'00000000'" in registry.choose(known, "", "00000000", NOW)[1][0].what
    assert "neither" in registry.choose(known, "", "", NOW)[1][0].what
    over = issued("demo", expires=NOW - 1).registry
    assert registry.choose(over, "demo", "", NOW)[1]


def test_haproxys_map_has_an_end_for_every_token():
    for expires, end in ((None, registry.NEVER), (NOW + 5, NOW + 5)):
        known = issued("demo", expires=expires).registry
        client, seconds, identifier = next(iter(registry.map_entries(known).values())).split("|")
        assert (client, int(seconds), identifier) == ("demo", end, known["tokens"][0]["id"])


def test_a_list_shows_neither_token_nor_digest():
    change = issued("demo", expires=NOW)
    rows = registry.listing(change.registry, NOW)
    assert rows[0]["client"] == "demo" and rows[0]["state"] == "expired" and rows[0]["expires"] == "2026-09-21T13:33:20Z"
    assert change.token not in str(rows) and registry.digest(change.token) not in str(rows)


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("1970-01-02", 86400),
        ("1970-01-01T00:00:09Z", 9),
        ("45s", NOW + 45),
        ("90d", NOW + 90 * 86400),
        ("tomorrow", None),
        ("2027-13-01", None),
        ("-5d", None),
        ("", None),
    ],
)
def test_an_end_is_a_date_a_time_or_a_duration(text, end):
    assert registry.read_end(text, NOW) == end


OPERATIONS = st.lists(st.tuples(st.sampled_from(["issue", "revoke", "rotate"]), st.sampled_from("abc"), st.integers(0, 2)), max_size=12)


@given(OPERATIONS)
def test_however_gateways_miss_changes_a_revoked_token_stays_refused(operations):
    """Three gateways, each change reaches only some: what one of them revoked is never in a map that all of them merge to."""
    gateways = [None, None, None]
    refused = set()
    for verb, client, misses in operations:
        known = registry.merge(gateways)
        chosen, faults = registry.choose(known, client, "", NOW)
        if verb == "issue" or faults:
            change = registry.issue(known, client, NOW, None)
        elif verb == "rotate":
            change = registry.rotate(known, chosen, NOW, None, 0)
        else:
            change = registry.revoke(known, chosen)
        if verb != "issue" and not faults:
            refused |= {token["sha256"] for token in chosen}
        gateways = [old if index == misses else registry.merge([old, change.registry]) for index, old in enumerate(gateways)]
    merged = registry.merge(gateways)
    assert not refused & digests(merged)
    assert refused <= set(merged["revoked"])
