# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The filters are what maintenance.py decides, documented."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from ansible_collections.localfirst.llm_fleet.plugins.filter import maintenance as plugin

FILTERS = plugin.FilterModule().filters()
PLAN = {"instances": [{"id": "solo-0-a", "model": "solo", "host": "gpu1", "release": "f00"}]}


@pytest.mark.parametrize("name", sorted(FILTERS))
def test_the_documentation_names_the_parameters(name):
    documented = yaml.safe_load((Path(plugin.__file__).parent / f"{name}.yml").read_text())["DOCUMENTATION"]
    _input, *others = inspect.signature(FILTERS[name]).parameters.values()
    assert documented["name"] == name
    assert documented["positional"].split(", ") == list(documented["options"]) == ["_input", *(parameter.name for parameter in others)]
    for parameter in others:
        assert documented["options"][parameter.name].get("required", False) == (parameter.default is inspect.Parameter.empty)


def test_a_number_from_the_command_line_or_from_a_file():
    assert FILTERS["maintenance_batches"](PLAN, ["gpu1", "gpu2"], 2) == FILTERS["maintenance_batches"](PLAN, ["gpu1", "gpu2"], "2")
    with pytest.raises(AnsibleFilterError, match="neither a number"):
        FILTERS["maintenance_batches"](PLAN, ["gpu1"], "many")


def test_a_refusal_only_where_something_is_lost():
    assert "solo-0-a" in FILTERS["outage_text"](PLAN, [["gpu1"], ["gpu2"]])
    assert FILTERS["outage_text"](PLAN, [["gpu2"]]) == ""
