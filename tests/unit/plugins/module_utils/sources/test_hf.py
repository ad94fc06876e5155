# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Models of the hub: the real huggingface_hub asks the hub's double, and the double itself is held to what that client wants."""

from __future__ import annotations

import hashlib
import json
import os
import ssl
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources import open_source
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.web import Refused, Request, Web
from ansible_collections.localfirst.llm_fleet.tests.unit.support.fleet_ca import FleetCa
from ansible_collections.localfirst.llm_fleet.tests.unit.support.scripted_server import ForwardingProxy, Reply, ScriptedServer

huggingface_hub = pytest.importorskip("huggingface_hub")
sys.path.insert(0, str(Path(__file__).resolve().parents[5] / "testbed" / "doubles" / "hub"))
from hub import Hub  # noqa: E402

WEIGHTS = b"weights" * 1000
TINY = {
    "config.json": b"{}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"the same once more",
    "onnx/model.onnx": b"and again",
    "README.md": b"# tiny",
    "plot.png": b"",
    ".gitattributes": b"",
    "sub folder/tokenizer.json": b"[]",
}
GGUF = {"m-Q4.gguf": b"4", "m-Q8-00001-of-00002.gguf": b"8", "m-Q8-00002-of-00002.gguf": b"88", "mmproj-f16.gguf": b"p", "LICENSE": b"MIT"}
HUB_JSON = {
    "tokens": {"hf_reads": ["org/gated", "org/private"], "hf_nobody": []},
    "repositories": {
        "org/tiny": {"license": "apache-2.0"},
        "org/gated": {"gated": "manual"},
        "org/private": {"private": True},
    },
}


@pytest.fixture(autouse=True)
def only_what_the_test_says(monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "HF_ENDPOINT", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def put(root: Path, repository: str, revision: str, files: dict[str, bytes]) -> None:
    for name, body in files.items():
        path = root / repository / revision / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)


@pytest.fixture
def hub(tmp_path):
    root = tmp_path / "hub"
    put(root, "org/tiny", "v1", TINY)
    (root / "org/tiny/main").symlink_to("v1")
    put(root, "org/quants", "main", GGUF)
    put(root, "org/gated", "main", {"a.gguf": WEIGHTS})
    put(root, "org/private", "main", {"config.json": b"{}", "a.safetensors": WEIGHTS})
    (root / "hub.json").write_text(json.dumps(HUB_JSON))
    with Hub(root) as running:
        yield running


def settings(hub: Hub, **more) -> dict:
    return {"hf://": {"endpoint": hub.url, "retries": 0, **more}}


def resolve(hub: Hub, text: str, **more):
    return open_source(text, settings(hub, **more)).resolve()


def names(resolution) -> list[str]:
    return [file.path for file in resolution.files]


def refused(attempt) -> ArtifactError:
    with pytest.raises(ArtifactError) as caught:
        attempt()
    return caught.value


