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
    own, imported = tmp_path / "own", tmp_path / "imported"
    for folder in (own, imported):
        folder.mkdir()
        archive(folder / "a.tar")
    result = run_module("image_archive_info", directories=[str(own), str(imported)])
    image = {"id": f"sha256:{hashlib.sha256(CONFIG).hexdigest()}", "manifest": "", "platform": "linux/amd64", "digests": []}
    assert result["archives"] == [{"path": str(folder / "a.tar"), "images": [image]} for folder in (own, imported)]
    assert not result["changed"]


def test_it_names_what_is_wrong(run_module, tmp_path):
    archive(tmp_path / "a.tar")
    (tmp_path / "b.tar").write_text("no archive")
    assert "b.tar" in run_module("image_archive_info", directories=[str(tmp_path)])["msg"]
    told = run_module("image_archive_info", directories=[str(tmp_path / "nowhere"), str(tmp_path), str(tmp_path / "lost")])["msg"]
    assert f"no directory {tmp_path}/nowhere, {tmp_path}/lost" in told
