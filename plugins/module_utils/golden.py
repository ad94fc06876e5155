# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Golden prompts: whether an answer is what the catalog says it must be.

JSON answers are judged by a part of JSON Schema that needs no library on the hosts. `unsupported` finds what goes beyond it, so
that a schema is refused where it is written and never followed by half.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

MATCHERS = ("expect", "exact", "regex", "schema")
QUOTED = 200
# They say something to people and nothing about an answer.
ANNOTATIONS = {"$comment", "$schema", "default", "description", "examples", "title"}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


TYPES: dict[str, Callable[[Any], bool]] = {
    "array": lambda value: isinstance(value, list),
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: _is_number(value) and (isinstance(value, int) or value.is_integer()),
    "null": lambda value: value is None,
    "number": _is_number,
    "object": lambda value: isinstance(value, dict),
    "string": lambda value: isinstance(value, str),
}


def mismatch(golden: dict[str, Any], answer: str) -> str:
    """Why an answer is not what a golden prompt asks for; an empty string if it is."""
    if not answer.strip():
        return "the answer is empty"
    wanted = [(kind, golden[kind]) for kind in MATCHERS if golden.get(kind) is not None]
    return next(filter(None, (CHECKS[kind](value, answer) for kind, value in wanted)), "")


def quoted(text: str) -> str:
    """A text as a message shows it: on one line, and not all of it where it is long."""
    return json.dumps(text[:QUOTED], ensure_ascii=False) + ("..." if len(text) > QUOTED else "")


def check_regex(pattern: Any) -> str:
    """Why something is no regular expression; an empty string if it is one."""
    if not isinstance(pattern, str):
        return "it is no text"
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:  # the latter two: a{99999999999}, and brackets without end
        return str(error)
    return ""


def _contains(wanted: str, answer: str) -> str:
    return "" if wanted in answer else f"the answer does not contain {quoted(wanted)}"


def _equals(wanted: str, answer: str) -> str:
    return "" if wanted.strip() == answer.strip() else f"the answer is not {quoted(wanted.strip())}"


def _found(pattern: str, answer: str) -> str:
    return "" if re.search(pattern, answer) else f"the answer does not match {quoted(pattern)}"


def _satisfies(schema: dict[str, Any], answer: str) -> str:
    try:
        value = json.loads(answer, parse_constant=_no_constant)
    except ValueError as error:
        return f"the answer is no JSON ({error})"
    except RecursionError:
        return "the answer is JSON that is nested too deep to be read"
    why = violation(value, schema)
    return f"the answer's JSON is not as its schema says: {why}" if why else ""


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no value of JSON")


CHECKS: dict[str, Callable[[Any, str], str]] = {"expect": _contains, "exact": _equals, "regex": _found, "schema": _satisfies}


def violation(value: Any, schema: dict[str, Any], where: str = "$") -> str:
    """The first thing about a value that its schema forbids, and where it is; an empty string if there is none."""
    for keyword, rule in RULES.items():
        if keyword in schema:
            why = rule(value, schema[keyword])
            if why:
                return f"{where} {why}"
    if isinstance(value, dict):
        return _object_violation(value, schema, where)
    if isinstance(value, list) and "items" in schema:
        parts = (violation(item, schema["items"], f"{where}[{number}]") for number, item in enumerate(value))
        return next(filter(None, parts), "")
    return ""


def _object_violation(value: dict[str, Any], schema: dict[str, Any], where: str) -> str:
    properties = schema.get("properties", {})
    for name in schema.get("required", []):
        if name not in value:
            return f"{where} lacks {name}"
    if schema.get("additionalProperties") is False:
        for name in value:
            if name not in properties:
                return f"{where} must not have {quoted(name)}"
    parts = (violation(value[name], inner, f"{where}.{name}") for name, inner in properties.items() if name in value)
    return next(filter(None, parts), "")


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON has it: 1 and 1.0 are, 1 and true are not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return one == other


def _type_rule(value: Any, wanted: Any) -> str:
    names = wanted if isinstance(wanted, list) else [wanted]
    return "" if any(TYPES[name](value) for name in names) else f"is not of type {' or '.join(names)}"


def _enum_rule(value: Any, wanted: list) -> str:
    return "" if any(_same(value, one) for one in wanted) else f"is none of {_json(wanted)}"


