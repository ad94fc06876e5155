# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The check that docs/airgap.md has operators run before anything of a bundle is: the commands are the guide's own."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from pathlib import Path

import pytest

GUIDE = Path(__file__).resolve().parents[2] / "docs/airgap.md"


@pytest.fixture
def bundle(tmp_path):
    """One with a wheel and a collection, and beside them code that Python would take for its own modules."""
    folder = tmp_path / "bundle"
    files = {"wheels/a.whl": "wheel", "collections/b.tar.gz": "collection"}
    for path in files:
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_text(path)
    listed = [{"path": path, "sha256": hashlib.sha256(path.encode()).hexdigest(), "kind": kind} for path, kind in files.items()]
    (folder / "manifest.json").write_text(json.dumps({"files": [*listed, {"path": "images/x.tar", "sha256": "0" * 64, "kind": "image"}]}))
    for name in ("hashlib", "json", "venv"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    return folder


def checked(bundle: Path, cwd: Path) -> str:
    """What the guide's commands print, up to the check itself."""
    (block,) = [each for each in re.findall("```sh\n(.*?)```", GUIDE.read_text(), re.DOTALL) if "as the manifest says" in each]
    script = block[: block.index("python3 -I -m venv")].replace("bundle=/media/disk/bundle-1", f"bundle={bundle}")
    assert str(bundle) in script
    return subprocess.run(["sh", "-c", script], cwd=cwd, text=True, capture_output=True, check=True).stdout


def test_a_sound_bundle_is_as_the_manifest_says(bundle, tmp_path):
    told = checked(bundle, tmp_path)
    assert hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest() in told and "as the manifest says" in told


def test_what_is_changed_missing_or_unknown_is_named(bundle, tmp_path):
    (bundle / "wheels/a.whl").write_text("changed")
    (bundle / "collections/b.tar.gz").unlink()
    (bundle / "wheels/c.whl").write_text("unknown")
    told = checked(bundle, tmp_path)
    assert all(name in told for name in ("wheels/a.whl", "collections/b.tar.gz", "wheels/c.whl")) and "as the manifest says" not in told


def test_no_code_of_the_bundle_runs(bundle, tmp_path):
    checked(bundle, bundle)  # though somebody stands in it
    assert not (tmp_path / "ran").exists()
