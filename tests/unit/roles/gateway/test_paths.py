# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""However a client spells it, an engine is asked for nothing but the paths that its profile lists."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_client import CHAT

# What clients write, and nothing of which may reach an engine.
SPELLINGS = [
    "/slots",
    "/props",
    "/metrics",
    "/health",
    "/",
    "/v1",
    "/v1/",
    "/v2/chat/completions",
    "/api/generate",
    "//v1/chat/completions",
    "/v1//chat/completions",
    "/v1/chat/completions/",
    "/v1/chat/completions/x",
    "/v1/../slots",
    "/v1/chat/../../slots",
    "/v1/chat/completions/../../../slots",
    "/v1/chat/completions/..;/slots",
    "/v1/chat/completions;x=/slots",
    "/v1/%2e%2e/slots",
    "/%73lots",
    "/v1/%63hat/completions",
    "/v1/chat%2fcompletions",
    "/v1/chat/completions%00",
    "/v1/chat/completions%23",
    "/v1/chat/completions%3f",
    "/V1/chat/completions",
    "/v1\\\\chat\\\\completions",
    "/m/tiny",
    "/m/tiny/",
    "/m/tiny/slots",
    "/m/tiny/metrics",
    "/m/tiny//v1/chat/completions",
    "/m/tiny/v1/../slots",
    "/m/tiny/v1/chat/completions/../../../slots",
    "/m//v1/chat/completions",
    "/m/tiny@/v1/chat/completions",
    "/m/tiny@1.0.0@1.0.0/v1/chat/completions",
    "/m/../m/tiny/v1/chat/completions",
    "/m/tiny/m/tiny/v1/chat/completions",
    "/m/private/../tiny/v1/chat/completions",
    "/m/tiny/v1/rerank",  # private has it, tiny has not
    "//m/tiny/v1/chat/completions",
    "/v1/models/tiny/../../slots",
]


@pytest.fixture(autouse=True)
def nothing_arrived(gateway):
    """Whatever a test here sends, no engine sees it, unless the test takes it back."""
    yield
    assert not [request for engine in gateway.engines() for request in engine.requests]


@pytest.mark.parametrize("path", SPELLINGS)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_only_exact_paths_lead_anywhere(gateway, method, path):
    for sent in (path, f"{path}?x={CHAT}"):
        answer = gateway["demo"].ask(method, sent, {"model": "tiny"} if method == "POST" else None)
        assert answer.status in (403, 404), (sent, answer.status, answer.body)
        assert answer.json["error"]["request_id"] == answer.id


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "post", "CONNECT"]
)
@pytest.mark.parametrize("path", [CHAT, f"/m/tiny{CHAT}"])
def test_only_listed_methods_lead_anywhere(gateway, method, path):
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer llmf_demo\r\nConnection: close\r\n\r\n"
    assert gateway["demo"].raw(head.encode(), 2).split(b" ")[1] in (b"400", b"404")


@pytest.mark.parametrize(
    "target",
    [
        "http://x/slots",
        "https://x/metrics",
        "http://x/v1/../slots",
        "http://x//v1/chat/completions",
        "http://evil.example/slots",
        "/v1/chat/completions#/../slots",
        "/slots#/v1/chat/completions",
        "#",
        "*",
        "slots",
        "/v1/chat/completions\x00",
        "/v1/chat/completions\xff",
        "/v1/chat/completions HTTP/1.1 /slots",
        "x:443",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "CONNECT", "OPTIONS"])
def test_odd_targets_lead_nowhere(gateway, method, target):
    head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer llmf_demo\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    assert gateway["demo"].raw(head.encode("latin1"), 2).split(b" ")[1] in (b"400", b"404")


def arrived(gateway) -> list:
    """What engines were sent, which this test expected."""
    requests = [request for engine in gateway.engines() for request in engine.requests]
    for engine in gateway.engines():
        engine.requests.clear()
    return requests


def test_an_absolute_target_means_its_path(gateway):
    body = b'{"model":"tiny"}'
    head = (
        f"POST https://x{CHAT}?q HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer llmf_demo\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    assert gateway["demo"].raw(head.encode() + body, 2).startswith(b"HTTP/1.1 200 ")
    (request,) = arrived(gateway)
    assert (request["path"], request["headers"]["host"]) == (CHAT, "localhost")


def test_two_lengths_smuggle_nothing(gateway):
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer llmf_demo\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    smuggled = "0\r\n\r\nGET /slots HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer llmf_demo\r\n\r\n"
    assert b"leak" not in gateway["demo"].raw((head + smuggled).encode(), 2)


def test_a_connection_is_no_tunnel(gateway):
    body = b'{"model":"tiny"}'
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer llmf_demo\r\nConnection: Upgrade\r\nUpgrade: other\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    answer = gateway["demo"].raw(head.encode() + body + b"GET /slots HTTP/1.1\r\nHost: x\r\n\r\n", 2)
    assert answer.startswith(b"HTTP/1.1 200 ") and b"401" in answer and b"leak" not in answer
    (request,) = arrived(gateway)
    assert "upgrade" not in request["headers"]


@pytest.mark.skipif(not shutil.which("curl"), reason="curl speaks HTTP/2 for this test")
@pytest.mark.parametrize(
    ("path", "status"),
    [
        (CHAT, 200),
        (f"/m/tiny{CHAT}", 200),
        ("/v1/../slots", 404),
        ("//v1/chat/completions", 404),
        ("/%73lots", 404),
        ("/slots", 404),
    ],
)
def test_http2_is_treated_alike(gateway, path, status):
    command = [
        "curl",
        "-sk",
        "--http2",
        "--path-as-is",
        "-H",
        "Authorization: Bearer llmf_demo",
        "-d",
        '{"model":"tiny"}',
    ]
    url = f"https://127.0.0.1:{gateway.bench.port}{path}"
    done = subprocess.run(
        [*command, "-w", " %{http_version} %{http_code}", url], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith(f" 2 {status}"), done.stdout
    assert len(arrived(gateway)) == (status == 200)


@pytest.mark.skipif(not shutil.which("curl"), reason="curl speaks HTTP/2 for this test")
@pytest.mark.parametrize("size", [10, 50_000, 3_000_000])
@pytest.mark.parametrize(("token", "status"), [("llmf_demo", 413), ("nonsense", 401)])
def test_http2_clients_get_the_refusal_of_what_they_still_send(gateway, tmp_path, size, token, status):
    body = tmp_path / "body"
    body.write_bytes(b'{"padding":"' + b"x" * size + b'","model":"other"}')
    command = [
        "curl",
        "-sk",
        "--http2",
        "-H",
        f"Authorization: Bearer {token}",
        "-H",
        "Expect:",
        "--data-binary",
        f"@{body}",
    ]
    for _ in range(5):
        url = f"https://127.0.0.1:{gateway.bench.port}{CHAT}"
        done = subprocess.run([*command, "-w", " %{http_code}", url], capture_output=True, text=True, check=False)
        expected = status if status == 401 or size > 1_000_000 else 404
        assert (done.returncode, done.stdout[-3:]) == (0, str(expected)), done
