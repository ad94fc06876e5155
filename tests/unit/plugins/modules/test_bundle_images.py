# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Images out of a real registry into a bundle: verified, the same bytes each time, and known to whoever loads them."""

from __future__ import annotations

import gzip
import json
import tarfile
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.image_archive import read_archive
from ansible_collections.localfirst.llm_fleet.tests.unit.support import docker_registry, oci_artifacts
from ansible_collections.localfirst.llm_fleet.tests.unit.support.docker_registry import DockerRegistry
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import BODY, digest

pytestmark = pytest.mark.skipif(docker_registry.PROGRAM is None, reason=docker_registry.MISSING)

KIND = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def config(architecture: str = "amd64") -> bytes:
    return json.dumps({"os": "linux", "architecture": architecture, "rootfs": {"type": "layers", "diff_ids": []}}).encode()


class Bundle:
    """A bundle that gets images, and the registry that they come from."""

    def __init__(self, registry: str, storage: Path, folder: Path, run_module) -> None:
        self.registry = registry
        self.storage = storage
        self.folder = folder
        self.run_module = run_module
        self.images: list[dict] = []

    def push(self, name: str = "engines/echo", architecture: str = "amd64", body: bytes = BODY) -> str:
        packed = gzip.compress(body, mtime=0)
        # Images have the same empty layer more than once.
        layers = [{"mediaType": LAYER, "body": each} for each in (packed, gzip.compress(b"", mtime=0), gzip.compress(b"", mtime=0))]
        return oci_artifacts.push_layers(self.registry, f"{name}:1", layers, (KIND, config(architecture)))

    def want(self, pushed: str, identity: str = "", name: str = "engines/echo", platform: str = "linux/amd64", **more) -> None:
        self.images.append({"image": f"{self.registry}/{name}", "digest": pushed, "platform": platform, "id": identity, **more})

    def push_list(self, name: str = "engines/echo") -> tuple[str, dict[str, str]]:
        """(digest of the list, {architecture: digest of its image})."""
        parts = {architecture: self.push(architecture=architecture) for architecture in ("amd64", "arm64")}
        listed = [
            {
                "mediaType": oci_artifacts.OCI_MANIFEST, "digest": part, "size": 1,
                "platform": {"os": "linux", "architecture": architecture},
            }
            for architecture, part in parts.items()
        ]
        index = {"schemaVersion": 2, "mediaType": oci_artifacts.OCI_INDEX, "manifests": listed}
        return oci_artifacts.push_manifest(self.registry, f"{name}:both", index), parts

    def bring(self, **arguments) -> dict:
        settings = {f"oci://{self.registry}/": {"plain_http": True, "retries": 0}}
        return self.run_module(
            "bundle_images", bundle=str(self.folder), images=self.images, sources=json.dumps(settings), reserve=0, **arguments
        )

    def blob(self, sha256: str) -> Path:
        return self.storage / f"docker/registry/v2/blobs/sha256/{sha256[:2]}/{sha256}/data"


@pytest.fixture
def bundle(tmp_path, run_module):
    with DockerRegistry(tmp_path / "registry", tmp_path / "storage") as running:
        yield Bundle(running.address, tmp_path / "storage", tmp_path / "bundle", run_module)


def test_an_image_becomes_an_archive_by_which_docker_knows_it(bundle):
    pushed = bundle.push()
    bundle.want(pushed, f"sha256:{digest(config())}")
    brought = bundle.bring()
    assert brought["changed"], brought
    (image,) = brought["images"]
    assert image["id"] == f"sha256:{digest(config())}" and image["path"] == f"images/echo-{digest(config())[:16]}.tar"
    assert read_archive(bundle.folder / image["path"]) == [(image["id"], pushed, "linux/amd64", (pushed,))]
    with tarfile.open(bundle.folder / image["path"]) as archive:
        (table,) = json.load(archive.extractfile("manifest.json"))
        layers = [archive.extractfile(name).read() for name in table["Layers"]]
    # All of them, in their order, the repeated one too.
    assert gzip.decompress(layers[0]) == BODY and len(layers) == 3 and layers[1] == layers[2]
    assert sorted(path.name for path in bundle.folder.rglob("*") if path.is_file()) == [Path(image["path"]).name]


def test_a_second_run_asks_nobody_and_another_one_gives_the_same_bytes(bundle, tmp_path):
    bundle.want(bundle.push(), f"sha256:{digest(config())}")
    path = bundle.folder / bundle.bring()["images"][0]["path"]
    first = path.read_bytes()
    stamp = path.stat().st_mtime_ns
    registry = bundle.registry
    bundle.images[0]["image"] = "127.0.0.1:1/engines/echo"
    assert bundle.bring()["changed"] is False and path.stat().st_mtime_ns == stamp
    bundle.images[0]["image"] = f"{registry}/engines/echo"
    bundle.folder = tmp_path / "other"
    assert (bundle.folder / bundle.bring()["images"][0]["path"]).read_bytes() == first


