# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""vLLM's profile beside the flags of its own parser, which testbed/vllm_flags.py has recorded. `make test-long` records them anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.lookup.engine_profiles import BUILT_IN, read_profiles

RECORDED = Path(__file__).with_name("vllm_flags.json")
FLAGS = json.loads(RECORDED.read_text())["flags"]
PROFILE = read_profiles([BUILT_IN])[0]["vllm"]
COMMAND = [words for words in PROFILE["container"]["command"] if words[0].startswith("-")]
BY_FLAG = {name: spec for name, spec in PROFILE["settings"].items() if spec.get("flag")}


def every_setting(profile: dict) -> dict:
    """A value for each setting that is a flag, of those that the profile allows."""
    sample = {"int": 1, "float": 0.5, "bool": True, "list": ["a"], "str": "hermes"}

    def value(spec: dict):
        if spec.get("choices"):
            return spec["choices"][-1]
        return max(sample[spec["type"]], spec["min"]) if spec.get("min") is not None else sample[spec["type"]]

    return {name: value(spec) for name, spec in profile["settings"].items() if spec.get("flag")}


@pytest.mark.parametrize("words", COMMAND, ids=lambda words: words[0])
def test_the_command_has_flags_that_vllm_takes(words):
    assert words[0] in FLAGS
    assert FLAGS[words[0]]["values"] == (len(words) > 1)


@pytest.mark.parametrize("name", sorted(BY_FLAG))
def test_a_setting_is_a_flag_that_vllm_takes_with_such_values(name):
    spec = BY_FLAG[name]
    flag = FLAGS[spec["flag"]]
    # A switch of argparse may or may not take a value; other settings need one.
    assert spec["type"] == "bool" or flag["values"]
    if flag["choices"] and spec.get("choices"):
        assert {str(choice) for choice in spec["choices"]} <= set(flag["choices"])


def test_what_is_denied_is_there_to_be_denied():
    """Some of the list is of versions before or after the one on record; most of it is not."""
    denied = PROFILE["extra_args"]["deny"]
    assert sum(flag in FLAGS for flag in denied) > len(denied) / 2
