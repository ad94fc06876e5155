# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What the gateway lets through, to whom, and how it refuses the rest."""

from __future__ import annotations

import json
import threading
import time

import pytest

from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_client import CHAT, Client

LARGE = 400_000


# Who asks


def test_a_token_opens_the_model_and_the_engine_learns_neither_token_nor_query(gateway):
    answer = gateway["demo"].ask(
        "POST", f"{CHAT}?secret=1", {"model": "tiny"}, Cookie="c=1", X_Forwarded_For="1.2.3.4", X_Request_ID="mine"
    )
    assert (answer.status, answer.json["model"]) == (200, "tiny")
    (request,) = [r for engine in gateway.tiny for r in engine.requests]
    assert request["path"] == CHAT
    headers = request["headers"]
    assert headers["authorization"] == "Bearer engine-key"
    assert headers["x-request-id"] == answer.id != "mine"
    assert not {"cookie", "x-forwarded-for"} & set(headers)
    assert "server" not in answer.headers


def test_each_model_has_a_key_of_its_own(gateway):
    assert gateway["vip"].chat("private").status == 200
    assert gateway.private.requests[0]["headers"]["authorization"] == "Bearer other-key"


@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/slots", f"/m/tiny{CHAT}"])
def test_401_before_anything_else(gateway, path):
    answer = gateway["nobody"].ask("POST", path, {"model": "tiny"})
    answer.refused(401, "missing_token")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("token", ["", "nonsense", "llmf_demo_", "LLMF_DEMO"])
def test_401_for_a_token_nobody_was_given(gateway, token):
    Client(gateway.bench.port, token).chat().refused(401, "invalid_token")


def test_401_for_another_scheme(gateway):
    gateway["nobody"].ask("POST", CHAT, {"model": "tiny"}, Authorization="Basic bGxtZl9kZW1v").refused(
        401, "invalid_token"
    )


def test_401_for_a_token_that_has_ended(gateway):
    gateway["old"].chat().refused(401, "expired_token")


def test_401_for_a_client_that_left_the_configuration(gateway):
    gateway["gone"].chat().refused(401, "unknown_client")


def test_401_does_not_wait_for_the_body(gateway):
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    # HAProxy 3.0 keeps the connection and reads on, 2.6 closes it; the answer is there at once with both.
    assert gateway["nobody"].raw(head.encode(), timeout=1).startswith(b"HTTP/1.1 401 ")


def test_a_refused_client_keeps_its_connection(gateway):
    connection = gateway["demo"].open()
    for path, status in ((CHAT, 404), ("/slots", 404), (CHAT, 404), ("/m/tiny" + CHAT, 200)):
        connection.request("POST", path, b'{"model":"other"}', gateway["demo"].headers())
        response = connection.getresponse()
        assert (response.status, len(response.read()) > 10) == (status, True)
    connection.close()


# Which model


@pytest.mark.parametrize("name", ["tiny", "tiny@1.0.0"])
def test_the_path_names_the_model(gateway, name):
    assert gateway["demo"].ask("POST", f"/m/{name}{CHAT}", b"no json at all").status == 200


def test_the_path_form_never_waits_for_the_body(gateway):
    head = f"POST /m/tiny{CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer llmf_demo\r\nContent-Length: 9\r\nConnection: close\r\n\r\n"
    client = gateway["demo"]
    thread = threading.Thread(target=client.raw, args=(head.encode(), 3))
    thread.start()
    time.sleep(1)
    busy = [
        row
        for row in gateway.bench.ask("show stat").splitlines()
        if row.startswith("be_tiny") and ",BACKEND," not in row
    ]
    assert sum(int(row.split(",")[4]) for row in busy) == 1, "the engine has the request already"
    thread.join()


def test_a_body_that_is_withheld_is_408(gateway):
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer llmf_demo\r\nContent-Length: 9\r\n\r\n"
    head, _, body = gateway["demo"].raw(head.encode()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    error = json.loads(body)["error"]
    assert error["code"] == "request_timeout"
    assert f"x-request-id: {error['request_id']}" in head.decode()


@pytest.mark.parametrize(
    "model", ["absent2", "TINY", "tiny@1.0.0", "tiny@9", "demo|tiny", "", '"}],"x":"', "\n", "x" * 5000]
)
def test_404_for_an_unknown_model_in_the_body(gateway, model):
    assert model[:20] in gateway["demo"].chat(model).refused(404, "model_not_found")


@pytest.mark.parametrize("model", ["absent2", "TINY", "tiny@9", "tiny@", "@", "%74iny", "tiny%40", "tiny%00"])
def test_404_for_an_unknown_model_in_the_path(gateway, model):
    assert model in gateway["demo"].ask("POST", f"/m/{model}{CHAT}", {}).refused(404, "model_not_found")


def test_403_for_a_model_of_others(gateway):
    assert "private" in gateway["demo"].chat("private").refused(403, "model_not_allowed")
    for model in ("private", "private@2.0.0-rc.1"):
        gateway["demo"].ask("POST", f"/m/{model}{CHAT}", {}).refused(403, "model_not_allowed")
    assert not gateway.private.requests


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b'{"messages":[]}',
        b'{"model":null}',
        b"model=tiny",
        b'{"Model":"tiny"}',
        b'{"x":{"model":"tiny"}}',
    ],
)
def test_400_without_a_model(gateway, body):
    gateway["demo"].ask("POST", CHAT, body).refused(400, "missing_model")


