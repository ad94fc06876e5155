# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What an operator may write about rollouts, golden prompts and gates of a model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.catalog import check_catalog
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.catalog_rollout import (
    GATES,
    ROLLOUT,
    SMOKE,
    canary_faults,
    duration,
)

LLAMACPP = {"llamacpp": {"name": "llamacpp", "settings": {}}}


def check(key, value):
    """(clean value, faults) of one key of a sound model in a catalog with the client demo."""
    sound = {
        "name": "tiny",
        "version": "1.0.0",
        "versions": {"1.0.0": {"source": "file:///srv/tiny.gguf"}},
        "engine": "llamacpp",
    }
    [model], _clients, faults = check_catalog([{**sound, key: value}], [{"name": "demo"}], LLAMACPP, ["gpu1"])
    return model[key], faults


def clean(key, value):
    found, faults = check(key, value)
    assert faults == []
    return found


def test_whoever_writes_nothing_gets_careful_defaults():
    rollout, gates = clean("rollout", None), clean("gates", None)
    assert rollout["strategy"] == "auto" and rollout["batches"][0] == 1 and rollout["batches"][-1] == "100%"
    assert 0 < rollout["canary"]["share"] < 100 and rollout["canary"]["clients"] == []
    assert rollout["canary"]["bake"] == 300 and rollout["canary"]["min_requests"] > 0
    assert 0 < gates["error_rate"] < 1 and gates["samples"] > 0
    assert [gates[limit] for limit in ("ttft_p95", "tpot_p95", "slowdown")] == [None] * 3
    assert clean("smoke", None) == []


def test_part_of_it_may_be_written():
    rollout = clean("rollout", {"canary": {"clients": ["demo"]}})
    assert rollout["canary"]["clients"] == ["demo"] and rollout["canary"]["bake"] == 300
    assert clean("gates", {"ttft_p95": 2})["samples"] == clean("gates", None)["samples"]


# Durations


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("30s", 30), ("10m", 600), ("2h", 7200), ("1d", 86400), ("0", 0), ("0s", 0), (90, 90), (0, 0)],
)
def test_a_time_becomes_seconds(written, seconds):
    assert clean("rollout", {"canary": {"bake": written}})["canary"]["bake"] == seconds


@pytest.mark.parametrize("written", ["10", "10 m", "m", "-1m", "1.5h", "10min", "", -1, True, 1.5, ["10m"], {}])
def test_what_is_no_time_says_how_to_write_one(written):
    [fault] = check("rollout", {"canary": {"bake": written}})[1]
    assert fault.where == "llm_fleet_models[tiny].rollout.canary.bake" and "10m" in fault.fix


@given(st.integers(0, 9_999_999), st.sampled_from("smhd"))
def test_what_was_a_time_once_stays_one(count, unit):
    faults: list = []
    seconds = duration(f"{count}{unit}", "bake", faults)
    assert seconds == count * {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit]
    assert duration(seconds, "bake", faults) == seconds and not faults


# Shares, batches and the canary


@pytest.mark.parametrize("key", ["max_unavailable", "batches"])
@pytest.mark.parametrize("value", [1, 7, "1%", "99%", "100%"])
def test_a_number_or_a_share_of_the_replicas(key, value):
    written = [value] if key == "batches" else value
    assert clean("rollout", {key: written})[key] == written


@pytest.mark.parametrize("value", [0, -1, "0%", "101%", "5", "5 %", "05%", 0.25, True, [1]])
def test_what_is_neither_says_what_to_write(value):
    for written, where in (({"max_unavailable": value}, "max_unavailable"), ({"batches": [1, value]}, "batches[1]")):
        [fault] = check("rollout", written)[1]
        assert fault.where == f"llm_fleet_models[tiny].rollout.{where}" and "25%" in fault.fix


def test_batches_need_one():
    assert [fault.where for fault in check("rollout", {"batches": []})[1]] == ["llm_fleet_models[tiny].rollout.batches"]


def test_no_canary_is_a_word():
    assert clean("rollout", {"canary": "none"})["canary"] == "none"
    [fault] = check("rollout", {"canary": "no"})[1]
    assert "'none'" in fault.fix


def test_clients_of_a_canary_have_to_exist():
    [fault] = check("rollout", {"canary": {"clients": ["demo", "dmeo"]}})[1]
    assert fault.where == "llm_fleet_models[tiny].rollout.canary.clients" and "'dmeo'" in fault.what
    assert canary_faults({"rollout": {"canary": "none"}}, "m", []) == []


