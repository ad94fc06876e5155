# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The routes of open rollouts as data: what is kept, what HAProxy's map has of it, and what is no route."""

from __future__ import annotations

import json

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import routes

ONE = {"tiny": {"backend": "be_tiny_x", "share": 5, "clients": ["a", "b"], "progress": {"batch": 1, "none": None}}}


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new" / "routes.json"
    assert routes.read_routes(path) == {}
    routes.write_routes(path, ONE)
    assert routes.read_routes(path) == ONE
    assert path.stat().st_mode & 0o777 == 0o640
    assert json.loads(path.read_text())["format"] == 1


def test_the_map_follows_from_the_routes():
    assert routes.map_entries(ONE) == {"tiny": "be_tiny_x|5", "a|tiny": "be_tiny_x", "b|tiny": "be_tiny_x"}
    assert {routes.model_of(key) for key in routes.map_entries(ONE)} == {"tiny"}
    assert routes.map_entries({}) == {}


def test_a_route_lists_each_client_once():
    assert routes.route("tiny", "be_tiny_x", 5, ["b", "a", "b"], {"batch": 1, "none": None}) == ONE


@pytest.mark.parametrize("share", [-1, 101, "5", True, 2.5])
def test_a_share_is_a_whole_per_cent(share):
    with pytest.raises(ValueError, match="share"):
        routes.route("tiny", "be_tiny_x", share, [], {})


@pytest.mark.parametrize("name", ["", "a b", "a|b", "a\nb", "a;b", "é", "-a", "a" * 300])
def test_names_that_would_mean_something_else_in_a_map_are_refused(name):
    for asked in ((name, "be_x", []), ("tiny", name, []), ("tiny", "be_x", [name])):
        with pytest.raises(ValueError, match="write"):
            routes.route(asked[0], asked[1], 5, asked[2], {})
    with pytest.raises(ValueError, match="write"):
        routes.check_models([name])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "JSON"),
        ("{", "JSON"),
        ("[]", "mapping"),
        ('{"routes": {}}', "format"),
        ('{"format": 2, "routes": {}}', "format"),
        ('{"format": 1}', "routes"),
        ('{"format": 1, "routes": {"tiny": {"share": 5}}}', "routes.tiny: 'backend' is missing"),
        ('{"format": 1, "routes": {"tiny": {"backend": "be_x", "share": 500}}}', "routes.tiny.share"),
        ('{"format": 1, "routes": {"a|b": {"backend": "be_x", "share": 5}}}', "model name"),
        ('{"format": 1, "routes": {"tiny": {"backend": "be_x", "share": 5, "progress": []}}}', "progress"),
    ],
)
def test_a_damaged_file_is_an_error_with_a_reason(tmp_path, text, why):
    path = tmp_path / "routes.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=why):
        routes.read_routes(path)
