# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Asking real servers that redirect, refuse, stall and break off."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from email.utils import formatdate

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.web import DIRECT, Interrupted, Refused, Request, Web, origin
from ansible_collections.localfirst.llm_fleet.tests.unit.support.fleet_ca import FleetCa
from ansible_collections.localfirst.llm_fleet.tests.unit.support.scripted_server import ForwardingProxy, Reply, ScriptedServer

SECRET = "s3cr3t-token"
BEARER = {"Authorization": f"Bearer {SECRET}", "X-Api-Key": "another-secret"}
PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")


@pytest.fixture(autouse=True)
def no_proxy_of_ours(monkeypatch):
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server():
    with ScriptedServer() as running:
        yield running


@pytest.fixture
def other():
    with ScriptedServer() as running:
        yield running


@pytest.fixture
def pauses():
    return []


@pytest.fixture
def web(pauses):
    return Web(retries=2, timeout=5, pause=pauses.append)


def fails(attempt) -> ArtifactError:
    """The error, and never a secret in it, nor in what led to it."""
    with pytest.raises(ArtifactError) as caught:
        attempt()
    link = caught.value
    while link is not None:
        assert SECRET not in str(link)
        assert "another-secret" not in str(link)
        link = link.__cause__
    return caught.value


def refused_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


class TestAnswers:
    def test_a_small_answer_comes_whole(self, server, web):
        answer = web.get(Request(server.on("/a", Reply(b"hello", headers={"ETag": '"x"'}))))
        assert (answer.status, answer.body, answer.headers["etag"]) == (200, b"hello", '"x"')

    def test_json_is_read(self, server, web):
        assert web.json(Request(server.on("/a", Reply(b'{"a": [1]}')))) == {"a": [1]}
        assert server.last("Accept") == "application/json"

    @pytest.mark.parametrize("body", [b"<html>", b"[" * 100_000, b"9" * 5000], ids=["a page", "deep", "a number without end"])
    def test_what_is_sent_in_place_of_json_is_an_error(self, server, web, body):
        assert "not JSON" in str(fails(lambda: web.json(Request(server.on("/a", Reply(body))))))

    def test_head_asks_for_headers_alone(self, server, web):
        answer = web.head(Request(server.on("/a", Reply(b"12345"))))
        assert (answer.headers["Content-Length"], answer.body) == ("5", b"")
        assert server.seen[-1].method == "HEAD"

    def test_an_answer_beyond_the_limit_is_not_swallowed(self, server, web):
        assert "longer than 4 bytes" in str(fails(lambda: web.get(Request(server.on("/a", Reply(b"12345"))), limit=4)))
        assert web.get(Request(f"{server.url}/a"), limit=5).body == b"12345"

    def test_pieces_come_as_they_are_asked_for(self, server, web):
        buffer = bytearray(3)
        with web.open(Request(server.on("/a", Reply(b"12345")))) as response:
            first = response.readinto(buffer)
            assert bytes(buffer[:first]) + response.read(10) + response.read(10) == b"12345"

    def test_extra_headers_go_along_and_bytes_are_never_compressed(self, server, web):
        with web.open(Request(server.on("/a", Reply(b"x")), BEARER), {"Range": "bytes=3-"}):
            pass
        assert server.last("Range") == "bytes=3-"
        assert server.last("Authorization") == BEARER["Authorization"]
        assert server.last("Accept-Encoding") == "identity"

    def test_ipv6_addresses_are_addresses(self, web):
        try:
            running = ScriptedServer(address="::1")
        except OSError:
            pytest.skip("this machine has no IPv6")
        with running as six:
            assert web.get(Request(six.on("/a", Reply(b"six")))).body == b"six"


