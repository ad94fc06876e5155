# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What the module makes of its options. The program's start and end are tested with module_utils/test_swarm_unit.py."""

from __future__ import annotations

from ansible_collections.localfirst.llm_fleet.plugins.modules.model_peer import unit_text


def test_another_certificate_makes_it_another_unit(tmp_path):
    certificate = tmp_path / "peer.pem"
    params = {"unit_text": "[Unit]\n", "reads": [str(certificate)]}
    certificate.write_text("first")
    first = unit_text(params)
    assert unit_text(params) == first and first.startswith("[Unit]\n# ")
    certificate.write_text("renewed")
    assert unit_text(params) != first
