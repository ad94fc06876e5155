# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""One call of the module that makes, replaces, ends and lists tokens."""

from __future__ import annotations

import hashlib

import pytest

KNOWN = ["demo", "research"]


@pytest.fixture
def call(run_module):
    def run(action: str, *registries: dict, **more) -> dict:
        return run_module(
            "client_token", action=action, registries=list(registries), **{"known_clients": KNOWN, **more}
        )

    return run


@pytest.fixture
def one(call):
    """A registry with one token of demo's."""
    return call("issue", client="demo")


def test_issue(call):
    result = call("issue", client="demo", expires="2090-01-01")
    (entry,) = result["registry"]["tokens"]
    assert entry["sha256"] == hashlib.sha256(result["token"].encode()).hexdigest()
    assert (result["changed"], result["registry"]["generation"]) == (True, 1)
    assert result["actions"] == ["issue a token for demo, valid until 2090-01-01T00:00:00Z"]
    (row,) = result["tokens"]
    assert (row["client"], row["expires"], row["state"]) == ("demo", "2090-01-01T00:00:00Z", "valid")
    assert "sha256" not in row


def test_list_and_sync_change_nothing_and_unite_what_gateways_have(call, one):
    behind = one["registry"]
    ahead = call("issue", behind, client="research")["registry"]
    for action in ("list", "sync"):
        result = call(action, behind, ahead)
        assert (result["changed"], result["registry"], "token" in result) == (False, ahead, False)
        assert [row["client"] for row in result["tokens"]] == ["demo", "research"]


def test_rotate_by_client_and_by_id(call, one):
    by_client = call("rotate", one["registry"], client="demo", overlap="0")
    states = sorted(row["state"] for row in by_client["tokens"])
    assert states == ["expired", "valid"]
    new = next(row["id"] for row in by_client["tokens"] if row["state"] == "valid")
    by_id = call("rotate", by_client["registry"], id=new, overlap="24h")
    assert sorted(row["state"] for row in by_id["tokens"]) == ["expired", "replaced", "valid"]
    assert len({one["token"], by_client["token"], by_id["token"]}) == 3


def test_revoke_by_client_and_by_id(call, one):
    two = call("issue", one["registry"], client="demo")["registry"]
    three = call("issue", two, client="research")["registry"]
    first = one["registry"]["tokens"][0]
    by_id = call("revoke", three, id=first["id"])
    assert by_id["registry"]["revoked"] == [first["sha256"]] and len(by_id["registry"]["tokens"]) == 2
    by_client = call("revoke", by_id["registry"], client="demo")
    assert {row["client"] for row in by_client["tokens"]} == {"research"}
    again = call("revoke", by_client["registry"], client="demo")
    assert again["changed"] is False


def test_a_client_that_left_can_be_revoked_and_not_renewed(call, one):
    result = call("rotate", one["registry"], client="demo", known_clients=["research"])
    assert "llm_fleet_clients" in result["msg"]
    assert call("revoke", one["registry"], client="demo", known_clients=[])["changed"] is True


def test_all_faults_at_once(call):
    result = call("isue", client="dmo", expires="soon", overlap="long", to_file="relative/token")
    assert result["failed"]
    for word in ("isue", "issue", "soon", "long", "no token to write"):
        assert word in result["msg"], result["msg"]
    result = call("issue", client="dmo", expires="soon", overlap="long", to_file="relative/token")
    for word in ("dmo", "'demo'", "llm_fleet_clients", "soon", "long", "relative/token"):
        assert word in result["msg"], result["msg"]
    assert {fault["where"] for fault in result["faults"]} == {"llm_fleet_clients", "expires", "overlap", "token_file"}


@pytest.mark.parametrize(
    ("action", "more", "where"),
    [
        ("issue", {}, "client"),
        ("rotate", {}, "client"),
        ("revoke", {}, "client"),
        ("rotate", {"client": "research"}, "client"),
        ("revoke", {"id": "deadbeef"}, "id"),
        ("revoke", {"client": "nobody"}, "client"),
        ("issue", {"client": "demo", "file_required": True}, "token_file"),
        ("issue", {"client": "demo", "to_file": "/nowhere/token"}, "token_file"),
        ("list", {"to_file": "/tmp/token"}, "token_file"),
        ("list", {"broken": True}, "registries[1]"),
    ],
)
def test_faults(call, one, action, more, where):
    registries = [one["registry"], {"generation": 5}] if more.pop("broken", False) else [one["registry"]]
    result = call(action, *registries, **more)
    assert result["failed"] and "registry" not in result and "token" not in result
    assert [fault["where"] for fault in result["faults"]] == [where]


def test_check_mode_makes_no_token(call, one, run_module):
    for action in ("issue", "rotate", "revoke"):
        result = call(action, one["registry"], client="demo", check_mode=True)
        assert result["changed"] is True and result["actions"] and "token" not in result
    assert call("issue", one["registry"], client="demo", check_mode=True)["registry"] == one["registry"]


def test_a_file_is_checked_before_the_token_is_made(call, tmp_path):
    assert call("issue", client="demo", to_file=str(tmp_path / "token"), file_required=True)["token"]
    assert not (tmp_path / "token").exists(), "the playbook writes it when all gateways have it"