def _const_rule(value: Any, wanted: Any) -> str:
    return "" if _same(value, wanted) else f"is not {_json(wanted)}"


def _pattern_rule(value: Any, wanted: str) -> str:
    return f"does not match {quoted(wanted)}" if isinstance(value, str) and not re.search(wanted, value) else ""


def _size_rule(kind: type, most: bool, noun: str) -> Callable[[Any, Any], str]:
    def rule(value: Any, limit: float) -> str:
        if not isinstance(value, kind) or (len(value) <= limit if most else len(value) >= limit):
            return ""
        return f"has {len(value)} {noun} and must have {'at most' if most else 'at least'} {limit}"

    return rule


def _minimum_rule(value: Any, limit: float) -> str:
    return f"is less than {_json(limit)}" if _is_number(value) and value < limit else ""


def _maximum_rule(value: Any, limit: float) -> str:
    return f"is greater than {_json(limit)}" if _is_number(value) and value > limit else ""


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= QUOTED else f"{text[:QUOTED]}..."


# In this order: what a value is comes before how large it is.
RULES: dict[str, Callable[[Any, Any], str]] = {
    "type": _type_rule,
    "const": _const_rule,
    "enum": _enum_rule,
    "minItems": _size_rule(list, False, "items"),
    "maxItems": _size_rule(list, True, "items"),
    "minLength": _size_rule(str, False, "characters"),
    "maxLength": _size_rule(str, True, "characters"),
    "pattern": _pattern_rule,
    "minimum": _minimum_rule,
    "maximum": _maximum_rule,
}


def unsupported(schema: Any, where: str = "") -> list[str]:
    """What of a schema cannot be followed, each with its place; nothing if all of it can.

    Supported are type, const, enum, properties, required, additionalProperties (false only), items, minItems, maxItems, minLength,
    maxLength, pattern (as Python reads it), minimum and maximum. Annotations such as title are left unread.
    """
    place = where or "the schema"
    if not isinstance(schema, dict):
        return [f"{place}: must be a mapping"]
    faults = []
    for keyword, value in schema.items():
        inner = f"{where}.{keyword}" if where else str(keyword)
        if keyword == "properties":
            faults += _unsupported_properties(value, inner)
        elif keyword == "items":
            faults += unsupported(value, inner)
        elif keyword in FORMS:
            why = FORMS[keyword](value)
            faults += [f"{inner}: {why}"] if why else []
        elif keyword not in ANNOTATIONS:
            faults.append(f"{inner}: not supported")
    return faults


def _unsupported_properties(value: Any, where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{where}: must be a mapping"]
    return [fault for name, inner in value.items() for fault in unsupported(inner, f"{where}.{name}")]


def _type_form(value: Any) -> str:
    names = value if isinstance(value, list) else [value]
    known = all(isinstance(name, str) and name in TYPES for name in names)
    return "" if names and known else f"must be one or several of {', '.join(TYPES)}"


def _required_form(value: Any) -> str:
    fine = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return "" if fine else "must be a list of names"


def _value_form(value: Any) -> str:
    """YAML has values that JSON has not, such as dates."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return "must be a value that JSON has; put it in quotes"
    return ""


def _enum_form(value: Any) -> str:
    return _value_form(value) if isinstance(value, list) and value else "must be a list of values"


def _size_form(value: Any) -> str:
    return "" if _is_number(value) and isinstance(value, int) and value >= 0 else "must be a whole number"


def _number_form(value: Any) -> str:
    # Python cannot say of a huge integer whether it is finite.
    fine = _is_number(value) and (isinstance(value, int) or math.isfinite(value))
    return "" if fine else "must be a number"


def _pattern_form(value: Any) -> str:
    why = check_regex(value)
    return f"is no regular expression ({why})" if why else ""


FORMS: dict[str, Callable[[Any], str]] = {
    "type": _type_form,
    "const": _value_form,
    "enum": _enum_form,
    "required": _required_form,
    "additionalProperties": lambda value: "" if value is False else "must be false or left out",
    "minItems": _size_form,
    "maxItems": _size_form,
    "minLength": _size_form,
    "maxLength": _size_form,
    "pattern": _pattern_form,
    "minimum": _number_form,
    "maximum": _number_form,
}
