# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import whole_files


@pytest.mark.parametrize("content", ["größer\n", b"gr\xc3\xb6\xc3\x9fer\n"])
def test_text_and_bytes_are_written_with_their_mode(tmp_path, content):
    path = tmp_path / "a" / "b"
    whole_files.write(path, content, 0o640)
    assert whole_files.read(path) == "größer\n" and path.stat().st_mode & 0o7777 == 0o640
    whole_files.write(path, "other", 0o600)
    assert whole_files.read(path) == "other" and path.stat().st_mode & 0o7777 == 0o600
    assert os.listdir(path.parent) == ["b"]


def test_what_is_not_there_reads_as_nothing(tmp_path):
    assert whole_files.read(tmp_path / "nowhere") == ""


@pytest.mark.parametrize(("content", "raised"), [("no text: \udcff", UnicodeEncodeError), (b"interrupted", KeyboardInterrupt)])
def test_whatever_keeps_it_from_being_written_leaves_no_draft(tmp_path, monkeypatch, content, raised):
    def interrupted(_handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(raised):
        whole_files.write(tmp_path / "a" / "b", content, 0o644)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_full_disk_leaves_the_old_file_and_nothing_of_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "b"
    whole_files.write(path, "old", 0o644)

    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        whole_files.write(path, "new", 0o644)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["b"]


def test_writers_of_one_large_file_take_turns(tmp_path):
    path, seen = tmp_path / "a.tar", []

    def replace(letter: bytes) -> None:
        for _time in range(50):
            with whole_files.draft_of(path) as draft:
                for _part in range(8):
                    with draft.open("ab" if _part else "wb") as file:
                        file.write(letter * 1000)
                os.replace(draft, path)
            seen.append(len(set(path.read_bytes())))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(replace, (b"a", b"b", b"c", b"d")))
    assert seen == [1] * 200 and os.listdir(tmp_path) == ["a.tar"] and path.stat().st_size == 8000


def test_a_draft_goes_with_whoever_failed_and_what_was_left_of_one_is_overwritten(tmp_path):
    path = tmp_path / "a.tar"
    (tmp_path / f"{whole_files.BEFORE}a.tar{whole_files.AFTER}").write_bytes(b"left by a run that was killed")
    with whole_files.draft_of(path) as draft:
        draft.write_bytes(b"new")
        os.replace(draft, path)
    assert path.read_bytes() == b"new"
    with pytest.raises(KeyboardInterrupt), whole_files.draft_of(path) as draft:
        draft.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["a.tar"]
