# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Artifacts of a real docker-registry, pushed by the real `oras` client."""

from __future__ import annotations

import hashlib
import json

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources import open_source
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.base import RemoteFile
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.oci import image_address, image_digest, image_ids
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.settings import Settings, settings_for
from ansible_collections.localfirst.llm_fleet.tests.unit.support import docker_registry, oci_artifacts
from ansible_collections.localfirst.llm_fleet.tests.unit.support.docker_registry import (
    PASSWORD,
    USER,
    DockerRegistry,
    TokenIssuer,
)

pytest.importorskip("oras", reason="the oras client is not installed here (pip install oras)")
pytestmark = pytest.mark.skipif(docker_registry.PROGRAM is None, reason=docker_registry.MISSING)

WEIGHTS = b"GGUF" + bytes(range(256)) * 300
CONFIG = b'{"architectures": ["Tiny"]}\n'


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def registry(tmp_path_factory, storage):
    """The address of a registry to which everybody may push."""
    with DockerRegistry(tmp_path_factory.mktemp("registry"), storage) as running:
        yield running.address


@pytest.fixture(scope="module")
def with_password(tmp_path_factory, storage, registry):
    """The address of one with the same artifacts, which asks for a password."""
    folder = tmp_path_factory.mktemp("with_password")
    (folder / "htpasswd").write_text(docker_registry.HTPASSWD)
    auth = {"htpasswd": {"realm": "models, and more", "path": str(folder / "htpasswd")}}
    with DockerRegistry(folder, storage, auth) as running:
        yield running.address


@pytest.fixture
def with_tokens(tmp_path, storage, registry):
    """Starts a registry with the same artifacts that wants tokens, and their issuer."""
    started = []

    def start(**options) -> tuple[str, TokenIssuer]:
        issuer = TokenIssuer(tmp_path / "issuer", **options)
        running = DockerRegistry(tmp_path / "registry", storage, issuer.auth)
        for server in (issuer, running):
            server.__enter__()
            started.append(server)
        return running.address, issuer

    yield start
    for server in reversed(started):
        server.__exit__(None, None, None)


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tiny.gguf").write_bytes(WEIGHTS)
    (folder / "config.json").write_bytes(CONFIG)
    return [folder / "tiny.gguf", folder / "config.json"]


def source(address: str, name: str, **settings):
    return open_source(f"oci://{address}/{name}", {f"oci://{address}/": {"plain_http": True, "retries": 0, **settings}})


def fails(address: str, name: str, **settings) -> ArtifactError:
    with pytest.raises(ArtifactError) as caught:
        source(address, name, **settings).resolve()
    return caught.value


def fetch(opened, path: str, **known) -> bytes:
    return opened.web.get(opened.locate(path, **known)).body


def test_files_that_oras_pushed(registry, files):
    pushed = oci_artifacts.push_files(
        registry, "models/tiny:1.0.0", files, **{"org.opencontainers.image.licenses": "Apache-2.0"}
    )
    found = source(registry, "models/tiny:1.0.0").resolve()
    assert found.source == f"oci://{registry}/models/tiny@{pushed}"
    assert found.files == (
        RemoteFile("config.json", len(CONFIG), sha256(CONFIG)),
        RemoteFile("tiny.gguf", len(WEIGHTS), sha256(WEIGHTS)),
    )
    assert (found.format, found.licence) == ("gguf", "Apache-2.0")
    pinned = source(registry, f"models/tiny@{pushed}")
    assert fetch(pinned, "tiny.gguf") == WEIGHTS
    assert fetch(pinned, "config.json", size=len(CONFIG), sha256=sha256(CONFIG)) == CONFIG
    assert pinned.resolve() == found


def test_a_download_can_be_resumed(registry, files):
    pushed = oci_artifacts.push_files(registry, "models/resumed:1", files)
    pinned = source(registry, f"models/resumed@{pushed}")
    with pinned.web.open(pinned.locate("tiny.gguf"), {"Range": "bytes=1000-"}) as answer:
        assert answer.status == 206
        assert answer.headers["Content-Range"] == f"bytes 1000-{len(WEIGHTS) - 1}/{len(WEIGHTS)}"


def test_a_moved_tag_moves_nothing_that_is_pinned(registry, files):
    first = source(registry, "models/moved:1.0.0")
    oci_artifacts.push_files(registry, "models/moved:1.0.0", files)
    before = first.resolve()
    files[0].write_bytes(WEIGHTS[::-1])
    oci_artifacts.push_files(registry, "models/moved:1.0.0", files)
    after = first.resolve()
    assert after.source != before.source
    pinned = open_source(before.source, {"oci://": {"plain_http": True}})
    assert pinned.resolve() == before
    assert fetch(pinned, "tiny.gguf") == WEIGHTS