@pytest.mark.parametrize("body", [b'{"model":5}', b'{"model":["tiny"]}', b'{"model":{"tiny":1}}', b'{"model":true}'])
def test_a_model_that_is_no_string_is_none(gateway, body):
    assert gateway["demo"].ask("POST", CHAT, body).status in (400, 404)


def test_two_models_in_a_body_open_no_other_door(gateway):
    body = b'{"model":"tiny","model":"private"}'
    assert gateway["demo"].ask("POST", CHAT, body).json["model"] == "tiny"
    assert not gateway.private.requests


def large(first: str, last: str) -> bytes:
    return f'{{{first}"padding":"{"x" * LARGE}"{last}}}'.encode()


def test_413_where_the_model_comes_too_late(gateway):
    body = large("", ',"model":"tiny"')
    assert "/m/<model>/v1" in gateway["demo"].ask("POST", CHAT, body).refused(413, "body_too_large")
    assert gateway["demo"].ask("POST", f"/m/tiny{CHAT}", body).status == 200


def chunks(body: bytes, size: int = 1000):
    return (body[n : n + size] for n in range(0, len(body), size))


def test_413_for_chunked_bodies_too(gateway):
    gateway["demo"].ask("POST", CHAT, chunks(large("", ',"model":"tiny"'))).refused(413, "body_too_large")
    gateway["demo"].ask("POST", CHAT, chunks(b'{"padding":"' + b"x" * 9000 + b'"}')).refused(400, "missing_model")


def test_a_large_body_that_begins_with_the_model_arrives_whole(gateway):
    body = large('"model":"tiny",', "")
    assert gateway["demo"].ask("POST", CHAT, body).status == 200
    assert gateway["demo"].ask("POST", CHAT, chunks(body)).status == 200
    assert [r["body"] for engine in gateway.tiny for r in engine.requests] == [body, body]


def test_a_body_just_below_the_buffer_may_name_the_model_last(gateway):
    body = f'{{"padding":"{"x" * 120_000}","model":"tiny"}}'.encode()
    assert gateway["demo"].ask("POST", CHAT, body).status == 200
    assert gateway["demo"].ask("POST", CHAT, chunks(body)).status == 200


# Lists of models


def test_models_are_those_of_the_client(gateway):
    def models(client):
        answer = gateway[client].ask("GET", "/v1/models")
        assert answer.headers["content-type"] == "application/json" and answer.id
        return [model["id"] for model in answer.json["data"]]

    assert models("demo") == ["tiny", "absent"]
    assert models("vip") == ["tiny", "private"]


def test_one_model(gateway):
    listed = gateway["demo"].ask("GET", "/v1/models").json["data"][0]
    assert gateway["demo"].ask("GET", "/v1/models/tiny").json == listed
    assert gateway["demo"].ask("GET", "/m/tiny/v1/models").json["data"] == [listed]
    gateway["demo"].ask("GET", "/v1/models/private").refused(403, "model_not_allowed")
    gateway["demo"].ask("GET", "/v1/models/other").refused(404, "model_not_found")
    gateway["demo"].ask("DELETE", "/v1/models/tiny").refused(404, "unknown_path")
    assert not [r for engine in gateway.tiny for r in engine.requests]


# How much