class TestResolve:
    def test_a_branch_becomes_a_commit_and_large_files_have_digests(self, hub):
        resolution = resolve(hub, "hf://org/tiny@main")
        commit = resolution.source.rpartition("@")[2]
        assert len(commit) == 40
        found = {file.path: (file.size, file.sha256) for file in resolution.files}
        assert found == {
            "config.json": (2, None),
            "model.safetensors": (len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest()),
            "sub folder/tokenizer.json": (2, None),
        }
        assert (resolution.format, resolution.licence) == ("safetensors", "apache-2.0")

    @pytest.mark.parametrize("text", ["hf://org/tiny", "hf://org/tiny@v1"])
    def test_the_default_branch_and_tags_too(self, hub, text):
        assert resolve(hub, text).files == resolve(hub, "hf://org/tiny@main").files

    def test_a_commit_stays_itself_when_the_branch_moves(self, hub):
        pinned = resolve(hub, "hf://org/tiny").source
        put(hub.root, "org/tiny", "v2", {**TINY, "model.safetensors": b"others"})
        (hub.root / "org/tiny/main").unlink()
        (hub.root / "org/tiny/main").symlink_to("v2")
        assert resolve(hub, "hf://org/tiny").source != pinned
        again = resolve(hub, pinned)
        assert again.source == pinned
        source = open_source(pinned, settings(hub))
        assert source.web.get(source.locate("model.safetensors")).body == WEIGHTS

    def test_files_are_chosen_by_pattern_and_the_pinned_url_keeps_the_choice(self, hub):
        resolution = resolve(hub, "hf://org/quants?files=*Q8*.gguf,LICENSE")
        assert names(resolution) == ["LICENSE", "m-Q8-00001-of-00002.gguf", "m-Q8-00002-of-00002.gguf"]
        assert resolution.format == "gguf"
        assert names(resolve(hub, resolution.source)) == names(resolution)

    def test_a_pattern_that_matches_nothing_is_named(self, hub):
        error = refused(lambda: resolve(hub, "hf://org/quants?files=*Q8*.gguf,*Q9*.gguf"))
        assert "'*Q9*.gguf'" in error.fault.what
        assert "m-Q4.gguf" in error.fault.fix

    def test_nobody_gets_every_quantisation_by_accident(self, hub):
        error = refused(lambda: resolve(hub, "hf://org/quants"))
        assert "2 GGUF models: m-Q4.gguf, m-Q8.gguf" in error.fault.what
        assert "?files=" in error.fault.fix

    def test_several_at_once_do_not_mix_their_settings(self, hub, tmp_path):
        def one(number: int) -> str:
            resolve(hub, "hf://org/private", token="hf_reads", headers={"X-Number": str(number)})
            return str(number)

        with ThreadPoolExecutor(4) as pool:
            asked = set(pool.map(one, range(8)))
        assert {headers.get("x-number") for _server, _method, _path, headers in hub.requests} == asked


class TestBytes:
    def test_all_files_come_by_the_commit(self, hub):
        resolution = resolve(hub, "hf://org/tiny")
        source = open_source(resolution.source, settings(hub))
        bodies = {file.path: source.web.get(source.locate(file.path)).body for file in resolution.files}
        assert bodies == {name: TINY[name] for name in bodies}
        assert all("/resolve/main/" not in path for _server, _method, path, _headers in hub.requests)

    def test_the_token_never_reaches_the_store_of_large_files(self, hub):
        source = open_source("hf://org/private@main", settings(hub, token="hf_reads"))
        assert source.web.get(source.locate("a.safetensors")).body == WEIGHTS
        stored = [headers for server, _method, _path, headers in hub.requests if server == "cdn"]
        assert stored
        assert all("authorization" not in headers for headers in stored)

    def test_a_large_file_is_continued(self, hub):
        source = open_source("hf://org/tiny@v1", settings(hub))
        with source.web.open(source.locate("model.safetensors")) as response:
            tag = response.headers["ETag"]
        with source.web.open(source.locate("model.safetensors"), {"Range": "bytes=6990-", "If-Range": tag}) as response:
            assert (response.status, response.read(100)) == (206, WEIGHTS[6990:])

    def test_a_file_that_is_gone_is_named(self, hub):
        source = open_source("hf://org/tiny@v1", settings(hub))
        error = refused(lambda: source.web.get(source.locate("missing.json")))
        assert error.details["status"] == 404
        assert "missing.json" in error.fault.where

    def test_the_bytes_need_no_huggingface_hub(self, hub, monkeypatch):
        from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources import hf

        monkeypatch.setattr(hf, "HAS_HUB", False)
        source = open_source("hf://org/tiny@v1", settings(hub))
        assert source.web.get(source.locate("config.json")).body == b"{}"
        assert "huggingface_hub" in str(refused(source.resolve))


