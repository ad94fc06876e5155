# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Hosts of the testbed keep what they compile out of archives, and run the source that they were given all the same."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

HOOK = Path(__file__).resolve().parents[3] / "testbed/images/host/overlay/usr/lib/python3/dist-packages"
PROGRAM = "import testbed_bytecode, thing; print(thing.VALUE)"


@pytest.fixture
def run(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()

    def run(source: str, folder: Path = kept) -> str:
        archive = tmp_path / "module.zip"
        with zipfile.ZipFile(archive, "w") as made:
            made.writestr("thing.py", source)
        environment = {"PYTHONPATH": f"{archive}:{HOOK}", "TESTBED_BYTECODE": str(folder)}
        return subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=True, capture_output=True, text=True).stdout.strip()

    run.kept = kept
    return run


def test_the_same_source_is_compiled_once(run):
    assert run("VALUE = 1") == "1"
    [file] = run.kept.iterdir()
    made = file.stat().st_mtime_ns
    assert run("VALUE = 1") == "1"
    assert [(each, each.stat().st_mtime_ns) for each in run.kept.iterdir()] == [(file, made)]


def test_another_source_is_another_program(run):
    assert (run("VALUE = 1"), run("VALUE = 2"), run("VALUE = 1")) == ("1", "2", "1")
    assert len(list(run.kept.iterdir())) == 2


def test_what_cannot_be_read_is_compiled_again(run):
    run("VALUE = 1")
    [file] = run.kept.iterdir()
    file.write_bytes(b"rubbish")
    assert run("VALUE = 1") == "1" and file.read_bytes() != b"rubbish"


def test_without_a_place_for_it_nothing_is_kept(run, tmp_path):
    assert run("VALUE = 1", folder=tmp_path / "none") == "1"
    assert list(run.kept.iterdir()) == []
