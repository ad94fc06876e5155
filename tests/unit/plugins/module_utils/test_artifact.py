# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What the lockfile may say of an artifact."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import Artifact, ArtifactError, human

DIGEST = "ab" * 32


def artifact(source="", *paths, model="tiny", version="1.0.0"):
    files = [{"path": path, "size": 1, "sha256": DIGEST} for path in paths or ("a.gguf",)]
    return Artifact.parse(model, version, source, files)


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "..", "../a", "a/../../b", "a//b", "./a", "a/", "a/./b", "a\\b", "a\0b", "a\nb", "x" * 256],
)
def test_a_path_that_could_leave_the_tree_is_refused(path):
    with pytest.raises(ArtifactError) as caught:
        artifact("", path)
    assert "models.lock.yml" in caught.value.fault.fix


@given(st.text())
def test_whatever_path_is_let_through_stays_below_the_tree(path):
    try:
        accepted = artifact("", path).files[0].path
    except ArtifactError:
        return
    assert ".." not in accepted.split("/") and not accepted.startswith("/") and "\0" not in accepted


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", ".hidden", "-x", "a b", "x" * 64, "a\n"])
def test_models_and_versions_are_names_of_directories(name):
    with pytest.raises(ArtifactError):
        artifact(model=name)
    with pytest.raises(ArtifactError):
        artifact(version=name)


@pytest.mark.parametrize("digest", ["", "ab" * 31, "AB" * 32, "../" + "a" * 61, "ab" * 32 + "\n"])
def test_a_malformed_digest_is_refused(digest):
    with pytest.raises(ArtifactError, match="64 lower-case"):
        Artifact.parse("tiny", "1.0.0", "", [{"path": "a", "size": 1, "sha256": digest}])


@pytest.mark.parametrize("size", [-1, None, "1", 1.5, True])
def test_a_size_is_a_number_of_bytes(size):
    with pytest.raises(ArtifactError, match="number of bytes"):
        Artifact.parse("tiny", "1.0.0", "", [{"path": "a", "size": size, "sha256": DIGEST}])


def test_paths_do_not_get_in_each_others_way():
    with pytest.raises(ArtifactError, match="twice"):
        artifact("", "a", "a")
    with pytest.raises(ArtifactError, match="both a file and a directory"):
        artifact("", "a", "a/b")


def test_one_digest_has_one_size():
    files = [{"path": path, "size": size, "sha256": DIGEST} for path, size in (("a", 1), ("b", 2))]
    with pytest.raises(ArtifactError, match="another size"):
        Artifact.parse("tiny", "1.0.0", "", files)


def test_the_path_at_the_source_may_differ_but_not_lead_elsewhere():
    entry = {"path": "blobs/sha256-ab", "size": 1, "sha256": DIGEST}
    assert Artifact.parse("tiny", "1.0.0", "", [entry]).files[0].origin == "blobs/sha256-ab"
    assert Artifact.parse("tiny", "1.0.0", "", [{**entry, "from": "tiny.gguf"}]).files[0].origin == "tiny.gguf"
    assert Artifact.parse("tiny", "1.0.0", "", [{**entry, "from": None, "content": None}]).files[0].content is None
    with pytest.raises(ArtifactError, match="plain relative path"):
        Artifact.parse("tiny", "1.0.0", "", [{**entry, "from": "../shadow"}])


@pytest.mark.parametrize(
    ("content", "size", "sound"),
    [("ä{}", 4, True), ("ä{}", 3, False), ("{}", 4, False), (b"ab", 2, False), ("x" * 65537, 65537, False)],
)
def test_a_content_in_the_lockfile_is_what_its_digest_says(content, size, sound):
    data = "ä{}".encode() if size in (3, 4) else bytes(content, "ascii") if isinstance(content, str) else content
    entry = {"path": "a", "size": size, "sha256": hashlib.sha256(data).hexdigest(), "content": content}
    if sound:
        assert Artifact.parse("tiny", "1.0.0", "", [entry]).files[0].content == content
    else:
        with pytest.raises(ArtifactError, match="its content in the lockfile"):
            Artifact.parse("tiny", "1.0.0", "", [entry])


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (2**41, "2.0 TiB")]
)
def test_sizes_for_people(size, text):
    assert human(size) == text
