# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The filters are what lease.py decides, documented."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml

from ansible_collections.localfirst.llm_fleet.plugins.filter import lease as plugin

FILTERS = plugin.FilterModule().filters()
OTHER = {"user": "bob", "job": "", "host": "ctl", "place": "p", "process": "1:1", "purpose": "x", "since": "today", "seconds_left": 9}
MINE = {"taken": True, "holder": OTHER, "stop": None, "name": "plan"}
THEIRS = {**MINE, "taken": False}


@pytest.mark.parametrize("name", sorted(FILTERS))
def test_the_documentation_names_the_parameters(name):
    documented = yaml.safe_load((Path(plugin.__file__).parent / f"{name}.yml").read_text())["DOCUMENTATION"]
    _results, *others = inspect.signature(FILTERS[name]).parameters.values()
    assert documented["name"] == name
    assert list(documented["options"]) == ["_input", *(parameter.name for parameter in others)]
    for parameter in others:
        assert documented["options"][parameter.name].get("required", False) == (parameter.default is inspect.Parameter.empty)
        assert documented["positional"].split(", ") == list(documented["options"])


def test_held_or_whose_it_is():
    assert FILTERS["lock_held"]([MINE]) and not FILTERS["lock_held"]([THEIRS])
    assert FILTERS["lock_refusal"]([MINE]) == "" and "bob" in FILTERS["lock_refusal"]([THEIRS])
    assert FILTERS["lock_gone"]([THEIRS], {"place": "elsewhere"}) == []
    # No pid is as high as this one.
    ended = {**THEIRS, "holder": {**OTHER, "process": "99999999:1"}}
    assert FILTERS["lock_gone"]([ended], {"place": "p"}) == [ended["holder"]]