class TestRedirects:
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    @pytest.mark.parametrize("method", ["get", "head"])
    def test_every_kind_is_followed_with_the_same_method(self, server, web, status, method):
        server.on("/b", Reply(b"there"))
        answer = getattr(web, method)(Request(server.redirect("/a", "/b", status)))
        assert answer.status == 200
        assert [seen.method for seen in server.seen] == [method.upper()] * 2

    def test_what_is_private_stays_with_the_server_it_was_meant_for(self, server, other, web):
        server.redirect("/a", other.on("/b", Reply(b"bytes")))
        with web.open(Request(f"{server.url}/a", BEARER), {"Range": "bytes=1-"}):
            pass
        assert {"authorization", "x-api-key"} <= server.seen[0].headers.keys()
        assert {"authorization", "x-api-key"}.isdisjoint(other.seen[0].headers)
        assert other.last("Range") == "bytes=1-"

    def test_it_does_not_come_back_by_a_detour(self, server, other, web):
        server.on("/c", Reply(b"end"))
        other.redirect("/b", f"{server.url}/c")
        assert web.get(Request(server.redirect("/a", f"{other.url}/b"), BEARER)).body == b"end"
        assert server.last("Authorization") is None

    def test_it_goes_along_on_the_same_server(self, server, web):
        server.on("/b", Reply(b"there"))
        web.get(Request(server.redirect("/a", f"{server.url}/b"), BEARER))
        assert server.last("Authorization") == BEARER["Authorization"]

    def test_an_error_names_the_server_that_refused_but_not_the_presigned_path(self, server, other, web):
        target = other.on("/bucket/key", Reply(status=403)) + f"?Signature={SECRET}"
        error = fails(lambda: web.get(Request(server.redirect("/a", target))))
        assert f"after a redirect to {other.url})" in str(error)
        assert "/bucket" not in str(error)

    def test_a_circle_ends(self, server, web, pauses):
        assert "in a circle" in str(fails(lambda: web.get(Request(server.redirect("/a", "/a")))))
        assert pauses == []

    @pytest.mark.parametrize("target", ["ftp://host/file", "file:///etc/passwd", "http://u:p@host/", "http://host:bad/"])
    def test_it_leads_to_web_servers_only(self, server, web, target):
        assert "it redirects to" in str(fails(lambda: web.get(Request(server.redirect("/a", target)))))

    def test_https_never_becomes_http(self, tmp_path, other, web):
        ca = FleetCa(tmp_path)
        with tls_server(ca) as secure:
            error = fails(lambda: Web(ca_path=ca.pem).get(Request(secure.redirect("/a", f"{other.url}/b"), BEARER)))
        assert "not encrypted" in str(error)
        assert other.seen == []

    def test_the_same_server_is_told_by_scheme_host_and_port(self):
        assert origin("https://HUB.example/a") == origin("https://hub.example:443/b")
        assert origin("https://hub.example") != origin("http://hub.example:443")
        assert origin("https://hub.example") != origin("https://hub.example:8443")


class TestRefusals:
    @pytest.mark.parametrize(("status", "advice"), [(401, "credentials"), (403, "may not read"), (404, "source"), (410, "for good")])
    def test_what_nobody_can_cure_by_waiting_is_asked_once(self, server, web, pauses, status, advice):
        error = fails(lambda: web.get(Request(server.on("/a", Reply(status=status)) + f"?key={SECRET}", BEARER)))
        assert isinstance(error, Refused)
        assert str(status) in error.fault.what
        assert error.fault.where == f"{server.url}/a"
        assert advice in error.fault.fix
        assert error.details == {"status": status}
        assert pauses == []

    def test_a_source_sees_headers_and_body_of_a_refusal(self, server, web):
        error = fails(lambda: web.get(Request(server.on("/a", Reply(b"why", 401, {"WWW-Authenticate": "Bearer realm=x"})))))
        assert (error.status, error.body, error.headers["www-authenticate"]) == (401, b"why", "Bearer realm=x")

    def test_a_source_gives_better_advice(self, server, web):
        request = Request(server.on("/a", Reply(status=403)), advice={403: "accept the licence"})
        assert fails(lambda: web.get(request)).fault.fix == "accept the licence"

    @pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
    def test_what_may_pass_is_asked_again(self, server, web, pauses, status):
        assert web.get(Request(server.on("/a", Reply(status=status), Reply(status=status), Reply(b"now")))).body == b"now"
        assert len(pauses) == 2

    def test_in_the_end_it_is_an_error(self, server, web, pauses):
        error = fails(lambda: web.get(Request(server.on("/a", Reply(status=503)))))
        assert error.details["status"] == 503
        assert len(server.seen) == 1 + web.retries

    @pytest.mark.parametrize("dated", [False, True])
    def test_a_server_says_how_long_to_leave_it_alone(self, server, web, pauses, dated):
        value = formatdate(time.time() + 100, usegmt=True) if dated else "100"
        web.get(Request(server.on("/a", Reply(status=429, headers={"Retry-After": value}), Reply(b"now"))))
        # More than any pause that nobody asked for.
        assert pauses[0] > Interrupted(ArtifactError("", "", "")).wait(99)

    def test_nobody_waits_for_an_hour(self, server, web, pauses):
        error = fails(lambda: web.get(Request(server.on("/a", Reply(status=429, headers={"Retry-After": "3600"})))))
        assert "3600 seconds" in str(error)
        assert pauses == []

    @pytest.mark.parametrize("value", ["soon", "-1", "99999999999999", ""])
    def test_a_senseless_pause_is_no_reason_to_fail(self, server, web, value):
        replies = Reply(status=503, headers={"Retry-After": value}), Reply(b"now")
        assert web.get(Request(server.on("/a", *replies))).body == b"now"

    def test_one_attempt_tells_whether_another_is_worth_it(self, server, web):
        with pytest.raises(Interrupted) as caught:
            web.open(Request(server.on("/a", Reply(status=503, headers={"Retry-After": "4"}))))
        assert caught.value.wait(1) == 4
        assert caught.value.error.details["status"] == 503


