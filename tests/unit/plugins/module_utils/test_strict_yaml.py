# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
from __future__ import annotations

import os
import subprocess
import sys

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.strict_yaml import DEEPEST, load_with_lines, load_yaml
from ansible_collections.localfirst.llm_fleet.tests.unit.conftest import REPO

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(PLAIN)
def test_what_was_written_is_what_is_read(data):
    # Each part anew, or PyYAML writes an alias where one object stands in two places.
    class NoAliases(yaml.SafeDumper):
        def ignore_aliases(self, data):
            return True

    assert load_yaml(yaml.dump(data, Dumper=NoAliases), "f.yml") == (data, [])


@given(st.text(alphabet="+-.:_0123456789abefinoxTZ ", max_size=12))
def test_no_plain_value_raises(text):
    data, faults = load_yaml(f"a: {text}", "f.yml")
    assert data is None or not faults


@given(st.text(alphabet="[]{}:,-? &*!|>'\"#%@`abc1.\n\t\x00\ud800"))
def test_no_text_raises(text):
    data, faults = load_yaml(text, "f.yml")
    assert data is None or not faults


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("a: 1\nb: 2\na: 3", "f.yml: line 3", "'a'"),
        ("a: 1\nb:\n  - c: 1\n    c: 2", "f.yml: line 4", "'c'"),
        ("a: [1\nb: 2", "f.yml: line 2", "YAML"),
        ("a: &x 1\nb: *x", "f.yml: line 2", "*x"),
        ("a: &x [*x]", "f.yml: line 1", "*x"),
        ("a: !!python/name:os.system x", "f.yml: line 1", "!!python/name:os.system"),
        ("a: 1\nb: !!int ''", "f.yml: line 2", "!!int"),
        ("a: 1\nb: !!float ''", "f.yml: line 2", "!!float"),
        ("a: !!bool x", "f.yml: line 1", "!!bool"),
        ("a: !!timestamp x", "f.yml: line 1", "!!timestamp"),
        ("a: !!str 1", "f.yml: line 1", "!!str"),
        ("a:\n  !!set {x}", "f.yml: line 2", "!!set"),
        ("a: !vault x", "f.yml: line 1", "!vault"),
        ("a: ! x", "f.yml: line 1", "tag !"),
        ("a: 2026-99-99", "f.yml", "YAML"),
        ("\n" + "[" * 100_000, "f.yml: line 2", "deep"),
        ("a: 1\n---\na: 2", "f.yml: line 2", "YAML"),
    ],
)
def test_faults_name_the_line(text, where, what):
    data, faults = load_yaml(text, "f.yml")
    assert data is None
    assert len(faults) == 1
    assert faults[0].where == where
    assert what in faults[0].what


def test_data_may_nest_as_deep_as_real_files_do_and_no_deeper():
    assert load_yaml("[" * DEEPEST + "]" * DEEPEST, "f.yml")[1] == []
    assert len(load_yaml("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "f.yml")[1]) == 1


def test_equal_keys_of_different_mappings_are_no_repetition():
    assert load_yaml("a: {x: 1}\nb: {x: 2}", "f.yml") == ({"a": {"x": 1}, "b": {"x": 2}}, [])


def test_all_repeated_keys_are_found():
    assert len(load_yaml("a: 1\na: 2\nb: {c: 1, c: 2}", "f.yml")[1]) == 2


@pytest.mark.parametrize("text", [None, b"a: 1", 3])
def test_only_text_is_read(text):
    assert load_yaml(text, "f.yml")[1]


def test_each_part_of_the_data_has_its_line():
    text = "# head\n---\na:\n  b.c: 1\n  d:\n    - {e: 1}\n    - - 2\n      - f: [3,\n          4]\n7: x\n"
    data, faults, lines = load_with_lines(text, "f.yml")
    assert faults == [] and data == load_yaml(text, "f.yml")[0]
    places = {"": 3, "a": 3, "a.b.c": 4, "a.d": 5, "a.d[0]": 6, "a.d[0].e": 6, "a.d[1][1].f[0]": 8, "a.d[1][1].f[1]": 9, "7": 10}
    assert {place: lines.of(place) for place in places} == places
    assert lines.of("a.x") is None


@pytest.mark.parametrize("text", ["", "a: [", None])
def test_without_data_there_are_no_lines(text):
    assert load_with_lines(text, "f.yml")[2].of("") is None


def test_a_host_without_a_yaml_library_is_told_so():
    """As on hosts of the fleet that nobody prepared for reading a lockfile."""
    program = (
        "import sys; sys.modules['yaml'] = None\n"
        "from ansible_collections.localfirst.llm_fleet.plugins.module_utils.strict_yaml import load_yaml\n"
        "print(load_yaml('a: 1', 'models.lock.yml')[1][0].text())"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO / ".venv" / "collections")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, text=True, capture_output=True, check=True)
    assert "python3-yaml" in done.stdout
