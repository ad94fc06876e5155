# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Every refusal is JSON in OpenAI's shape, with the request's id in body and header."""

from __future__ import annotations

import json
import threading

import pytest

CHAT = "/v1/chat/completions"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


def refused(answer, status: int):
    """Check the shape of a refusal and return its message."""
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/json"
    error = answer.error
    assert set(error) >= {"message", "type", "code", "request_id"}
    assert error["message"]
    assert error["request_id"] and error["request_id"] == answer.headers["x-request-id"]
    return error["message"]


@pytest.mark.parametrize("token", [None, "", "nonsense", "llmf_" + "A" * 43])
def test_401_without_a_token_that_somebody_was_given(gateway, token):
    answer = gateway.ask("POST", CHAT, token, BODY)
    refused(answer, 401)
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_401_comes_before_the_body_is_read(gateway):
    """Somebody without a token cannot hold a slot by withholding a body."""
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\nConnection: close\r\n\r\n"
    assert gateway.raw(head.encode(), timeout=5).startswith(b"HTTP/1.1 401 ")


def test_403_for_a_model_of_others(gateway, tokens):
    assert "private" in refused(gateway.chat(tokens["bob"], model="private"), 403)
    refused(gateway.chat(tokens["bob"], model="private", by_path=True), 403)
    assert gateway.chat(tokens["alice"], model="private").status == 200


@pytest.mark.parametrize("by_path", [False, True])
def test_404_for_an_unknown_model(gateway, tokens, by_path):
    assert "no-such-model" in refused(gateway.chat(tokens["alice"], model="no-such-model", by_path=by_path), 404)


def test_404_for_an_unknown_path(gateway, tokens):
    refused(gateway.ask("GET", "/v2/everything", tokens["alice"]), 404)
    refused(gateway.ask("GET", "/", tokens["alice"]), 404)


def test_a_version_can_be_named(gateway, tokens):
    assert gateway.chat(tokens["alice"], model="tiny@1.0.0", by_path=True).status == 200
    refused(gateway.chat(tokens["alice"], model="tiny@9.9.9", by_path=True), 404)


def test_400_without_a_model(gateway, tokens):
    refused(gateway.ask("POST", CHAT, tokens["alice"], {"messages": []}), 400)


def large(position: str) -> bytes:
    """A body of 600 KB with the model at one end."""
    padding = f'"padding": "{"x" * 600_000}"'
    model = '"model": "tiny"'
    rest = '"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4'
    parts = [model, padding, rest] if position == "first" else [padding, rest, model]
    return ("{" + ", ".join(parts) + "}").encode()


def test_413_where_the_model_is_beyond_the_buffer_and_the_path_form_helps(gateway, tokens):
    message = refused(gateway.ask("POST", CHAT, tokens["alice"], large("last")), 413)
    assert "/m/<model>/v1" in message
    assert gateway.ask("POST", f"/m/tiny{CHAT}", tokens["alice"], large("last")).status == 200


def test_a_large_body_that_begins_with_the_model_passes(gateway, tokens):
    assert gateway.ask("POST", CHAT, tokens["alice"], large("first")).status == 200


def test_429_beyond_a_clients_own_limit(gateway, tokens):
    """`bob` may have two requests at once."""
    # The tiny model is quick: on a busy machine a stream may end before the third request is there.
    for _attempt in range(10):
        streams = [gateway.stream(tokens["bob"], max_tokens=900) for _ in range(2)]
        for stream in streams:
            next(stream)
        answer = gateway.chat(tokens["bob"])
        other = gateway.chat(tokens["alice"])
        for stream in streams:
            assert list(stream)[-1][1] == "[DONE]"
        if answer.status != 200:
            break
    refused(answer, 429)
    assert int(answer.headers["retry-after"]) >= 1
    assert other.status == 200, "others are not concerned"
    assert gateway.chat(tokens["bob"]).status == 200


def test_429_where_the_queue_is_full(gateway, tokens):
    """`private` answers one request at a time and lets one wait."""
    answers = []

    def ask():
        answers.append(gateway.chat(tokens["alice"], model="private", max_tokens=400))

    askers = [threading.Thread(target=ask) for _ in range(6)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    statuses = sorted(answer.status for answer in answers)
    assert set(statuses) == {200, 429}, statuses
    for answer in answers:
        if answer.status == 429:
            refused(answer, 429)


def test_408_where_the_body_does_not_come(gateway, tokens):
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {tokens['alice']}\r\n"
        "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    head, _, body = gateway.raw(head.encode(), timeout=30).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    error = json.loads(body)["error"]
    assert error["message"] and error["request_id"].encode() in head


def test_400_for_what_is_not_http(gateway):
    """HAProxy's parser refuses this before there is a request that could have an id: its own words, in HTML."""
    assert gateway.raw(b"GET /v1/models HTTP/1.1\r\nbad header line\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_models_lists_what_a_token_may_use(gateway, tokens):
    def models(client):
        answer = gateway.ask("GET", "/v1/models", tokens[client])
        assert answer.status == 200
        assert answer.json["object"] == "list"
        return [model["id"] for model in answer.json["data"]]

    assert models("alice") == ["private", "tiny"]
    assert models("bob") == ["tiny"]
    refused(gateway.ask("GET", "/v1/models"), 401)


def test_an_answer_carries_the_requests_id(gateway, tokens):
    first, second = (gateway.chat(tokens["alice"]).headers["x-request-id"] for _ in range(2))
    assert first and second and first != second


def test_logs_tell_who_and_what_but_neither_token_nor_prompt_nor_answer(fleet, gateway, tokens):
    secret = "the-prompt-that-nobody-logs"
    answer = gateway.ask("POST", f"{CHAT}?token=in-the-query", tokens["alice"],
                         {**BODY, "messages": [{"role": "user", "content": secret}]})
    assert answer.status == 200
    journal = fleet.shell("gw1", "journalctl --no-pager -o cat --since '-2 min' -u haproxy")
    request = answer.headers["x-request-id"]
    line = next(line for line in journal.splitlines() if request in line)
    entry = json.loads(line[line.index("{"):])
    values = set(map(str, entry.values()))
    assert {"alice", "tiny", "200"} <= values, entry
    assert any(value.startswith("tiny-") for value in values), entry
    assert secret not in journal and "in-the-query" not in journal
    assert tokens["alice"] not in journal
    content = answer.json["choices"][0]["message"]["content"]
    assert content and content not in journal
