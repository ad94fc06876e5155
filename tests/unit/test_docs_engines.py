# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What docs/engines.md says is so: the engines that its table has, and the one that it adds as an example."""
from __future__ import annotations

import re
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.lookup.engine_profiles import BUILT_IN, read_profiles
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.catalog import check_catalog
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.release import build_release, command_line

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "engines.md").read_text()
ENGINES = ["parrot"]
EXAMPLES = [block for block in re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE) if block.startswith("---\n")]


def documented(engine, folder):
    """The profiles with the one from the page, written to a file as an operator would."""
    [text] = [block for block in EXAMPLES if f"\nname: {engine}\n" in block]
    (folder / f"{engine}.yml").write_text(text)
    return read_profiles([BUILT_IN, folder])


@pytest.mark.parametrize("engine", ENGINES)
def test_the_example_of_the_page_is_a_profile_that_a_model_can_use(engine, tmp_path):
    profiles, faults = documented(engine, tmp_path)
    assert faults == []
    entry = {
        "name": "tiny",
        "version": "1.0.0",
        "versions": {"1.0.0": {"source": "https://models.example/tiny.gguf"}},
        "engine": engine,
        "extra_args": ["--loud"],
    }
    [model], _clients, faults = check_catalog([entry], [], profiles, ["gpu1"])
    assert faults == []
    locked = {"source": "https://models.example/tiny.gguf", "format": "gguf", "size": 1}
    files = [{"path": "tiny.gguf", "size": 1, "sha256": "a" * 64}]
    record = build_release(profiles[engine], model, "1.0.0", {**locked, "files": files}, "registry.example.com/parrot@sha256:" + "e" * 64)
    words = command_line(record)
    assert "/models/tiny.gguf" in words and words[-1] == "--loud"


def test_the_page_has_every_example_tested():
    assert sorted(re.findall(r"^name: (\w+)$", "".join(EXAMPLES), re.MULTILINE)) == sorted(ENGINES)


def test_the_tables_have_all_engines_of_the_collection_with_their_status():
    profiles, _faults = read_profiles([BUILT_IN])
    header = next(line for line in PAGE.splitlines() if line.startswith("| | `"))
    engines = re.findall(r"`(\w+)`", header)
    assert sorted(engines) == sorted(profiles)
    row = next(line for line in PAGE.splitlines() if line.startswith("| status |"))
    assert [cell.strip().split(":")[0] for cell in row.strip("|").split("|")[1:]] == [profiles[engine]["status"] for engine in engines]
    formats = next(line for line in PAGE.splitlines() if line.startswith("| formats |")).strip("|").split("|")[1:]
    for engine, cell in zip(engines, formats):
        assert all(f"`{form}`" in cell for form in profiles[engine]["formats"])


def test_flags_that_the_page_names_are_those_of_the_profiles():
    profiles, _faults = read_profiles([BUILT_IN])
    header = next(line for line in PAGE.splitlines() if line.startswith("| | `"))
    engines = re.findall(r"`(\w+)`", header)
    for key in ("context", "parallel"):
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{key}` |")).strip("|").split("|")[1:]
        for engine, cell in zip(engines, row):
            container = profiles[engine]["container"]
            known = {words[0] for words in container["command"]} | set(container["environment"])
            assert re.search(r"`([^`]+)`", cell)[1] in known