class TestBrokenLines:
    def test_a_name_that_nobody_knows(self, web):
        error = fails(lambda: web.get(Request("http://nobody.invalid/a", BEARER)))
        assert "nobody.invalid cannot be resolved" in str(error)
        assert "DNS" in error.fault.fix

    def test_a_port_where_nobody_listens(self, web, pauses):
        error = fails(lambda: web.get(Request(f"http://127.0.0.1:{refused_port()}/a")))
        assert "cannot be reached" in str(error)
        assert len(pauses) == web.retries

    def test_a_server_that_says_nothing(self, server, pauses):
        held = threading.Event()
        with socket.create_server(("127.0.0.1", 0)) as silent:
            web = Web(timeout=0.2, retries=1, pause=pauses.append)
            error = fails(lambda: web.get(Request(f"http://127.0.0.1:{silent.getsockname()[1]}/a")))
        held.set()
        assert "no answer within 0.2 seconds" in str(error)
        assert len(pauses) == 1

    def test_a_body_that_stalls(self, server, pauses):
        held = threading.Event()
        url = server.on("/a", Reply(b"12345", held=held))
        error = fails(lambda: Web(timeout=0.2, retries=0).get(Request(url)))
        held.set()
        assert "no answer within 0.2 seconds" in str(error)

    @pytest.mark.parametrize("short", [Reply(b"12345", declared=10), Reply(b"12345", chunked=True)], ids=["length", "chunked"])
    def test_a_truncated_body_is_never_taken_for_the_whole(self, server, web, short):
        assert web.get(Request(server.on("/a", short, Reply(b"1234567890")))).body == b"1234567890"
        with web.open(Request(server.on("/b", short))) as response, pytest.raises(Interrupted) as caught:
            while response.read(2):
                pass
        assert "broke off" in str(caught.value.error)

    def test_what_speaks_no_http(self, web):
        with socket.create_server(("127.0.0.1", 0)) as listening:
            threading.Thread(target=_say, args=(listening, b"220 mail.example\r\n"), daemon=True).start()
            error = fails(lambda: Web(retries=0, timeout=5).get(Request(f"http://127.0.0.1:{listening.getsockname()[1]}/a")))
        assert "cannot be reached" in str(error)

    @pytest.mark.parametrize("url", ["ftp://host/a", "http:///a", "http://host:bad/a", "http://ho st/a", "http://host/a\nb", "nothing"])
    def test_what_is_no_web_address(self, web, url):
        assert "no web address" in str(fails(lambda: web.get(Request(url, BEARER))))

    def test_an_address_with_a_password_is_not_asked(self, server, web):
        fails(lambda: web.get(Request(server.url.replace("//", f"//user:{SECRET}@") + "/a")))
        assert server.seen == []

    @pytest.mark.parametrize("value", [f"{SECRET}\nX: y", f"{SECRET}\u2713"])
    def test_a_header_that_cannot_be_sent(self, server, web, value):
        error = fails(lambda: web.get(Request(server.on("/a", Reply()), {"Authorization": value})))
        assert "'Authorization'" in str(error)


def _say(listening: socket.socket, words: bytes) -> None:
    connection = listening.accept()[0]
    connection.recv(4096)
    connection.sendall(words)
    connection.close()


