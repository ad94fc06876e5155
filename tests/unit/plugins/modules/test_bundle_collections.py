# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Collections as this controller has them, installed again by ansible-galaxy without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

GALAXY = Path(sys.executable).parent / "ansible-galaxy"


def install(root: Path, name: str, version: str = "1.0.0", needs: dict | None = None) -> Path:
    """A collection as `ansible-galaxy collection install` leaves it, but for files that it says it has and lost."""
    folder = root / "ansible_collections" / name.replace(".", "/")
    (folder / "plugins" / "modules").mkdir(parents=True)
    (folder / "plugins" / "modules" / "hello.py").write_text("#!/usr/bin/python\n")
    (folder / "README.md").write_text(f"# {name}\n")
    namespace, short = name.split(".")
    info = {
        "namespace": namespace, "name": short, "version": version, "authors": ["nobody"], "readme": "README.md", "tags": [],
        "description": "of a test", "license": ["Apache-2.0"], "license_file": None, "dependencies": needs or {}, "repository": None,
        "documentation": None, "homepage": None, "issues": None,
    }
    lost = {"name": "FILES.json", "ftype": "file", "chksum_type": "sha256", "chksum_sha256": "0" * 64, "format": 1}
    (folder / "MANIFEST.json").write_text(json.dumps({"collection_info": info, "file_manifest_file": lost, "format": 1}))
    (folder / "FILES.json").write_text(json.dumps({"files": [{"name": "tests/gone.py", "ftype": "file"}], "format": 1}))
    return folder


@pytest.fixture
def bring(tmp_path, run_module):
    def run(*names: str, **arguments) -> dict:
        given = {"bundle": str(tmp_path / "bundle"), "collections": list(names), "paths": [str(tmp_path / "here")], **arguments}
        return run_module("bundle_collections", **given)

    return run


def test_they_install_without_a_network_with_all_that_they_need(bring, tmp_path):
    install(tmp_path / "here", "some.top", needs={"some.base": ">=1.0.0"})
    install(tmp_path / "here", "some.base", "1.2.0")
    install(tmp_path / "here", "some.unwanted")
    brought = bring("some.top")
    assert brought["paths"] == ["collections/some-base-1.2.0.tar.gz", "collections/some-top-1.0.0.tar.gz"]
    files = [str(tmp_path / "bundle" / path) for path in brought["paths"]]
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(tmp_path / "there"), "HOME": str(tmp_path)}
    done = subprocess.run(
        [GALAXY, "collection", "install", "--offline", "-p", tmp_path / "there", *files],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    there = tmp_path / "there/ansible_collections/some"
    assert sorted(path.name for path in there.iterdir() if not path.name.endswith(".info")) == ["base", "top"]
    assert (there / "top/plugins/modules/hello.py").read_text() == "#!/usr/bin/python\n"


def test_the_same_collection_gives_the_same_bytes(bring, tmp_path):
    folder = install(tmp_path / "here", "some.top")
    file = tmp_path / "bundle" / bring("some.top")["paths"][0]
    before = file.read_bytes()
    os.utime(folder / "README.md", (1, 1))
    assert bring("some.top")["changed"] is False
    file.unlink()
    assert bring("some.top")["changed"] and file.read_bytes() == before
    (folder / "README.md").write_text("another\n")
    assert bring("some.top", check_mode=True)["changed"] and file.read_bytes() == before


def test_a_checkout_is_packed_without_what_its_builders_leave_out(bring, tmp_path):
    folder = install(tmp_path / "here", "some.top")
    (folder / "MANIFEST.json").unlink()
    (folder / "galaxy.yml").write_text(
        'namespace: some\nname: top\nversion: 2.0.0\nreadme: README.md\nauthors: [me]\nbuild_ignore: [plugins, "*.log"]\n'
    )
    (folder / "a.log").write_text("no")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.pyc").write_text("no")
    with tarfile.open(tmp_path / "bundle" / bring("some.top")["paths"][0]) as archive:
        assert sorted(archive.getnames()) == ["FILES.json", "MANIFEST.json", "README.md"]


def test_what_is_not_there_is_said(bring, tmp_path):
    install(tmp_path / "here", "some.top", needs={"some.gone": "*"})
    said = bring("some.top")["msg"]
    assert "the collection some.gone is not installed" in said and "ansible-galaxy collection install some.gone" in said
    assert "namespace.name" in bring("../up")["msg"]
