# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Semantic versions (https://semver.org): their order, and constraints that choose among them.

A constraint is `latest`, or one or more of these with spaces between, which must all hold:

    1.2.3              this version          ~1.2    1.2.0 and later, below 1.3.0
    >=1.2 >1 <2 <=1.9  in the usual order    ~1.2.3  1.2.3 and later, below 1.3.0
                                             ^1.2    1.2.0 and later, below 2.0.0
                                             ^0.2.3  0.2.3 and later, below 0.3.0

A pre-release is chosen only where the constraint names one of the same three numbers: nobody gets 2.0.0-rc.1
who asked for `>=1`.
"""
from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

# With an end to the length of a number.
_NUMBER = "(?:0|[1-9][0-9]{0,17})"
_LABEL = f"(?:{_NUMBER}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_PRE = rf"(?:-(?P<pre>{_LABEL}(?:\.{_LABEL})*))?"
PATTERN = re.sub(r"\?P<\w+>", "?:", rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}{_PRE}(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?")
LONGEST = 128
LATEST = "latest"

_VERSION = re.compile(rf"({_NUMBER})\.({_NUMBER})\.({_NUMBER}){_PRE}(?:\+[0-9A-Za-z.-]+)?")
_TERM = re.compile(rf"(?P<op>[~^]|[<>]=?|=)(?P<major>{_NUMBER})(?:\.(?P<minor>{_NUMBER})(?:\.(?P<patch>{_NUMBER}){_PRE})?)?")
_EXACT = re.compile(PATTERN)
_LOWEST = ((0, 0, ""),)  # the pre-release '-0', before which there is none


class Version(NamedTuple):
    """A version in parts that compare as semver.org says. Build metadata have no part in it."""

    numbers: tuple[int, int, int]
    is_release: bool  # 1.0.0-rc.1 comes before 1.0.0
    pre: tuple  # (0, number, "") or (1, 0, text) for each identifier: numbers come before texts


class _Range(NamedTuple):
    """What lies from `low` to `high`; None is no border."""

    low: Version | None
    high: Version | None
    with_low: bool
    with_high: bool
    named: tuple | None  # the three numbers of which it allows pre-releases


def parse(text: str) -> Version:
    """The parts of a version; ValueError if it is none."""
    found = _VERSION.fullmatch(text) if _EXACT.fullmatch(text) else None
    if not found:
        raise ValueError(f"{text!r} is not a semantic version")
    return _version(tuple(int(number) for number in found.groups()[:3]), found["pre"])


def is_version(text: Any) -> bool:
    """Whether this is one exact version, and not a constraint."""
    return isinstance(text, str) and _EXACT.fullmatch(text) is not None


def is_constraint(text: Any) -> bool:
    """Whether `select` understands it. An exact version is the simplest constraint."""
    return isinstance(text, str) and len(text) <= LONGEST and _ranges(text) is not None


def satisfies(version: str, constraint: str) -> bool:
    """Whether a version is one of those that a constraint allows."""
    if is_version(constraint):
        return version == constraint  # to the letter, build metadata and all
    ranges = _ranges(constraint)
    if ranges is None:
        raise ValueError(f"{constraint!r} is not a constraint on versions")
    found = parse(version)
    known = found.is_release or any(found.numbers == part.named for part in ranges)
    return known and all(_within(found, part) for part in ranges)


def select(constraint: str, versions: Iterable[str]) -> str | None:
    """The highest version that the constraint allows, whatever the order they come in; None if there is none."""
    return max((version for version in versions if satisfies(version, constraint)), key=order, default=None)


def order(version: str) -> tuple:
    """A key to sort versions by. Those that differ in build metadata only are in the order of their letters."""
    return (parse(version), version)


def _version(numbers: tuple, pre: str | None) -> Version:
    labels = pre.split(".") if pre else []
    return Version(numbers, not pre, tuple((0, int(label), "") if label.isdigit() else (1, 0, label) for label in labels))


def _ranges(constraint: str) -> list[_Range] | None:
    """The ranges that a constraint is made of, or None where it is not one."""
    if constraint == LATEST:
        return [_Range(None, None, True, True, None)]
    if is_version(constraint):
        exact = parse(constraint)
        return [_Range(exact, exact, True, True, exact.numbers)]
    # 'a  b' and a line break would be as good, but then one constraint could be written in many ways.
    terms = [_TERM.fullmatch(term) for term in constraint.split(" ")]
    return [_range(term) for term in terms if term] if all(terms) else None


def _range(term: re.Match) -> _Range:
    """The range of one term such as '>=1.2'."""
    written = [int(term[part]) for part in ("major", "minor", "patch") if term[part] is not None]
    numbers = tuple(written + [0] * (3 - len(written)))
    low = _version(numbers, term["pre"])
    after = _below_next(written, len(written) - 1) if len(written) < 3 else low
    named = numbers if term["pre"] else None
    op = term["op"]
    if op == ">=":
        return _Range(low, None, True, True, named)
    if op == ">":  # '>1.2' leaves out all of 1.2
        beyond = after._replace(is_release=True, pre=()) if len(written) < 3 else low
        return _Range(beyond, None, len(written) < 3, True, named)
    if op == "<":
        high = low if term["pre"] or len(written) == 3 else Version(numbers, False, _LOWEST)
        return _Range(None, high, True, False, named)
    if op == "<=":
        return _Range(None, after, True, len(written) == 3, named)
    if op == "=":
        return _Range(low, after, True, len(written) == 3, named)
    if op == "~":
        return _Range(low, _below_next(written, min(1, len(written) - 1)), True, False, named)
    fixed = next((index for index, number in enumerate(written) if number), len(written) - 1)
    return _Range(low, _below_next(written, fixed), True, False, named)


def _below_next(written: list[int], index: int) -> Version:
    """The end of all versions that begin with the numbers up to `index`, before the next one's pre-releases."""
    numbers = [*written[:index], written[index] + 1, 0, 0][:3]
    return Version((numbers[0], numbers[1], numbers[2]), False, _LOWEST)


def _within(version: Version, part: _Range) -> bool:
    if part.low is not None and (version < part.low or (version == part.low and not part.with_low)):
        return False
    return part.high is None or version < part.high or (version == part.high and part.with_high)
