# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The module on a directory of archives."""

from __future__ import annotations

import hashlib
import io
import tarfile

CONFIG = b'{"os": "linux", "architecture": "amd64"}'


def archive(path):
    with tarfile.open(path, "w") as tar:
        for name, body in (("config.json", CONFIG), ("manifest.json", b'[{"Config": "config.json"}]')):
            member = tarfile.TarInfo(name)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))


def test_it_tells_the_images_of_all_archives(run_module, tmp_path):
    archive(tmp_path / "a.tar")
    result = run_module("image_archive_info", directory=str(tmp_path))
    image = {"id": f"sha256:{hashlib.sha256(CONFIG).hexdigest()}", "manifest": "", "platform": "linux/amd64", "digests": []}
    assert result["archives"] == [{"path": str(tmp_path / "a.tar"), "images": [image]}] and not result["changed"]


def test_it_names_what_is_wrong(run_module, tmp_path):
    archive(tmp_path / "a.tar")
    (tmp_path / "b.tar").write_text("no archive")
    assert "b.tar" in run_module("image_archive_info", directory=str(tmp_path))["msg"]
    assert "nowhere" in run_module("image_archive_info", directory=str(tmp_path / "nowhere"))["msg"]
