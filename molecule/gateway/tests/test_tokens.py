# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A token is shown once, kept as a hash, and gone for good when it is revoked."""

from __future__ import annotations

import hashlib
import json
import stat
from datetime import datetime, timedelta, timezone

import pytest


@pytest.fixture
def issued(fleet, tmp_path):
    """A fresh token of bob's."""
    return fleet.token("bob", file=tmp_path / "token")


def works(gateway, token) -> bool:
    return gateway.ask("GET", "/v1/models", token).status == 200


@pytest.fixture(scope="module", autouse=True)
def brief(fleet, gateway, tmp_path_factory) -> str:
    """A token of bob's that ends soon: issued before all tests of this file, so that the one that waits for its end need not wait."""
    soon = (datetime.now(timezone.utc) + timedelta(seconds=45)).strftime("%Y-%m-%dT%H:%M:%SZ")
    token = fleet.token("bob", "-e", f"expires={soon}", file=tmp_path_factory.mktemp("brief") / "token")
    assert works(gateway, token)
    return token


def registry(fleet, gateway="gw1") -> dict:
    return json.loads(fleet.shell(gateway, "cat /var/lib/llm_fleet/clients.json"))


def test_a_token_file_is_private_and_gateways_keep_only_its_hash(fleet, issued, tmp_path):
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    digest = hashlib.sha256(issued.encode()).hexdigest()
    for name in fleet.hosts("gateways"):
        text = fleet.shell(name, "cat /var/lib/llm_fleet/clients.json /etc/haproxy/llm_fleet/*.map")
        assert digest in text and issued not in text


def test_without_a_file_the_token_is_printed_once(fleet, gateway):
    done = fleet.playbook("tokens", "-e", "do=issue", "-e", "client=bob")
    shown = [word.strip("\"',") for word in done.stdout.split() if "llmf_" in word]
    assert len(shown) == 1 and works(gateway, shown[0])
    listed = fleet.playbook("tokens", "-e", "do=list").stdout
    assert "bob" in listed and shown[0] not in listed and hashlib.sha256(shown[0].encode()).hexdigest() not in listed


def test_under_awx_a_token_is_never_printed(fleet, tmp_path):
    before = registry(fleet)
    done = fleet.playbook("tokens", "-e", "do=issue", "-e", "client=bob", "-e", "awx_job_id=7", check=False)
    assert done.returncode != 0 and "token_file" in done.stdout + done.stderr
    assert "llmf_" not in done.stdout + done.stderr
    assert registry(fleet) == before, "a refused call changes nothing"


def test_faults_come_all_at_once_and_change_nothing(fleet):
    before = registry(fleet)
    done = fleet.playbook("tokens", "-e", "do=isue", "-e", "client=nobody", check=False)
    output = done.stdout + done.stderr
    assert done.returncode != 0 and "isue" in output and "nobody" in output
    assert registry(fleet) == before


def test_a_revoked_token_is_refused_at_once_and_stays_refused_while_others_stream_on(fleet, gateway, tokens, issued):
    assert works(gateway, issued)
    other = gateway.stream(tokens["alice"], max_tokens=900)
    next(other)
    fleet.playbook("tokens", "-e", "do=revoke", "-e", f"id={token_id(fleet, issued)}")
    for name in fleet.hosts("gateways"):
        assert not works(fleet.gateway(name), issued)
        fleet.shell(name, "systemctl reload haproxy")
        assert not works(fleet.gateway(name), issued), f"{name}: back after a reload"
    events = [text for _, text in other]
    assert events[-1] == "[DONE]", "a reload cut another client's stream"
    for name in fleet.hosts("gateways"):
        fleet.shell(name, "systemctl restart haproxy")
        assert not works(fleet.gateway(name), issued), f"{name}: back after a restart"
    assert works(gateway, tokens["alice"])


def token_id(fleet, token: str) -> str:
    digest = hashlib.sha256(token.encode()).hexdigest()
    return next(entry["id"] for entry in registry(fleet)["tokens"] if entry["sha256"] == digest)


def test_rotation_lets_old_and_new_overlap(fleet, gateway, tmp_path):
    """Rotated with an hour of overlap, both work; rotated with none, only the new one does."""
    first = fleet.token("bob", file=tmp_path / "first")
    rotate = ("-e", "do=rotate", "-e", f"id={token_id(fleet, first)}")
    fleet.playbook("tokens", *rotate, "-e", "overlap=1h", "-e", f"token_file={tmp_path}/second")
    second = (tmp_path / "second").read_text().strip()
    assert works(gateway, first) and works(gateway, second)
    fleet.playbook("tokens", "-e", "do=rotate", "-e", f"id={token_id(fleet, second)}", "-e", "overlap=0s",
                   "-e", f"token_file={tmp_path}/third")
    third = (tmp_path / "third").read_text().strip()
    assert works(gateway, third)
    assert not works(gateway, second)


def test_site_brings_no_revoked_token_back_and_tells_a_gateway_that_missed_it(fleet, gateway, issued, tmp_path):
    """Registries differ when a gateway was out: the newest wins, and no revocation is lost."""
    other = fleet.token("bob", file=tmp_path / "other")
    fleet.playbook("tokens", "-e", "do=revoke", "-e", f"id={token_id(fleet, other)}")
    out = '{"llm_fleet_gateways_out": ["gw2"]}'
    fleet.playbook("tokens", "-e", "do=revoke", "-e", f"id={token_id(fleet, issued)}", "-e", out)
    assert not works(gateway, issued) and works(fleet.gateway("gw2"), issued)
    fleet.playbook("tokens", "-e", "do=list")
    fleet.playbook("site")
    for name in fleet.hosts("gateways"):
        assert not works(fleet.gateway(name), issued), f"{name} did not learn it"
        assert not works(fleet.gateway(name), other), f"{name}: back after site.yml"


def test_an_expired_token_is_refused_without_anybody_doing_anything(gateway, brief, wait_until):
    wait_until(lambda: not works(gateway, brief), seconds=90)
    assert gateway.ask("GET", "/v1/models", brief).error["code"]
