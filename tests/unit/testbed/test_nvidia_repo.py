# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The doubles of NVIDIA's packages do what is told of them: relations, the toolkit's command line, DCGM's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.tests.unit.support.apt_root import DOUBLE, AptRoot, build_repository, usable

LISTED = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aa)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bb)
  MIG 3g.40gb     Device  0: (UUID: MIG-b0)
  MIG 3g.40gb     Device  1: (UUID: MIG-b1)
"""
QUERIED = "0, GPU-aa, 580.95.05, 0\n1, GPU-bb, 580.95.05, {errors}\n"


@pytest.fixture
def programs(tmp_path):
    """A PATH with an nvidia-smi that prints what a test wants, and a runc that shows the container it gets."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def write(name: str, script: str):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    write.smi = lambda text, code=0: write("nvidia-smi", f"cat <<'END'\n{text}END\nexit {code}")
    write.smi(LISTED)
    write("runc", 'for last; do :; done; while [ "$1" != --bundle ]; do shift; done; cat "$2/config.json"')

    def run(name: str, *arguments: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PATH": f"{folder}:/usr/bin:/bin"}
        return subprocess.run([sys.executable, DOUBLE / name, *arguments], env=environment, text=True, capture_output=True, check=False)

    write.run = run
    return write


def test_cdi_has_a_device_for_each_gpu_and_part(programs, tmp_path):
    spec = tmp_path / "cdi/nvidia.yaml"
    done = programs.run("nvidia_ctk.py", "cdi", "generate", f"--output={spec}")
    assert done.returncode == 0, done.stderr
    written = json.loads(spec.read_text())
    assert [device["name"] for device in written["devices"]] == ["0", "1:0", "1:1", "GPU-aa", "MIG-b0", "MIG-b1", "all"]
    by_name = {device["name"]: device["containerEdits"]["env"] for device in written["devices"]}
    assert by_name["0"] == ["TESTBED_GPU_0=GPU-aa"] and len(by_name["all"]) == 3
    listed = programs.run("nvidia_ctk.py", "cdi", "list", f"--spec-dir={spec.parent}")
    assert "nvidia.com/gpu=GPU-aa\n" in listed.stdout and "Found 7 CDI devices" in listed.stderr


def test_cdi_is_not_written_where_the_driver_does_not_answer(programs, tmp_path):
    programs.smi("Failed to initialize NVML: Driver/library version mismatch\n", 18)
    done = programs.run("nvidia_ctk.py", "cdi", "generate", f"--output={tmp_path}/nvidia.yaml")
    assert done.returncode == 1 and "version mismatch" in done.stderr and not (tmp_path / "nvidia.yaml").exists()


def test_docker_s_configuration_is_merged(programs, tmp_path):
    config = tmp_path / "docker/daemon.json"
    config.parent.mkdir()
    config.write_text('{"debug": true, "runtimes": {"crun": {"path": "crun"}}}')
    options = ("--runtime=docker", f"--config={config}", "--set-as-default", "--cdi.enabled")
    done = programs.run("nvidia_ctk.py", "runtime", "configure", *options)
    assert done.returncode == 0 and "restarted" in done.stderr
    assert json.loads(config.read_text()) == {
        "debug": True, "default-runtime": "nvidia", "features": {"cdi": True},
        "runtimes": {"crun": {"path": "crun"}, "nvidia": {"args": [], "path": "nvidia-container-runtime"}},
    }
    config.write_text("{broken")
    assert programs.run("nvidia_ctk.py", "runtime", "configure", f"--config={config}").returncode == 1
    assert config.read_text() == "{broken"


@pytest.mark.parametrize(
    ("asked", "given"),
    [("0", {"GPU-aa"}), ("GPU-aa,MIG-b1", {"GPU-aa", "MIG-b1"}), ("all", {"GPU-aa", "MIG-b0", "MIG-b1"}), ("void", set())],
)
def test_the_runtime_gives_what_the_container_asks_for(programs, tmp_path, asked, given):
    (tmp_path / "config.json").write_text(json.dumps({"process": {"env": ["PATH=/bin", f"NVIDIA_VISIBLE_DEVICES={asked}"]}}))
    done = programs.run("nvidia_ctk.py", "--as-runtime", "--log", "x", "create", "--bundle", str(tmp_path), "name")
    variables = json.loads(done.stdout)["process"]["env"]
    assert {text.partition("=")[2] for text in variables if text.startswith("TESTBED_GPU_")} == given


def test_the_runtime_refuses_a_gpu_that_is_not_there(programs, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"process": {"env": ["NVIDIA_VISIBLE_DEVICES=7"]}}))
    done = programs.run("nvidia_ctk.py", "--as-runtime", "create", "--bundle", str(tmp_path), "name")
    assert done.returncode == 1 and "unknown device" in done.stderr


