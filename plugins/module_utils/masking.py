# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Keeps secrets out of what people and log files get to read."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

MASKED = "********"
SHORTEST = 4  # shorter ones would be found everywhere, and are no secrets


class Mask:
    """Replaces secrets wherever they occur, also as URLs and headers encode them."""

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets if len(secret) >= SHORTEST for form in _forms(secret)}
        # The longest first: one secret may be a part of another.
        self._pattern = re.compile("|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True))) if forms else None

    def hide(self, value: Any) -> Any:
        """The same data, with every secret in its texts masked."""
        if isinstance(value, str):
            return self._pattern.sub(MASKED, value) if self._pattern else value
        if isinstance(value, dict):
            return {key: self.hide(item) for key, item in value.items()}
        return [self.hide(item) for item in value] if isinstance(value, (list, tuple)) else value

    def finds_in(self, text: str, shortest: int = 8) -> bool:
        """Whether a text holds a secret, of those that are too long to be in it by chance."""
        found = self._pattern.finditer(text) if self._pattern else ()
        return any(len(match[0]) >= shortest for match in found)


def _forms(secret: str) -> set[str]:
    return {secret, quote(secret, safe=""), quote(secret), base64.b64encode(secret.encode()).decode("ascii")}
