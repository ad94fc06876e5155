# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""When a host keeps the certificate that it has, and what it asks for otherwise."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.tests.unit.support.role_template import Role

# As community.crypto.x509_certificate_info tells it.
NAMES = ["DNS:gpu1", "IP:10.0.0.5", "IP:fd00::5", "IP:fd00::a"]


def role(names: list[str], there: list[str] = NAMES) -> Role:
    return Role(
        "llm_fleet",
        llm_fleet_certificate={"names": names, "usage": "server", "name": "gpu1", "key": "/key"},
        __llm_fleet_key={"stat": {"exists": True}},
        __llm_fleet_cert_info={"valid_at": {"renewal": True}, "subject_alt_name": there, "authority_key_identifier": "aa"},
        __llm_fleet_ca_info={"subject_key_identifier": "aa"},
    )


@pytest.mark.parametrize(
    "names",
    [
        ["gpu1", "10.0.0.5", "fd00::5", "fd00::a"],
        ["gpu1", "10.0.0.5", "fd00:0::5", "FD00::A", "fd00::a"],
        ["fd00:0:0:0:0:0:0:a", "gpu1", "fd00::0005", "10.0.0.5"],
    ],
)
def test_a_certificate_fits_however_its_addresses_are_written(names):
    one = role(names)
    assert one.evaluate("__llm_fleet_cert_fits") is True
    assert one.evaluate("__llm_fleet_request")[-1] in one.evaluate("'subjectAltName=' ~ __llm_fleet_sans | join(',')")


@pytest.mark.parametrize("names", [["gpu1", "10.0.0.5", "fd00::5"], ["gpu1", "10.0.0.5", "fd00::5", "fd00::b"], []])
def test_one_for_other_names_is_made_anew(names):
    assert role(names).evaluate("__llm_fleet_cert_fits") is False


def test_names_are_asked_for_as_what_they_are():
    asked = role(["gpu1", "FD00:0::5", "10.0.0.5"]).evaluate("__llm_fleet_request")[-1]
    assert asked == "subjectAltName=DNS:gpu1,IP:fd00::5,IP:10.0.0.5"
