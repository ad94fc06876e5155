# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
from __future__ import annotations

import hashlib
import random

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import semver
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile import parse_lockfile
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile_text import render_lockfile, version_digest

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
LINE = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)
NO_TEXT = ["on", "No", "1", "1e3", "0x1", "1.0", "null", "y"]  # names that YAML takes for something else
NAME = st.one_of(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True), st.sampled_from(NO_TEXT))
WORD = st.one_of(st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True), st.sampled_from(["yes", "null", "off"]))
SEGMENT = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\"), min_size=1, max_size=8)
PATH = st.lists(SEGMENT.filter(lambda part: part not in (".", "..")), min_size=1, max_size=3).map("/".join)
HEX = st.binary(min_size=32, max_size=32).map(bytes.hex)
NUMBER = st.integers(0, 12).map(str)
VERSION = st.builds("{}.{}.{}{}".format, NUMBER, NUMBER, NUMBER, st.sampled_from(["", "-rc.1", "-0", "+a", "-1e5"]))
DIGEST = HEX.map("sha256:{}".format)
SOURCE = st.one_of(
    st.builds("oci://r:5000/a@{}".format, DIGEST),
    st.just("https://h/a%20b?x=1"),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=9).map("file:///{}".format),
)


@st.composite
def files(draw):
    found = []
    origins = iter(draw(st.lists(PATH, min_size=4, max_size=4, unique=True)))  # no two files come from one
    for path in draw(st.lists(PATH, min_size=1, max_size=4, unique=True)):
        entry = {"path": path}
        if draw(st.booleans()):
            content = draw(TEXT)
            entry |= {"content": content, "size": len(content.encode()), "sha256": hashlib.sha256(content.encode()).hexdigest()}
        else:
            entry["sha256"] = draw(HEX)
            entry["size"] = int(entry["sha256"][:8], 16)
            if draw(st.booleans()):
                entry["from"] = next(origins)
        if not any(other["path"].startswith(f"{path}/") or path.startswith(f"{other['path']}/") for other in found):
            found.append(entry)
    return sorted(found, key=lambda file: file["path"])


@st.composite
def versions(draw):
    some = draw(files())
    entry = {"source": draw(SOURCE), "format": draw(WORD), "size": sum(file["size"] for file in some)}
    entry |= {"digest": version_digest(some), "files": some}
    return entry | draw(st.fixed_dictionaries({}, optional={"asked": SOURCE, "licence": LINE}))


@st.composite
def lockfiles(draw):
    ids = st.dictionaries(st.sampled_from(["linux/amd64", "linux/arm64"]), DIGEST)
    images = st.fixed_dictionaries({"image": st.just("r:5000/a/b"), "digest": DIGEST}, optional={"asked": LINE, "ids": ids})
    lock = {
        "lockfile": 1,
        "images": draw(st.dictionaries(WORD, images, max_size=2)),
        "models": draw(st.dictionaries(NAME, st.dictionaries(VERSION, versions(), max_size=3), max_size=3)),
    }
    if draw(st.booleans()):
        lock["tool"] = draw(LINE)
    selected = {model: {"asked": f">={min(there, key=semver.order)}", "version": min(there, key=semver.order)}
                for model, there in lock["models"].items() if there and not any("+" in version for version in there)}
    return {**lock, "selected": selected} if selected else lock


@given(lockfiles())
def test_what_was_written_is_what_is_read(lock):
    text = render_lockfile(lock)
    assert parse_lockfile(text, "models.lock.yml") == (lock, [])
    assert yaml.safe_load(text) == {**lock, "end": True}
    assert render_lockfile(parse_lockfile(text, "models.lock.yml")[0]) == text
    assert text.isascii() and all(line == line.rstrip() for line in text.splitlines())


def shuffled(value, order):
    """The same data, in another order wherever order means nothing."""
    if isinstance(value, dict):
        keys = list(value)
        order.shuffle(keys)
        return {key: shuffled(value[key], order) for key in keys}
    if isinstance(value, list):
        return [shuffled(entry, order) for entry in order.sample(value, len(value))]
    return value


@given(lockfiles(), st.integers())
def test_the_same_data_in_any_order_are_the_same_text(lock, number):
    assert render_lockfile(shuffled(lock, random.Random(number))) == render_lockfile(lock)


@given(lockfiles(), st.data())
def test_a_part_of_a_file_is_never_taken_for_the_whole(lock, data):
    whole = render_lockfile(lock).encode()
    part = whole[: data.draw(st.integers(0, len(whole) - 1))]
    read, faults = parse_lockfile(part.decode(), "models.lock.yml")
    assert faults or (read == lock and part == whole.rstrip())
    assert all(fault.where.startswith("models.lock.yml") for fault in faults)


FILE = {"path": "a.gguf", "size": 3, "sha256": "ab" * 32}


@pytest.mark.parametrize("key", ["path", "size", "sha256"])
def test_the_digest_of_a_version_is_over_all_that_a_file_is(key):
    other = {"path": "b.gguf", "size": 4, "sha256": "cd" * 32}
    assert version_digest([{**FILE, key: other[key]}]) != version_digest([FILE])


def test_the_digest_of_a_version_is_that_of_a_list_as_sha256sum_and_stat_would_print_it():
    lines = f"{'00' * 32}  7  z\n{'ab' * 32}  3  a.gguf\n"
    there = [FILE, {"path": "z", "size": 7, "sha256": "00" * 32, "from": "elsewhere"}]
    assert version_digest(there) == f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def test_a_diff_shows_what_changed_and_nothing_else():
    entry = {"source": "file:///m", "format": "gguf", "files": [FILE, {**FILE, "path": "b.gguf"}]}
    lock = {"images": {}, "models": {"big": {"1.0.0": entry}, "tiny": {"1.10.0": entry, "1.9.0": entry}}}
    before = render_lockfile(lock).splitlines()
    lock["models"]["tiny"]["1.9.0"] = {**entry, "files": [FILE, {**FILE, "path": "b.gguf", "sha256": "cd" * 32}]}
    after = render_lockfile(lock).splitlines()
    assert len(before) == len(after)
    assert [old.split(":")[0].strip(" -{") for old, new in zip(before, after, strict=True) if old != new] == ["digest", "path"]


def test_versions_stand_in_their_order_and_not_in_that_of_letters():
    entry = {"source": "file:///m", "format": "gguf", "files": [FILE]}
    text = render_lockfile({"images": {}, "models": {"tiny": {"1.10.0": entry, "1.9.0": entry, "1.9.0-rc.1": entry}}})
    assert text.index("1.9.0-rc.1:") < text.index("1.9.0:") < text.index("1.10.0:")


def test_a_small_file_may_be_as_large_as_it_says():
    content = "x" * 65536
    file = {"path": "m", "size": 65536, "sha256": hashlib.sha256(content.encode()).hexdigest(), "content": content}
    text = render_lockfile({"images": {}, "models": {"tiny": {"1.0.0": {"source": "file:///m", "format": "ollama", "files": [file]}}}})
    lock, faults = parse_lockfile(text, "models.lock.yml")
    assert faults == [] and lock["models"]["tiny"]["1.0.0"]["files"] == [file]
