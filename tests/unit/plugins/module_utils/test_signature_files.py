# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The set of files: whatever is added, taken away, renamed or changed is refused by its name."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import ollama_store
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_bundle import Mismatch
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_files import compare, signed_names

NAMES = st.text("abc/.", min_size=1, max_size=6)
DIGESTS = st.sampled_from(["aa" * 32, "bb" * 32, "cc" * 32])
FILES = st.dictionaries(NAMES.filter(lambda name: name != "."), DIGESTS, min_size=1, max_size=5)


def never(_name: str) -> bool:
    return False


@settings(deadline=None)
@given(FILES)
def test_the_signed_files_are_accepted(files):
    assert compare(files, dict(files), never) == []


@settings(deadline=None)
@given(FILES, FILES)
def test_any_other_set_is_refused(signed, files):
    if signed == files:
        assert compare(signed, files, never) == []
    else:
        with pytest.raises(Mismatch):
            compare(signed, files, never)


@settings(deadline=None)
@given(FILES, st.data())
def test_what_the_version_does_without_is_told_and_nothing_else_may_be_missing(signed, data):
    without = data.draw(st.sets(st.sampled_from(sorted(signed)), max_size=len(signed) - 1))
    files = {name: digest for name, digest in signed.items() if name not in without}
    assert compare(signed, files, without.__contains__) == sorted(without)
    if without:
        with pytest.raises(Mismatch, match="missing"):
            compare(signed, files, never)


def test_every_kind_of_difference_is_named():
    signed = {"kept": "aa", "changed": "aa", "gone": "aa"}
    with pytest.raises(Mismatch) as error:
        compare(signed, {"kept": "aa", "changed": "bb", "extra": "aa"}, never)
    assert "not signed: extra" in error.value.what
    assert "changed since they were signed: changed" in error.value.what
    assert "signed, but missing: gone" in error.value.what


def test_a_file_signed_by_itself_is_the_only_one():
    assert compare({".": "aa"}, {"tiny.gguf": "aa"}, never) == []
    for files in ({"tiny.gguf": "bb"}, {"tiny.gguf": "aa", "more": "aa"}):
        with pytest.raises(Mismatch):
            compare({".": "aa"}, files, lambda _name: True)


WEIGHTS = [{"path": "tiny.gguf", "size": 7, "sha256": "ab" * 32}]


def test_a_store_for_ollama_counts_as_the_weights_that_it_is_made_of():
    entry = {"format": "ollama", "files": ollama_store.from_gguf("tiny", WEIGHTS)}
    assert signed_names("tiny", entry) == {"tiny.gguf": "ab" * 32}


@pytest.mark.parametrize("change", ["template", "extra", "elsewhere"])
def test_a_store_for_ollama_with_anything_else_in_it_is_refused(change):
    files = ollama_store.from_gguf("tiny", WEIGHTS)
    if change == "template":
        files[0] = {**files[0], "sha256": "cd" * 32}
    elif change == "extra":
        files.append({"path": "blobs/extra", "size": 1, "sha256": "cd" * 32, "content": "x"})
    else:
        files = [{**file, "path": f"sub/{file['path']}"} for file in files]
    with pytest.raises(Mismatch):
        signed_names("tiny", {"format": "ollama", "files": files})


def test_a_second_projector_of_the_signed_one_s_name_is_refused():
    """Both make a store that follows from its files, and only one of them could be compared with what was signed."""
    projector = {"path": "mmproj.gguf", "size": 3, "sha256": "ef" * 32}
    files = ollama_store.from_gguf("tiny", [*WEIGHTS, {**projector, "sha256": "cd" * 32}, projector])
    for order in (files, files[::-1]):
        with pytest.raises(Mismatch, match="more than one file is to come from mmproj"):
            signed_names("tiny", {"format": "ollama", "files": order})


def test_a_path_that_was_renamed_by_hand_is_not_the_signed_one():
    entry = {"format": "gguf", "files": [{"path": "other.gguf", "from": "tiny.gguf", "size": 7, "sha256": "ab" * 32}]}
    assert signed_names("tiny", entry) == {"other.gguf": "ab" * 32}
