# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
from __future__ import annotations

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.extra_args import argument_words, extra_args_faults

COMMAND = [["--host", "0.0.0.0"], ["--port", "{port}"], ["--no-slots"], ["/models"], ["-m", "{model_path}"]]
RULES = {"deny": ["--api-key", "--trust-remote-code", "--model", "--log_prompts"], "abbreviated": True}
PROFILE = {
    "name": "echo",
    "container": {"command": COMMAND},
    "settings": {"threads": {"type": "int", "flag": "--threads"}, "mode": {"type": "str", "env": "MODE"}},
    "extra_args": RULES,
}


def faults(*arguments, **rules):
    return list(extra_args_faults({**PROFILE, "extra_args": {**RULES, **rules}}, list(arguments), "args"))


@pytest.mark.parametrize("argument", ["--fast", "--depth=3", "--ratio=-0.5", '--json={"a": 1}', "--empty=", "--portable"])
def test_a_flag_that_nobody_else_needs_is_passed_on(argument):
    assert faults(argument) == []


@pytest.mark.parametrize(
    "argument",
    [
        "--api-key",
        "--api-key=x",
        "--api_key=x",
        "--api-k=x",
        "--api-key.part=x",
        "--log-prompts",
        "--trust-remote-code",
        "--no-trust-remote-code",
        "--trust",
        "--hos=x",
        "--port=1",
        "--slots",
        "--threads=4",
        "--thread=4",
        "-p",
        "-p=1",
        "-tp=2",
        "port",
        "/models/other",
        "--",
        "-",
        "",
        "--depth 3",
        "--=x",
        "\u2014host=x",
    ],
)
def test_what_the_fleet_relies_on_is_refused_in_every_spelling(argument):
    [fault] = faults(argument)
    assert fault.where == "args[0]"


def test_the_fault_names_the_flag_and_the_setting_to_use():
    [fault] = faults("--threads=4")
    assert "--threads" in fault.what and "settings.threads" in fault.fix


def test_a_flag_is_given_once():
    assert [fault.where for fault in faults("--depth=3", "--depth=4")] == ["args[1]"]


def test_where_the_engine_reads_whole_flags_only_the_beginning_of_one_is_another():
    assert faults("--trust", abbreviated=False) == []
    assert len(faults("--trust", abbreviated=True)) == 1


def test_an_engine_without_rules_takes_none():
    bare = {**PROFILE, "extra_args": None}
    assert list(extra_args_faults(bare, [], "args")) == []
    assert [fault.where for fault in extra_args_faults(bare, ["--fast", "--depth=3"], "args")] == ["args"]


def test_a_value_that_becomes_a_word_of_its_own_may_not_be_a_flag():
    assert len(faults("--depth=--host", values="separate")) == 1
    assert faults("--depth=--host") == []
    assert faults("--depth=-3", "--ratio=-0.5", values="separate") == []


def test_values_become_words_where_the_engine_wants_that():
    arguments = ["--fast", "--depth=a=b"]
    assert argument_words(PROFILE, arguments) == arguments
    assert argument_words({**PROFILE, "extra_args": {**RULES, "values": "separate"}}, arguments) == ["--fast", "--depth", "a=b"]


FLAGS = ["--host", "--port", "--slots", "--threads", "--api-key", "--trust-remote-code", "--model", "--log-prompts", "--depth", "--fast"]
FREE = {"depth", "fast"}
ARGUMENTS = st.builds(
    lambda flag, length, underscore, value: (flag[:length].replace("-", "_") if underscore else flag[:length]) + value,
    st.sampled_from(FLAGS),
    st.integers(1, 20),
    st.booleans(),
    st.sampled_from(["", "=x", "=--port", ".part=x"]),
)


@given(st.lists(ARGUMENTS | st.text(max_size=8), max_size=4))
def test_a_real_parser_gets_nothing_past_the_rules(arguments):
    parser = argparse.ArgumentParser(exit_on_error=False)
    for flag in FLAGS:
        parser.add_argument(flag, nargs="?", const="given")
    if not faults(*arguments):
        try:
            found, _unknown = parser.parse_known_args([word.replace("_", "-") for word in arguments])
        except argparse.ArgumentError:
            return
        assert {name for name, value in vars(found).items() if value is not None} <= FREE


@given(st.text())
def test_nothing_that_text_can_hold_raises(argument):
    for rules in ({}, {"values": "separate"}):
        if not faults(argument, **rules):
            argument_words({**PROFILE, "extra_args": {**RULES, **rules}}, [argument])
