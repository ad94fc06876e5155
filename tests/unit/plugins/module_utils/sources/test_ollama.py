# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Models of the registry that stands for Ollama's, and of other registries with such models in them."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources import open_source
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.ollama import licence_name
from ansible_collections.localfirst.llm_fleet.tests.unit.support import docker_registry, oci_artifacts
from ansible_collections.localfirst.llm_fleet.tests.unit.support.docker_registry import PASSWORD, USER, DockerRegistry

DOUBLE = Path(__file__).resolve().parents[5] / "testbed" / "doubles" / "ollama_registry" / "ollama_registry.py"
WEIGHTS = b"GGUF" + bytes(range(256)) * 500
LICENCE = b"\n                                 Apache License\n                           Version 2.0, January 2004\n"
LAYERS = [("model", WEIGHTS), ("template", b"{{ .Prompt }}"), ("license", LICENCE), ("params", b'{"stop":["<s>"]}')]


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


@pytest.fixture(scope="module")
def double():
    spec = importlib.util.spec_from_file_location("ollama_registry", DOUBLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["ollama_registry"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def registry(double, tmp_path):
    with double.OllamaRegistry(tmp_path / "models") as running:
        yield running


def source(registry, name: str, **settings):
    return open_source(f"ollama://{registry.address}/{name}", {"ollama://": {"plain_http": True, "retries": 0, **settings}})


def fails(opened) -> ArtifactError:
    with pytest.raises(ArtifactError) as caught:
        opened.resolve()
    return caught.value


def test_a_model(registry):
    manifest = registry.models.put("library/tiny:1.0", LAYERS)
    opened = source(registry, "library/tiny:1.0")
    found = opened.resolve()
    assert found.source == f"ollama://{registry.address}/library/tiny:1.0"
    assert (found.format, found.licence) == ("ollama", "apache-2.0")
    first, *blobs = found.files
    assert (first.path, first.content) == (f"manifests/{registry.address}/library/tiny/1.0", manifest)
    assert (first.size, first.sha256) == (len(manifest), sha256(manifest))
    data = json.loads(manifest)
    described = [data["config"], *data["layers"]]
    assert [(file.path, file.size, file.sha256) for file in blobs] == sorted(
        (f"blobs/{entry['digest'].replace(':', '-')}", entry["size"], entry["digest"][7:]) for entry in described
    )
    for file in blobs:
        body = opened.web.get(opened.locate(file.path, file.size, file.sha256)).body
        assert (len(body), sha256(body)) == (file.size, file.sha256)


def test_the_manifest_is_kept_byte_for_byte(registry):
    """Ollama's own digest of a model is that of these bytes, so another way to write the same data is another model."""
    pretty = json.dumps(json.loads(registry.models.put("library/tiny:1.0", LAYERS)), indent=3).encode() + b"\n"
    registry.models.manifest("library/tiny", "1.0").write_bytes(pretty)
    assert source(registry, "library/tiny:1.0").resolve().files[0].content == pretty


def test_contents_that_occur_twice_are_named_once(registry):
    registry.models.put("library/tiny:1.0", [*LAYERS, ("system", b"{{ .Prompt }}")])
    paths = [file.path for file in source(registry, "library/tiny:1.0").resolve().files]
    assert len(paths) == len(set(paths)) == len(LAYERS) + 2


def test_blobs_stay_when_the_tag_moves_or_goes(registry):
    registry.models.put("library/tiny:1.0", LAYERS)
    opened = source(registry, "library/tiny:1.0")
    before = opened.resolve()
    registry.models.put("library/tiny:1.0", [("model", WEIGHTS[::-1])])
    assert opened.resolve().files[0].sha256 != before.files[0].sha256
    weights = f"blobs/sha256-{sha256(WEIGHTS)}"
    assert opened.web.get(opened.locate(weights)).body == WEIGHTS
    registry.models.manifest("library/tiny", "1.0").unlink()
    again = source(registry, "library/tiny:1.0")
    assert again.web.get(again.locate(weights, len(WEIGHTS), sha256(WEIGHTS))).body == WEIGHTS


def test_a_download_goes_on_where_it_stopped(registry):
    """Across the redirect: the part that is missing comes from the storage, and only while it is the same object."""
    registry.models.put("library/tiny:1.0", LAYERS)
    opened = source(registry, "library/tiny:1.0")
    request = opened.locate(f"blobs/sha256-{sha256(WEIGHTS)}")
    with opened.web.open(request) as answer:
        tag = answer.headers["ETag"]
    with opened.web.open(request, {"Range": "bytes=1000-", "If-Range": tag}) as answer:
        assert answer.status == 206
        assert answer.headers["Content-Range"] == f"bytes 1000-{len(WEIGHTS) - 1}/{len(WEIGHTS)}"
        assert answer.read(50) == WEIGHTS[1000:1050]
    with opened.web.open(request, {"Range": "bytes=1000-", "If-Range": '"another"'}) as answer:
        assert answer.status == 200


def test_secrets_do_not_reach_the_storage(registry):
    registry.models.put("library/tiny:1.0", LAYERS)
    opened = source(registry, "library/tiny:1.0", token="s3cret", headers={"X-Team": "s3cret too"})
    opened.resolve()
    assert opened.web.get(opened.locate(f"blobs/sha256-{sha256(WEIGHTS)}")).body == WEIGHTS
    for _method, path, headers in registry.requests:
        assert ("authorization" in headers) == ("x-team" in headers) == path.startswith("/v2/")


def test_a_mirror(registry):
    registry.models.put("library/tiny", LAYERS)
    settings = {"ollama://": {"endpoint": f"http://{registry.address}", "retries": 0}}
    found = open_source("ollama://tiny", settings).resolve()
    assert found.source == "ollama://tiny"
    assert found.files[0].path == "manifests/registry.ollama.ai/library/tiny/latest"


def test_what_is_not_there(registry):
    registry.models.put("library/tiny:1.0", LAYERS)
    for name in ("library/tiny:2.0", "somebody/tiny:1.0"):
        error = fails(source(registry, name))
        assert error.details["status"] == 404 and error.fault.where.endswith(name)
    opened = source(registry, "library/tiny:1.0")
    with pytest.raises(ArtifactError, match="is no blob of the model"):
        opened.locate(opened.resolve().files[0].path)
    for file in (registry.models.root / "blobs").iterdir():
        file.unlink()
    with pytest.raises(ArtifactError) as caught:
        opened.web.get(opened.locate(f"blobs/sha256-{sha256(WEIGHTS)}"))
    assert caught.value.details["status"] == 404


def test_a_manifest_that_is_too_large(registry):
    registry.models.put("library/tiny:1.0", LAYERS)
    path = registry.models.manifest("library/tiny", "1.0")
    path.write_bytes(path.read_bytes() + b" " * 65536)
    assert "more than 65536" in fails(source(registry, "library/tiny:1.0")).fault.what


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("layers", [], "none of Ollama's layers"),
        ("config", None, "none of Ollama's layers"),
        ("layers", [{"mediaType": "application/vnd.ollama.image.model", "digest": "md5:1", "size": 1}], "not sha256"),
        ("layers", [{"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{'a' * 64}", "size": -1}], "no number of bytes"),
        ("schemaVersion", 1, "no manifest of version 2"),
    ],
)
def test_what_is_no_model(registry, field, value, said):
    path = registry.models.manifest("library/tiny", "1.0")
    path.parent.mkdir(parents=True)
    data = json.loads(registry.models.put("library/tiny:1.0", LAYERS))
    path.write_text(json.dumps({**data, field: value}))
    assert said in fails(source(registry, "library/tiny:1.0")).fault.what


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (LICENCE, "apache-2.0"),
        (b"MIT License\n\nCopyright (c)", "mit"),
        (b"The MIT License (MIT)\n", "mit"),
        (b"\n\n LLAMA 3.1 COMMUNITY  LICENSE AGREEMENT\nVersion", "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT"),
        (b"Apache Licensed things, and others", "Apache Licensed things, and others"),
        (b"\xff\xfe \x00odd\x1b[31m", "odd [31m"),
        (b"word " * 100, ("word " * 100)[:80].strip()),
        (b" \n", ""),
    ],
)
def test_names_of_licences(text, name):
    assert licence_name(text) == name


