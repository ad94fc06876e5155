# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Each answer is counted as what it is, on a real server that misbehaves on demand."""

from __future__ import annotations

import socket

import pytest

from ansible_collections.localfirst.llm_fleet.tests.load.report import OUTCOMES
from ansible_collections.localfirst.llm_fleet.tests.load.settings import LoadError
from ansible_collections.localfirst.llm_fleet.tests.unit.load.misbehaving_gateway import BEHAVIOURS, WORDS
from ansible_collections.localfirst.llm_fleet.tests.unit.support.fleet_ca import FleetCa

STREAMED = {
    "good": ("complete", ""),
    "usage": ("complete", ""),
    "cut": ("broken", "cut before the chunk that ends the body"),
    "cut event": ("broken", "middle of an event"),
    "silent end": ("broken", "no finish_reason, after 3 of 12 tokens"),
    "no done": ("broken", "no [DONE]"),
    "no finish": ("broken", "no finish_reason"),
    "error then done": ("broken", "EngineDeadError"),
    "aborted": ("broken", "finish_reason abort"),
    "not json": ("broken", "not a JSON object"),
    "few": ("short", "11 of 12 tokens"),
    "many": ("duplicated", "13 tokens"),
    "other id": ("duplicated", "another answer's id after 3 tokens"),
    "two choices": ("duplicated", "second choice"),
    "event after finish": ("broken", "after the one with finish_reason"),
    "event after done": ("broken", "after [DONE]"),
    "two dones": ("broken", "after [DONE]"),
    "no last chunk": ("broken", "cut before the chunk that ends the body"),
    "surplus": ("broken", "7 bytes came after the end"),
    "no length": ("broken", "neither a length nor chunks"),
    "no http": ("broken", "does not begin as HTTP/1.1 does"),
    "hang up": ("broken", "closed before any answer"),
    "stall": ("late", "of silence after 3 tokens"),
    "endless": ("broken", "no end within 1 s"),
    "503": ("refused", "503 no_instance"),
    "429 queue_full": ("refused", "429 queue_full"),
    "429 too_many_requests_at_once": ("refused", "429 too_many_requests_at_once"),
    "502 page": ("refused", "502"),
}


def counts(report) -> dict:
    seen = {name: getattr(report, name) for name in OUTCOMES if name != "refused"} | {"refused": report.refused_total}
    return {name: count for name, count in seen.items() if count}


def test_every_behaviour_has_its_case():
    assert set(STREAMED) == set(BEHAVIOURS)


@pytest.mark.parametrize(("behaviour", "outcome", "what"), [(name, *expected) for name, expected in STREAMED.items()])
def test_a_streamed_answer_is_counted_as_what_it_is(gateway, load, behaviour, outcome, what):
    gateway.behaviours = [behaviour]
    options = {"timeout": 1} if behaviour == "endless" else {"stall": 0.2} if behaviour == "stall" else {}
    report = load(requests=1, **options)
    assert counts(report) == {outcome: 1}
    if outcome == "complete":
        assert report.faults == []
        return
    [fault] = report.faults
    assert fault["kind"] == outcome
    assert what in fault["what"]
    assert (fault["gateway"], fault["request_id"]) == (gateway.address, "" if behaviour in ("no http", "hang up") else "request-1")
    assert report.began <= fault["at"] <= report.ended
    assert "secret" not in report.to_json()


@pytest.mark.parametrize(
    ("behaviour", "outcome"),
    [("good", "complete"), ("few", "short"), ("many", "duplicated"), ("cut", "broken"), ("error then done", "broken")],
)
def test_so_is_one_that_is_not_streamed(gateway, load, behaviour, outcome):
    gateway.behaviours = [behaviour]
    report = load(requests=1, unstreamed=1)
    assert counts(report) == {outcome: 1}
    assert not gateway.bodies[0]["stream"]
    assert (report.ttft_p50_s, report.longest_first_token_s) == (None, 0)


def test_a_mixture_is_told_apart(gateway, load):
    gateway.behaviours = ["good", "cut", "503", "few", "good", "429 queue_full", "other id", "503", "good"]
    report = load(requests=12)
    assert counts(report) == {"complete": 6, "broken": 1, "short": 1, "duplicated": 1, "refused": 3}
    assert report.refused == {"503 no_instance": 2, "429 queue_full": 1}
    assert (report.busy, report.refused_5xx, report.failed) == (1, 2, 5)
    assert [record.outcome for record in report.records].count("complete") == 6


def test_shorter_answers_are_complete_where_they_may_be(gateway, load):
    gateway.behaviours = ["few"]
    report = load(requests=2, exact=False)
    assert counts(report) == {"complete": 2}
    assert "ignore_eos" not in gateway.bodies[0]


def test_a_silence_shorter_than_the_stall_is_not_late_but_recorded(gateway, load):
    gateway.behaviours = ["stall", "good"]
    report = load(requests=2, stall=10)
    assert counts(report) == {"complete": 2}
    # The client may read the tokens before the silence a little later than they came.
    assert report.longest_stall_s > gateway.stall / 2


def test_nobody_listens(load):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        report = load(requests=2, gateways=(f"127.0.0.1:{unused.getsockname()[1]}",))
    assert counts(report) == {"unconnected": 2}
    assert "ConnectionRefusedError" in report.faults[0]["what"]


