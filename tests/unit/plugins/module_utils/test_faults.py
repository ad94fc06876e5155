# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
from __future__ import annotations

import json

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault, listing, nearest, suggestion

FAULT = Fault("unknown key 'verison'", "llm_fleet_models[tiny]", "did you mean 'version'?")


def test_a_fault_becomes_plain_data():
    assert json.loads(json.dumps(FAULT.as_dict())) == {"what": FAULT.what, "where": FAULT.where, "fix": FAULT.fix}


def test_the_line_for_people_names_all_three_parts():
    assert FAULT.text() == "llm_fleet_models[tiny]: unknown key 'verison'; did you mean 'version'?"


@pytest.mark.parametrize(
    ("key", "meant"),
    [("verison", "version"), ("Version", "version"), ("parralel", "parallel"), ("xyz", None), ("", None), (None, None)],
)
def test_nearest_finds_slips_and_nothing_else(key, meant):
    assert nearest(key, ["version", "versions", "parallel"]) == meant


def test_nearest_returns_the_known_spelling():
    assert nearest("llm-fleet", ["LLM-Fleet"]) == "LLM-Fleet"


def test_without_a_near_word_the_advice_names_all_in_order():
    assert suggestion("zzz", {"b", "a"}, "keys") == "known keys: a, b"
    assert suggestion("zzz", [], "clients") == "there are no clients here"


def test_a_listing_counts_the_faults_and_keeps_their_order():
    lines = listing([FAULT, FAULT._replace(where="host gw1")]).splitlines()
    assert [line.strip() for line in lines] == [
        f"1. llm_fleet_models[tiny]: {FAULT.what}",
        FAULT.fix,
        f"2. host gw1: {FAULT.what}",
        FAULT.fix,
    ]
