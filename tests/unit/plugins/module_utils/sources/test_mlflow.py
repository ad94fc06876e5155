# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Model versions of an MLflow registry, read from a server that answers as MLflow does."""

from __future__ import annotations

import hashlib
import socket

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources import open_source
from ansible_collections.localfirst.llm_fleet.tests.unit.support.mlflow_server import MlflowServer

WEIGHTS = b"weights" * 1000
FILES = {"model.safetensors": WEIGHTS, "config.json": b"{}", "sub dir/a+b%20c.txt": b"text"}
STORE = "mlflow-artifacts:/1/run/artifacts/model"


@pytest.fixture
def server():
    with MlflowServer() as running:
        running.artifacts = {f"1/run/artifacts/model/{path}": body for path, body in FILES.items()}
        running.artifacts["1/run/artifacts/other/secret.txt"] = b"of another model"
        running.register("tiny", "3", STORE, alias="champion")
        yield running


def source(server, text="mlflow://tiny/3", **settings):
    return open_source(text, {"mlflow://": {"endpoint": server.url, "retries": 0, "timeout": 5, **settings}})


def refusal(server, text="mlflow://tiny/3", **settings):
    with pytest.raises(ArtifactError) as caught:
        source(server, text, **settings).resolve()
    return caught.value.fault


def test_files_of_a_version(server):
    found = source(server).resolve()
    assert {file.path: file.size for file in found.files} == {path: len(body) for path, body in FILES.items()}
    assert (found.source, found.format, found.licence) == ("mlflow://tiny/3", "safetensors", None)


def test_an_alias_is_pinned_to_its_version(server):
    assert source(server, "mlflow://tiny@champion").resolve().source == "mlflow://tiny/3"
    server.register("tiny", "4", STORE, alias="champion")
    assert source(server, "mlflow://tiny@champion").resolve().source == "mlflow://tiny/4"


def test_a_name_with_spaces(server):
    server.register("tiny model", "1", STORE, alias="champion")
    assert source(server, "mlflow://tiny%20model@champion").resolve().source == "mlflow://tiny%20model/1"


def test_every_file_can_be_fetched(server):
    here = source(server)
    assert {path: here.web.get(here.locate(path)).body for path in FILES} == FILES


def test_a_server_below_a_path(server):
    """As behind a reverse proxy: https://example/mlflow."""
    fault = refusal(server, endpoint=f"{server.url}/mlflow/")
    assert f"{server.url}/mlflow does not speak MLflow's API" in fault.what
    assert server.requests[0][0].startswith("/mlflow/api/2.0/mlflow/")


def test_digests_and_licence_come_from_tags(server):
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    tags = {"sha256:model.safetensors": digest, "sha256.config.json": f"sha256:{digest.upper()}", "license": "apache-2.0"}
    server.register("tiny", "3", STORE, **tags)
    found = source(server).resolve()
    known = {file.path: file.sha256 for file in found.files}
    assert known == {"model.safetensors": digest, "config.json": digest, "sub dir/a+b%20c.txt": None}
    assert found.licence == "apache-2.0"


@pytest.mark.parametrize(
    ("tags", "told"),
    [
        ({"sha256:config.json": "abc"}, "'sha256:config.json' is not 64 hexadecimal digits"),
        ({"sha256:config.json": "a" * 64, "sha256.config.json": "b" * 64}, "config.json different digests"),
        ({"sha256:lost.bin": "a" * 64}, "lost.bin, which is not among its files"),
    ],
)
def test_tags_that_cannot_be_right(server, tags, told):
    server.register("tiny", "3", STORE, **tags)
    assert told in refusal(server).what


@pytest.mark.parametrize("proxied", ["http://{host}/api/2.0/mlflow-artifacts/artifacts/1/run/artifacts/model", "mlflow-artifacts://{host}/1/run/artifacts/model"])
def test_other_ways_to_name_the_servers_own_store(server, proxied):
    server.register("tiny", "3", proxied.format(host=server.url.partition("://")[2]))
    assert {file.path for file in source(server).resolve().files} == set(FILES)


def test_a_token_goes_to_the_server_and_to_nobody_else(server):
    server.authorization = "Bearer s3cret"
    with MlflowServer() as elsewhere:
        elsewhere.artifacts = server.artifacts
        server.register("tiny", "3", f"mlflow-artifacts://{elsewhere.url.partition('://')[2]}/1/run/artifacts/model")
        here = source(server, token="s3cret", headers={"X-Tenant": "blue"})
        assert len(here.resolve().files) == len(FILES)
        here.web.get(here.locate("config.json"))
        told = [headers for _path, headers in elsewhere.requests]
    assert told and not any("Authorization" in headers or "X-Tenant" in headers for headers in told)
    assert all(headers["X-Tenant"] == "blue" for _path, headers in server.requests)


def test_a_user_with_a_password(server):
    server.authorization = "Basic dXNlcjpwdw=="
    assert source(server, username="user", password="pw").resolve().files


def test_wrong_or_missing_credentials(server):
    server.authorization = "Bearer s3cret"
    assert refusal(server).fix.startswith("give token")
    fault = refusal(server, token="wr0ng")
    assert fault.fix.startswith("correct token") and "401" in fault.what
    assert "wr0ng" not in fault.text()


def test_no_endpoint():
    with pytest.raises(ArtifactError) as caught:
        open_source("mlflow://tiny/3", {}).resolve()
    assert "endpoint" in caught.value.fault.fix and "llm_fleet_sources" in caught.value.fault.fix


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        ("mlflow://tiny/9", "no version 9 of model 'tiny'", "its newest version is 3, its aliases are champion"),
        ("mlflow://tiny@chamipon", "no alias 'chamipon' of model 'tiny'", "its aliases are champion"),
        ("mlflow://tinny/3", "no version 3 of model 'tinny'", "does not know 'tinny' at all"),
        ("mlflow://tinny@champion", "no alias 'champion' of model 'tinny'", "does not know 'tinny' at all"),
    ],
)
def test_what_is_not_registered(server, text, what, fix):
    fault = refusal(server, text)
    assert what in fault.what and fix in fault.fix and fault.where == text


def test_a_version_that_is_not_ready(server):
    server.register("tiny", "3", STORE, status="PENDING_REGISTRATION")
    assert "not ready (PENDING_REGISTRATION)" in refusal(server).what


@pytest.mark.parametrize("uri", ["mlflow-artifacts:/1/run/nosuch", f"{STORE}/config.json"])
def test_a_version_without_files(server, uri):
    server.register("tiny", "3", uri)
    assert "no folder with files" in refusal(server).what


@pytest.mark.parametrize(
    ("uri", "kind"), [("/srv/mlruns/1/run", "own disk"), ("file:///srv/mlruns/1/run", "own disk"), ("gs://bucket/model", "gs://")]
)
def test_files_where_only_mlflow_can_read_them(server, uri, kind):
    server.register("tiny", "3", uri)
    fault = refusal(server)
    assert kind in fault.what and "--serve-artifacts" in fault.fix


def test_a_server_that_hands_out_no_artifacts(server):
    server.serves_artifacts = False
    fault = refusal(server)
    assert "(503)" in fault.what and "--serve-artifacts" in fault.fix


def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        settings = {"mlflow://": {"endpoint": f"http://127.0.0.1:{free.getsockname()[1]}", "retries": 0}}
        with pytest.raises(ArtifactError) as caught:
            open_source("mlflow://tiny/3", settings).resolve()
    assert "cannot be reached" in caught.value.fault.what
