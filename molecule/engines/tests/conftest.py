# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The fleet with a model on each engine, and somebody who rolls out on it while clients stream."""

from __future__ import annotations

import json

import pytest

from ansible_collections.localfirst.llm_fleet.molecule.conftest import REPO, Fleet
from ansible_collections.localfirst.llm_fleet.molecule.rollout.tests.conftest import Rollouts
from ansible_collections.localfirst.llm_fleet.tests.load.stream_load import StreamLoad, answer_prefix


@pytest.fixture(scope="session")
def fleet() -> Fleet:
    return Fleet(REPO / "molecule" / "engines" / "inventory")


@pytest.fixture(scope="session")
def catalog(fleet) -> list:
    """The catalog of the inventory, with its paths filled in."""
    text = json.dumps(fleet.inventory["_meta"]["hostvars"]["gw1"]["llm_fleet_models"])
    return json.loads(text.replace("{{ testbed_state_dir }}", str(fleet.state)))


@pytest.fixture
def rollouts(fleet, catalog, tmp_path) -> Rollouts:
    return Rollouts(fleet, catalog, tmp_path)


@pytest.fixture
def load(fleet, tokens):
    """`with load("on-tgi") as clients: …; clients.report`: people who ask through both gateways all the while."""

    def start(model: str, **options) -> StreamLoad:
        gateways = [f"{fleet.address(name)}:443" for name in fleet.hosts("gateways")]
        ca, token = str(fleet.ca), tokens["alice"]
        options = {
            "clients": 4, "seconds": 600, "tokens": (16, 100), "pause": 0.8, "tell": {"old": answer_prefix(gateways[0], ca, token, model)},
            # Not every engine can be told to go on after the end of a text.
            "exact": False, **options,
        }
        return StreamLoad(gateways=gateways, ca=ca, token=token, models=[model], **options)

    return start
