# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import schema
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.schema import (
    either,
    list_of,
    map_of,
    number,
    one_of,
    optional,
    record,
    required,
    text,
    whole,
)

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text() | st.integers() | st.none(), inner, max_size=3),
    max_leaves=8,
)
WHOLE = whole(0, 10)
CHECKS = [
    schema.flag,
    WHOLE,
    number(0.5),
    text("[a-z]+"),
    one_of(1, "on"),
    either("all", WHOLE),
    list_of(WHOLE, least=1),
    map_of(text("[a-z]+"), WHOLE),
    record({"a": required(WHOLE), "b": optional(list_of(text()), default=["x"])}),
]


def run(check, value):
    faults = []
    return check(value, "place", faults), faults


@given(st.sampled_from(CHECKS), ANYTHING)
def test_a_check_takes_anything_and_names_the_place_of_each_fault(check, value):
    _found, faults = run(check, value)
    for fault in faults:
        assert fault.where.startswith("place")
        assert fault.what
        assert fault.fix


@given(st.sampled_from(CHECKS), ANYTHING)
def test_what_comes_back_without_a_fault_is_clean_already(check, value):
    found, faults = run(check, value)
    if not faults:
        assert run(check, found) == (found, [])


@given(st.sampled_from(CHECKS[:-3]), ANYTHING)
def test_a_plain_check_gives_either_a_value_or_a_fault(check, value):
    found, faults = run(check, value)
    assert (found is None) == bool(faults)


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (schema.flag, [True, False], [0, 1, "true", None]),
        (whole(1, 3), [1, 3], [0, 4, 2.0, True, "2", 10**5000]),
        (whole(1), [1, 10**30], [0]),
        (number(0, 2), [0, 1.5, 2], [-0.1, 2.1, math.nan, math.inf, True, "1", 10**400]),
        (number(), [-1, 0.5], [math.nan, math.inf, -math.inf, 10**400]),
        (text(), ["a b", "ü"], ["", "a\nb", "a\x00", 1, None]),
        (text("[a-z]+"), ["abc"], ["abc\n", "aB", ""]),
        (one_of(1, "on"), [1, "on"], [True, "1", "off", None]),
        (one_of(True), [True], [1, "true"]),
        (either("all", whole(0)), ["all", 0], ["ALL", -1]),
    ],
)
def test_borders(check, good, bad):
    for value in good:
        assert run(check, value) == (value, []), value
    for value in bad:
        assert len(run(check, value)[1]) == 1, value


def test_a_number_is_one_and_the_same_as_whole_or_float():
    assert isinstance(run(number(), 2)[0], float)


def test_text_that_yaml_took_for_something_else_is_to_be_quoted():
    assert "quotes" in run(text(), 1.0)[1][0].fix
    assert "quotes" in run(one_of("on", "off"), True)[1][0].fix
    assert "quotes" not in run(text(), [])[1][0].fix


def test_a_record_finds_all_faults_and_fills_in_defaults_all_the_way_down():
    deep = record({"n": optional(whole(), default=7)})
    check = record({"a": required(whole()), "b": optional(whole(), default=1), "deep": optional(deep, default={})})
    found, faults = run(check, {"b": "x", "depe": 1, 10**5000: 4})
    assert found == {"a": None, "b": 1, "deep": {"n": 7}}
    assert [(fault.what, fault.where) for fault in faults] == [
        ("unknown key 'depe'", "place"),
        ("unknown key a huge number", "place"),
        ("'a' is missing", "place"),
        ("'x' is not a whole number", "place.b"),
    ]
    assert faults[0].fix == "did you mean 'deep'?"


def test_an_empty_value_is_a_value_left_out():
    check = record({"a": required(whole()), "b": optional(whole(), default=1)})
    found, faults = run(check, {"a": None, "b": None})
    assert found["b"] == 1
    assert [fault.what for fault in faults] == ["'a' is missing"]


def test_defaults_are_copies():
    check = record({"a": optional(list_of(text()), default=["x"])})
    run(check, {})[0]["a"].append("y")
    assert run(check, {})[0] == {"a": ["x"]}


def test_lists_and_mappings_keep_what_is_sound():
    assert run(list_of(whole()), [1, "x", 3])[0] == [1, 3]
    assert run(map_of(text("[a-z]+"), whole()), {"a": 1, "B": 2, "c": "x"})[0] == {"a": 1}
    assert [fault.where for fault in run(list_of(whole()), [1, "x"])[1]] == ["place[1]"]
    assert [fault.where for fault in run(map_of(text(), whole()), {"k": "x"})[1]] == ["place.k"]


def test_at_the_top_of_a_file_the_place_is_set_off_by_a_space():
    faults = []
    record({"a": required(whole())})({"a": "x", "b": 1}, "file.yml:", faults)
    assert [fault.where for fault in faults] == ["file.yml", "file.yml: a"]


def test_repeated_names_each_value_once_and_skips_none():
    assert schema.repeated(["a", None, "b", "a", None, "a"]) == ["a"]
