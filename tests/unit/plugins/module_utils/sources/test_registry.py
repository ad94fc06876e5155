# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Registries that lie, break or ask for odd things, which a real one cannot be made to do."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.registry import Registry, challenges
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.settings import Settings
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.web import Web

BODY = json.dumps({"schemaVersion": 2, "layers": []}).encode()
DIGEST = f"sha256:{hashlib.sha256(BODY).hexdigest()}"
OTHER = f"sha256:{'0' * 64}"


class Told:
    """A server that answers each path as it was told: {path: [(status, headers, body), ...]}, the last one for good."""

    def __init__(self) -> None:
        self.answers: dict[str, list] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        told = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                told.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                queue = told.answers.get(self.path.partition("?")[0], [(404, {}, b"")])
                status, headers, body = queue.pop(0) if len(queue) > 1 else queue[0]
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def registry(self, **settings) -> Registry:
        web = Web(retries=1, timeout=5, pause=lambda _seconds: None)
        return Registry(web, self.url, "models/tiny", Settings(**settings), where="oci://here/models/tiny:1", prefix="oci://here/")

    def manifest(self, *answers, reference: str = "1") -> None:
        self.answers[f"/v2/models/tiny/manifests/{reference}"] = list(answers)


@pytest.fixture
def told():
    server = Told()
    yield server
    server.server.shutdown()
    server.server.server_close()


def fails(registry: Registry, reference: str = "1") -> ArtifactError:
    with pytest.raises(ArtifactError) as caught:
        registry.manifest(reference)
    return caught.value


def test_the_digest_is_made_of_the_bytes(told):
    told.manifest((200, {}, BODY))
    assert told.registry().manifest("1").digest == DIGEST


def test_a_manifest_that_is_not_what_the_registry_says_it_is(told):
    told.manifest((200, {"Docker-Content-Digest": OTHER}, BODY))
    error = fails(told.registry())
    assert f"expected {OTHER}, actual {DIGEST}" in error.fault.what


def test_a_manifest_that_is_not_what_was_asked_for(told):
    told.manifest((200, {"Docker-Content-Digest": DIGEST}, BODY), reference=OTHER)
    assert f"expected {OTHER}, actual {DIGEST}" in fails(told.registry(), OTHER).fault.what


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"schemaVersion": 1, "fsLayers": []}', b"\xff\xfe{}"])
def test_what_is_no_manifest(told, body):
    told.manifest((200, {}, body))
    assert "sends no manifest of version 2 for models/tiny:1" in fails(told.registry()).fault.what


def test_a_passing_fault_is_asked_again(told):
    told.manifest((503, {}, b""), (200, {}, BODY))
    assert told.registry().manifest("1").digest == DIGEST


def test_a_blob_that_is_damaged(told):
    told.answers[f"/v2/models/tiny/blobs/{OTHER}"] = [(200, {}, b"something else")]
    with pytest.raises(ArtifactError, match="a blob has the wrong digest"):
        told.registry().small_blob(OTHER, 1000)


@pytest.mark.parametrize(
    "answer",
    [
        (200, {}, b"[]"),
        (200, {}, b"{}"),
        (200, {}, b'{"token": ""}'),
        (200, {}, b'{"token": 3}'),
        (200, {}, json.dumps({"token": "a\r\nX-Injected: yes"}).encode()),
    ],
)
def test_an_issuer_without_a_token(told, answer):
    told.manifest((401, {"WWW-Authenticate": f'Bearer realm="{told.url}/token"'}, b""))
    told.answers["/token"] = [answer]
    assert "answers without a token" in fails(told.registry()).fault.what


def test_a_token_that_is_refused_is_not_asked_for_twice(told):
    told.manifest((401, {"WWW-Authenticate": f'Bearer realm="{told.url}/token?account=a%20b",service="s"'}, b""))
    told.answers["/token"] = [(200, {}, b'{"access_token": "good", "expires_in": "soon"}')]
    error = fails(told.registry())
    assert error.details["status"] == 401
    assert [path.partition("?")[0] for path, _headers in told.requests].count("/token") == 1
    assert [headers.get("authorization") for path, headers in told.requests if "manifests" in path] == [None, "Bearer good"]


@pytest.mark.parametrize("realm", ["ftp://127.0.0.1/token", "/token", "file:///etc/passwd"])
def test_a_realm_that_is_no_web_address(told, realm):
    told.manifest((401, {"WWW-Authenticate": f'Bearer realm="{realm}"'}, b""))
    assert "which is not encrypted" in fails(told.registry(username="u", password="p")).fault.what


def test_a_password_does_not_leave_tls():
    web = Web(retries=0, timeout=5)
    registry = Registry(web, "https://127.0.0.1", "a", Settings(username="u", password="p"), where="oci://a", prefix="oci://a/")
    with pytest.raises(ArtifactError, match=r"wants tokens from http://127\.0\.0\.1, which is not encrypted"):
        registry._identify(['Bearer realm="http://127.0.0.1/token"'])


def test_a_password_is_sent_only_when_it_is_asked_for(told):
    told.manifest((401, {"WWW-Authenticate": 'Basic realm="models"'}, b""), (200, {}, BODY))
    registry = told.registry(username="u", password="p", headers={"X-Team": "ml"})
    registry.manifest("1")
    assert [(headers.get("authorization"), headers.get("x-team")) for _path, headers in told.requests] == [
        (None, "ml"),
        ("Basic dTpw", "ml"),
    ]


@pytest.mark.parametrize(
    ("headers", "offers"),
    [
        ([], {}),
        (['Basic realm="a, Bearer b"'], {"basic": {"realm": "a, Bearer b"}}),
        (
            ['Bearer realm="https://a/t",service="r",scope="repository:a/b:pull,push"'],
            {"bearer": {"realm": "https://a/t", "service": "r", "scope": "repository:a/b:pull,push"}},
        ),
        (['Basic realm="a", bearer Realm=https://t , service="s"'],
         {"basic": {"realm": "a"}, "bearer": {"realm": "https://t", "service": "s"}}),
        (['Bearer realm="x"', 'Basic realm="y"'], {"bearer": {"realm": "x"}, "basic": {"realm": "y"}}),
        ([r'Bearer realm="a \"quoted\" one"'], {"bearer": {"realm": 'a "quoted" one'}}),
        (["Negotiate"], {}),
        (["Basic"], {"basic": {}}),
        (["Digest realm=x, nonce=basic"], {}),
    ],
)  # fmt: skip
def test_challenges(headers, offers):
    assert challenges(headers) == offers