@pytest.mark.parametrize(
    ("key", "written", "where", "words"),
    [
        ("rollout", {"strategy": "blue"}, "rollout.strategy", "surge"),
        ("rollout", {"stragety": "surge"}, "rollout", "'strategy'"),
        ("rollout", {"canary": {"share": 101}}, "rollout.canary.share", "from 0 to 100"),
        ("rollout", {"canary": {"min_requests": -1}}, "rollout.canary.min_requests", "whole number"),
        ("rollout", {"canary": {"clients": "demo"}}, "rollout.canary.clients", "not a list"),
        ("gates", {"ttft_p95": 0}, "gates.ttft_p95", "number"),
        ("gates", {"ttft_p95": "2s"}, "gates.ttft_p95", "number"),
        ("gates", {"error_rate": 1.1}, "gates.error_rate", "from 0 to 1"),
        ("gates", {"slowdown": 0.5}, "gates.slowdown", "from 1 to"),
        ("gates", {"samples": 0}, "gates.samples", "whole number"),
        ("gates", {"max_tokens": 1}, "gates.max_tokens", "from 2"),
        ("gates", {"path": "/v1/embeddings"}, "gates.path", "/v1/completions"),
        ("gates", {"ttft": 1}, "gates", "'ttft_p95'"),
    ],
)
def test_one_slip_is_one_fault_that_says_where_and_what(key, written, where, words):
    [fault] = check(key, written)[1]
    assert fault.where == f"llm_fleet_models[tiny].{where}" and words in fault.text()


# Golden prompts


@pytest.mark.parametrize(
    "way",
    [{}, {"expect": "4"}, {"exact": "4"}, {"regex": r"^\d+$"}, {"schema": {"type": "object", "required": ["a"]}}, {"max_tokens": 9}],
)
def test_a_golden_prompt_has_what_was_written_and_nothing_else(way):
    assert clean("smoke", [{"prompt": "2 + 2?", **way}]) == [{"prompt": "2 + 2?", **way}]


@pytest.mark.parametrize(
    ("golden", "where", "words"),
    [
        ({"expect": "4", "exact": "4"}, "", "expect and exact"),
        ({"regex": "4", "schema": {}}, "", "regex and schema"),
        ({"regex": "(4"}, ".regex", "regular expression"),
        ({"regex": "4{99999999999}"}, ".regex", "regular expression"),
        ({"schema": {"pattern": "4{99999999999}"}}, ".schema", "regular expression"),
        ({"schema": {"oneOf": []}}, ".schema", "oneOf"),
        ({"schema": {"properties": {"a": {"format": "date"}}}}, ".schema", "properties.a.format"),
        ({"schema": ["object"]}, ".schema", "mapping"),
        ({"max_tokens": 0}, ".max_tokens", "whole number"),
        ({"expect": ""}, ".expect", "text"),
    ],
)
def test_a_golden_prompt_that_nobody_could_judge(golden, where, words):
    _found, [fault] = check("smoke", [{"prompt": "fine"}, {"prompt": "2 + 2?", **golden}])
    assert fault.where == f"llm_fleet_models[tiny].smoke[1]{where}" and words in fault.text()


def test_sound_ones_come_back_beside_the_others():
    found, faults = check("smoke", [{"prompt": "a", "expect": "b"}, {"prompt": "c", "regex": "("}, {"prompt": "d"}])
    assert found == [{"prompt": "a", "expect": "b"}, {"prompt": "d"}] and len(faults) == 1


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.from_regex(r"\d{1,3}[%smhd]?", fullmatch=True),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ("strategy", "batches", "max_unavailable", "canary", "share", "clients", "bake", "min_requests", "path", "error_rate", "slowdown")
FIELDS += ("prompt", "expect", "exact", "regex", "schema", "max_tokens", "samples")


@given(st.sampled_from((ROLLOUT, GATES, SMOKE)), ANYTHING | st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=5), st.booleans())
def test_whatever_is_written_is_taken_or_refused_and_what_was_taken_stays(check_it, written, listed):
    faults: list = []
    found = check_it([written] if listed else written, "here", faults)
    if not faults:
        again: list = []
        assert check_it(found, "here", again) == found and not again
