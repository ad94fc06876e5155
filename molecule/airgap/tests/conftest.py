# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Two sides of an air gap. This machine is the controller of both, with files of its own on each."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.molecule.conftest import REPO, Fleet

STATE = REPO / ".testbed" / "airgap"
OUTSIDE = "http://10.203.5.2/models/tiny.gguf"


@pytest.fixture(scope="session")
def fleet() -> Fleet:
    return Fleet(REPO / "molecule" / "airgap" / "inventory", STATE)


class Bundles:
    """The bundles that the connected side has written: the first one for `tiny`, and one for all that goes on from it."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self.fleet = fleet
        self.folder = folder
        self.first, self.second = folder / "first", folder / "second"
        self.key = folder / "bundle.key"
        self.undetermined = ""
        # Nothing that the connected side has is within reach of the other one.
        self.connected = {"llm_fleet_lockfile": str(folder / "models.lock.yml"), "llm_fleet_store_dir": str(folder / "store"),
                          "llm_fleet_bundle_dir": str(folder / "none")}

    def make_key(self) -> None:
        make = f"openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out {self.key}"
        subprocess.run(["sh", "-ec", f"{make}; openssl ec -in {self.key} -pubout -out {STATE}/bundle.pub"], check=True, capture_output=True)

    def write(self, bundle: Path, *arguments: str) -> subprocess.CompletedProcess:
        signed = ["-e", f"sign_key={self.key}"]
        return self.fleet.playbook("bundle", "-e", json.dumps(self.connected), "-e", f"dir={bundle}", *signed, *arguments)

    def copy(self, name: str, of: Path | None = None) -> Path:
        """A copy to be spoilt."""
        return Path(shutil.copytree(of or self.first, self.folder / name))


class Exporter:
    """The image of the exporter of the GPUs' metrics, which a registry knows by a list for several platforms."""

    REPOSITORY = "http://10.203.5.2:5000/v2/dcgm-exporter"
    LIST, MANIFEST = "application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.v2+json"

    def __init__(self) -> None:
        body = self._ask("latest", headers={"Accept": self.MANIFEST})
        self.manifest, self.id = f"sha256:{hashlib.sha256(body).hexdigest()}", json.loads(body)["config"]["digest"]
        entry = {"mediaType": self.MANIFEST, "size": len(body), "digest": self.manifest}
        listed = [{**entry, "platform": {"os": "linux", "architecture": "amd64"}}]
        index = json.dumps({"schemaVersion": 2, "mediaType": self.LIST, "manifests": listed}).encode()
        self._ask("all", data=index, method="PUT", headers={"Content-Type": self.LIST})
        self.digest = f"sha256:{hashlib.sha256(index).hexdigest()}"
        (STATE / "dcgm-exporter.digest").write_text(self.digest)

    def _ask(self, name: str, **options) -> bytes:
        request = urllib.request.Request(f"{self.REPOSITORY}/manifests/{name}", **options)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()


@pytest.fixture(scope="session")
def exporter(fleet) -> Exporter:
    """Before the bundles: then it is still to be had."""
    return Exporter()


@pytest.fixture(scope="session")
def bundles(fleet, exporter, tmp_path_factory) -> Bundles:
    """They are written, and then there is no outside any more."""
    for leftover in ("bundle", "store", "ca"):
        shutil.rmtree(STATE / leftover, ignore_errors=True)
    (STATE / "models.lock.yml").unlink(missing_ok=True)
    made = Bundles(fleet, tmp_path_factory.mktemp("carried"))
    made.make_key()
    fleet.playbook("lock", "-e", json.dumps(made.connected))
    # Which driver a host needs only the host could say, unless somebody does.
    made.undetermined = made.write(made.first, "--check", "-e", "models=tiny", "-e", "nvidia_driver_flavour=auto").stdout
    made.write(made.first, "-e", "models=tiny")
    made.write(made.second, "-e", f"base={made.first}")
    down = [sys.executable, REPO / "testbed" / "fleet.py", "down", "--inventory", REPO / "molecule" / "airgap" / "outside"]
    subprocess.run(down, check=True, capture_output=True)
    return made


@pytest.fixture(scope="session")
def imported(fleet, bundles) -> Bundles:
    for bundle in (bundles.first, bundles.second):
        fleet.playbook("bundle", "-e", f"import={bundle}")
    return bundles


@pytest.fixture(scope="session")
def serving(fleet, imported) -> Bundles:
    fleet.playbook("hosts", "-e", "prepare=all", "-e", "reboot=if_required")
    fleet.playbook("site")
    return imported


@pytest.fixture(scope="session")
def token(fleet, serving, tmp_path_factory) -> str:
    return fleet.token("alice", file=tmp_path_factory.mktemp("token") / "alice")