def tls_server(ca: FleetCa, clients: FleetCa | None = None) -> ScriptedServer:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*ca.issue("server", client=False))
    if clients:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients.pem)
    return ScriptedServer(tls=context)


class TestTls:
    @pytest.fixture
    def ca(self, tmp_path):
        return FleetCa(tmp_path)

    def test_the_ca_that_is_named_is_trusted(self, ca):
        with tls_server(ca) as server:
            assert Web(ca_path=ca.pem).get(Request(server.on("/a", Reply(b"ok")))).body == b"ok"

    def test_nobody_else_is(self, ca, tmp_path, pauses):
        stranger = FleetCa(tmp_path, "stranger")
        with tls_server(ca) as server:
            for web in (Web(pause=pauses.append), Web(ca_path=stranger.pem, pause=pauses.append)):
                error = fails(lambda web=web: web.get(Request(server.on("/a", Reply()), BEARER)))
                assert "is not trusted" in str(error)
                assert "ca_path" in error.fault.fix
            assert server.seen == []
        assert pauses == []

    def test_the_systems_authorities_are_read_for_the_first_request_over_tls(self, ca, monkeypatch):
        web = Web()
        monkeypatch.setenv("SSL_CERT_FILE", ca.pem)
        with tls_server(ca) as server:
            assert web.get(Request(server.on("/a", Reply(b"ok")))).body == b"ok"
            monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
            assert web.get(Request(server.on("/a", Reply(b"again")))).body == b"again", "and not for each of them"

    def test_a_certificate_for_another_name_is_not(self, ca):
        with tls_server(ca) as server:
            url = server.on("/a", Reply()).replace("127.0.0.1", "localhost")
            assert "is not trusted" in str(fails(lambda: Web(ca_path=ca.pem).get(Request(url))))

    def test_unless_nobody_is_to_look(self, ca):
        with tls_server(ca) as server:
            assert Web(validate_certs=False).get(Request(server.on("/a", Reply(b"ok")))).body == b"ok"

    def test_a_client_shows_its_certificate(self, ca, tmp_path):
        mine = ca.issue("client", client=True)
        with tls_server(ca, clients=ca) as server:
            web = Web(ca_path=ca.pem, client_cert=mine.certificate, client_key=mine.key)
            assert web.get(Request(server.on("/a", Reply(b"ok")))).body == b"ok"

    def test_a_client_without_one_is_told(self, ca, tmp_path):
        stranger = FleetCa(tmp_path, "stranger").issue("wrong", client=True)
        with tls_server(ca, clients=ca) as server:
            for extra in ({}, {"client_cert": stranger.certificate, "client_key": stranger.key}):
                web = Web(ca_path=ca.pem, retries=5, pause=lambda _seconds: None, **extra)
                error = fails(lambda web=web: web.get(Request(server.on("/a", Reply()))))
                # Some systems see the reset before the alert that explains it.
                assert "client certificate" in str(error) or "cannot be reached" in str(error)

    def test_a_port_without_tls_is_named_so(self, server, web, pauses):
        error = fails(lambda: web.get(Request(server.on("/a", Reply()).replace("http:", "https:"))))
        assert "does not speak TLS" in str(error)
        assert pauses == []

    def test_files_that_cannot_be_read_are_named(self, tmp_path, ca):
        mine = ca.issue("client", client=True)
        empty = tmp_path / "empty.pem"
        empty.write_text("")
        missing = str(tmp_path / "missing.pem")
        for arguments in (
            {"ca_path": missing},
            {"ca_path": str(empty)},
            {"client_cert": missing},
            {"client_cert": mine.certificate, "client_key": str(empty)},
        ):
            assert set(arguments.values()) & set(fails(lambda arguments=arguments: Web(**arguments)).fault.where.split(", "))


