# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The filters are the views, documented."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from ansible_collections.localfirst.llm_fleet.plugins.filter import plan as plugin
from ansible_collections.localfirst.llm_fleet.plugins.module_utils import views
from ansible_collections.localfirst.llm_fleet.tests.unit.plugins.module_utils import fleet_builders as fleet

FILTERS = plugin.FilterModule().filters()


@pytest.mark.parametrize("name", sorted(FILTERS))
def test_the_documentation_names_the_parameters_that_the_view_has(name):
    documented = yaml.safe_load((Path(plugin.__file__).parent / f"{name}.yml").read_text())["DOCUMENTATION"]
    _input, *others = inspect.signature(FILTERS[name]).parameters.values()
    options = documented["options"]
    assert documented["name"] == name
    assert list(options) == ["_input", *(parameter.name for parameter in others)]
    for parameter in others:
        assert options[parameter.name].get("required", False) == (parameter.default is inspect.Parameter.empty)
    if others:
        assert documented["positional"].split(", ") == list(options)


def test_a_filter_gives_what_the_view_gives():
    planned = fleet.plan([fleet.model("tiny")], [fleet.host("gpu1")]).plan
    assert FILTERS["host_instances"](planned, host="gpu1") == views.host_instances(planned, "gpu1")


def test_a_refusal_is_an_error_that_ansible_shows_in_one_line():
    with pytest.raises(AnsibleFilterError, match="empty"):
        FILTERS["engine_key"]("", "tiny")