def test_a_certificate_of_another_ca_is_no_connection(load, tmp_path):
    (tmp_path / "other").mkdir()
    report = load(requests=1, ca=FleetCa(tmp_path / "other").pem)
    assert counts(report) == {"unconnected": 1}
    assert "certificate verify failed" in report.faults[0]["what"]


def test_half_of_the_clients_keep_their_connection(gateway, load):
    # Client 0 keeps its connection, client 1 does not.
    load(requests=30, clients=2)
    used = {connection: gateway.connections.count(connection) for connection in gateway.connections}
    kept = max(used.values())
    assert kept > 1
    assert sorted(used.values()) == [1] * (30 - kept) + [kept]


def test_a_connection_that_was_just_closing_is_asked_again_on_a_new_one(gateway, load):
    gateway.behaviours = ["good", "hang up", "good"]
    report = load(requests=2)
    assert counts(report) == {"complete": 2}
    assert report.resent == 1


def test_but_not_one_that_was_new(gateway, load):
    gateway.behaviours = ["hang up", "good"]
    report = load(requests=1)
    assert counts(report) == {"broken": 1}
    assert (report.resent, len(gateway.bodies)) == (0, 1)


def test_or_is_broken_where_clients_do_not(gateway, load):
    gateway.behaviours = ["good", "hang up", "good"]
    report = load(requests=3, resend=False)
    assert counts(report) == {"complete": 2, "broken": 1}
    assert report.resent == 0


def test_a_request_that_breaks_again_is_broken(gateway, load):
    gateway.behaviours = ["good", "hang up"]
    assert counts(load(requests=2)) == {"complete": 1, "broken": 1}


def test_gateways_take_turns_and_the_one_that_is_gone_is_named(gateway, load):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        gone = f"127.0.0.1:{unused.getsockname()[1]}"
        report = load(requests=10, gateways=(gateway.address, gone))
    assert counts(report) == {"complete": 5, "unconnected": 5}
    assert {fault["gateway"] for fault in report.faults} == {gone}


def test_what_is_asked(gateway, load):
    load(requests=60, models=("tiny", "private", "tiny@1.1.0"), tokens=(4, 6), unstreamed=0.3)
    assert {body["max_tokens"] for body in gateway.bodies} == {4, 5, 6}
    assert {body["model"] for body in gateway.bodies} == {"tiny", "private"}
    named = {"/v1/chat/completions", *(f"/m/{model}/v1/chat/completions" for model in ("tiny", "private", "tiny@1.1.0"))}
    assert set(gateway.paths) == named
    assert {body["stream"] for body in gateway.bodies} == {True, False}
    assert {(body["temperature"], body["seed"], body["ignore_eos"]) for body in gateway.bodies} == {(0, 0, True)}
    assert gateway.tokens == {"Bearer llmf_a-token-of-alice"}


def test_the_same_seed_asks_the_same(gateway, load):
    for seed in (1, 1, 2):
        load(requests=20, seed=seed, tokens=(4, 60), unstreamed=0.3)
    first, again, other = (list(zip(gateway.paths, gateway.bodies))[begin : begin + 20] for begin in (0, 20, 40))
    assert first == again
    assert first != other


def test_versions_are_told_by_how_their_answers_begin(gateway, load):
    tell = {"1.0.0": WORDS["1.0.0"][:10], "1.1.0": WORDS["1.1.0"][:10]}
    old = load(requests=3, unstreamed=0.5, tell=tell).by_version
    gateway.version = "1.1.0"
    new = load(requests=4, tell=tell).by_version
    assert {name: seen["streams"] for name, seen in old.items()} == {"1.0.0": 3}
    assert {name: seen["streams"] for name, seen in new.items()} == {"1.1.0": 4}
    assert old["1.0.0"]["first_began"] < old["1.0.0"]["last_began"] < new["1.1.0"]["first_began"]


def test_a_version_nobody_told_of_shows_itself_also_where_it_is_cut(gateway, load):
    gateway.behaviours = ["cut", "good"]
    [(name, seen)] = load(requests=3).by_version.items()
    assert WORDS["1.0.0"].startswith(name[: len(WORDS["1.0.0"])])
    assert seen["streams"] == 3


def test_a_flood_of_refusals_leaves_room_for_what_is_worse(gateway, load):
    gateway.behaviours = ["503"] * 60 + ["cut"] * 60 + ["good"]
    report = load(requests=130, pause=0.001, retry=0.001)
    kinds = [fault["kind"] for fault in report.faults]
    assert counts(report) == {"refused": 60, "broken": 60, "complete": 10}
    assert len(kinds) == 50
    assert kinds.count("broken") >= 30


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"clients": 0}, "clients"),
        ({"clients": 5000}, "clients"),
        ({"seconds": 1e9}, "seconds"),
        ({"requests": 10**9}, "requests"),
        ({"tokens": (5, 4)}, "tokens"),
        ({"models": ()}, "models"),
        ({"token": ""}, "LLM_FLEET_TOKEN"),
        ({"token": "a\r\nX-Evil: 1"}, "no proper one"),
        ({"ca": "/nowhere.pem"}, "/nowhere.pem"),
        ({"gateways": ("host:port",)}, "host:port"),
    ],
)
def test_what_cannot_be_is_said(settings, wrong, said):
    with pytest.raises(LoadError, match=said):
        settings(**wrong)
