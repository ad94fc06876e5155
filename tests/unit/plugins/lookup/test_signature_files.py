# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The lookup: a file that is not there is told and stops nothing."""

from __future__ import annotations

import os

from ansible_collections.localfirst.llm_fleet.plugins.lookup.signature_files import LookupModule
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_bundle import LARGEST


def test_it_reads_what_the_catalog_names(tmp_path):
    (tmp_path / "models.pub").write_text("a key")
    (tmp_path / "odd").write_bytes(b"\xff\xfe")
    (tmp_path / "large").write_bytes(b" " * (LARGEST + 1))
    names = ("models.pub", "gone", "odd", "large")
    models = [{"signature": {"key": str(tmp_path / name)}} for name in names]
    found, = LookupModule().run([models])
    assert found[str(tmp_path / "models.pub")] == {"text": "a key"}
    assert "no such file" in found[str(tmp_path / "gone")]["error"]
    assert "no text" in found[str(tmp_path / "odd")]["error"]
    assert str(LARGEST) in found[str(tmp_path / "large")]["error"]


def test_a_pipe_and_a_device_are_told_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    found, = LookupModule().run([[{"signature": {"key": str(path)}} for path in (tmp_path / "pipe", "/dev/zero")]])
    assert [each["error"] for each in found.values()] == ["it is no regular file"] * 2