class TestRefusals:
    def test_a_gated_model_says_so_when_it_is_locked(self, hub):
        error = refused(lambda: resolve(hub, "hf://org/gated"))
        assert "is gated (401)" in error.fault.what
        assert "accept the model's licence" in error.fault.fix
        assert "token" in error.fault.fix
        error = refused(lambda: resolve(hub, "hf://org/gated", token="hf_nobody"))
        assert "is gated (403)" in error.fault.what
        assert f"{hub.url}/org/gated" in error.fault.fix
        assert "hf_nobody" not in str(error)

    def test_and_when_it_is_fetched(self, hub):
        source = open_source("hf://org/gated@main", settings(hub, token="hf_nobody"))
        assert "licence" in refused(lambda: source.web.get(source.locate("a.gguf"))).fault.fix

    def test_whoever_may_have_it_gets_it(self, hub):
        assert names(resolve(hub, "hf://org/gated", token="hf_reads")) == ["a.gguf"]

    @pytest.mark.parametrize("text", ["hf://org/private", "hf://org/missing"])
    def test_a_stranger_is_told_that_it_may_be_private(self, hub, text):
        error = refused(lambda: resolve(hub, text))
        assert "shows no repository" in error.fault.what
        assert "token" in error.fault.fix

    def test_a_token_that_the_hub_does_not_know(self, hub):
        error = refused(lambda: resolve(hub, "hf://org/tiny", token="hf_wrong"))
        assert isinstance(error, Refused)
        assert "make a new one" in error.fault.fix
        assert "hf_wrong" not in str(error)

    def test_a_revision_that_is_not_there(self, hub):
        assert "no revision 'v9'" in str(refused(lambda: resolve(hub, "hf://org/tiny@v9")))

    def test_a_name_that_the_hub_does_not_allow(self, hub):
        assert "no repository of this name" in str(refused(lambda: resolve(hub, "hf://org/a--b")))

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_a_busy_hub_is_asked_again(self, hub, monkeypatch, status):
        hub.faults[:] = [status]
        source = open_source("hf://org/tiny", settings(hub, retries=1))
        pauses = []
        monkeypatch.setattr(source.web, "pause", pauses.append)
        assert names(source.resolve())
        assert len(pauses) == 1

    def test_a_page_for_people_is_no_hub(self):
        with ScriptedServer() as server:
            for body in (b"<html>login</html>", b"{}", b"[]"):
                server.on("/api/models/org/tiny", Reply(body))
                error = refused(lambda: open_source("hf://org/tiny", {"hf://": {"endpoint": server.url}}).resolve())
                assert server.url in str(error)

    def test_a_hub_that_cannot_be_reached(self):
        for endpoint, words in (("http://nobody.invalid", "cannot be resolved"), ("http://127.0.0.1:9", "cannot be reached")):
            source = open_source("hf://org/tiny", {"hf://": {"endpoint": endpoint, "retries": 0}})
            assert words in str(refused(source.resolve))

    def test_a_token_that_cannot_be_sent_is_not_repeated(self, hub, monkeypatch):
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "hf_odd token")
        assert "hf_odd" not in str(refused(lambda: open_source("hf://org/tiny").resolve()))

    def test_a_hub_that_redirects_elsewhere_gets_no_headers_there(self, hub):
        with ScriptedServer() as server:
            server.redirect("/api/models/org/private", f"{hub.url}/api/models/org/private")
            source = open_source("hf://org/private", {"hf://": {"endpoint": server.url, "token": "hf_reads", "headers": {"X-Key": "k"}}})
            assert "redirects to" in str(refused(source.resolve))
        assert hub.requests == []


