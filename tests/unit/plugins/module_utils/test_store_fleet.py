# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What all stores have to keep, and the tables that people get."""

from __future__ import annotations

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_fleet import (
    damage_rows,
    gc_rows,
    known_artifacts,
    still_damaged,
    verified_lines,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_report import Known
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import digest, entry


def record(release: str, version: str, body: bytes) -> dict:
    return {"release": release, "model": "tiny", "version": version, "files": [{**entry("tiny.gguf", body), "content": "x"}]}


def plan(*releases: dict, running: tuple[str, ...]) -> dict:
    return {"releases": {each["release"]: each for each in releases}, "instances": [{"release": name} for name in running]}


PLANNED = {
    "plan": plan(record("r1", "1.0.0", b"one"), running=("r1",)),
    "artifacts": {"gpu1": [record("r1", "1.0.0", b"one"), record("r2", "1.1.0", b"next")]},
}


def reasons(*arguments) -> dict[str, list[str]]:
    return {each["version"]: each["reasons"] for each in known_artifacts(*arguments)}


def test_running_wanted_previous_and_locked_versions_are_known():
    lock = {"models": {"tiny": {"1.0.0": record("", "1.0.0", b"one"), "0.1.0": record("", "0.1.0", b"old")}}}
    told = [{"name": "gpu1", "plan": plan(record("r0", "0.9.0", b"before"), running=("r0",))}, {"name": "gpu2", "plan": None}]
    assert reasons(PLANNED, told, lock) == {
        "0.1.0": ["locked"],
        "0.9.0": ["previous"],
        "1.0.0": ["current", "locked"],
        "1.1.0": ["wanted"],
    }
    assert all(Known.parse(each).artifact.files for each in known_artifacts(PLANNED, told, lock))


def test_other_contents_under_one_name_are_two_entries():
    lock = {"models": {"tiny": {"1.0.0": record("", "1.0.0", b"changed")}}}
    found = {each["files"][0]["sha256"]: each["reasons"] for each in known_artifacts(PLANNED, [], lock) if each["version"] == "1.0.0"}
    assert found == {digest(b"one"): ["current"], digest(b"changed"): ["locked"]}


def test_what_depots_verify_is_known_with_its_signature_and_names_at_the_source():
    file = {**entry("blobs/sha256-ab", b"next"), "from": "tiny.gguf"}
    signed = {"model": "tiny", "version": "1.1.0", "files": [file], "signature": {"signer": "sha256:ab"}}
    planned = {**PLANNED, "artifacts": {"gpu1": [{**signed, "signature": None}], "depot1": [signed]}}
    del planned["artifacts"]["gpu1"][0]["signature"]
    known = {each["version"]: each for each in known_artifacts(planned, [], {"models": {"tiny": {"1.1.0": signed}}})}
    assert known["1.1.0"]["signature"] == {"signer": "sha256:ab"} and known["1.1.0"]["files"] == [file]
    assert "signature" not in known["1.0.0"]


def test_a_plan_that_is_none_hurts_nobody():
    for broken in ("text", [], {"releases": []}, {"releases": {"r": "text"}}, {"releases": {"r": {}}}):
        assert known_artifacts(PLANNED, [{"name": "gpu1", "plan": broken}], {}) == known_artifacts(PLANNED, [], {})


def test_a_collection_as_rows():
    result = {
        "freed_bytes": 2048,
        "freed": [{"model": "tiny", "version": "0.9.0", "path": "/b", "bytes": 1024}],
        "kept": [{"model": "tiny", "version": "1.0.0", "path": "/a", "reasons": ["current", "open"]}],
        "unnamed": {"count": 0, "bytes": 0},
        "unfinished": {"count": 2, "bytes": 1024},
    }
    rows = [(row["model"], row["version"], row["freed"], row["because"]) for row in gc_rows({"gpu1": result})]
    assert rows == [
        ("tiny", "0.9.0", "1.0 KiB", "nobody names it"),
        ("tiny", "1.0.0", "stays", "current, open"),
        ("2 unfinished downloads", None, "1.0 KiB", "nobody names them"),
        ("total", None, "2.0 KiB", None),
    ]


def damaged(version: str = "1.0.0") -> dict:
    return {"model": "tiny", "version": version, "file": "tiny.gguf", "expected": "aa", "actual": "bb"}


def test_damage_names_host_and_instances():
    instances = {"gpu1": [{"id": "tiny-0-a", "model": "tiny", "version": "1.0.0"}, {"id": "tiny-1-a", "model": "tiny", "version": "2.0.0"}]}
    rows = damage_rows({"gpu1": {"damaged": [damaged()]}, "controller": {"damaged": [damaged()]}}, instances)
    assert [(row["host"], row["file"], row["used_by"]) for row in rows] == [
        ("controller", "tiny.gguf", []),
        ("gpu1", "tiny.gguf", ["tiny-0-a"]),
    ]


def test_after_a_staging_only_incomplete_trees_are_left():
    rows = [{"host": "gpu1", **damaged()}, {"host": "gpu1", **damaged("2.0.0")}, {"host": "controller", **damaged()}]
    assert still_damaged(rows, {}) == rows
    after = {"gpu1": [{"model": "tiny", "version": "1.0.0", "complete": True}, {"model": "tiny", "version": "2.0.0", "complete": False}]}
    assert still_damaged(rows, after) == [rows[1]]


def test_a_reading_is_a_line():
    result = {"contents": 3, "bytes_read": 2048, "seconds": 2.0, "rate": 1024, "damaged": []}
    assert verified_lines({"gpu1": result, "depot10": {**result, "damaged": [damaged()]}}) == [
        "depot10  3 contents, 2.0 KiB in 2 s (1.0 KiB/s): 1 damaged",
        "gpu1     3 contents, 2.0 KiB in 2 s (1.0 KiB/s): all as they should be",
    ]