def test_paths_in_titles_and_equal_contents(registry, files):
    oci_artifacts.push_files(registry, "models/paths:1", files, titles={files[1]: "./sub/folder/config.json"})
    assert [file.path for file in source(registry, "models/paths:1").resolve().files] == ["sub/folder/config.json", "tiny.gguf"]
    files[1].write_bytes(WEIGHTS)
    oci_artifacts.push_files(registry, "models/equal:1", files)
    assert [file.sha256 for file in source(registry, "models/equal:1").resolve().files] == [sha256(WEIGHTS)] * 2


def test_a_modelpack(registry):
    pushed = oci_artifacts.push_modelpack(
        registry, "packs/tiny:1", {"a/tiny-00001-of-00002.gguf": b"one", "a/tiny-00002-of-00002.gguf": b"two"}, ["MIT", "Llama 3"]
    )
    opened = source(registry, "packs/tiny:1")
    found = opened.resolve()
    assert found.source.endswith(pushed)
    assert [(file.path, file.size) for file in found.files] == [("a/tiny-00001-of-00002.gguf", 3), ("a/tiny-00002-of-00002.gguf", 3)]
    assert (found.format, found.licence) == ("gguf", "MIT AND Llama 3")
    assert fetch(opened, "a/tiny-00002-of-00002.gguf") == b"two"


@pytest.mark.parametrize("form", ["tar", "tar+gzip", "tar+zstd"])
def test_an_archive_of_a_modelpack_is_refused(registry, form):
    oci_artifacts.push_modelpack(registry, "packs/packed:1", {"tiny.gguf": b"not a tar, but who knows"}, [], form=form)
    error = fails(registry, "packs/packed:1")
    assert "'tiny.gguf' is packed" in error.fault.what and "modctl build --raw" in error.fault.fix


def test_a_directory_that_oras_packed_is_refused(registry, files):
    oci_artifacts.push_files(registry, "models/packed:1", [files[0].parent])
    error = fails(registry, "models/packed:1")
    assert "'model' is packed" in error.fault.what and "one by one" in error.fault.fix
    layer = {
        "body": b"x",
        "mediaType": "application/octet-stream",
        "annotations": {"org.opencontainers.image.title": "model", "io.deis.oras.content.unpack": "true"},
    }
    oci_artifacts.push_layers(registry, "models/packed:2", [layer])
    assert "'model' is packed" in fails(registry, "models/packed:2").fault.what


@pytest.mark.parametrize("title", ["../escape", "/etc/passwd", "a//b", "back\\slash", "line\nbreak", "a/./b"])
def test_a_name_that_leads_astray_is_refused(registry, title):
    layer = {"body": b"x", "mediaType": "application/octet-stream", "annotations": {"org.opencontainers.image.title": title}}
    oci_artifacts.push_layers(registry, "models/astray:1", [layer])
    assert "not a plain relative path" in fails(registry, "models/astray:1").fault.what


def test_two_files_of_one_name_are_refused(registry):
    layers = [
        {"body": body, "mediaType": "application/octet-stream", "annotations": {"org.opencontainers.image.title": "tiny.gguf"}}
        for body in (b"one", b"two")
    ]
    oci_artifacts.push_layers(registry, "models/twins:1", layers)
    assert "two files of the artifact are called 'tiny.gguf'" in fails(registry, "models/twins:1").fault.what


@pytest.mark.parametrize(
    ("layers", "config", "said"),
    [
        ([], None, "has no files"),
        ([{"body": b"x", "mediaType": "application/octet-stream"}], None, "layer 1 of the artifact (application/octet-stream) has no"),
        (
            [{"body": b"x", "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip"}],
            ("application/vnd.oci.image.config.v1+json", b'{"os":"linux"}'),
            "a container image and no model",
        ),
        ([{"body": b"x", "mediaType": "application/vnd.ollama.image.model"}], None, "a model of Ollama's kind"),
    ],
)
def test_what_is_no_model_is_refused(registry, layers, config, said):
    oci_artifacts.push_layers(registry, "models/none:1", layers, config)
    assert said in fails(registry, "models/none:1").fault.what


