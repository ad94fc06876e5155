# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What the catalog may say about signatures, and what it means for each version."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.catalog import check_catalog
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_demand import (
    Demand,
    demands,
    named_paths,
    unsigned_faults,
)
from ansible_collections.localfirst.llm_fleet.tests.unit.support.lock_builders import PROFILES, model

SOURCE = "file:///srv/tiny.gguf"
KEY = {"key": "/srv/models.pub"}


def check(signature: object = None, **versions: object):
    """A model with version 1.0.0, and others with a signature of their own (v2=…)."""
    written = model("tiny", {"1.0.0": SOURCE})
    for name, value in versions.items():
        written["versions"][f"{name[1:]}.0.0"] = {"source": SOURCE, "signature": value}
    models, _clients, faults = check_catalog([{**written, "signature": signature}], [], PROFILES, [])
    return models, faults


def test_a_model_s_demand_holds_for_its_versions_unless_they_have_their_own():
    models, faults = check(KEY, v2="none", v3={"ca": "/srv/ca.pem", "identity": "a@example.com", "file": "release.sig"})
    assert faults == []
    assert demands(models) == {
        ("tiny", "1.0.0"): Demand("/srv/models.pub", "", "", "model.sig", SOURCE),
        ("tiny", "3.0.0"): Demand("", "/srv/ca.pem", "a@example.com", "release.sig", SOURCE),
    }


def test_a_model_s_demand_holds_for_what_is_locked_and_not_in_the_catalog():
    lock = {"models": {"tiny": {"0.9.0": {}, "1.0.0": {}, "2.0.0": {}}, "other": {"1.0.0": {}}}}
    models, _faults = check(KEY, v2="none")
    assert demands(models, lock) == {
        ("tiny", "0.9.0"): Demand("/srv/models.pub", "", "", "model.sig", ""),
        ("tiny", "1.0.0"): Demand("/srv/models.pub", "", "", "model.sig", SOURCE),
    }
    assert [fault.where for fault in unsigned_faults(models, lock)] == ["llm_fleet_models[tiny].versions.2.0.0.signature"]
    nothing = {fault.where: fault.fix for fault in unsigned_faults(check(None)[0], lock)}
    assert "lock again" in nothing["llm_fleet_models[tiny].versions.0.9.0.signature"] and len(nothing) == 3


def test_where_signatures_are_required_every_version_without_one_is_named():
    models, _faults = check(None, v2=KEY, v3="none")
    assert [fault.where for fault in unsigned_faults(models)] == [
        "llm_fleet_models[tiny].versions.1.0.0.signature", "llm_fleet_models[tiny].versions.3.0.0.signature",
    ]
    assert list(unsigned_faults(check(KEY)[0])) == []


@pytest.mark.parametrize(
    ("signature", "clue"),
    [
        ("none", "not a mapping"),  # for a model that is said by leaving it out
        ("/srv/models.pub", "not a mapping"),
        ({}, "neither which key"),
        ({"file": "x.sig"}, "neither which key"),
        ({**KEY, "ca": "/srv/ca.pem"}, "a key and a CA"),
        ({**KEY, "identity": "a"}, "no identity"),
        ({"key": "models.pub"}, "relative"),
        ({"ca": "ca.pem"}, "relative"),
        ({"key": 7}, "7"),
        ({"ca": "/srv/ca.pem", "identity": None}, "nothing is named as identity"),
        ({"ca": "/srv/ca.pem", "identity": " "}, "nothing is named as identity"),
        ({"ca": "/srv/ca.pem", "identity": ""}, "line of text"),
        ({**KEY, "file": "../model.sig"}, "dotted"),
        ({**KEY, "file": "/srv/../model.sig"}, "dotted"),
        ({**KEY, "file": ""}, "file's name"),
        ({**KEY, "keys": []}, "unknown key 'keys'"),
        ("sigstore", "not for a fleet"),
        ({"sigstore": {}}, "not for a fleet"),
        ({"issuer": "https://accounts.example"}, "not for a fleet"),
    ],
)
def test_what_is_written_wrongly_is_told_with_its_place(signature, clue):
    places = {"llm_fleet_models[tiny].signature": {}, "llm_fleet_models[tiny].versions.2.0.0.signature": {"v2": signature}}
    for place, versions in places.items():
        if versions and signature == "none":
            continue
        _models, faults = check(None if versions else signature, **versions)
        assert len(faults) == 1 and clue in faults[0].what and faults[0].where.startswith(place) and faults[0].fix


def test_keyless_signing_is_refused_with_the_reason():
    _models, faults = check({"sigstore": True})
    assert "Fulcio" in faults[0].fix and "key or a certificate of your own" in faults[0].fix


@pytest.mark.parametrize(
    "models", [None, "text", [7], [{"signature": 7}], [{"versions": 7}], [{"versions": {"1.0.0": 7}}], [{"signature": {"key": ["/x"]}}]]
)
def test_files_are_looked_for_in_whatever_was_written(models):
    assert named_paths(models) == []


def test_the_files_of_models_and_versions_are_named_once():
    written = [{"signature": KEY, "versions": {"1.0.0": {"signature": {"ca": "/ca.pem", "file": "/x.sig"}}, "2.0.0": {"signature": KEY}}}]
    assert named_paths(written) == ["/ca.pem", "/srv/models.pub", "/x.sig"]


def test_git_s_files_and_the_signature_are_no_part_of_a_model():
    demand = Demand("/k", "", "", "sub/model.sig")
    for name in (".git/config", ".gitattributes", ".github/workflows/x.yml", "sub/model.sig"):
        assert demand.leaves_out(name)
    for name in ("sub/.gitattributes", "model.sig", ".gitattributes.txt", "git"):
        assert not demand.leaves_out(name)
