# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""A manifest comes from outside: whatever stands in it, it leads to no place outside of the bundle."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import whole_files
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.bundle_manifest import (
    KINDS,
    Entry,
    Manifest,
    blob_path,
    lacking,
    left_out,
    parse_manifest,
    render_manifest,
)

SHA = "ab" * 32
BLOB, IMAGE = Entry(blob_path(SHA), 5, SHA), Entry("images/a.tar", 7, "cd" * 32)
SOUND = Manifest("2026-11-29T14:00:00Z", "a test", "", [], [], ["debian-12-amd64"], [BLOB, IMAGE], [])


def changed(**more) -> bytes:
    return json.dumps({**json.loads(render_manifest(SOUND)), **more}).encode()


def with_file(**more) -> bytes:
    return changed(files=[{**IMAGE.as_dict(), **more}])


def test_what_is_written_is_read_and_gives_the_same_bytes():
    found, faults = parse_manifest(render_manifest(SOUND), "m")
    assert faults == [] and found == SOUND._replace(files=sorted(SOUND.files))
    assert render_manifest(found) == render_manifest(SOUND._replace(files=SOUND.files[::-1]))


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../images/a.tar", "images/../../a", "images//a", "images/./a", "images/", "images", "other/a", "images\\a",
     "images/a\n", "", "models.lock.yml/a", "images/\ud800"],
)
def test_no_path_leads_out_of_the_bundle(path):
    found, faults = parse_manifest(with_file(path=path), "m")
    assert found is None and faults


@pytest.mark.parametrize("path", [f"images/{'é' * 125}", f"images/{'a' * 250}", "/".join(["images", *["a" * 200] * 5])])
def test_a_name_has_as_many_bytes_as_a_disk_takes_with_its_draft(tmp_path, path):
    """Letters are not what file systems count."""
    found, _faults = parse_manifest(with_file(path=path), "m")
    assert found.files[0].path == path
    (tmp_path / path).parent.mkdir(parents=True)
    with whole_files.draft_of(tmp_path / path) as draft:
        draft.rename(tmp_path / path)
    longer = path.replace("images/", "images/aaaaaaaaaaaaaaaaaaaaaaaaaaaaa" if path.count("/") > 1 else "images/a")
    found, (fault,) = parse_manifest(with_file(path=longer), "m")
    assert found is None and "too long: a name has at most 250 bytes" in fault.what


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"{", b"\xff", b'{"format": 1, "format": 1}', changed(format=2), changed(more=1), changed(files="none"),
        with_file(size=-1), with_file(size=True), with_file(sha256="AB" * 32), with_file(kind="artifact"), with_file(kind="spell"),
        changed(files=[IMAGE.as_dict(), IMAGE.as_dict()]), changed(earlier=[IMAGE.as_dict()]), changed(distributions=["../x-1-a"]),
        changed(files=[{**BLOB.as_dict(), "sha256": "cd" * 32}]), changed(base="sha256:0"), changed(files=[[]]), b"[" * 100000,
    ],
)
def test_what_is_no_manifest_is_refused_with_a_way_out(data):
    found, faults = parse_manifest(data, "m")
    assert found is None and faults and all(fault.fix and fault.where.startswith("m") for fault in faults)


@given(st.text(max_size=40))
def test_a_path_that_passes_is_below_a_place_of_the_bundle(path):
    found, _faults = parse_manifest(with_file(path=path), "m")
    if found:
        top, *rest = found.files[0].path.split("/")
        assert top in KINDS and rest and not {"", ".", ".."}.intersection(rest)


def test_an_incremental_bundle_leaves_out_what_the_base_has_and_counts_on_it():
    base = SOUND._replace(files=[BLOB], earlier=[IMAGE])
    earlier, nobody = left_out([BLOB.path, IMAGE.path, "wheels/new.whl", "wheels/here.whl"], ["wheels/here.whl"], base)
    assert sorted(earlier) == sorted([BLOB, IMAGE]) and nobody == ["wheels/new.whl"]
    more = SOUND._replace(files=[], earlier=[BLOB, IMAGE])
    assert lacking(more, {BLOB.path: BLOB, IMAGE.path: IMAGE}) == []
    # Something else by that name does not do.
    assert lacking(more, {BLOB.path: BLOB, IMAGE.path: IMAGE._replace(size=8)}) == [IMAGE]
    assert lacking(more, {}) == [BLOB, IMAGE]