def test_a_list_with_one_manifest_is_that_manifest(registry, files):
    pushed = oci_artifacts.push_files(registry, "lists/one:artifact", files)
    other = oci_artifacts.push_layers(registry, "lists/one:about", [])
    oci_artifacts.push_index(registry, "lists/one:1", [pushed, other], [{}, {"vnd.docker.reference.type": "attestation-manifest"}])
    found = source(registry, "lists/one:1").resolve()
    assert found.source.endswith(pushed)
    assert [file.path for file in found.files] == ["config.json", "tiny.gguf"]


def test_a_list_with_several_manifests_is_refused(registry, files):
    both = [
        oci_artifacts.push_files(registry, "lists/two:one", files),
        oci_artifacts.push_files(registry, "lists/two:two", files[:1]),
    ]
    oci_artifacts.push_index(registry, "lists/two:1", both)
    error = fails(registry, "lists/two:1")
    assert "a list of 2 manifests (linux/amd64, linux/arm64)" in error.fault.what
    assert "by its digest" in error.fault.fix
    assert source(registry, f"lists/two@{both[1]}").resolve().files == (RemoteFile("tiny.gguf", len(WEIGHTS), sha256(WEIGHTS)),)


def test_what_is_not_there(registry, files):
    oci_artifacts.push_files(registry, "models/there:1", files)
    for name in ("models/there:2", "models/nowhere:1", f"models/there@sha256:{'0' * 64}"):
        error = fails(registry, name)
        assert error.details["status"] == 404
        assert error.fault.where == f"oci://{registry}/{name}"
    opened = source(registry, "models/there:1")
    with pytest.raises(ArtifactError, match=r"has no file 'other\.gguf'"):
        opened.locate("other.gguf")


def test_a_password(registry, with_password, files):
    pushed = oci_artifacts.push_files(registry, "secret/tiny:1", files)
    refusal = fails(with_password, "secret/tiny:1")
    assert "without credentials" in refusal.fault.what
    assert f"give username and password (or token) of 'oci://{with_password}/' in llm_fleet_sources" in refusal.fault.fix
    wrong = fails(with_password, "secret/tiny:1", username=USER, password="open barley")
    assert "this user" in wrong.fault.what and wrong.fault.fix.startswith("correct username and password")
    assert "barley" not in str(wrong)
    opened = source(with_password, f"secret/tiny@{pushed}", username=USER, password=PASSWORD)
    request = opened.locate("tiny.gguf", len(WEIGHTS), sha256(WEIGHTS))
    assert opened.web.get(request).body == WEIGHTS
    assert PASSWORD not in repr(request)


def test_a_password_in_a_file(registry, with_password, files, tmp_path):
    oci_artifacts.push_files(registry, "secret/file:1", files)
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    opened = source(with_password, "secret/file:1", username=USER, password_file=str(tmp_path / "password"))
    assert len(opened.resolve().files) == 2


def test_a_token_for_everybody(registry, with_tokens, files):
    oci_artifacts.push_files(registry, "tokens/open:1", files)
    address, issuer = with_tokens(anonymous=True)
    opened = source(address, "tokens/open:1")
    assert fetch(opened, "tiny.gguf") == WEIGHTS
    (query, headers), *more = issuer.requests
    assert query == {"service": "models", "scope": "repository:tokens/open:pull"}
    assert "authorization" not in headers
    assert more == [], "one token serves for all files"


def test_a_token_for_a_password(registry, with_tokens, files):
    oci_artifacts.push_files(registry, "tokens/closed:1", files)
    address, issuer = with_tokens()
    refusal = fails(address, "tokens/closed:1")
    assert "makes out no token for tokens/closed" in refusal.fault.what and refusal.fault.fix.startswith("give username")
    opened = source(address, "tokens/closed:1", username=USER, password=PASSWORD)
    assert len(opened.resolve().files) == 2
    assert fetch(opened, "config.json") == CONFIG
    given = source(address, "tokens/closed:1", token=issuer.make("repository:tokens/closed:pull", "models"))
    count = len(issuer.requests)
    assert fetch(given, "config.json") == CONFIG
    assert len(issuer.requests) == count, "a token that is given is used as it is"
    assert "correct username" in fails(address, "tokens/closed:1", token="no-such-token").fault.fix


def test_a_token_is_renewed_before_it_has_run_out(registry, with_tokens, files):
    oci_artifacts.push_files(registry, "tokens/renewed:1", files)
    address, issuer = with_tokens(seconds=None)
    opened = source(address, "tokens/renewed:1", username=USER, password=PASSWORD)
    request = opened.locate("tiny.gguf")
    assert opened.web.get(request).body == WEIGHTS
    assert len(issuer.requests) == 1
    opened._registry._until = 0
    assert opened.web.get(request).body == WEIGHTS, "the request that a download resumes with is the old one"
    assert len(issuer.requests) == 2