class TestProxies:
    def test_the_environment_names_one(self, server, monkeypatch):
        with ForwardingProxy() as proxy:
            monkeypatch.setenv("http_proxy", proxy.url)
            assert Web().get(Request(server.on("/a", Reply(b"ok")))).body == b"ok"
            assert proxy.seen[0].path == f"{server.url}/a"
            monkeypatch.setenv("no_proxy", "127.0.0.1")
            Web().get(Request(f"{server.url}/a"))
            assert len(proxy.seen) == 1

    def test_the_settings_name_another_and_mean_it(self, server, monkeypatch):
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{refused_port()}")
        monkeypatch.setenv("no_proxy", "*")
        with ForwardingProxy() as proxy:
            assert Web(proxy=proxy.url).get(Request(server.on("/a", Reply(b"ok")))).body == b"ok"
            assert len(proxy.seen) == 1

    def test_or_none(self, server, monkeypatch):
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{refused_port()}")
        assert Web(proxy=DIRECT).get(Request(server.on("/a", Reply(b"ok")))).body == b"ok"

    def test_https_goes_through_a_tunnel_that_sees_no_header(self, tmp_path):
        ca = FleetCa(tmp_path)
        with tls_server(ca) as server, ForwardingProxy("user:pass") as proxy:
            web = Web(ca_path=ca.pem, proxy=proxy.url)
            assert web.get(Request(server.on("/a", Reply(b"ok")), BEARER)).body == b"ok"
            assert (proxy.seen[0].method, f"https://{proxy.seen[0].path}") == ("CONNECT", server.url)
            assert "authorization" not in proxy.seen[0].headers
            assert "proxy-authorization" not in server.seen[0].headers

    def test_a_proxys_password_goes_to_no_server(self, server, other, monkeypatch):
        other.on("/b", Reply(b"ok"))
        with ForwardingProxy("user:pass") as proxy:
            monkeypatch.setenv("http_proxy", proxy.url)
            server.redirect("/a", f"{other.url.replace('127.0.0.1', 'localhost')}/b")
            monkeypatch.setenv("no_proxy", "localhost")
            assert Web().get(Request(f"{server.url}/a")).body == b"ok"
            assert len(proxy.seen) == 1
            assert "proxy-authorization" not in other.seen[0].headers

    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_a_proxy_that_wants_a_password(self, server, scheme):
        with ForwardingProxy("user:pass") as proxy:
            url = server.on("/a", Reply()).replace("http:", f"{scheme}:")
            error = fails(lambda: Web(proxy=f"http://user:{SECRET}@{proxy.address}").get(Request(url)))
        assert "407" in str(error)
        assert "proxy" in error.fault.fix

    def test_a_proxy_that_is_not_there(self, server):
        port = refused_port()
        web = Web(proxy=f"http://user:{SECRET}@127.0.0.1:{port}", retries=0)
        assert f"by way of the proxy 127.0.0.1:{port}" in str(fails(lambda: web.get(Request(f"{server.url}/a"))))
        error = fails(lambda: Web(proxy=f"http://user:{SECRET}@nobody.invalid:3128").get(Request(f"{server.url}/a")))
        assert "the proxy nobody.invalid:3128 cannot be resolved" in str(error)


class TestFiles:
    """A path on the controller answers as a server would."""

    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "a %41?b#c.gguf"
        path.write_bytes(b"0123456789")
        return path

    def test_a_path_is_taken_as_it_is_written(self, web, path):
        assert web.get(Request(f"file://{path}")).body == b"0123456789"

    def test_it_is_continued_where_it_stopped(self, web, path):
        with web.open(Request(f"file://{path}")) as response:
            tag = response.headers["ETag"]
        with web.open(Request(f"file://{path}"), {"Range": "bytes=4-", "If-Range": tag}) as response:
            assert (response.status, response.headers["Content-Range"], response.read(99)) == (206, "bytes 4-9/10", b"456789")

    def test_but_not_when_it_changed(self, web, path):
        with web.open(Request(f"file://{path}")) as response:
            tag = response.headers["ETag"]
        os.utime(path, ns=(1, 1))
        with web.open(Request(f"file://{path}"), {"Range": "bytes=4-", "If-Range": tag}) as response:
            assert (response.status, response.read(99)) == (200, b"0123456789")

    def test_what_is_no_file_is_named(self, web, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        for name in ("", "pipe", "missing"):
            assert str(tmp_path / name) in str(fails(lambda name=name: web.get(Request(f"file://{tmp_path / name}"))))

    def test_no_proxy_is_asked_for_it(self, path):
        assert Web(proxy="http://nobody.invalid:1").get(Request(f"file://{path}")).body == b"0123456789"


def test_a_request_shows_no_secret():
    request = Request(f"https://s3.example/b/k?sig={SECRET}", BEARER)
    assert SECRET not in f"{request} {request!r} {request.where}"
    assert Request("https://s3.example/x", shown="s3://b/k").where == "s3://b/k"
