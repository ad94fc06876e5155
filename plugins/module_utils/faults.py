# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What is wrong, where it is, and what to do about it.

Every check of this collection returns a list of faults instead of raising at the first one, so that an
operator sees all of them at once and repairs a file in one go.
"""
from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NamedTuple


class Fault(NamedTuple):
    """One thing that an operator has to repair."""

    what: str
    where: str
    fix: str

    def as_dict(self) -> dict:
        """The fault as plain data, for module results and JSON files."""
        return self._asdict()

    def text(self) -> str:
        """The fault as one line for people."""
        return f"{self.where}: {self.what}; {self.fix}"


def nearest(key: object, known: Iterable[str]) -> str | None:
    """The known word that `key` was most likely meant to be, or None where nothing is like it."""
    if not isinstance(key, str):
        return None
    # Compared in lower case, because 'Version' is as likely a slip as 'verison'.
    words = {word.lower(): word for word in known}
    matches = difflib.get_close_matches(key.lower(), words, n=1)
    return words[matches[0]] if matches else None


def suggestion(key: object, known: Iterable[str], noun: str) -> str:
    """The advice for an unknown word: the nearest known one, or all of them."""
    known = sorted(known)
    near = nearest(key, known)
    if near is not None:
        return f"did you mean '{near}'?"
    return f"known {noun}: {', '.join(known)}" if known else f"there are no {noun} here"


def listing(faults: Iterable[Fault]) -> str:
    """All faults as a numbered list for people, with what to do on a line of its own."""
    return "\n".join(
        f"{number:3}. {fault.where}: {fault.what}\n     {fault.fix}"
        for number, fault in enumerate(faults, start=1)
    )