class TestSurroundings:
    def test_the_environment_names_hub_and_token(self, hub, monkeypatch):
        monkeypatch.setenv("HF_ENDPOINT", f"{hub.url}/")
        monkeypatch.setenv("HF_TOKEN", "hf_reads")
        assert open_source("hf://org/private").resolve().files

    def test_a_token_of_the_environment_stays_with_the_environments_hub(self, hub, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_reads")
        resolve(hub, "hf://org/tiny")
        assert all("authorization" not in headers for _server, _method, _path, headers in hub.requests)

    def test_a_proxy_is_used_for_questions_and_bytes(self, hub):
        with ForwardingProxy() as proxy:
            source = open_source("hf://org/tiny@v1", settings(hub, proxy=proxy.url))
            source.resolve()
            asked = len(proxy.seen)
            source.web.get(source.locate("config.json"))
            assert len(proxy.seen) > asked > 0

    def test_a_ca_of_ones_own_is_trusted_for_the_questions(self, tmp_path):
        ca = FleetCa(tmp_path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*ca.issue("server", client=False))
        body = json.dumps({"id": "org/tiny", "sha": "a" * 40, "siblings": [{"rfilename": "a.gguf", "size": 1}]}).encode()
        with ScriptedServer(tls=context) as server:
            server.on("/api/models/org/tiny", Reply(body, headers={"Content-Type": "application/json"}))
            trusted = {"hf://": {"endpoint": server.url, "ca_path": ca.pem, "retries": 0}}
            assert names(open_source("hf://org/tiny", trusted).resolve()) == ["a.gguf"]
            stranger = {"hf://": {"endpoint": server.url, "retries": 0}}
            assert "is not trusted" in str(refused(lambda: open_source("hf://org/tiny", stranger).resolve()))


class TestDouble:
    """The client downloads from the double as it does from the hub."""

    def test_a_snapshot_has_all_files(self, hub, tmp_path):
        path = huggingface_hub.snapshot_download("org/tiny", endpoint=hub.url, cache_dir=tmp_path / "cache", token=False)
        assert {name: Path(path, name).read_bytes() for name in TINY} == TINY

    def test_a_single_gated_file_with_a_token(self, hub, tmp_path):
        path = huggingface_hub.hf_hub_download("org/gated", "a.gguf", endpoint=hub.url, cache_dir=tmp_path / "cache", token="hf_reads")
        assert Path(path).read_bytes() == WEIGHTS

    def test_the_client_knows_each_refusal(self, hub, tmp_path):
        errors = huggingface_hub.errors
        cases = [
            ("org/gated", "a.gguf", None, False, errors.GatedRepoError),
            ("org/missing", "a.gguf", None, "hf_reads", errors.RepositoryNotFoundError),
            ("org/tiny", "missing", None, False, errors.RemoteEntryNotFoundError),
            ("org/tiny", "config.json", "v9", False, errors.RevisionNotFoundError),
        ]
        api = huggingface_hub.HfApi(endpoint=hub.url)
        for repository, name, revision, token, expected in cases:
            url = huggingface_hub.hf_hub_url(repository, name, revision=revision, endpoint=hub.url)
            with pytest.raises(expected):
                api.get_hf_file_metadata(url=url, token=token)

    def test_headers_say_what_the_hubs_say(self, hub):
        url = huggingface_hub.hf_hub_url("org/tiny", "model.safetensors", endpoint=hub.url)
        large = huggingface_hub.HfApi(endpoint=hub.url).get_hf_file_metadata(url=url, token=False)
        assert (large.etag, large.size) == (hashlib.sha256(WEIGHTS).hexdigest(), len(WEIGHTS))
        small = huggingface_hub.HfApi().get_hf_file_metadata(url=url.replace("model.safetensors", "config.json"), token=False)
        # git hash-object says the same of a file that holds {}.
        assert (small.etag, small.commit_hash) == ("9e26dfeeb6e641a33dae4961196235bdb965b21b", large.commit_hash)

    def test_nobody_reads_around_the_repositories(self, hub):
        (hub.root / "secret").write_text("x")
        for path in ("/org/tiny/resolve/main/../../../hub.json", "/org/tiny/resolve/..%2F..%2Forg/a", "/../hub/resolve/main/x"):
            with pytest.raises(ArtifactError):
                Web(retries=0).get(Request(f"{hub.url}{path}"))

    def test_a_signed_address_cannot_be_made_up(self, hub):
        digest = hashlib.sha256(WEIGHTS).hexdigest()
        resolve(hub, "hf://org/tiny")
        for query in ("", "?Signature=abc"):
            url = f"http://127.0.0.1:{hub.cdn.server_port}/{digest}{query}"
            assert refused(lambda url=url: Web(retries=0).get(Request(url))).details["status"] == 403


def test_the_double_starts_as_a_program(hub, tmp_path):
    import subprocess

    program = Path(sys.modules["hub"].__file__)
    arguments = [sys.executable, str(program), "--root", str(hub.root), "--port", "0", "--cdn-port", "0"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as running:
        try:
            url = running.stdout.readline().split()[2].rstrip(",")
            assert open_source("hf://org/tiny", {"hf://": {"endpoint": url}}).resolve().files
        finally:
            running.terminate()