def test_429_beyond_a_clients_requests_a_minute(gateway):
    statuses = [gateway["few"].chat().status for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    answer = gateway["few"].ask("GET", "/v1/models")
    assert "3 requests a minute" in answer.refused(429, "rate_limit_exceeded")
    assert answer.headers["retry-after"] == "20"


def test_429_beyond_a_clients_requests_at_once(gateway):
    for engine in gateway.tiny:
        engine.behaviour = "stream"
    streams = [gateway["busy"].stream() for _ in range(2)]
    answer = gateway["busy"].chat()
    assert "2 requests at once" in answer.refused(429, "too_many_requests_at_once")
    assert int(answer.headers["retry-after"]) >= 1
    assert gateway["demo"].ask("GET", "/v1/models").status == 200
    for connection, response in streams:
        assert response.read().endswith(b"[DONE]\n\n")
        connection.close()
    assert gateway["busy"].ask("GET", "/v1/models").status == 200


def test_429_beyond_the_queue_and_503_for_waiting_too_long(gateway):
    """private has one slot, and one request may wait."""
    gateway.private.go.clear()
    answers = {}

    def ask(name):
        answers[name] = gateway["vip"].chat("private")

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("runs", "waits")]
    for thread in threads:
        thread.start()
        time.sleep(0.3)
    refused = gateway["vip"].chat("private")
    assert "1 requests wait" in refused.refused(429, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    threads[1].join()
    answers["waits"].refused(503, "no_instance")
    gateway.private.go.set()
    threads[0].join()
    assert answers["runs"].status == 200


# Errors of HAProxy's own


def test_502_where_the_engine_breaks_off_and_the_prompt_is_not_run_twice(gateway):
    for engine in gateway.tiny:
        engine.behaviour = "hang up"
    gateway["demo"].chat().refused(502, "bad_gateway")
    assert len([r for engine in gateway.tiny for r in engine.requests]) == 1


def test_502_where_the_engine_has_another_key(gateway):
    """A gateway that is behind reaches a port that another model has by now: nobody gets that model's answer."""
    gateway.private.key, key = "the-key-of-another-model", gateway.private.key
    gateway["vip"].chat("private").refused(502, "bad_gateway")
    gateway.private.key = key


def test_503_where_no_instance_is_left(gateway):
    answer = gateway["demo"].chat("absent")
    answer.refused(503, "no_instance")
    assert int(answer.headers["retry-after"]) >= 1


def test_504_where_the_engine_is_silent(gateway):
    gateway.private.go.clear()
    gateway["vip"].chat("private").refused(504, "engine_timeout")


def test_400_for_a_body_that_breaks_off_inside_its_framing(gateway):
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer llmf_demo\r\nTransfer-Encoding: chunked\r\n\r\n"
    head, _, body = gateway["demo"].raw(head.encode(), then=b"nonsense\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["request_id"]


# Streams and logs


def test_a_stream_comes_piece_by_piece(gateway):
    for engine in gateway.tiny:
        engine.behaviour = "stream"
    connection, response = gateway["demo"].stream()
    pieces = []
    while piece := response.read1():
        pieces.append((time.monotonic(), piece))
    connection.close()
    assert len(pieces) >= 15
    assert pieces[-1][0] - pieces[0][0] > 1


def test_a_client_that_leaves_gives_its_slot_back(gateway):
    gateway.private.go.clear()
    connection = gateway["vip"].open()
    connection.request("POST", f"/m/private{CHAT}", b"{}", gateway["vip"].headers())
    time.sleep(0.5)
    connection.close()
    time.sleep(0.5)
    rows = [row.split(",") for row in gateway.bench.ask("show stat").splitlines()]
    assert [row[4] for row in rows if "private-0-a" in row] == ["0"]


def test_the_log_says_who_and_what_and_keeps_the_rest_to_itself(gateway):
    answer = gateway["demo"].ask("POST", f"{CHAT}?key=llmf_demo", {"model": "tiny", "messages": "the prompt"})
    entry = gateway.bench.logged(answer.id)
    port = answer.json["port"]
    instance = f"tiny-{[e.port for e in gateway.tiny].index(port)}-a"
    expected = {"id": answer.id, "client": "demo", "model": "tiny", "release": "aaaaaaaaaaaa", "instance": instance}
    assert entry.items() >= {**expected, "method": "POST", "path": CHAT, "status": 200, "refused": "-"}.items()
    assert entry["ms_total"] >= entry["ms_first"] >= 0
    assert entry["bytes_in"] > 0 and entry["bytes_out"] > len(answer.body)
    assert not {"the prompt", "llmf_demo", "key="} & {json.dumps(entry)}
    for secret in ("the prompt", "llmf_demo", "key="):
        assert secret not in json.dumps(entry)


def test_the_log_of_a_refusal_says_why(gateway):
    answer = gateway["demo"].ask("POST", '/v1/llmf_demo/"%22\\x', {"model": "tiny"})
    entry = gateway.bench.logged(answer.id)
    assert (
        entry.items()
        >= {"client": "demo", "model": "-", "instance": "-", "status": 404, "refused": "unknown_path"}.items()
    )
    assert "llmf_demo" not in json.dumps(entry)
    assert gateway.bench.logged(gateway["nobody"].chat().id)["refused"] == "missing_token"
