# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Downloads from a real web server that misbehaves."""

from __future__ import annotations

import ssl
import subprocess
import threading

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError, File
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_fetch import Fetcher
from ansible_collections.localfirst.llm_fleet.tests.unit.support.range_server import RangeServer
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import BODY, digest

FILE = File("tiny.gguf", len(BODY), digest(BODY))


class Download:
    """One file, one server, one place for what arrives."""

    def __init__(self, server: RangeServer, folder) -> None:
        self.server = server
        self.part = folder / f"{FILE.sha256}.part"
        self.validator = self.part.with_suffix(".validator")
        self.pauses: list[float] = []

    def run(self, file=FILE, url=None, **options):
        fetcher = Fetcher(**{"timeout": 5, "retries": 2, "pause": self.pauses.append, **options})
        return fetcher.fetch(url or f"{self.server.url}/f", self.part, file)

    def fails(self, **arguments) -> ArtifactError:
        with pytest.raises(ArtifactError) as caught:
            self.run(**arguments)
        return caught.value

    def interrupt_at(self, position: int) -> None:
        """Leave what a run that was killed at `position` leaves."""
        self.part.write_bytes(BODY[:position])
        self.validator.write_text(self.server.resources["/f"].tag())

    def left_behind(self) -> list[str]:
        return sorted(path.name for path in self.part.parent.iterdir())


@pytest.fixture
def server():
    with RangeServer() as running:
        yield running


@pytest.fixture
def download(server, tmp_path):
    return Download(server, tmp_path)


def test_a_file_arrives_in_one_request(server, download):
    server.add("/f", BODY)
    assert download.run() == len(BODY)
    assert download.part.read_bytes() == BODY
    assert server.ranges_asked() == [None]
    assert download.left_behind() == [download.part.name]


def test_an_empty_file_needs_no_request(server, download):
    assert download.run(file=File("empty", 0, digest(b""))) == 0
    assert not server.requests


@pytest.mark.parametrize("position", [1, 1 << 20, len(BODY) - 1])
def test_a_later_run_asks_for_the_rest_only(server, download, position):
    server.add("/f", BODY)
    download.interrupt_at(position)
    assert download.run() == len(BODY) - position
    assert server.sent == len(BODY) - position
    assert server.requests[0][1]["if-range"] == server.resources["/f"].tag()
    assert download.part.read_bytes() == BODY


def test_what_arrived_completely_is_not_fetched_again(server, download):
    server.add("/f", BODY)
    download.interrupt_at(len(BODY))
    assert download.run() == 0
    assert not server.requests


def test_a_broken_line_is_taken_up_again_in_the_same_run(server, download):
    server.add("/f", BODY, cuts=[1000, 5000, 1 << 20])
    assert download.run() == len(BODY)
    assert server.sent == len(BODY)
    assert server.ranges_asked() == [None, "bytes=1000-", "bytes=6000-", f"bytes={6000 + (1 << 20)}-"]


def test_a_line_that_keeps_breaking_without_a_byte_is_given_up(server, download):
    server.add("/f", BODY, cuts=[70000, 0, 0, 0, 0])
    error = download.fails(retries=2)
    assert f"70000 of {len(BODY)} bytes" in error.fault.what and "run again" in error.fault.fix
    assert download.part.stat().st_size == 70000
    assert download.pauses == sorted(download.pauses)


def test_a_server_without_ranges_starts_over(server, download):
    server.add("/f", BODY, ranges=False, cuts=[1000])
    assert download.run() == len(BODY) + 1000
    assert download.part.read_bytes() == BODY


def test_a_file_that_changed_on_the_server_is_not_glued_to_the_old_one(server, download):
    server.add("/f", bytes(len(BODY)))
    download.interrupt_at(5000)
    server.add("/f", BODY)
    assert download.run() == len(BODY)
    assert download.part.read_bytes() == BODY


def test_without_any_validator_the_digest_decides(server, download):
    server.add("/f", BODY, etag="")
    download.part.write_bytes(bytes(5000))  # not the beginning of this file
    download.run()
    assert download.part.read_bytes() == BODY
    assert server.ranges_asked() == ["bytes=5000-", None]


def test_a_weak_etag_is_no_reason_to_continue(server, download):
    server.add("/f", BODY, etag='W/"1"', cuts=[5000])
    download.run()
    assert "if-range" not in server.requests[1][1]


@pytest.mark.parametrize("too_much", [1, 1 << 20])
def test_a_part_longer_than_the_file_is_thrown_away(server, download, too_much):
    server.add("/f", BODY)
    download.part.write_bytes(BODY + bytes(too_much))
    assert download.run() == len(BODY)
    assert download.part.read_bytes() == BODY


