# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Merging into daemon.json loses nothing of the operator's, and can be taken back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import docker_daemon

# Few keys and few values, so that the operator's documents and ours collide often.
KEYS = st.sampled_from(["log-opts", "labels", "dns", "live-restore", "x"])
SCALARS = st.sampled_from([None, True, False, 0, 1, 1.5, "", "a", "b", "ü"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)
DOCUMENTS = st.dictionaries(KEYS, VALUES, max_size=4)
TEXTS = st.none() | st.just("") | st.tuples(DOCUMENTS, st.sampled_from([None, 1, 4])).map(
    lambda pair: json.dumps(pair[0], indent=pair[1])
)


def holds(document, settings) -> bool:
    """Whether the settings are in force in the document."""
    if isinstance(settings, dict):
        inside = isinstance(document, dict)
        return inside and all(k in document and holds(document[k], v) for k, v in settings.items())
    if isinstance(settings, list):
        return isinstance(document, list) and all(any(holds(have, want) for have in document) for want in settings)
    return docker_daemon.same(document, settings)


def paths(value, path=()):
    """The paths of all values in a document, those in objects included."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths(inner, (*path, key))


# Properties


@given(DOCUMENTS, DOCUMENTS)
def test_merging_and_taking_out_gives_the_same_document(operators, settings):
    merged, record = docker_daemon.merge(operators, settings)
    assert docker_daemon.same(docker_daemon.unmerge(merged, record), operators)


@given(DOCUMENTS, DOCUMENTS)
def test_settings_hold_after_the_merge_and_no_key_of_the_operator_is_lost(operators, settings):
    merged, _record = docker_daemon.merge(operators, settings)
    assert holds(merged, settings)
    overruled = {p for p in paths(settings) if p}
    for path in paths(operators):
        # A whole object may give way to a value of ours; short of that each path is still there.
        if not any(path[: len(p)] == p for p in overruled):
            assert path in set(paths(merged))


@given(DOCUMENTS, DOCUMENTS)
def test_merging_does_not_touch_what_it_was_given(operators, settings):
    before = json.dumps([operators, settings])
    docker_daemon.unmerge(*docker_daemon.merge(operators, settings))
    assert json.dumps([operators, settings]) == before


@given(TEXTS, DOCUMENTS, DOCUMENTS)
def test_a_second_decision_changes_nothing(text, config, defaults):
    first = docker_daemon.decide(text, None, [], config, defaults)
    second = docker_daemon.decide(first.text, first.original, first.record, config, defaults)
    assert (second.text, second.record) == (first.text, first.record)


@given(TEXTS, st.lists(st.tuples(DOCUMENTS, DOCUMENTS), min_size=1, max_size=3))
def test_after_any_row_of_settings_the_operators_file_comes_back_to_the_byte(text, row):
    now, original, record = text, None, []
    for config, defaults in row:
        _before, _after, now, original, record = docker_daemon.decide(now, original, record, config, defaults)
    assert docker_daemon.decide(now, original, record, {}, {}).text == text


@given(DOCUMENTS, DOCUMENTS, st.sampled_from(["x", "dns"]), SCALARS)
def test_what_the_operator_edits_meanwhile_stays(operators, settings, key, value):
    merged, record = docker_daemon.merge(operators, settings)
    if key in merged and docker_daemon.same(merged[key], value):
        return
    edited = {**merged, key: value}
    restored = docker_daemon.unmerge(edited, record)
    assert docker_daemon.same(restored.get(key), value)
    others = {k: v for k, v in operators.items() if k != key}
    assert docker_daemon.same({k: v for k, v in restored.items() if k != key}, others)


@given(DOCUMENTS, DOCUMENTS)
def test_every_changed_key_is_either_reloaded_or_restarted_for(before, after):
    reload_keys, restart_keys = docker_daemon.changed_keys(before, after)
    differing = {k for k in {*before, *after} if k not in before or k not in after}
    differing |= {k for k in set(before) & set(after) if not docker_daemon.same(before[k], after[k])}
    assert set(reload_keys) | set(restart_keys) == differing
    assert not set(reload_keys) & set(restart_keys)


# Situations


def test_lists_unite_and_keep_what_the_operator_has_twice():
    merged, record = docker_daemon.merge({"dns": ["a", "a"]}, {"dns": ["a", "b", "b"]})
    assert merged == {"dns": ["a", "a", "b"]}
    assert docker_daemon.unmerge({"dns": ["c", "a", "a", "b"]}, record) == {"dns": ["c", "a", "a"]}


def test_true_is_not_one():
    merged, record = docker_daemon.merge({"live-restore": 1}, {"live-restore": True})
    assert json.dumps(merged) == '{"live-restore": true}'
    assert json.dumps(docker_daemon.unmerge(merged, record)) == '{"live-restore": 1}'


def test_a_default_gives_way_to_the_operators_value():
    defaults = {"log-driver": "json-file", "log-opts": {"max-size": "50m", "max-file": "3"}}
    document = {"log-opts": {"max-size": "1g"}}
    settings = docker_daemon.wanted_settings(document, {"log-opts": {"max-file": "9"}}, defaults)
    assert settings == {"log-opts": {"max-file": "9"}, "log-driver": "json-file"}


@pytest.mark.parametrize("document, config", [({"log-driver": "journald"}, {}), ({}, {"log-driver": "local"})])
def test_options_of_the_default_log_driver_are_not_given_to_another_one(document, config):
    defaults = {"log-driver": "json-file", "log-opts": {"max-size": "50m"}}
    assert docker_daemon.wanted_settings(document, config, defaults) == config


def test_a_reloadable_key_that_goes_away_needs_a_restart():
    assert docker_daemon.changed_keys({}, {"live-restore": True}) == (["live-restore"], [])
    assert docker_daemon.changed_keys({"live-restore": True}, {}) == ([], ["live-restore"])
    assert docker_daemon.changed_keys({"max-concurrent-downloads": 9}, {}) == (["max-concurrent-downloads"], [])
    assert docker_daemon.changed_keys({"log-opts": {"a": "1"}}, {"log-opts": {"a": "2"}}) == ([], ["log-opts"])


def test_features_that_docker_reads_at_its_start_need_a_restart():
    buildkit, cdi = {"features": {"buildkit": True}}, {"features": {"buildkit": True, "cdi": True}}
    assert docker_daemon.changed_keys({}, buildkit) == (["features"], [])
    assert docker_daemon.changed_keys(buildkit, cdi) == ([], ["features"])
    assert docker_daemon.changed_keys(cdi, buildkit) == ([], ["features"])
    assert docker_daemon.changed_keys(cdi, {}) == ([], ["features"])


@pytest.mark.parametrize(
    "text, where",
    [
        ('{"a": 1,\n "b" 2}', "line 2, column 6"),
        ('{"a": 1', "line 1, column 8"),
        ("[]", "not a JSON object"),
        ('{"a": NaN}', "NaN"),
        ('{"a": 1e999}', "1e999"),
        ("\ufeff{}", "BOM"),
    ],
)
def test_a_broken_document_says_where(text, where):
    with pytest.raises(docker_daemon.BrokenDocument, match=where):
        docker_daemon.parse(text)


def test_what_is_shown_has_no_secret():
    document = {
        "proxies": {"http-proxy": "http://joe:hunter2@proxy:3128"},
        "log-opts": {"splunk-token": "abc", "max-size": "1g"},
    }
    assert docker_daemon.redact(document) == {
        "proxies": {"http-proxy": "http://********@proxy:3128"},
        "log-opts": {"splunk-token": "********", "max-size": "1g"},
    }