def test_of_an_image_for_several_platforms_the_wanted_one_is_taken(bundle):
    index, parts = bundle.push_list()
    bundle.want(index, platform="linux/arm64")
    (image,) = bundle.bring()["images"]
    (held,) = read_archive(bundle.folder / image["path"])
    assert (held.id, held.manifest, held.platform) == (f"sha256:{digest(config('arm64'))}", parts["arm64"], "linux/arm64")
    assert set(held.digests) == {index, parts["arm64"]}
    bundle.images[0]["platform"] = "linux/riscv64"
    assert "not to be had for linux/riscv64" in bundle.bring()["msg"]


def test_an_image_that_hosts_know_by_digest_has_the_proof_in_its_archive(bundle, tmp_path):
    index, parts = bundle.push_list()
    identity = f"sha256:{digest(config())}"
    bundle.want(index, by_digest=True)
    (image,) = bundle.bring()["images"]
    assert image["id"] == identity and image["path"] == f"images/echo-{index[7:23]}-amd64.tar"
    assert index in read_archive(bundle.folder / image["path"])[0].digests
    # Nobody is asked again: the archive says it all.
    registry, bundle.images[0]["image"] = bundle.registry, "127.0.0.1:1/engines/echo"
    again = bundle.bring()
    assert again["changed"] is False and again["images"] == [{**image, "image": "127.0.0.1:1/engines/echo"}]
    # Of an image that is named by another digest, the same archive proves nothing.
    bundle.images[0] = {**bundle.images[0], "image": f"{registry}/engines/echo", "digest": parts["amd64"]}
    first = bundle.folder
    bundle.folder = tmp_path / "second"
    assert bundle.bring(archives=[str(first / "images")])["images"][0]["path"] == f"images/echo-{parts['amd64'][7:23]}-amd64.tar"
    bundle.images = [{**bundle.images[0], "image": "127.0.0.1:1/engines/echo", "digest": index}]
    bundle.folder = tmp_path / "third"
    assert bundle.bring(archives=[str(first / "images")])["changed"]
    assert (bundle.folder / image["path"]).read_bytes() == (first / image["path"]).read_bytes()


def test_what_the_base_proves_is_left_out_and_only_that(bundle, tmp_path):
    index, parts = bundle.push_list()
    bundle.want(index, by_digest=True)
    brought = bundle.bring()["images"]
    sealed = bundle.run_module("bundle_seal", bundle=str(bundle.folder), wanted=[brought[0]["path"]], images=brought)
    assert sealed["changed"], sealed
    base, bundle.folder = bundle.folder, tmp_path / "second"
    assert bundle.bring(base=str(base))["changed"] is False and not bundle.folder.exists()
    bundle.images[0]["digest"] = parts["amd64"]
    assert bundle.bring(base=str(base))["changed"]


def test_what_lies_in_archives_is_copied_and_what_the_base_has_is_left_out(bundle, tmp_path):
    bundle.want(bundle.push(), f"sha256:{digest(config())}")
    brought = bundle.bring()["images"]
    bundle.images[0]["image"] = "127.0.0.1:1/engines/echo"
    first, bundle.folder = bundle.folder, tmp_path / "second"
    assert bundle.bring(archives=[str(first / "images")])["changed"]
    assert (bundle.folder / brought[0]["path"]).read_bytes() == (first / brought[0]["path"]).read_bytes()
    sealed = bundle.run_module("bundle_seal", bundle=str(first), wanted=[brought[0]["path"]], images=brought)
    assert sealed["changed"], sealed
    bundle.folder = tmp_path / "third"
    left = bundle.bring(base=str(first))
    assert left["changed"] is False and left["images"][0]["path"] == brought[0]["path"] and not bundle.folder.exists()


def test_all_faults_come_at_once_and_a_wrong_blob_gets_no_archive(bundle):
    bundle.want(bundle.push(), f"sha256:{'0' * 64}")
    bundle.want(f"sha256:{'1' * 64}", name="engines/gone")
    bundle.want(bundle.push("engines/bad"), name="engines/bad")
    packed = gzip.compress(BODY, mtime=0)
    bundle.blob(digest(packed)).write_bytes(packed[:-1] + b"x")
    message = bundle.bring()["msg"]
    assert f"sha256:{'0' * 64} is locked" in message and "no such tag or digest" in message and "wrong digest" in message
    assert list(bundle.folder.glob("images/*.tar")) == []


def test_check_mode_says_what_it_would_write(bundle):
    bundle.want(bundle.push(), f"sha256:{digest(config())}")
    told = bundle.bring(check_mode=True)
    assert told["changed"] and told["actions"] == [f"write images/echo-{digest(config())[:16]}.tar"] and not bundle.folder.exists()