def test_an_answer_with_another_range_than_asked_is_not_used(server, download):
    resource = server.add("/f", BODY, range_shift=3)
    download.interrupt_at(5000)
    download.run()
    assert download.part.read_bytes() == BODY
    assert resource.range_shift and server.ranges_asked()[-1] is None


def test_a_wrong_digest_leaves_nothing_and_names_both(server, download):
    other = bytes(len(BODY))
    server.add("/f", other)
    error = download.fails()
    assert error.details == {"file": "tiny.gguf", "expected": FILE.sha256, "actual": digest(other)}
    assert all(word in str(error) for word in ("tiny.gguf", FILE.sha256, digest(other), server.url))
    assert download.left_behind() == []


@pytest.mark.parametrize("body", [BODY[:-1], BODY + b"x", b""])
def test_another_size_is_refused_before_it_is_downloaded(server, download, body):
    server.add("/f", body, hold=threading.Event())  # whoever waits for the body gets a timeout
    error = download.fails(timeout=0.5, retries=0)
    assert f"expected {len(BODY)} bytes, actual {len(body)} bytes" in error.fault.what
    assert download.left_behind() == []


def test_a_body_of_unknown_length_is_cut_off_where_the_file_should_end(server, download):
    server.add("/f", BODY + bytes(3 << 20), chunked=True)
    error = download.fails()
    assert "more than" in error.fault.what
    assert download.left_behind() == []


def test_a_chunked_body_arrives(server, download):
    server.add("/f", BODY, chunked=True)
    assert download.run() == len(BODY)


def test_a_server_that_promises_more_than_it_sends(server, download):
    server.add("/f", BODY[:-5], declared=len(BODY))
    error = download.fails()
    assert f"{len(BODY) - 5} of {len(BODY)}" in error.fault.what or "416" in error.fault.what


def test_a_silent_server_is_not_waited_for_for_ever(server, download):
    server.add("/f", BODY, hold=threading.Event())
    error = download.fails(timeout=0.2, retries=0)
    assert "timed out" in error.fault.what


def test_a_busy_server_is_asked_again(server, download):
    server.add("/f", BODY, statuses=[503, 429])
    assert download.run() == len(BODY)
    assert len(download.pauses) == 2


@pytest.mark.parametrize(
    ("status", "hint"), [(401, "headers"), (403, "headers"), (404, "models.lock.yml"), (410, "gone")]
)
def test_a_refusal_says_what_to_do_and_is_not_repeated(server, download, status, hint):
    server.add("/f", statuses=[status] * 9)
    error = download.fails()
    assert error.details["status"] == status and hint in error.fault.fix and error.fault.where.startswith("http://")
    assert len(server.requests) == 1


def test_an_unknown_host_name(download):
    error = download.fails(url="http://models.invalid/f")
    assert "models.invalid cannot be resolved" in error.fault.what and "DNS" in error.fault.fix


def test_nobody_listens(download):
    download.server.httpd.server_close()
    error = download.fails(retries=1)
    assert "refused" in error.fault.what.lower() and len(download.pauses) == 1


def test_headers_reach_the_source_but_no_other_server(server, download):
    server.add("/f", BODY)
    with RangeServer() as other:
        other.add("/f", redirect=f"{server.url}/f")
        other.add("/g", redirect="/f")
        download.run(url=f"{other.url}/g", headers={"authorization": "Bearer geheim"})
        assert [headers.get("authorization") for _path, headers in other.requests] == ["Bearer geheim"] * 2
    assert "authorization" not in server.requests[0][1]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=test",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-keyout",
            folder / "key",
            "-out",
            folder / "pem",
        ],
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture
def tls_server(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "pem", certificate / "key")
    with RangeServer(tls=context) as running:
        running.add("/f", BODY)
        yield running


def test_certificates_are_checked(tls_server, certificate, tmp_path):
    download = Download(tls_server, tmp_path)
    error = download.fails()
    assert "not trusted" in error.fault.what and "ca_path" in error.fault.fix
    assert download.run(ca_path=str(certificate / "pem")) == len(BODY)


def test_certificates_are_left_unchecked_on_request(tls_server, tmp_path):
    assert Download(tls_server, tmp_path).run(validate_certs=False) == len(BODY)


def test_a_missing_ca_file_is_named(download):
    assert "/nowhere.pem" in download.fails(ca_path="/nowhere.pem").fault.where


def test_encryption_is_not_given_up_by_a_redirect(tls_server, server, certificate, tmp_path):
    server.add("/f", BODY)
    tls_server.add("/r", redirect=f"{server.url}/f")
    error = Download(tls_server, tmp_path).fails(url=f"{tls_server.url}/r", ca_path=str(certificate / "pem"))
    assert "not encrypted" in error.fault.what
    assert not server.requests