def test_the_double_from_the_command_line(tmp_path):
    """As the testbed uses it: one process serves, another one moves a tag."""
    (tmp_path / "tiny.gguf").write_bytes(WEIGHTS)
    ports = [docker_registry.free_port(), docker_registry.free_port()]
    command = [sys.executable, str(DOUBLE)]
    put = [*command, "put", "--root", str(tmp_path / "models"), "tiny:1", "--model", str(tmp_path / "tiny.gguf")]
    digests = [subprocess.run(put, check=True, capture_output=True, text=True).stdout.strip()]
    serve = [*command, "serve", "--root", str(tmp_path / "models"), "--port", str(ports[0]), "--storage-port", str(ports[1])]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline().startswith(f"127.0.0.1:{ports[0]}")
            opened = open_source(f"ollama://127.0.0.1:{ports[0]}/library/tiny:1", {"ollama://": {"plain_http": True}})
            found = [opened.resolve().files[0].sha256]
            (tmp_path / "tiny.gguf").write_bytes(WEIGHTS[::-1])
            digests.append(subprocess.run(put, check=True, capture_output=True, text=True).stdout.strip())
            found.append(opened.resolve().files[0].sha256)
            assert [f"sha256:{digest}" for digest in found] == digests and digests[0] != digests[1]
        finally:
            process.terminate()


@pytest.mark.skipif(docker_registry.PROGRAM is None, reason=docker_registry.MISSING)
def test_a_registry_of_ones_own(tmp_path, double):
    """A real docker-registry with a password, and a model of Ollama's kind in it: no redirect, a digest, a length."""
    models = double.Models(tmp_path / "models")
    manifest = json.loads(models.put("team/tiny:1", LAYERS))
    (tmp_path / "htpasswd").write_text(docker_registry.HTPASSWD)
    auth = {"htpasswd": {"realm": "models", "path": str(tmp_path / "htpasswd")}}
    with DockerRegistry(tmp_path / "open", tmp_path / "storage") as writable:
        for entry in [manifest["config"], *manifest["layers"]]:
            oci_artifacts.push_blob(writable.address, "team/tiny", models.blob(entry["digest"][7:]).read_bytes())
        pushed = oci_artifacts.push_manifest(writable.address, "team/tiny:1", manifest)
    with DockerRegistry(tmp_path / "closed", tmp_path / "storage", auth) as closed:
        refusal = fails(source(closed, "team/tiny:1"))
        assert f"'ollama://{closed.address}/'" in refusal.fault.fix
        opened = source(closed, "team/tiny:1", username=USER, password=PASSWORD)
        assert f"sha256:{opened.resolve().files[0].sha256}" == pushed
        again = source(closed, "team/tiny:1", username=USER, password=PASSWORD)
        assert again.web.get(again.locate(f"blobs/sha256-{sha256(WEIGHTS)}", len(WEIGHTS), sha256(WEIGHTS))).body == WEIGHTS
