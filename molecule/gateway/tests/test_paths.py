# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A client reaches the paths that the engine's profile lists as public, and nothing else, however it spells them."""

from __future__ import annotations

import pytest

CLOSED = ["/slots", "/props", "/metrics", "/health", "/lora-adapters", "/tokenize", "/completion", "/models", "/apply-template"]


@pytest.fixture(scope="module")
def alice(tokens):
    return tokens["alice"]


@pytest.fixture(scope="module")
def sent_to_engines(fleet):
    """How many requests gw1 has sent to engines so far, health checks not counted."""

    def count() -> int:
        return sum(int(row["stot"]) for row in fleet.servers("gw1").values())

    return count


@pytest.mark.parametrize("path", CLOSED)
@pytest.mark.parametrize("prefix", ["", "/m/tiny", "/m/tiny/v1", "/v1"])
def test_engine_paths_are_closed(gateway, alice, prefix, path):
    for method in ("GET", "POST"):
        body = {"model": "tiny"} if method == "POST" else None
        answer = gateway.ask(method, prefix + path, alice, body)
        if (method, prefix + path) in (("GET", "/v1/models"), ("GET", "/m/tiny/v1/models")):
            assert answer.status == 200 and "llm_fleet" in answer.body.decode(), "the gateway answers this itself"
        else:
            assert answer.status in (404, 405), (method, prefix + path, answer.status)


ODD = [
    "//v1/chat/completions",
    "/v1//chat/completions",
    "/v1/../slots",
    "/v1/chat/completions/../../../slots",
    "/m/tiny/../slots",
    "/m/tiny/v1/../slots",
    "/m/tiny/v1/%2e%2e/slots",
    "/%73lots",
    "/v1/%63hat/completions",
    "/v1/chat%2fcompletions",
    "/v1/chat/completions%00",
    "/v1/chat/completions%2f..%2f..%2fslots",
    "/v1/chat/completions/",
    "/v1/chat/completions;x=/slots",
    "/v1/chat/completions\\..\\slots",
    "/V1/chat/completions",
    "/m/tiny//v1/chat/completions",
    "/m//v1/chat/completions",
    "/m/tiny@/v1/chat/completions",
    "/m/tiny/v1/chat/completions/x",
    "/m/TINY/v1/chat/completions",
]


@pytest.mark.parametrize("path", ODD)
def test_odd_spellings_reach_nothing(gateway, alice, path):
    for method in ("GET", "POST"):
        answer = gateway.ask(method, path, alice, {"model": "tiny"} if method == "POST" else None)
        assert answer.status in (400, 404), (method, path, answer.status, answer.body)


def request(target: str, method: str = "GET", token: str = "", version: str = "1.1") -> bytes:
    return f"{method} {target} HTTP/{version}\r\nHost: fleet\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n".encode()


@pytest.mark.parametrize(
    "target",
    [
        "http://fleet/slots",
        "https://127.0.0.1/metrics",
        "http://fleet/v1/../slots",
        "/v1/chat/completions#/../slots",
        "/slots#/v1/chat/completions",
        "slots",
        "*",
        "/v1/models\x00",
    ],
)
def test_odd_targets_reach_nothing(gateway, alice, target):
    head = gateway.raw(request(target, token=alice)).split(b"\r\n")[0]
    assert head.split(b" ")[1] in (b"400", b"404"), head


def test_an_absolute_target_means_its_path_and_no_more(gateway, alice):
    answer = gateway.raw(request("http://elsewhere.example/v1/models", token=alice))
    # 400 where the target's authority is not the Host that the request names.
    assert answer.split(b" ")[1] in (b"200", b"400", b"404")
    assert b"slots" not in answer


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "PROPFIND", "get", "post"])
def test_wrong_methods_reach_nothing(gateway, alice, method):
    for path in ("/v1/chat/completions", "/m/tiny/v1/chat/completions"):
        answer = gateway.ask(method, path, alice)
        assert answer.status in (400, 404, 405), (method, answer.status)


def test_connect_is_no_proxy(gateway, alice):
    head = gateway.raw(request("127.0.0.1:20000", method="CONNECT", token=alice)).split(b"\r\n")[0]
    assert head.split(b" ")[1] in (b"400", b"404", b"405")


def test_a_body_decides_nothing_behind_the_model_that_was_checked(gateway, tokens):
    """The gateway takes the first `model`, an engine the last: whatever the body says, bob gets what bob may have."""
    body = b'{"model": "tiny", "model": "private", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}'
    answer = gateway.ask("POST", "/v1/chat/completions", tokens["bob"], body)
    assert answer.status == 200
    # `private` stands alone on its instance; the answer came from an instance of `tiny`.
    assert answer.json["model"] != "private" or "private" not in answer.headers.get("x-llm-fleet-instance", "")


def test_two_lengths_are_no_smuggling(gateway, alice):
    smuggled = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {alice}\r\n"
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /slots HTTP/1.1\r\nHost: x\r\n\r\n"
    )
    answer = gateway.raw(smuggled.encode(), timeout=5)
    assert b"n_ctx" not in answer and b" 200 " not in answer.split(b"\r\n")[0]


def test_no_odd_request_gets_as_far_as_an_engine(sent_to_engines, gateway, alice):
    before = sent_to_engines()
    for path in [*CLOSED, *ODD]:
        for prefix in ("", "/m/tiny"):
            gateway.ask("GET", prefix + path, alice)
            gateway.ask("POST", prefix + path, alice, {"model": "tiny"})
    assert sent_to_engines() == before
    gateway.chat(alice)
    assert sent_to_engines() == before + 1, "the count does not count"
