# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Torrents beside contents. That they are handed out is tested with the role: roles/model_peer/test_role.py."""

from __future__ import annotations

import grp
import os
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.modules.model_offer import offer
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import digest, entry

BODY = bytes(range(256)) * 8192
CA = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


@pytest.fixture
def arguments(tmp_path):
    """Of a depot that has one content, and no torrent of it."""
    blobs = tmp_path / "store" / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (blobs / digest(BODY)).write_bytes(BODY)
    (tmp_path / "ca.pem").write_bytes(CA)
    artifact = {"model": "tiny", "version": "1.0.0", "source": "", "files": [entry("tiny.gguf", BODY)]}
    ours = grp.getgrall()[-1] if os.geteuid() == 0 else grp.getgrgid(os.getegid())
    return {
        "store": str(tmp_path / "store"), "artifacts": [artifact], "ca_path": str(tmp_path / "ca.pem"), "peer": None,
        "owner": None, "group": ours.gr_name,
    }


def test_two_runs_that_describe_a_content_at_once_do_not_disturb_each_other(arguments, monkeypatch):
    torrents = Path(arguments["store"]) / "torrents" / "sha256"
    replace, seen = os.replace, []

    def replace_later(draft, path):
        """The second run comes and goes right before the first one's torrent gets its name."""
        if Path(path).parent == torrents:
            status = os.stat(draft)
            seen.append((status.st_mode & 0o777, status.st_gid))
            if len(seen) == 1:
                offer(arguments, check_mode=False)
        replace(draft, path)

    monkeypatch.setattr(os, "replace", replace_later)
    assert offer(arguments, check_mode=False)["changed"]
    # Whoever serves it over HTTP can read it from the first moment.
    assert seen == [(0o440, grp.getgrnam(arguments["group"]).gr_gid)] * 2
    assert [path.name for path in torrents.iterdir()] == [f"{digest(BODY)}.torrent"]
    assert not offer(arguments, check_mode=False)["changed"]


def test_without_a_ca_it_says_so_and_check_mode_needs_none(arguments, run_module):
    arguments = {**arguments, "ca_path": "/nowhere/ca.pem"}
    failed = run_module("model_offer", **arguments)
    assert failed["failed"] and failed["fault"]["where"] == "/nowhere/ca.pem", failed
    assert run_module("model_offer", **arguments, check_mode=True)["actions"] == ["tiny 1.0.0: describe tiny.gguf to peers"]
