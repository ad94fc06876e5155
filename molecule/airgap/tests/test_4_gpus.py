# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What a server with GPUs wants besides: driver, container toolkit and exporter, by what was carried across."""

from __future__ import annotations

import json

import pytest

from ansible_collections.localfirst.llm_fleet.molecule.airgap.tests.conftest import STATE

EXPORTER = "llm-fleet-dcgm-exporter"


def test_the_driver_is_the_one_of_the_inventory_and_whole(fleet, serving):
    assert "580.95.05" in fleet.shell("gpu1", "cat /proc/driver/nvidia/version")
    assert fleet.shell("gpu1", "nvidia-smi -L").count("UUID: GPU-") == 2
    held = fleet.shell("gpu1", "apt-mark showhold").split()
    assert {"nvidia-driver-cuda", "nvidia-kernel-open-dkms", "libcuda1", "nvidia-container-toolkit"} <= set(held)


@pytest.mark.parametrize("package", ["nvidia-driver-cuda", "nvidia-persistenced", "dkms", "nvidia-container-toolkit"])
def test_its_packages_are_the_bundles_and_no_repository_is_described(fleet, serving, package):
    version = fleet.shell("gpu1", f"dpkg-query -W -f '${{Version}}' {package}").rpartition(":")[2]
    names = [path.name for path in (serving.first / "packages" / "debian-12-amd64").glob(f"{package}_*.deb")]
    assert names == [f"{package}_{version}_all.deb"]
    assert fleet.shell("gpu1", "grep -ril nvidia /etc/apt/sources.list.d || true") == ""


def test_a_container_sees_the_gpus_that_it_is_given(fleet, serving):
    image = json.loads(fleet.shell("gpu1", "docker inspect $(docker ps -q --filter label=llm_fleet.instance | head -1)"))[0]["Image"]
    given = fleet.shell("gpu1", "nvidia-smi -L").split("UUID: ")[1].partition(")")[0]
    seen = fleet.shell("gpu1", f"docker run --rm --network none --gpus '\"device={given}\"' --entrypoint nvidia-smi {image} -L")
    assert seen.count("UUID: GPU-") == 1 and given in seen


def exporter_runs(fleet) -> dict:
    return json.loads(fleet.shell("gpu1", f"docker inspect {EXPORTER}"))[0]


def test_the_exporter_runs_from_exactly_the_image_that_the_digest_names(fleet, serving, exporter):
    """Asked of Docker: the digest of its configuration, to which the list's digest led when the registry was there."""
    runs = exporter_runs(fleet)
    assert runs["State"]["Running"] and runs["Image"] in (exporter.id, exporter.manifest)
    image = json.loads(fleet.shell("gpu1", f"docker image inspect {runs['Image']}"))[0]
    assert image["RepoDigests"] == [] and image["RepoTags"] == [], "it was pulled"


def test_a_monitor_reads_its_metrics(fleet, serving):
    password = (STATE / "ca" / "monitor-password").read_text().strip()
    fleet.shell("depot1", f"cat > /tmp/ca.pem <<'END'\n{fleet.ca.read_text()}END")
    url = f"https://{fleet.address('gpu1')}:9400/metrics"
    metrics = fleet.shell("depot1", f"curl --silent --fail --max-time 10 --cacert /tmp/ca.pem -u 'monitor:{password}' {url}")
    assert metrics.count("DCGM_FI_DEV_FB_USED{") == 2


@pytest.mark.long
def test_an_archive_that_does_not_prove_it_is_not_taken(fleet, serving):
    """The image is in the archive as before; but the inventory names another digest, which nothing here leads to."""
    other = f"10.203.5.2:5000/dcgm-exporter@sha256:{'ab' * 32}"
    done = fleet.playbook("site", "-e", f"dcgm_exporter_image={other}", check=False)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0 and f"proves to hold {other} for linux/amd64" in said
    # What ran goes on.
    assert exporter_runs(fleet)["State"]["Running"]
