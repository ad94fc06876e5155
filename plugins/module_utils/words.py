# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What the fleet's own words look like: names, versions, digests, sizes, addresses.

They end up in paths, URLs, labels and configuration files, so they are ASCII and short.
"""
from __future__ import annotations

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import semver
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.schema import text

_LIKE = "digits, '.', '_' and '-', 63 characters at most, the first one a letter or digit"

MODEL_NAME = text("[A-Za-z0-9][A-Za-z0-9._-]{0,62}", "a model name", f"letters, {_LIKE}")
CLIENT_NAME = text("[a-z0-9][a-z0-9._-]{0,62}", "a client name", f"small letters, {_LIKE}")
WORD = text("[a-z][a-z0-9_-]{0,62}", "a plain word", "small letters, digits, '_' and '-', a letter first")
VARIABLE = text("[A-Za-z_][A-Za-z0-9_]{0,127}", "an environment variable", "letters, digits and '_'")
PROSE = text(r"[\s\S]*\S[\s\S]*", "a text", "a sentence")

SHA256 = text("[0-9a-f]{64}", "a sha256 digest", "64 hexadecimal digits in small letters")
IMAGE_DIGEST = text("sha256:[0-9a-f]{64}", "an image digest", "sha256: and 64 digits 0-9, a-f")
_NAME = "[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
IMAGE = text(
    f"(?:[A-Za-z0-9][A-Za-z0-9.-]*(?::[0-9]{{1,5}})?/)?{_NAME}(?:/{_NAME})*",
    "an image repository",
    "registry:port/name without a tag: the digest decides",
)

VERSION = text(
    rf"(?=.{{5,63}}\Z){semver.PATTERN}",
    "a semantic version",
    "three numbers with dots between, as in 1.0.0 or 2.1.0-rc.1",
)
DIGEST = text("sha256:[0-9a-f]{64}", "a digest", "sha256: and 64 digits 0-9, a-f")

_UNITS = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}  # as Docker understands them
SIZE = text("[1-9][0-9]{0,9}[kmgt]", "a size", "a whole number and a unit k, m, g or t, as in 512m or 8g")


def size_bytes(size: str) -> int:
    """The number of bytes that a checked size such as '8g' means."""
    return int(size[:-1]) * _UNITS[size[-1]]
