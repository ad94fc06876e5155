# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The module as Ansible runs it; the trail itself is in test_audit.py."""

from __future__ import annotations

import json

import pytest

ANN = {"user": "ann", "job": "", "host": "ctl", "place": "boot:1", "process": "1:1"}


@pytest.fixture
def trail(tmp_path):
    return tmp_path / "audit.jsonl"


@pytest.fixture
def call(run_module, trail):
    def run(**more) -> dict:
        return run_module("audit_note", **{"actor": ANN, "what": "drain", "target": "be/a", "audit_file": str(trail), **more})

    return run


def test_each_call_adds_a_line_and_is_no_change(call, trail):
    first = call(details={"model": "tiny"})
    second = call(result="failed: it is down")
    written = [json.loads(line) for line in trail.read_text().splitlines()]
    assert written == [first["line"], second["line"]]
    assert (first["changed"], second["changed"]) == (False, False)
    assert (written[0]["who"]["user"], written[0]["on"], written[0]["model"]) == ("ann", "be/a", "tiny")
    assert written[1]["result"] == "failed: it is down"


def test_check_mode_writes_nothing(call, trail):
    assert call(check_mode=True)["line"]["what"] == "drain" and not trail.exists()


def test_what_is_left_out_or_cannot_be_written_is_a_warning(call, trail):
    result = call(details={"token": "geheim", "id": "5f1c09ab"})
    assert "failed" not in result and "left out: token" in str(result["warnings"])
    assert "geheim" not in trail.read_text() and json.loads(trail.read_text())["id"] == "5f1c09ab"
    result = call(audit_file=str(trail / "below"))
    assert "failed" not in result and str(trail / "below") in str(result["warnings"])


def test_nobody_is_an_error(call, trail):
    result = call(actor={})
    assert result["failed"] and "actor" in result["msg"] and not trail.exists()
