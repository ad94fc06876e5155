# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import words


def faults_of(check, value):
    faults = []
    found = check(value, "place", faults)
    assert (found is None) == bool(faults)
    return faults


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (words.MODEL_NAME, ["a", "Qwen2.5-7B_x", "a" * 63], ["", ".a", "-a", "a/b", "a@b", "ä", "a" * 64, "a\n"]),
        (words.CLIENT_NAME, ["demo", "team-1"], ["Demo", "*", "a|b"]),
        (
            words.VERSION,
            ["1.0.0", "0.10.200", "1.0.0-rc.1", "1.0.0+build.5", "1.0.0-0a"],
            ["1.0", "v1.0.0", "01.0.0", "1.0.0-01", "1.0.0-", "1.0.0\n", "1.0.0-" + "a" * 60, "\u0661.0.0"],
        ),
        (words.SHA256, ["0" * 64, "af" * 32], ["0" * 63, "0" * 65, "AF" * 32, "g" * 64]),
        (words.IMAGE_DIGEST, ["sha256:" + "a" * 64], ["a" * 64, "sha512:" + "a" * 64]),
        (
            words.IMAGE,
            ["llamacpp", "registry.example:5000/llamacpp", "ghcr.io/ggml-org/llama.cpp", "10.0.0.1:5000/a/b__c"],
            ["llamacpp:latest", "r:5000/llamacpp:1", "r/a@sha256:" + "a" * 64, "r//a", "/a", "R/A", "http://r/a"],
        ),
        (words.SIZE, ["64m", "8g", "1t"], ["8", "8G", "8 g", "0g", "-1g", "1.5g", "8gb", 8]),
    ],
)
def test_borders(check, good, bad):
    for value in good:
        assert not faults_of(check, value), value
    for value in bad:
        assert faults_of(check, value), value


def test_units_are_powers_of_1024():
    assert [words.size_bytes(size) for size in ("1k", "3m", "8g", "2t")] == [1024, 3 * 1024**2, 2**33, 2**41]
