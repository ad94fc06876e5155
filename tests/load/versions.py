# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Which version gave an answer, told by how the answer begins."""

from __future__ import annotations

import hashlib

from ansible_collections.localfirst.llm_fleet.tests.load.verdict import PREFIX

DIGEST = "sha256:"


def digest(prefix: str) -> str:
    return DIGEST + hashlib.sha256(prefix.encode()).hexdigest()


class Versions:
    """Names for answers: those of `tell`, and for any other answer its own beginning, so that a version nobody expects shows."""

    def __init__(self, tell: dict[str, str]) -> None:
        self._texts = {name: mark.lstrip()[:PREFIX] for name, mark in tell.items() if not mark.startswith(DIGEST)}
        self._digests = {name: mark for name, mark in tell.items() if mark.startswith(DIGEST)}
        self._whole: set[str] = set()

    def learn(self, prefix: str) -> None:
        """An answer was seen: a shorter one (cut, or asked for so) can then be told to be of the same version."""
        if len(prefix) == PREFIX:
            self._whole.add(prefix)

    def name(self, prefix: str) -> str | None:
        if not prefix:
            return None
        if len(prefix) < PREFIX:
            longer = [whole for whole in self._whole if whole.startswith(prefix)]
            prefix = longer[0] if len(longer) == 1 else prefix
        known = [name for name, text in self._texts.items() if text.startswith(prefix) or prefix.startswith(text)]
        if len(known) == 1:
            return known[0]
        hashed = digest(prefix) if self._digests else ""
        return next((name for name, mark in self._digests.items() if hashed.startswith(mark)), prefix)
