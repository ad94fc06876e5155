# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Golden prompts: what is a match, what is not, and which schemas are refused."""

from __future__ import annotations

import datetime
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.golden import (
    ANNOTATIONS,
    check_regex,
    mismatch,
    quoted,
    unsupported,
    violation,
)

PERSON = {
    "title": "A person",
    "type": "object",
    "required": ["name", "age"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 5, "pattern": "^[A-Z]"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 2},
        "note": {"type": ["string", "null"]},
        "version": {"const": 1},
    },
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    "golden, right, wrong",
    [
        ({}, "anything", " \n"),
        ({"expect": "Paris"}, "It is Paris.", "It is paris."),
        ({"exact": " four "}, "four\n", "four."),
        ({"regex": r"\b4\b"}, "2 + 2 = 4.", "42"),
        ({"regex": "^b$"}, "b", "a\nb"),
        ({"regex": "(?m)^b$"}, "a\nb", "a\nbc"),
        ({"schema": {"type": "object"}}, ' {"a": 1}\n', "```json\n{}\n```"),
        ({"schema": {}}, "null", "None"),
        ({"schema": {"type": "number"}}, "1e3", "NaN"),
        ({"expect": None, "exact": None, "regex": "a", "schema": None}, "a", "b"),
    ],
)
def test_an_answer_matches_or_not(golden, right, wrong):
    assert mismatch(golden, right) == ""
    assert mismatch(golden, wrong)


@pytest.mark.parametrize("golden", [{"regex": "^$"}, {"regex": ".*"}, {"expect": " "}])
def test_an_empty_answer_never_matches(golden):
    assert mismatch(golden, "  ") == "the answer is empty"


def test_why_says_what_was_expected():
    assert '"Paris"' in mismatch({"expect": "Paris"}, "London")
    assert '"Paris"' in mismatch({"exact": "Paris"}, "London")
    assert '"^P"' in mismatch({"regex": "^P"}, "London")
    assert "is no JSON" in mismatch({"schema": {}}, "London")
    assert "$.a[1] is not of type integer" in mismatch(
        {"schema": {"properties": {"a": {"items": {"type": "integer"}}}}}, '{"a": [1, "2"]}'
    )
    assert "nested too deep" in mismatch({"schema": {}}, "[" * 100000)


def test_long_texts_are_shown_shortened():
    assert quoted('a\n"b"') == r'"a\n\"b\""'
    assert len(quoted("x" * 999)) < 210 and quoted("x" * 999).endswith("...")


PERFECT = {"name": "Ada", "age": 36, "tags": ["a"], "note": None, "version": 1.0}


@pytest.mark.parametrize(
    "change, words",
    [
        ({}, ""),
        ({"age": 36.0}, ""),
        ({"age": 0}, ""),
        ({"age": 150, "name": "Adali", "tags": ["a", "b"]}, ""),
        ({"name": ""}, "$.name has 0 characters and must have at least 1"),
        ({"name": "Adalbert"}, "$.name has 8 characters and must have at most 5"),
        ({"name": "ada"}, '$.name does not match "^[A-Z]"'),
        ({"name": 3}, "$.name is not of type string"),
        ({"age": -1}, "$.age is less than 0"),
        ({"age": 151}, "$.age is greater than 150"),
        ({"age": 36.5}, "$.age is not of type integer"),
        ({"age": True}, "$.age is not of type integer"),
        ({"tags": []}, "$.tags has 0 items and must have at least 1"),
        ({"tags": ["a", "b", "a"]}, "$.tags has 3 items and must have at most 2"),
        ({"tags": ["a", "c"]}, '$.tags[1] is none of ["a", "b"]'),
        ({"note": 1}, "$.note is not of type string or null"),
        ({"version": True}, "$.version is not 1"),
        ({"extra": 1}, '$ must not have "extra"'),
    ],
)
def test_each_rule_of_a_schema(change, words):
    assert violation({**PERFECT, **change}, PERSON) == words


def test_what_is_required_must_be_there():
    assert violation({"name": "Ada"}, PERSON) == "$ lacks age"
    assert violation([], PERSON) == "$ is not of type object"
    assert violation({"other": 1}, {"required": ["other"], "additionalProperties": True}) == ""


