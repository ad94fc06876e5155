# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What the role refuses before it changes anything."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.tests.unit.support.role_template import Role


def refusals(**variables) -> list[str]:
    """What its checks say."""
    one = Role("model_peer", **{"llm_fleet_address": "10.0.0.1", "model_peer_ca_dir": "/srv/ca", **variables})
    found = []
    for task in one.tasks("check.yml"):
        asserted = task["ansible.builtin.assert"]
        that = asserted["that"] if isinstance(asserted["that"], list) else [asserted["that"]]
        if not all(one.evaluate(condition) for condition in that):
            found.append(one.fill_in(asserted["fail_msg"]))
    return found


def test_addresses_of_both_families_will_do():
    assert refusals(model_peer_peers=["10.0.0.2", "fd00::5"], model_peer_fleet=["10.0.0.1", "10.0.0.2", "fd00::5"]) == []


@pytest.mark.parametrize("given", ["model_peer_address", "model_peer_peers", "model_peer_fleet"])
@pytest.mark.parametrize("address", ["10.0.0.300", "1.2.3", "abc", "1::2::3"])
def test_what_is_no_address_is_refused(given, address):
    """None of them has a sign that no address has."""
    (said,) = refusals(**{given: address if given == "model_peer_address" else ["10.0.0.2", address]})
    assert f"gpu1: {address} in " in said and "llm_fleet_address" in said


def test_all_that_are_none_are_named_at_once():
    (said,) = refusals(model_peer_peers=["10.0.0.300", "10.0.0.2"], model_peer_fleet=["10.0.0.300", "1.2.3"])
    assert "gpu1: 10.0.0.300, 1.2.3 in " in said


@pytest.mark.parametrize("settings", [{"model_peer_port": 80}, {"model_peer_ca_dir": ""}, {"model_peer_download": -1}])
def test_what_else_does_not_fit_is_refused(settings):
    assert len(refusals(**settings)) == 1
