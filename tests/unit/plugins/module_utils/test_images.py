# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.images import (
    image_names,
    image_supply,
    images_to_load,
    mirrored_image,
)

DIGEST = "@sha256:" + "e" * 64
IMAGE = f"ghcr.io/ggml-org/llama.cpp{DIGEST}"


@pytest.mark.parametrize(
    ("mirror", "reference"),
    [
        ("", IMAGE),
        ({}, IMAGE),
        ("registry.example.com/mirror", f"registry.example.com/mirror/ggml-org/llama.cpp{DIGEST}"),
        ("registry.example.com:5000", f"registry.example.com:5000/ggml-org/llama.cpp{DIGEST}"),
        ("localhost/a/b/", f"localhost/a/b/ggml-org/llama.cpp{DIGEST}"),
        ({"ghcr.io": "hub.example/ghcr-proxy"}, f"hub.example/ghcr-proxy/ggml-org/llama.cpp{DIGEST}"),
        ({"docker.io": "hub.example/hub-proxy"}, IMAGE),
        ({"ghcr.io": ""}, IMAGE),
    ],
)
def test_the_prefix_takes_the_place_of_the_registry_and_the_digest_stays(mirror, reference):
    assert mirrored_image(IMAGE, mirror) == reference


IDS = {"linux/amd64": "sha256:" + "a" * 64, "linux/arm64": "sha256:" + "b" * 64}


def held(path: str, identity: str, manifest: str = "", platform: str = "linux/amd64", digests: tuple = ()) -> dict:
    return {"path": path, "images": [{"id": identity, "manifest": manifest, "platform": platform, "digests": list(digests)}]}


ARCHIVES = [
    held("/images/other.tar", "sha256:" + "0" * 64),
    held("/images/amd64.tar", IDS["linux/amd64"], "sha256:" + "c" * 64),
    held("/images/arm64.tar", IDS["linux/arm64"], platform="linux/arm64"),
]


def supply(platform="linux/amd64", archives=ARCHIVES, **record):
    [found] = image_supply([{"image": IMAGE, **record}] * 2, archives, platform, "hub.example")
    return found


def test_an_archive_is_for_the_platform_of_the_node():
    found = supply(image_ids=IDS)
    assert (found["archive"], found["ids"]) == ("/images/amd64.tar", [IDS["linux/amd64"], "sha256:" + "c" * 64])
    found = supply("linux/arm64", image_ids=IDS)
    assert (found["archive"], found["ids"]) == ("/images/arm64.tar", [IDS["linux/arm64"]])


def test_what_no_archive_holds_is_pulled():
    for found in (supply(), supply(archives=[], image_ids=IDS), supply("linux/riscv64", image_ids=IDS)):
        assert found["archive"] == "" and found["ids"] == []
        assert found["pull"] == mirrored_image(IMAGE, "hub.example")
        assert image_names([found], [{"Id": IDS["linux/amd64"]}]) == {IMAGE: found["pull"]}
        assert images_to_load([found], []) == []


def test_without_a_lockfile_the_digest_in_the_name_decides_if_the_archive_proves_it():
    """As role dcgm_exporter asks: nobody has said what Docker calls its image."""
    listed = [held(f"/images/{name[6:]}.tar", identity, platform=name, digests=[DIGEST[1:]]) for name, identity in IDS.items()]
    for platform, identity in IDS.items():
        found = supply(platform, listed)
        assert (found["archive"], found["ids"]) == (f"/images/{platform.rpartition('/')[2]}.tar", [identity])
    # Another manifest of the same configuration, a platform that nobody has, and an image that is named by a tag.
    other = [held("/images/a.tar", IDS["linux/amd64"], digests=["sha256:" + "9" * 64])]
    assert supply(archives=other)["archive"] == supply("linux/riscv64", listed)["archive"] == ""
    [tagged] = image_supply([{"image": "hub.example/a:1"}], listed, "linux/amd64", "")
    assert tagged["archive"] == ""
    # Where the lockfile has the id, that counts and nothing else.
    assert supply(archives=listed, image_ids={"linux/amd64": "sha256:" + "8" * 64})["archive"] == ""


def test_an_image_out_of_an_archive_is_run_by_what_docker_calls_it():
    for identity in (IDS["linux/amd64"], "sha256:" + "c" * 64):
        found = supply(image_ids=IDS)
        assert image_names([found], [{"Id": identity}]) == {IMAGE: identity}
        assert images_to_load([found], [{"Id": identity}]) == [] and images_to_load([found], [{"Id": "sha256:other"}]) == [found]


@pytest.mark.parametrize("mirror", ["https://hub.example", "mirror", "hub.example/Mirror", "hub.example/a:tag", 5, ["a.b"]])
def test_what_is_no_prefix_is_told(mirror):
    with pytest.raises(ValueError, match="llm_fleet_image_mirror"):
        mirrored_image(IMAGE, mirror)