def test_rules_are_for_their_own_kind_of_value():
    schema = {"minLength": 3, "maxItems": 1, "minimum": 5, "pattern": "x", "required": ["a"], "items": {"type": "null"}}
    assert violation(True, schema) == ""
    assert violation(7, schema) == ""
    assert violation({"a": 1}, schema) == ""


@pytest.mark.parametrize(
    "kind, right, wrong",
    [
        ("array", [[], [1]], [{}, "", None]),
        ("boolean", [True, False], [0, 1, "true"]),
        ("integer", [0, -1, 1.0, 10**400], [1.5, True, "1", float("inf")]),
        ("null", [None], [0, False, ""]),
        ("number", [0, 1.5], [True, "1"]),
        ("object", [{}], [[], None]),
        ("string", [""], [1, None]),
    ],
)
def test_types(kind, right, wrong):
    for value in right:
        assert violation(value, {"type": kind}) == ""
    for value in wrong:
        assert violation(value, {"type": kind})


@given(JSON)
def test_a_value_is_its_own_constant(value):
    assert violation(json.loads(json.dumps(value)), {"const": value}) == ""
    assert violation([value, 0], {"const": value})
    assert unsupported({"const": value, "enum": [value]}) == []


@pytest.mark.parametrize("one, other", [(1, True), (0, False), ([1], [True]), ({"a": 0}, {"a": False}), (1, "1"), ([], {})])
def test_what_python_takes_for_equal_and_json_does_not(one, other):
    assert violation(one, {"const": other}) and violation(other, {"enum": [one]})


def test_a_schema_that_can_be_followed():
    assert unsupported(PERSON) == []
    assert unsupported({name: "x" for name in ANNOTATIONS}) == []
    assert unsupported({"minimum": 10**400}) == [] and violation(1, {"minimum": 10**400})


@pytest.mark.parametrize(
    "schema, words",
    [
        ({"oneOf": []}, "oneOf: not supported"),
        ({"properties": {"a": {"format": "date"}}}, "properties.a.format: not supported"),
        ({"items": {"exclusiveMinimum": 1}}, "items.exclusiveMinimum: not supported"),
        ({"items": [{}]}, "items: must be a mapping"),
        ({"additionalProperties": {"type": "string"}}, "additionalProperties: must be false"),
        ({"additionalProperties": True}, "additionalProperties: must be false"),
        ({"type": "text"}, "type: must be one or several of"),
        ({"type": []}, "type: must be one or several of"),
        ({"type": [["string"]]}, "type: must be one or several of"),
        ({"required": "name"}, "required: must be a list of names"),
        ({"required": [1]}, "required: must be a list of names"),
        ({"properties": ["a"]}, "properties: must be a mapping"),
        ({"enum": "a"}, "enum: must be a list of values"),
        ({"enum": []}, "enum: must be a list of values"),
        ({"const": datetime.date(2026, 1, 1)}, "const: must be a value that JSON has"),
        ({"minItems": -1}, "minItems: must be a whole number"),
        ({"maxLength": 1.5}, "maxLength: must be a whole number"),
        ({"maxItems": True}, "maxItems: must be a whole number"),
        ({"minimum": "1"}, "minimum: must be a number"),
        ({"maximum": float("nan")}, "maximum: must be a number"),
        ({"pattern": "("}, "pattern: is no regular expression"),
        ({1: 2}, "1: not supported"),
        (True, "the schema: must be a mapping"),
    ],
)
def test_what_cannot_be_followed_is_named_with_its_place(schema, words):
    (fault,) = unsupported(schema)
    assert fault.startswith(words)


@given(st.dictionaries(st.sampled_from(["type", "properties", "required", "enum", "const", "items", "minItems", "maxLength",
                                        "pattern", "minimum", "additionalProperties"]), JSON, max_size=4), JSON)  # fmt: skip
def test_what_is_found_supported_can_be_followed(schema, value):
    if not unsupported(schema):
        assert isinstance(violation(value, schema), str)


def test_a_regular_expression_is_checked():
    assert check_regex("^a+$") == ""
    assert "unterminated" in check_regex("(a") and check_regex(None) and check_regex(3)
