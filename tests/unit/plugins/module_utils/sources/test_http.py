# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Files and folders of web servers."""

from __future__ import annotations

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources import open_source
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.web import Refused
from ansible_collections.localfirst.llm_fleet.tests.unit.support.scripted_server import Reply, ScriptedServer

NGINX_INDEX = b"""<html><head><title>Index of /m/</title></head><body><h1>Index of /m/</h1><hr><pre><a href="../">../</a>
<a href="sub/">sub/</a>            01-Jan-2026 00:00    -
<a href="a%20b.gguf">a b.gguf</a>  01-Jan-2026 00:00    3
<a href=".hidden">.hidden</a>      01-Jan-2026 00:00    3
</pre><hr></body></html>"""
APACHE_INDEX = b"""<html><body><table><tr><th><a href="?C=N;O=D">Name</a></th></tr><tr><td><a href="/m/">Parent Directory</a></td></tr>
<tr><td><a href="t.json">t.json</a></td></tr><tr><td><a href="https://apache.example/">server</a></td></tr></table></body></html>"""
HTML = {"Content-Type": "text/html; charset=utf-8"}


@pytest.fixture
def server():
    with ScriptedServer() as running:
        yield running


def source(url: str, **settings):
    return open_source(url, {url.partition("/m")[0] + "/": {"retries": 0, **settings}})


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_arguments) -> None:
        pass


@pytest.fixture
def pythons_server(tmp_path):
    """The server of `python3 -m http.server`, with a folder of files."""
    for name, body in {"m/a b.gguf": b"abc", "m/sub/t.json": b"{}", "m/.git/x": b"x", "other/x": b"x"}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path))) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


class TestOneFile:
    def test_it_is_measured_and_not_read(self, server):
        url = server.on("/m/a%20b.gguf", Reply(b"abc"))
        resolution = source(url).resolve()
        assert [(file.path, file.size, file.sha256) for file in resolution.files] == [("a b.gguf", 3, None)]
        assert (resolution.source, resolution.format) == (url, "gguf")
        assert [seen.method for seen in server.seen] == ["HEAD"]

    def test_it_is_read_where_it_was_found(self, server):
        url = server.on("/m/a.gguf", Reply(b"abc")) + "?download=true"
        opened = source(url)
        assert opened.web.get(opened.locate("a.gguf")).body == b"abc"
        assert server.seen[-1].path.endswith("?download=true")

    @pytest.mark.parametrize("status", [403, 405, 501])
    def test_a_server_that_knows_no_head_is_asked_for_a_byte(self, server, status):
        ranged = Reply(b"a", 206, {"Content-Range": "bytes 0-0/3"})
        resolution = source(server.on("/m/a.gguf", Reply(status=status), ranged)).resolve()
        assert resolution.files[0].size == 3

    def test_a_page_for_people_is_no_model(self, server):
        with pytest.raises(ArtifactError) as caught:
            source(server.on("/m/a.gguf", Reply(b"<html>", headers=HTML))).resolve()
        assert "web page" in str(caught.value)

    @pytest.mark.parametrize("status", [401, 404, 410])
    def test_a_refusal_says_what_to_do(self, server, status):
        with pytest.raises(Refused) as caught:
            source(server.on("/m/a.gguf", Reply(status=status))).resolve()
        assert caught.value.status == status

    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            ({"token": "t"}, "Bearer t"),
            ({"username": "u", "password": "p"}, "Basic dTpw"),
            ({"headers": {"Authorization": "Own"}, "token": "t"}, "Own"),
        ],
    )
    def test_credentials_go_along(self, server, settings, expected):
        source(server.on("/m/a.gguf", Reply(b"abc")), **settings).resolve()
        assert server.last("Authorization") == expected


class TestFolder:
    def sums(self, server, files: dict[str, bytes]) -> str:
        for name, body in files.items():
            server.on(f"/m/{name}", Reply(body))
        lines = "".join(f"{hashlib.sha256(body).hexdigest()}  {name}\n" for name, body in files.items())
        server.on("/m/SHA256SUMS", Reply(lines.encode()))
        return f"{server.url}/m/"

    def test_sha256sums_names_files_and_digests(self, server):
        files = {"config.json": b"{}", "sub/w.safetensors": b"www"}
        resolution = source(self.sums(server, files)).resolve()
        found = {file.path: (file.size, file.sha256) for file in resolution.files}
        assert found == {name: (len(body), hashlib.sha256(body).hexdigest()) for name, body in files.items()}

    def test_a_file_that_it_names_has_to_be_there(self, server):
        url = self.sums(server, {"config.json": b"{}"})
        server.on("/m/config.json", Reply(status=404))
        with pytest.raises(Refused) as caught:
            source(url).resolve()
        assert caught.value.fault.where == f"{url}config.json"

    @pytest.mark.parametrize("line", [f"{'a' * 64}  ../x", f"{'a' * 64}  /etc/x", "abc  x", "<html>"])
    def test_it_names_files_below_it_only(self, server, line):
        server.on("/m/SHA256SUMS", Reply(f"{'b' * 64} *fine\n{line}\n".encode()))
        with pytest.raises(ArtifactError) as caught:
            source(f"{server.url}/m/").resolve()
        assert "line 2" in str(caught.value)

    def test_index_pages_of_nginx_and_apache_are_read(self, server):
        server.on("/m/", Reply(NGINX_INDEX, headers=HTML))
        server.on("/m/sub/", Reply(APACHE_INDEX, headers=HTML))
        server.on("/m/a%20b.gguf", Reply(b"abc"))
        server.on("/m/sub/t.json", Reply(b"{}"))
        opened = source(f"{server.url}/m/")
        assert {file.path: file.size for file in opened.resolve().files} == {"a b.gguf": 3, "sub/t.json": 2}
        assert opened.web.get(opened.locate("sub/t.json")).body == b"{}"

    def test_index_pages_of_python_are_read(self, pythons_server):
        files = source(f"{pythons_server}/m/").resolve().files
        assert {file.path: file.size for file in files} == {"a b.gguf": 3, "sub/t.json": 2}

    @pytest.mark.parametrize("page", [Reply(b"[]", headers={"Content-Type": "application/json"}), Reply(b"<html>", headers=HTML)])
    def test_without_either_nothing_is_guessed(self, server, page):
        server.on("/m/", page)
        with pytest.raises(ArtifactError) as caught:
            source(f"{server.url}/m/").resolve()
        assert "SHA256SUMS" in caught.value.fault.fix

    def test_pages_that_link_to_each_other_end(self, server):
        server.on("/m/", Reply(b'<a href="x/">x</a><a href="./">.</a>', headers=HTML))
        server.on("/m/x/", Reply(b'<a href="/m/x/">x</a><a href="../x/">x</a><a href="f.json">f</a>', headers=HTML))
        server.on("/m/x/f.json", Reply(b"{}"))
        assert [file.path for file in source(f"{server.url}/m/").resolve().files] == ["x/f.json"]
