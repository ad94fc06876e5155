# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Files that somebody else brought are read only where they are files."""

from __future__ import annotations

import os

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import regular_files


def test_only_a_regular_file_is_read_and_only_so_much_of_it(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"1234")
    (tmp_path / "link").symlink_to(path)
    assert regular_files.read(tmp_path / "link", 4) == regular_files.read(path) == b"1234"
    with pytest.raises(OSError, match="more than 3 bytes"):
        regular_files.read(path, 3)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name in ("pipe", "endless", "."):
        with pytest.raises(OSError, match="no regular file"):
            regular_files.read(tmp_path / name, 3)
