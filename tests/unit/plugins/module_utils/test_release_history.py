# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What a host remembers of its releases, on a real file."""

from __future__ import annotations

import json

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.release_history import GOOD, KEPT, append, last_good, read


def entry(release: str, outcome: str = GOOD, **more) -> dict:
    return {"at": "2026-11-28T14:02:12Z", "model": "tiny", "replica": 0, "release": release, "outcome": outcome, **more}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "releases.jsonl"


def test_entries_come_back_in_their_order(path):
    assert read(path) == []
    for release in ("a", "b", "c"):
        append(path, entry(release, why="viel\nschöner"))
    assert read(path) == [entry(release, why="viel\nschöner") for release in ("a", "b", "c")]
    assert len(path.read_text().splitlines()) == 3 and path.stat().st_mode & 0o777 == 0o640


def test_a_damaged_line_hides_no_other(path):
    append(path, entry("a"))
    incomplete = {key: value for key, value in entry("x").items() if key != "outcome"}
    damaged = ['{"at": "2026-11-28T14:0', "", "[1]", "null", '"text"', json.dumps(incomplete)]
    with open(path, "a") as file:
        file.write("".join(f"{line}\n" for line in damaged) + json.dumps(entry("b")) + "\n" + json.dumps(entry("c"))[:-4])
    assert read(path) == [entry("a"), entry("b")]
    append(path, entry("d"))
    assert read(path) == [entry("a"), entry("b"), entry("d")]


def test_what_is_not_even_text_hides_no_other(path):
    append(path, entry("a"))
    with open(path, "ab") as file:
        file.write(b"\xff\xfe\x00\n" + json.dumps(entry("b")).encode() + b"\n")
    assert read(path) == [entry("a"), entry("b")]


def test_the_oldest_go(path):
    path.parent.mkdir()
    path.write_text("".join(f"{json.dumps(entry(str(number)))}\n" for number in range(KEPT)))
    append(path, entry("new"))
    kept = [one["release"] for one in read(path)]
    assert kept == [*(str(number) for number in range(1, KEPT)), "new"]


def test_the_last_good_one_is_the_newest_of_this_replica_that_is_left_for(path):
    entries = [
        entry("a"),
        entry("b"),
        entry("c", "switched"),
        entry("c", "failed: out of memory"),
        entry("x", replica=1),
        {**entry("y"), "model": "other"},
    ]
    assert last_good(entries, "tiny", 0)["release"] == "b"
    assert last_good(entries, "tiny", 0, "c")["release"] == "b"
    assert last_good(entries, "tiny", 0, "b")["release"] == "a"
    assert last_good(entries, "tiny", 2) is None
    assert last_good([], "tiny", 0) is None