def test_the_digest_of_an_image(registry, with_password, files):
    single = oci_artifacts.push_layers(registry, "engines/llamacpp:1", [], annotations={"number": "1"})
    other = oci_artifacts.push_layers(registry, "engines/llamacpp:2", [], annotations={"number": "2"})
    index = oci_artifacts.push_index(registry, "engines/llamacpp:latest", [single, other])
    plain = Settings(plain_http=True)
    assert image_digest(f"{registry}/engines/llamacpp:1", plain) == (f"{registry}/engines/llamacpp", single)
    assert image_digest(f"{registry}/engines/llamacpp", plain) == (f"{registry}/engines/llamacpp", index)
    assert image_digest(f"{registry}/engines/llamacpp:1@{other}", plain) == (f"{registry}/engines/llamacpp", other)
    reference = f"{with_password}/engines/llamacpp:latest"
    sources = {f"oci://{with_password}": {"plain_http": True, "username": USER, "password": PASSWORD}}
    assert image_digest(reference, settings_for(sources, image_address(reference)))[1] == index
    with pytest.raises(ArtifactError) as caught:
        image_digest(f"{registry}/engines/llamacpp:3", plain)
    assert caught.value.fault.where == f"{registry}/engines/llamacpp:3"


def config(architecture):
    body = json.dumps({"os": "linux", "architecture": architecture, "rootfs": {"type": "layers", "diff_ids": []}}).encode()
    return ("application/vnd.oci.image.config.v1+json", body), f"sha256:{hashlib.sha256(body).hexdigest()}"


def test_what_docker_calls_an_image_on_each_platform(registry):
    plain, name = Settings(plain_http=True), "engines/echo"
    configs = {architecture: config(architecture) for architecture in ("amd64", "arm64", "riscv64")}
    manifests = {
        architecture: oci_artifacts.push_layers(registry, f"{name}:{architecture}", [], pushed)
        for architecture, (pushed, _id) in configs.items()
    }
    listed = [
        {"mediaType": oci_artifacts.OCI_MANIFEST, "digest": digest, "size": 1, "platform": {"os": "linux", "architecture": architecture}}
        for architecture, digest in manifests.items()
    ]
    about = {"vnd.docker.reference.type": "attestation-manifest"}
    listed.insert(0, {**listed[0], "digest": manifests["riscv64"], "annotations": about})
    index = {"schemaVersion": 2, "mediaType": oci_artifacts.OCI_INDEX, "manifests": listed}
    digest = oci_artifacts.push_manifest(registry, f"{name}:all", index)
    ids = {f"linux/{architecture}": configs[architecture][1] for architecture in ("amd64", "arm64")}
    assert image_ids(f"{registry}/{name}:all", digest, plain) == ids
    assert image_ids(f"{registry}/{name}:gone", manifests["arm64"], plain) == {"linux/arm64": ids["linux/arm64"]}
    assert image_ids(f"{registry}/{name}:all", manifests["riscv64"], plain) == {}
    other = oci_artifacts.push_layers(registry, "packs/tiny:1", [])
    assert image_ids(f"{registry}/packs/tiny:1", other, plain) == {}


@pytest.mark.parametrize(
    ("reference", "address"),
    [
        ("ollama/ollama:0.12", "oci://docker.io/ollama/ollama:0.12"),
        ("nginx", "oci://docker.io/library/nginx"),
        ("localhost/engine:1", "oci://localhost/engine:1"),
        ("registry.example:5000/a/b", "oci://registry.example:5000/a/b"),
        (f"registry.example/a:1@sha256:{'a' * 64}", f"oci://registry.example/a@sha256:{'a' * 64}"),
    ],
)
def test_references_of_images_as_docker_reads_them(reference, address):
    assert image_address(reference) == address


@pytest.mark.parametrize("reference", ["", "registry.example/UPPER", "user:password@registry.example/a", "registry.example/a b"])
def test_what_is_no_reference_of_an_image(reference):
    with pytest.raises(ArtifactError, match="no reference of an image"):
        image_address(reference)


def test_a_list_is_no_licence(registry):
    layer = {"body": b"x", "mediaType": "application/octet-stream", "annotations": {"org.opencontainers.image.title": "x.gguf"}}
    kind = "application/vnd.cncf.model.config.v1+json"
    for config in (b"[1]", b"not json", json.dumps({"descriptor": {"licenses": 3}}).encode()):
        oci_artifacts.push_layers(registry, "packs/odd:1", [layer], (kind, config))
        assert source(registry, "packs/odd:1").resolve().licence is None
