# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The file that says how far a staging is."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import progress as module
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.progress import (
    Progress,
    born,
    eta,
    progress_path,
    read_progress,
)


@pytest.fixture
def incoming(tmp_path):
    (tmp_path / "incoming").mkdir()
    return tmp_path / "incoming"


def test_without_a_store_nothing_was_staged(tmp_path):
    assert read_progress(tmp_path)["state"] == "none" == read_progress(tmp_path, "x")["state"]


def test_it_follows_the_run(incoming, monkeypatch):
    monkeypatch.setattr(module, "INTERVAL", 0.01)
    progress = Progress(incoming)
    with progress.written():
        assert read_progress(incoming.parent)["state"] == "waiting"
        progress.total, progress.state = 100, "running"
        progress.advance(60)
        progress.advance(-20)
        while read_progress(incoming.parent)["done_bytes"] != 40:
            pass
        assert read_progress(incoming.parent)["state"] == "running"
        progress.advance(60)
    told = read_progress(incoming.parent)
    assert (told["state"], told["done_bytes"], told["fault"], eta(told)) == ("done", 100, None, 0)
    assert [path.name for path in incoming.iterdir()] == ["progress.json"]


@pytest.mark.parametrize("error", [ArtifactError("full", "here", "mend it"), ValueError("odd"), KeyboardInterrupt()])
def test_what_ends_a_run_is_in_it(incoming, error):
    with pytest.raises(type(error)), Progress(incoming, "run-1").written():
        raise error
    told = read_progress(incoming.parent, "run-1")
    assert told["state"] == "failed" and sorted(told["fault"]) == ["fix", "what", "where"]
    if isinstance(error, ArtifactError):
        assert told["fault"] == error.fault.as_dict()


def test_a_run_whose_process_is_gone_was_interrupted(incoming):
    with Progress(incoming).written():
        data = json.loads(progress_path(incoming, None).read_text())
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for pid in (gone.pid, os.getpid()):  # the number of this process, but another birth
        progress_path(incoming, None).write_text(json.dumps({**data, "state": "running", "pid": pid, "born": "1"}))
        assert read_progress(incoming.parent)["state"] == "interrupted"
    progress_path(incoming, None).write_text(json.dumps({**data, "state": "running"}))
    assert read_progress(incoming.parent)["state"] == "running"


def test_a_process_that_nobody_waited_for_is_gone_too():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert born(child.pid) is not None
    child.kill()
    while born(child.pid) is not None:
        pass
    child.communicate()


def test_of_two_nameless_runs_the_later_one_is_told_until_it_ends(incoming):
    first, second = Progress(incoming), Progress(incoming)
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with first.written():
        theirs = {**second.as_dict(), "pid": other.pid, "born": born(other.pid), "state": "running"}
        progress_path(incoming, None).write_text(json.dumps(theirs))
        first._write()
        assert json.loads(progress_path(incoming, None).read_text())["pid"] == other.pid
        other.communicate()
        first._write()
        assert json.loads(progress_path(incoming, None).read_text())["pid"] == os.getpid()


def test_a_half_written_or_foreign_file_is_none(incoming):
    for text in ("", "{", "[]", "null"):
        progress_path(incoming, None).write_text(text)
        assert read_progress(incoming.parent)["state"] == "none"


def test_old_runs_are_forgotten(incoming):
    old, young = progress_path(incoming, "old"), progress_path(incoming, "young")
    for path in (old, young):
        path.write_text("{}")
    os.utime(old, (1, 1))
    with Progress(incoming, "new").written():
        assert not old.exists() and young.exists()


@pytest.mark.parametrize(
    ("done", "total", "rate", "expected"), [(0, 100, 10, 10), (1, 100, 10, 10), (100, 100, 0, 0), (0, 100, 0, None)]
)
def test_how_long_the_rest_takes(done, total, rate, expected):
    assert eta({"done_bytes": done, "total_bytes": total, "rate": rate}) == expected
