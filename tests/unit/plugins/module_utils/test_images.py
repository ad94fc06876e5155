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
ARCHIVES = [
    {"path": "/images/other.tar", "images": [{"id": "sha256:" + "0" * 64, "manifest": ""}]},
    {"path": "/images/amd64.tar", "images": [{"id": IDS["linux/amd64"], "manifest": "sha256:" + "c" * 64}]},
    {"path": "/images/arm64.tar", "images": [{"id": IDS["linux/arm64"], "manifest": ""}]},
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


def test_an_image_out_of_an_archive_is_run_by_what_docker_calls_it():
    for identity in (IDS["linux/amd64"], "sha256:" + "c" * 64):
        found = supply(image_ids=IDS)
        assert image_names([found], [{"Id": identity}]) == {IMAGE: identity}
        assert images_to_load([found], [{"Id": identity}]) == [] and images_to_load([found], [{"Id": "sha256:other"}]) == [found]


@pytest.mark.parametrize("mirror", ["https://hub.example", "mirror", "hub.example/Mirror", "hub.example/a:tag", 5, ["a.b"]])
def test_what_is_no_prefix_is_told(mirror):
    with pytest.raises(ValueError, match="llm_fleet_image_mirror"):
        mirrored_image(IMAGE, mirror)
