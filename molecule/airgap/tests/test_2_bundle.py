# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What is carried across the gap, and what is refused on the other side."""

from __future__ import annotations

import json
import subprocess

import pytest

from ansible_collections.localfirst.llm_fleet.molecule.airgap.tests.conftest import OUTSIDE, STATE

STORE = "/var/lib/llm_fleet/store/blobs/sha256"


def listed(bundle, key: str = "files") -> dict[str, dict]:
    return {each["path"]: each for each in json.loads((bundle / "manifest.json").read_text())[key]}


def kinds(bundle, key: str = "files") -> set[str]:
    return {each["kind"] for each in listed(bundle, key).values()}


def refused(fleet, bundle, *arguments: str) -> str:
    done = fleet.playbook("bundle", "-e", f"import={bundle}", *arguments, check=False)
    assert done.returncode != 0, done.stdout[-2000:]
    assert not (STATE / "bundle").exists() and fleet.shell("depot1", f"ls {STORE} 2>/dev/null || true") == ""
    return " ".join((done.stdout + done.stderr).split())


def test_a_bundle_has_all_that_a_fleet_needs(bundles):
    assert kinds(bundles.first) == {"artifact", "collection", "image", "lockfile", "package", "wheel"}
    names = {path.rpartition("/")[2].partition("_")[0] for path in listed(bundles.first) if path.endswith(".deb")}
    assert {"docker.io", "haproxy", "nginx", "prometheus-node-exporter", "libc6"} <= names


def test_it_has_what_only_servers_with_gpus_ask_for(bundles, exporter):
    """By variables of their group, though another host lends the playbook its own; and of the versions that are named there."""
    files = {path.rpartition("/")[2] for path in listed(bundles.first)}
    assert {"nvidia-driver-cuda_580.95.05-1_all.deb", "nvidia-kernel-open-dkms_580.95.05-1_all.deb", "libcuda1_580.95.05-1_all.deb",
            "nvidia-container-toolkit_1.17.8-1_all.deb", "libnvidia-container1_1.17.8-1_all.deb"} <= files
    assert any(file.startswith("linux-headers-") for file in files) and not any("590" in file or "1.18.0" in file for file in files)
    images = {each["image"].rpartition("/")[2]: each for each in json.loads((bundles.first / "manifest.json").read_text())["images"]}
    assert images["dcgm-exporter"]["id"] == exporter.id and exporter.digest[7:23] in images["dcgm-exporter"]["path"]


def test_it_says_which_driver_it_cannot_have(bundles):
    said = " ".join(bundles.undetermined.split())
    assert "No NVIDIA driver for debian-12-amd64 is in the bundle" in said and "set nvidia_driver_flavour" in said


def test_an_incremental_one_has_what_is_new(bundles):
    assert kinds(bundles.second) == {"artifact"} and len(listed(bundles.second)) == 1
    assert {"image", "package", "wheel"} <= kinds(bundles.second, "earlier")


def test_the_outside_is_gone(fleet, bundles):
    fetch = f"import urllib.request; urllib.request.urlopen({OUTSIDE!r}, timeout=5)"
    assert fleet.python(fetch).returncode != 0


def test_a_bundle_that_was_tampered_with_is_refused(fleet, bundles):
    copy = bundles.copy("tampered")
    (artifact,) = [copy / path for path, each in listed(copy).items() if each["kind"] == "artifact"]
    body = artifact.read_bytes()
    artifact.chmod(0o600)
    artifact.write_bytes(body[:1000] + bytes([body[1000] ^ 1]) + body[1001:])
    deb = next(copy / path for path in listed(copy) if path.endswith(".deb"))
    deb.unlink()
    said = refused(fleet, copy)
    assert artifact.name in said and deb.name in said


def test_a_manifest_that_fits_the_tampered_files_is_refused(fleet, bundles):
    copy = bundles.copy("forged")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["models"][0]["version"] = "9.9.9"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert "changed after it was signed" in refused(fleet, copy)


def test_an_unsigned_bundle_is_refused(fleet, bundles):
    copy = bundles.copy("unsigned")
    (copy / "manifest.json.sig").unlink()
    assert "the bundle is not signed" in refused(fleet, copy)


def test_a_bundle_of_another_key_is_refused(fleet, bundles):
    key = bundles.folder / "other"
    subprocess.run(["sh", "-ec", f"openssl ecparam -name prime256v1 -genkey -noout -out {key}.key; "
                    f"openssl ec -in {key}.key -pubout -out {key}.pub"], check=True, capture_output=True)
    other = json.dumps({"llm_fleet_bundle_signature": {"key": f"{key}.pub"}})
    assert "another key signed it" in refused(fleet, bundles.first, "-e", other)


def test_an_incremental_bundle_before_its_base_is_refused(fleet, bundles):
    said = refused(fleet, bundles.second)
    assert "counts on" in said and "import the bundle first" in said


def test_an_import_fills_the_depot(fleet, imported):
    has = set(fleet.shell("depot1", f"ls {STORE}").split())
    wanted = {path.rpartition("/")[2] for bundle in (imported.first, imported.second)
              for path, each in listed(bundle).items() if each["kind"] == "artifact"}
    assert wanted and wanted == has
    for digest in has:
        assert fleet.shell("depot1", f"sha256sum < {STORE}/{digest}").split()[0] == digest
    assert sorted(path.suffix for path in (STATE / "bundle" / "images").iterdir()) == [".tar", ".tar"]


@pytest.mark.long
def test_the_same_bundle_again_changes_nothing(fleet, imported):
    done = fleet.playbook("bundle", "-e", f"import={imported.second}")
    recap = [line for line in done.stdout.splitlines() if "changed=" in line and "unreachable=" in line]
    assert recap and all("changed=0 " in line for line in recap), recap


@pytest.mark.parametrize("host", ["gw1", "gpu1"])
def test_hosts_that_only_use_it_are_still_bare(fleet, imported, host):
    assert fleet.shell(host, "ls /usr/sbin/haproxy /usr/bin/dockerd /var/lib/llm_fleet 2>/dev/null || true") == ""