@pytest.mark.parametrize(("errors", "code", "status"), [("0", 0, "Pass"), ("3", 226, "Fail"), ("[N/A]", 0, "Pass")])
def test_dcgm_s_diagnosis(programs, errors, code, status):
    programs.smi(QUERIED.format(errors=errors))
    done = programs.run("dcgmi.py", "diag", "-r", "1", "-j")
    test, = json.loads(done.stdout)["DCGM Diagnostic"]["test_categories"][0]["tests"]
    assert done.returncode == code and test["test_summary"]["status"] == status
    assert [result["entity_id"] for result in test["results"]] == [0, 1]
    assert status in programs.run("dcgmi.py", "diag", "-r", "1").stdout


def test_dcgm_without_a_driver(programs):
    programs.smi("NVIDIA-SMI has failed\n", 9)
    assert programs.run("dcgmi.py", "diag", "-r", "1").returncode == 226
    assert programs.run("dcgmi.py", "discovery", "-l").returncode == 1


needs_apt = pytest.mark.skipif(not usable(), reason="needs apt, dpkg, gpg and root")


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return build_repository(tmp_path_factory.mktemp("double") / "repository")


@pytest.fixture
def host(tmp_path, repository):
    root = AptRoot(tmp_path / "root")
    root.use(repository)
    return root


@needs_apt
def test_a_pinning_package_binds_its_branch_as_nvidia_s_does(host):
    host.run("apt-get", "install", "-y", "nvidia-driver-pinning-580")
    host.run("apt-get", "install", "-y", "nvidia-open")
    driver = {name: version for name, version in host.packages().items() if name.startswith(("nvidia-", "lib"))}
    assert driver.pop("nvidia-driver-pinning-580") and set(driver.values()) == {"580.105.08-1"}
    refused = host.run("apt-get", "install", "-y", "nvidia-driver-pinning-580", "nvidia-driver-pinning-590", check=False)
    assert refused.returncode != 0, "they exclude each other"


@needs_apt
def test_the_driver_brings_what_the_testbed_reads(host):
    host.run("apt-get", "install", "-y", "nvidia-driver-cuda=580.95.05-1", "nvidia-kernel-open-dkms=580.95.05-1",
             "libcuda1=580.95.05-1", "libnvidia-ml1=580.95.05-1", "nvidia-persistenced=580.95.05-1")
    state = host.root / "usr/lib/testbed-nvidia"
    assert (state / "kernel-version").read_text() == (state / "library-version").read_text() == "580.95.05\n"
    assert (state / "nvidia_smi/nvidia_smi.py").is_file() and os.access(host.root / "usr/bin/nvidia-smi", os.X_OK)
    for unit in ("nvidia-load-double", "nvidia-persistenced"):
        assert (host.root / f"usr/lib/systemd/system/{unit}.service").is_file()


@needs_apt
def test_the_toolkit_and_dcgm_say_their_versions(host):
    host.run("apt-get", "install", "-y", "nvidia-container-toolkit", "datacenter-gpu-manager-4-cuda13")
    for path, said in (("nvidia_ctk.py", "version 1.18.0"), ("dcgmi.py", "version: 4.4.1")):
        command = [sys.executable, host.root / "usr/lib/testbed-nvidia" / path, "--version"]
        assert said in subprocess.run(command, capture_output=True, text=True, check=True).stdout


@needs_apt
def test_a_new_signature_with_another_key_changes_nothing_else(repository, tmp_path):
    packages = (repository / "Packages").read_bytes()
    old = (repository / "nvidia-double.asc").read_bytes()
    command = [sys.executable, str(DOUBLE / "build.py"), str(repository), "--sign-only", "--key", str(tmp_path / "new-key")]
    subprocess.run(command, check=True, capture_output=True)
    assert (repository / "Packages").read_bytes() == packages and (repository / "nvidia-double.asc").read_bytes() != old
    assert Path(repository / "InRelease").read_text().startswith("-----BEGIN PGP SIGNED MESSAGE-----")
