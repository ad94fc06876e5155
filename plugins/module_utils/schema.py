# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Says what data must look like, and finds every fault in one pass.

A check is a function ``check(value, where, faults)``. It returns the value in its clean form, or None for a
value that is wrong, and then has appended to `faults` what is wrong with it. It takes values of any type
and never raises. Small checks are put together into large ones::

    client = record({"name": required(text("[a-z]+", "a name", "small letters")),
                     "limits": optional(map_of(text(), whole(1)), default={})})
    faults = []
    clean = client({"name": "demo"}, "clients[demo]", faults)   # {"name": "demo", "limits": {}}

A record puts the default in the place of a field that is missing or wrong. So whatever comes back has the
right shape, and the checks after it can go on and find the rest.
"""
from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault, suggestion

Check = Callable  # (value: Any, where: str, faults: list[Fault]) -> Any


class Field(NamedTuple):
    """One key of a record."""

    check: Check
    required: bool
    default: Any


def required(check: Check) -> Field:
    """A key that has to be there."""
    return Field(check, True, None)


def optional(check: Check, default: Any = None) -> Field:
    """A key that may be left out; a key without a value counts as left out."""
    return Field(check, False, default)


def inside(where: str, key: object) -> str:
    """The place of a key in the thing at `where`: 'a.b', or 'file.yml: a' at the top of a file."""
    return f"{where} {key}" if where.endswith(":") else f"{where}.{key}"


def show(value: object) -> str:
    """A value as a message names it: short, and in the words of YAML."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    try:
        shown = repr(value)
    except ValueError:  # Python refuses to print an integer of more than 4300 digits
        return "a huge number"
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def wrong(faults: list[Fault], what: str, where: str, fix: str) -> None:
    """Notes a fault; its None is what the check returns."""
    faults.append(Fault(what, where.rstrip(":"), fix))


def anything(value: Any, where: str, faults: list[Fault]) -> Any:
    """For what another check looks at later."""
    return value


def flag(value: Any, where: str, faults: list[Fault]) -> bool | None:
    """True or false."""
    if isinstance(value, bool):
        return value
    return wrong(faults, f"{show(value)} is not true or false", where, "write one of the two, without quotes")


def whole(least: int | None = None, most: int | None = None) -> Check:
    """A whole number."""
    wanted = "a whole number" + _span(least, most)

    def check(value: Any, where: str, faults: list[Fault]) -> int | None:
        if isinstance(value, int) and not isinstance(value, bool) and _within(value, least, most):
            return int(value)
        return wrong(faults, f"{show(value)} is not {wanted}", where, "write one, without quotes")

    return check


def number(least: float | None = None, most: float | None = None) -> Check:
    """A number, returned as float, so that 2 and 2.0 are the same."""
    wanted = "a number" + _span(least, most)

    def check(value: Any, where: str, faults: list[Fault]) -> float | None:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            found = _as_float(value)
            if math.isfinite(found) and _within(found, least, most):
                return found
        return wrong(faults, f"{show(value)} is not {wanted}", where, "write one, without quotes")

    return check


def text(pattern: str = r"[^\x00-\x1f\x7f]+", noun: str = "a line of text", like: str = "one line") -> Check:
    """Text that matches `pattern` as a whole; `noun` and `like` say in words what the pattern wants."""
    compiled = re.compile(pattern)

    def check(value: Any, where: str, faults: list[Fault]) -> str | None:
        if isinstance(value, str) and compiled.fullmatch(value):
            return str(value)
        return wrong(faults, f"{show(value)} is not {noun}", where, f"write {like}{_quotes(value)}")

    return check


def one_of(*choices: Any) -> Check:
    """One of a few values."""

    def check(value: Any, where: str, faults: list[Fault]) -> Any:
        for choice in choices:
            # Python takes True for 1; an operator does not.
            if value == choice and isinstance(value, bool) == isinstance(choice, bool):
                return choice
        known = [str(choice) for choice in choices]
        advice = suggestion(value, known, "values") if isinstance(value, str) else f"known values: {', '.join(known)}"
        if str in map(type, choices):
            advice += _quotes(value)
        return wrong(faults, f"{show(value)} is none of the known values", where, advice)

    return check


def either(word: str, other: Check) -> Check:
    """One special word, or what the other check wants."""

    def check(value: Any, where: str, faults: list[Fault]) -> Any:
        if isinstance(value, str) and value == word:
            return word
        mine: list[Fault] = []
        found = other(value, where, mine)
        faults += [fault._replace(fix=f"{fault.fix}, or write '{word}'") for fault in mine]
        return found

    return check


def list_of(item: Check, least: int = 0) -> Check:
    """A list, of which the sound items come back; `least` is how many it must have."""

    def check(value: Any, where: str, faults: list[Fault]) -> list | None:
        if not isinstance(value, (list, tuple)):
            return wrong(faults, f"{show(value)} is not a list", where, "write one item after each '- '")
        if len(value) < least:
            wrong(faults, "the list is too short", where, f"name at least {least}")
        found = [item(entry, f"{where}[{index}]", faults) for index, entry in enumerate(value)]
        return [entry for entry in found if entry is not None]

    return check


def map_of(key_check: Check, value_check: Check) -> Check:
    """A mapping with keys of the operator's own choice; the sound entries come back."""

    def check(value: Any, where: str, faults: list[Fault]) -> dict | None:
        if not isinstance(value, dict):
            return wrong(faults, f"{show(value)} is not a mapping", where, "write 'name: value' lines below it")
        clean = {}
        for key, entry in value.items():
            place = inside(where, key if isinstance(key, str) else show(key))
            name, found = key_check(key, place, faults), value_check(entry, place, faults)
            if name is not None and found is not None:
                clean[name] = found
        return clean

    return check


def record(fields: dict[str, Field], noun: str = "keys") -> Check:
    """A mapping with known keys."""

    def check(value: Any, where: str, faults: list[Fault]) -> dict | None:
        if not isinstance(value, dict):
            known = ", ".join(sorted(fields))
            return wrong(faults, f"{show(value)} is not a mapping", where, f"known {noun}: {known}")
        for key in value:
            if key not in fields:
                wrong(faults, f"unknown key {show(key)}", where, suggestion(key, fields, noun))
        return {name: _field(field, name, value.get(name), where, faults) for name, field in fields.items()}

    return check


def repeated(values: Iterable[str | None]) -> list[str]:
    """The values that occur more than once, each named once; None is no value."""
    counts = Counter(value for value in values if value is not None)
    return [value for value, count in counts.items() if count > 1]


def _field(field: Field, name: str, value: Any, where: str, faults: list[Fault]) -> Any:
    """The clean value of one key of a record."""
    found = None
    if value is not None:
        found = field.check(value, inside(where, name), faults)
    elif field.required:
        wrong(faults, f"'{name}' is missing", where, f"add '{name}'")
    if found is None and field.default is not None:
        # Through the check as well: it fills in what lies deeper, and makes a copy.
        found = field.check(field.default, inside(where, name), [])
    return found


def _quotes(value: Any) -> str:
    """In YAML 1.0 and on are a number and a boolean, though they look like text."""
    return ", in quotes" if isinstance(value, (int, float)) else ""


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer beyond any float
        return math.inf


def _within(value: float, least: float | None, most: float | None) -> bool:
    return (least is None or value >= least) and (most is None or value <= most)


def _span(least: float | None, most: float | None) -> str:
    """A range in words, to be put behind 'a number'."""
    if least is not None and most is not None:
        return f" from {least} to {most}"
    if least is not None:
        return f" of {least} or more"
    return f" of {most} or less" if most is not None else ""
