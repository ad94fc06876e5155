# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The server of blobs, through real connections with real certificates."""

from __future__ import annotations

import http.client
import json
import random
import socket
import ssl
import threading
import time

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.blob_server import BlobServer, Contents, Tls
from ansible_collections.localfirst.llm_fleet.tests.unit.support.fleet_ca import FleetCa
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import digest

BODY = random.Random(7).randbytes((2 << 20) + 5)
BLOB = f"/blobs/sha256/{digest(BODY)}"


class Bench:
    """A server on a free port of 127.0.0.1, its store, and clients with one or the other certificate."""

    def __init__(self, root, idle_timeout: float = 60) -> None:
        self.root = root
        self.blobs = root / "store" / "blobs" / "sha256"
        self.blobs.mkdir(parents=True)
        (self.blobs / digest(BODY)).write_bytes(BODY)
        self.ca = FleetCa(root)
        self.client = self.ca.issue("gpu1", client=True)
        server = self.ca.issue("controller", client=False)
        tls = Tls(server.certificate, server.key, self.ca.pem).context()
        self.listing = root / "files.json"
        self.server = BlobServer("127.0.0.1", 0, tls, Contents(str(root / "store"), str(self.listing)), idle_timeout)
        self.thread = threading.Thread(target=self.server.serve, daemon=True)
        self.thread.start()

    def connect(self, pair=None, known=True) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cafile=self.ca.pem)
        pair = pair or (self.client if known else None)
        if pair:
            context.load_cert_chain(pair.certificate, pair.key)
        return http.client.HTTPSConnection("127.0.0.1", self.server.server_port, timeout=20, context=context)

    def ask(self, path: str = BLOB, method: str = "GET", connection=None, **headers):
        connection = connection or self.connect()
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.headers, response.read()


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    bench.server.shutdown()
    bench.thread.join(20)


def test_a_client_of_the_fleet_gets_a_blob(bench):
    status, headers, body = bench.ask()
    assert status == 200 and body == BODY
    assert headers["ETag"] == f'"{digest(BODY)}"' and headers["Accept-Ranges"] == "bytes"


def test_several_requests_share_a_connection(bench):
    connection = bench.connect()
    for _again in range(3):
        assert bench.ask(connection=connection)[2] == BODY


def test_a_head_says_what_a_get_would_send(bench):
    status, headers, body = bench.ask(method="HEAD")
    assert (status, body) == (200, b"") and int(headers["Content-Length"]) == len(BODY)


@pytest.mark.parametrize(
    ("asked", "first", "end"),
    [
        ("bytes=100-199", 100, 200),
        ("bytes=2097152-", 2 << 20, len(BODY)),
        ("bytes=-7", len(BODY) - 7, len(BODY)),
        (f"bytes=5-{2 * len(BODY)}", 5, len(BODY)),
    ],
)
def test_a_part_is_sent(bench, asked, first, end):
    status, headers, body = bench.ask(Range=asked)
    assert status == 206 and body == BODY[first:end]
    assert headers["Content-Range"] == f"bytes {first}-{end - 1}/{len(BODY)}"


@pytest.mark.parametrize(
    "asked", ["bytes=", "bytes=9-3", "bytes=0-1,5-6", "lines=1-2", pytest.param(f"bytes=0-{'9' * 5000}", id="no number of a file's size")]
)
def test_what_is_no_range_gets_the_whole(bench, asked):
    assert bench.ask(Range=asked)[0::2] == (200, BODY)


def test_a_part_of_something_else_is_not_sent(bench):
    assert bench.ask(Range="bytes=5-", If_Range='"another"')[0] == 200
    assert bench.ask(Range="bytes=5-", If_Range=f'"{digest(BODY)}"')[0] == 206


def test_a_part_behind_the_end_is_refused(bench):
    status, headers, _body = bench.ask(Range=f"bytes={len(BODY)}-")
    assert status == 416 and headers["Content-Range"] == f"bytes */{len(BODY)}"


@pytest.mark.parametrize(
    "path",
    [
        f"/blobs/sha256/{'0' * 64}",
        "/",
        "/blobs/sha256/",
        "/blobs/sha256/../../../secret",
        "/blobs/sha256/..%2f..%2f..%2fsecret",
        f"/blobs/sha256/{'.' * 64}",
        f"{BLOB}/",
        f"{BLOB}?download",
        f"/blobs/sha256/{digest(BODY).upper()}",
    ],
)
def test_nothing_else_can_be_had(bench, path):
    (bench.root / "secret").write_text("secret")
    assert bench.ask(path)[0] == 404


def test_a_directory_or_a_pipe_is_no_content(bench):
    (bench.blobs / ("a" * 64)).mkdir()
    assert bench.ask(f"/blobs/sha256/{'a' * 64}")[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_changed(bench, method):
    assert bench.ask(method=method)[0] == 501
    assert (bench.blobs / digest(BODY)).read_bytes() == BODY


def test_a_file_of_the_list_is_served_also_when_the_list_grows(bench):
    path, other = bench.root / "tiny.gguf", b"another model"
    path.write_bytes(other)
    assert bench.ask(f"/blobs/sha256/{digest(other)}")[0] == 404
    bench.listing.write_text(json.dumps({digest(other): str(path)}))
    assert bench.ask(f"/blobs/sha256/{digest(other)}")[2] == other
    assert bench.ask()[2] == BODY


def refused(bench, connection) -> bool:
    """With TLS 1.3 a client learns that it was refused when it first reads."""
    try:
        bench.ask(connection=connection)
    except (ssl.SSLError, ConnectionError, http.client.HTTPException):
        return True
    return False


def test_without_a_certificate_there_is_no_answer(bench):
    assert refused(bench, bench.connect(known=False))


def test_a_certificate_of_another_ca_is_refused(bench, tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    assert refused(bench, bench.connect(FleetCa(folder).issue("gpu1", client=True)))


def test_a_server_s_certificate_makes_no_client(bench):
    assert refused(bench, bench.connect(bench.ca.issue("depot1", client=False)))


def test_without_tls_there_is_no_answer(bench):
    connection = http.client.HTTPConnection("127.0.0.1", bench.server.server_port, timeout=20)
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        connection.request("GET", BLOB)
        connection.getresponse()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_tls_is_refused(bench):
    connection = bench.connect()
    connection._context.maximum_version = ssl.TLSVersion.TLSv1_1
    connection._context.set_ciphers("ALL:@SECLEVEL=0")
    assert refused(bench, connection)


def test_a_handshake_that_does_not_end_delays_nobody(bench):
    with socket.create_connection(("127.0.0.1", bench.server.server_port)):
        assert bench.ask()[0] == 200


def test_it_ends_when_nobody_asks_any_more(tmp_path):
    bench = Bench(tmp_path, idle_timeout=0.5)
    assert bench.ask()[0] == 200
    bench.thread.join(20)
    assert not bench.thread.is_alive()
    with pytest.raises(ConnectionError):
        bench.ask()


def test_it_does_not_end_while_it_sends(tmp_path):
    bench = Bench(tmp_path, idle_timeout=0.5)
    large = bench.blobs / ("b" * 64)
    with open(large, "wb") as handle:
        handle.truncate(64 << 20)  # more than the buffers between the two hold
    connection = bench.connect()
    connection.request("GET", f"/blobs/sha256/{'b' * 64}")
    response = connection.getresponse()
    time.sleep(1.5)
    assert bench.thread.is_alive()
    assert len(response.read()) == 64 << 20
    connection.close()
    bench.thread.join(20)
    assert not bench.thread.is_alive()
