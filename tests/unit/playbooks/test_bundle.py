# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The bundle playbook as operators run it on both sides, without depots: the controller keeps what they would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ansible_collections.localfirst.llm_fleet.tests.unit.conftest import REPO
from ansible_collections.localfirst.llm_fleet.tests.unit.support.lock_builders import lock, model
from ansible_collections.localfirst.llm_fleet.tests.unit.support.signature_builders import key
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import BODY, digest

UNREACHABLE = {"ansible_host": "127.0.0.1", "ansible_port": 9, "ansible_ssh_common_args": "-o ConnectTimeout=2"}


class Side:
    """An inventory on disk whose hosts nobody reaches, and runs of the playbook with it."""

    def __init__(self, folder: Path, models: list[dict], public: Path) -> None:
        self.folder = folder
        folder.mkdir()
        variables = {
            "llm_fleet_models": models,
            "llm_fleet_bundle_signature": {"key": str(public)},
            # What asks servers has tests of its own.
            "llm_fleet_bundle_platforms": [], "llm_fleet_bundle_distributions": {}, "llm_fleet_bundle_python": [],
        }
        groups = {"gateways": {"hosts": {"gw1": UNREACHABLE}}, "gpu_nodes": {"hosts": {"gpu1": UNREACHABLE}}}
        (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"vars": variables, "children": groups}}))

    def run(self, *options: str) -> tuple[int, str]:
        environment = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(REPO / ".venv/collections"),
            "ANSIBLE_LOCAL_TEMP": str(self.folder / "tmp"),
            "ANSIBLE_REMOTE_TEMP": str(self.folder / "tmp"),
            "ANSIBLE_NOCOLOR": "true",
        }
        program = Path(sys.executable).parent / "ansible-playbook"
        done = subprocess.run(
            [program, "localfirst.llm_fleet.bundle", "-i", self.folder / "hosts.yml", *options],
            env=environment, cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=600,
        )
        return done.returncode, done.stdout


@pytest.fixture
def sides(tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(BODY)
    models = [model("tiny", {"1.0.0": f"file://{tmp_path}/tiny.gguf"})]
    private, public = key().write(tmp_path)
    connected, isolated = (Side(tmp_path / name, models, public) for name in ("connected", "isolated"))
    (connected.folder / "models.lock.yml").write_text(lock(models).text)
    return connected, isolated, tmp_path / "bundle", private


def test_models_cross_the_gap(sides, tmp_path):
    connected, isolated, bundle, private = sides
    writing = ("-e", f"dir={bundle}", "-e", f"sign_key={private}")
    code, said = connected.run(*writing, "--check")
    assert code == 0 and not bundle.exists(), said
    code, said = connected.run(*writing)
    assert code == 0 and "NOT SIGNED" not in said, said
    assert (bundle / "artifacts/blobs/sha256" / digest(BODY)).read_bytes() == BODY
    assert {path.name.rpartition("-")[0] for path in (bundle / "collections").iterdir()} >= {"localfirst-llm_fleet", "community-docker"}
    code, said = connected.run(*writing)
    assert code == 0 and "changed=0 " in said, said

    (tmp_path / "tiny.gguf").unlink()
    code, said = isolated.run("-e", f"import={bundle}", "--check")
    assert code == 0 and not (isolated.folder / "bundle").exists(), said
    code, said = isolated.run("-e", f"import={bundle}")
    assert code == 0 and "signed by sha256:" in said, said
    assert (isolated.folder / ".store/blobs/sha256" / digest(BODY)).read_bytes() == BODY
    assert (isolated.folder / "models.lock.yml").read_bytes() == (connected.folder / "models.lock.yml").read_bytes()
    code, said = isolated.run("-e", f"import={bundle}")
    assert code == 0 and "changed=0 " in said, said


def test_an_incremental_bundle_leaves_even_the_lockfile_to_its_base(sides, tmp_path):
    connected, isolated, bundle, private = sides
    assert connected.run("-e", f"dir={bundle}", "-e", f"sign_key={private}")[0] == 0
    more = tmp_path / "more"
    code, said = connected.run("-e", f"dir={more}", "-e", f"base={bundle}/manifest.json", "-e", f"sign_key={private}")
    assert code == 0, said
    assert {path.name for path in more.rglob("*") if path.is_file()} == {"manifest.json", "manifest.json.sig"}
    code, said = isolated.run("-e", f"import={more}")
    assert code != 0 and "import the bundle first" in said
    for each in (bundle, more):
        code, said = isolated.run("-e", f"import={each}")
        assert code == 0, said
    # What the manifest does not name is nobody's word, though the fleet has no lockfile.
    (more / "models.lock.yml").write_text("from somewhere else\n")
    (isolated.folder / "models.lock.yml").unlink()
    code, said = isolated.run("-e", f"import={more}", "-e", "dir=")
    assert code == 0, said
    assert (isolated.folder / "models.lock.yml").read_bytes() == (connected.folder / "models.lock.yml").read_bytes()


def test_a_bundle_keeps_what_it_has_whatever_base_is_named(sides):
    connected, _isolated, bundle, _private = sides
    assert connected.run("-e", f"dir={bundle}", "-e", "import=")[0] == 0
    before = sorted(path for path in bundle.rglob("*"))
    code, said = connected.run("-e", f"dir={bundle}", "-e", f"base={bundle}")
    assert code != 0 and "cannot be its own base" in said and sorted(path for path in bundle.rglob("*")) == before


def test_what_nobody_vouches_for_is_taken_only_by_word(sides):
    connected, isolated, bundle, _private = sides
    code, said = connected.run("-e", f"dir={bundle}")
    assert code == 0 and "NOT SIGNED" in said, said
    code, said = isolated.run("-e", f"import={bundle}")
    assert code != 0 and "the bundle is not signed" in said and not (isolated.folder / ".store").exists()
    code, said = isolated.run("-e", f"import={bundle}", "-e", "unsigned=true")
    assert code == 0 and "NOBODY vouches for it" in said, said


@pytest.mark.parametrize("options", [(), ("-e", "dir=relative"), ("-e", "dir=/a", "-e", "import=/b")])
def test_it_has_to_be_one_of_the_two_with_an_absolute_path(sides, options):
    connected, _isolated, _bundle, _private = sides
    code, said = connected.run(*options)
    assert code != 0 and "an absolute path on the controller" in " ".join(said.split())
