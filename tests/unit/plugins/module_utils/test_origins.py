# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Where bytes come from."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import Artifact, ArtifactError, File
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.origins import (
    FromSources,
    Suppliers,
    parse_sources,
    secrets_of,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.web import Web
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import artifact, digest

BASES = [f"https://10.0.0.{number}:8444" for number in range(1, 5)]


def file_of(text: str) -> File:
    return File("a", len(text), digest(text.encode()))


def test_every_supplier_is_asked_by_digest_in_a_lasting_order():
    wanted = file_of("x")
    requests = Suppliers(BASES, Web(), "gpu1").requests(Artifact("m", "1"), wanted)
    assert sorted(request.url for request in requests) == [f"{base}/blobs/sha256/{wanted.sha256}" for base in BASES]
    assert requests == Suppliers([f"{base}/" for base in BASES], Web(), "gpu1").requests(Artifact("m", "1"), wanted)
    assert Suppliers([], Web()).requests(Artifact("m", "1"), wanted) == []


def test_hosts_begin_with_different_suppliers():
    first = Counter(
        Suppliers(BASES, Web(), f"gpu{number}").requests(Artifact("m", "1"), file_of("x"))[0].url for number in range(200)
    )
    assert len(first) == len(BASES) and max(first.values()) < 2 * min(first.values())


@pytest.mark.parametrize("base", ["", "depot", "ftp://h", "https://", "https://u:geheim@h", "https://h?x=geheim", "https://h:x"])
def test_a_supplier_is_an_address(base):
    with pytest.raises(ArtifactError) as caught:
        Suppliers([base], Web())
    assert "geheim" not in str(caught.value)


def test_a_source_is_asked_for_the_path_that_it_knows():
    wanted = artifact("https://models.example/tiny", {"blobs/x": b"1", "blobs/y": b"2"})
    entry = {"path": "blobs/x", "size": 1, "sha256": digest(b"1"), "from": "tiny.gguf"}
    moved = Artifact.parse("tiny", "1.0.0", "https://models.example/tiny", [entry])
    assert FromSources({}).requests(moved, moved.files[0])[0].url == "https://models.example/tiny/tiny.gguf"
    assert FromSources({}).requests(wanted, wanted.files[0])[0].url == "https://models.example/tiny/blobs/x"


def test_a_source_keeps_its_own_way_of_asking():
    origin = FromSources({"https://models.example/": {"retries": 2, "token": "geheim"}})
    wanted = artifact("https://models.example/tiny", {"a": b"1"})
    assert origin.web(wanted).retries == 2 and origin.web(wanted) is origin.web(wanted)
    assert "geheim" in str(origin.requests(wanted, wanted.files[0])[0].headers)


@pytest.mark.parametrize("source", ["", "gopher://h/x"])
def test_without_a_usable_source_it_says_so(source):
    wanted = artifact(source, {"a": b"1"})
    with pytest.raises(ArtifactError):
        FromSources({}).requests(wanted, wanted.files[0])


def test_settings_come_as_json_and_their_secrets_are_known():
    settings = {"hf://": {"token": "geheim"}, "s3://": {"secret_key": "auch", "region": "eu"}}
    assert parse_sources(json.dumps(settings)) == settings and parse_sources(None) is None
    assert sorted(secrets_of(settings)) == ["auch", "geheim"] and secrets_of(None) == []


@pytest.mark.parametrize("text", ["geheim", "[]", '"geheim"', '{"geheim": {}}', '{"hf://": {"token": {"geheim": 1}}}'])
def test_settings_that_are_wrong_are_refused_and_not_repeated(text):
    with pytest.raises(ArtifactError) as caught:
        parse_sources(text)
    assert "geheim" not in str(caught.value)
