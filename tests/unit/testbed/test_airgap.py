# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The two sides of scenario `airgap`: one without a way out, and one that has what the other's catalog names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.lookup.engine_profiles import BUILT_IN, read_profiles
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.catalog import check_catalog

REPO = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPO / "testbed"))

import fleet as testbed  # noqa: E402
import supply  # noqa: E402

INSIDE, OUTSIDE = REPO / "molecule/airgap/inventory", REPO / "molecule/airgap/outside"


@pytest.fixture(scope="module")
def sides() -> dict:
    return {path: (testbed.read_fleet(path), testbed.read_hostvars(path)) for path in (INSIDE, OUTSIDE)}


def test_only_one_of_them_has_a_way_out(sides):
    inside, outside = sides[INSIDE][0], sides[OUTSIDE][0]
    assert inside.internal and not outside.internal and inside.subnet != outside.subnet
    assert outside.upstream().address not in {host.address for host in inside.hosts}
    with pytest.raises(testbed.FleetError):
        inside.upstream()


def test_the_outside_has_what_the_catalog_names(sides):
    wanted = {path: supply.read_wanted(hostvars, fleet.state).catalog for path, (fleet, hostvars) in sides.items()}
    sources = {path: {version["source"] for model in models for version in model["versions"].values()} for path, models in wanted.items()}
    assert sources[INSIDE] == sources[OUTSIDE] and len(sources[INSIDE]) == 2
    hostvars = sides[INSIDE][1]
    profiles, _faults = read_profiles([BUILT_IN])
    _models, _clients, faults = check_catalog(wanted[INSIDE], hostvars["gw1"]["llm_fleet_clients"], profiles, ["gpu1"])
    assert faults == []


def test_a_network_without_a_way_out_is_made_so(sides, monkeypatch):
    asked = []

    def docker(*arguments: str, **_options) -> str:
        asked.append(arguments)
        return "[]" if "inspect" in arguments else ""

    monkeypatch.setattr(testbed, "docker", docker)
    monkeypatch.setattr(testbed, "local_routes", list)
    for path in (INSIDE, OUTSIDE):
        testbed.ensure_network(sides[path][0])
    made = [arguments for arguments in asked if arguments[:2] == ("network", "create")]
    assert ["--internal" in arguments for arguments in made] == [True, False]
