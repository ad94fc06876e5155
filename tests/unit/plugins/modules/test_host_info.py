# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The module on this machine, with Docker's and apt's command lines replaced by scripts that print what those print."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.routes import write_routes

DOCUMENTS = Path(__file__).parents[1] / "module_utils" / "nvidia_smi"

# What nvidia-smi prints for this question, and for no other.
SMI = """test "$*" = "--query-gpu=uuid,memory.free --format=csv,noheader,nounits" || exit 2
cat <<'END'
{}
END
exit {}"""

INSPECTED = [
    {
        "Config": {
            "Labels": {
                "llm_fleet.instance": "tiny-0-a",
                "llm_fleet.model": "tiny",
                "llm_fleet.version": "1.0.0",
                "llm_fleet.release": "0f3a5c7e9b1d",
                "llm_fleet.replica": "0",
                "llm_fleet.slot": "a",
                "llm_fleet.port": "20000",
            }
        },
        "State": {"Status": "running", "Health": {"Status": "healthy"}},
    },
    {"Config": {"Labels": {"llm_fleet.instance": "odd"}}, "State": {"Status": "exited"}},
]


@pytest.fixture
def programs(tmp_path):
    """A folder of programs that a test writes."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def write(name: str, script: str):
        program = folder / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    write("docker", "exit 1")
    write("apt-cache", "exit 1")
    write.folder = folder
    return write


@pytest.fixture
def look(run_module, programs, tmp_path):
    def run(**arguments):
        return run_module("host_info", path=programs.folder, state_dir=str(tmp_path / "state"), **arguments)

    return run


def test_a_bare_host_lacks_things_and_is_no_error(look):
    seen = look()
    assert "failed" not in seen and seen["changed"] is False
    assert seen["instances"] == [] and seen["blobs"] == {}
    assert seen["plan"] is None and seen["plan_error"] == ""
    assert seen["docker"]["state"] in ("absent", "stopped") and seen["docker"]["version"] == ""
    assert seen["store"]["total_bytes"] >= seen["store"]["free_bytes"] > 0
    assert seen["memory_bytes"] > 2**20 and seen["distribution"]["id"]


def test_instances_come_from_labels(look, programs):
    programs("docker", f"""case $1 in
        version) echo 20.10.24 ;; ps) echo aa; echo bb ;; inspect) cat <<'END'
{json.dumps(INSPECTED)}
END
        esac""")
    seen = look()
    assert seen["docker"] == {"state": "running", "version": "20.10.24", "restart_pending": False}
    assert seen["instances"] == [
        {"id": "odd", "model": "", "version": "", "release": "", "replica": -1, "slot": "", "port": -1,
         "state": "exited", "health": "none"},
        {"id": "tiny-0-a", "model": "tiny", "version": "1.0.0", "release": "0f3a5c7e9b1d", "replica": 0, "slot": "a",
         "port": 20000, "state": "running", "health": "healthy"},
    ]


def test_a_container_that_goes_meanwhile_hides_no_other(look, programs):
    """`docker inspect` then prints those that it found, and fails."""
    programs("docker", f"case $1 in version) echo 1 ;; ps) echo aa ;; inspect) echo '{json.dumps(INSPECTED[:1])}'; exit 1 ;; esac")
    assert [instance["id"] for instance in look()["instances"]] == ["tiny-0-a"]


def test_plan_and_blobs_are_read(look, tmp_path):
    store = tmp_path / "state" / "store" / "blobs" / "sha256"
    store.mkdir(parents=True)
    (store / ("a" * 64)).write_text("12345")
    (tmp_path / "state" / "plan.json").write_text('{"generation": 7}')
    seen = look()
    assert seen["plan"] == {"generation": 7} and seen["blobs"] == {"a" * 64: 5}


def test_a_broken_plan_is_told_and_not_taken_for_none(look, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "plan.json").write_text('{"generation":')
    seen = look()
    assert seen["plan"] is None and "plan.json is not JSON" in seen["plan_error"]


def test_the_clock_is_measured_against_the_controllers(look):
    assert 99 < look(controller_clock=time.time() - 100)["clock_skew"] < 130
    assert -100 < look(controller_clock=time.time() + 100)["clock_skew"] < -70
    assert look()["clock_skew"] == 0


@pytest.mark.parametrize(
    ("installed", "expected"), [("2.6.12-1+deb12u2", "2.6.12-1+deb12u2"), ("(none)", "2.6.12-1+deb12u4")]
)
def test_haproxy_is_the_installed_one_or_else_the_one_to_come(look, programs, installed, expected):
    programs("apt-cache", f"printf 'haproxy:\\n  Installed: {installed}\\n  Candidate: 2.6.12-1+deb12u4\\n'")
    assert look(gateway=True)["haproxy_version"] == expected
    assert "haproxy_version" not in look()


def test_free_memory_is_what_a_process_could_have(look):
    """As the kernel says it, and it is far from both ends on a machine that runs this test."""
    with open("/proc/meminfo") as file:
        said = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in file}
    seen = look()["memory_free"]
    assert said["MemAvailable"] / 2 < seen < said["MemTotal"] and seen % 1024 == 0


def test_gpus_are_told_with_their_free_memory(look, programs):
    programs("nvidia-smi", SMI.format("GPU-4f1b2c3d-aaaa, 80448\nGPU-4f1b2c3d-bbbb, 3", 0))
    assert look()["gpu_free"] == {"GPU-4f1b2c3d-aaaa": 80448 * 2**20, "GPU-4f1b2c3d-bbbb": 3 * 2**20}


def test_a_gpu_that_does_not_say_is_left_out_and_hides_no_other(look, programs):
    programs("nvidia-smi", SMI.format("GPU-aaaa, [N/A]\nGPU-bbbb, 80448\nGPU-cccc, [Unknown Error]\nGPU-dddd", 0))
    assert look()["gpu_free"] == {"GPU-bbbb": 80448 * 2**20}


@pytest.mark.parametrize(("text", "code"), [("No devices were found", 6), ("NVIDIA-SMI has failed because ..., 12", 9)])
def test_a_driver_that_does_not_answer_is_no_error(look, programs, text, code):
    programs("nvidia-smi", SMI.format(text, code))
    seen = look()
    assert seen["gpu_free"] == {} and "failed" not in seen


@pytest.mark.skipif(shutil.which("nvidia-smi", path="/usr/bin:/bin") is not None, reason="this machine has a driver")
def test_without_a_driver_there_are_no_gpus(look):
    assert look()["gpu_free"] == {}


def test_all_about_gpus_comes_from_one_question_and_how_they_are_joined_from_another(look, programs, tmp_path):
    programs("nvidia-smi", f"""echo "$*" >> {tmp_path}/asked
    [ "$*" = "-q -x" ] && cat {DOCUMENTS}/hopper_h100_nvswitch_580.xml""")
    seen = look()
    assert (tmp_path / "asked").read_text() == "-q -x\ntopo -m\n"
    assert seen["gpu"]["state"] == "ready" and len(seen["gpu"]["gpus"]) == 8
    assert set(seen["gpu_memory"]) == set(seen["gpu_free"]) == {gpu["uuid"] for gpu in seen["gpu"]["gpus"]}
    assert set(seen["gpu_memory"].values()) == {81559 * 2**20} and set(seen["gpu_free"].values()) == {81080 * 2**20}


def test_in_mig_mode_devices_have_the_memory(look, programs):
    parent = "GPU-513536b6-7d19-9063-b049-1e69664bb298"
    devices = "\n".join(f"  MIG 1g.20gb     Device  {number}: (UUID: MIG-{number})" for number in range(4))
    programs("nvidia-smi", f"""case "$*" in
        "-q -x") cat {DOCUMENTS}/ampere_a100_mig_535.xml ;;
        "-L") printf 'GPU 0: NVIDIA A100-SXM4-80GB (UUID: {parent})\n{devices}\n' ;;
    esac""")
    seen = look()
    assert seen["gpu_memory"] == {f"MIG-{number}": 19968 * 2**20 for number in range(4)}
    assert parent not in seen["gpu_free"] and len(seen["gpu_free"]) == 4


def test_a_mismatch_is_told_and_no_error(look, programs):
    programs("nvidia-smi", "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    seen = look()
    assert "failed" not in seen and seen["gpu"]["state"] == "mismatch" and seen["gpu"]["problem"] and seen["gpu_memory"] == {}


def test_who_does_not_need_gpus_does_not_wait_for_them(look, programs, tmp_path):
    programs("nvidia-smi", f"touch {tmp_path}/asked")
    seen = look(gpus=False)
    assert "gpu" not in seen and seen["gpu_free"] == {} and not (tmp_path / "asked").exists()


def test_what_the_last_look_at_the_gpus_has_found_is_told_with_its_age(look, tmp_path):
    assert look()["gpu_health"] == {}
    file = tmp_path / "state" / "gpu-health.json"
    file.parent.mkdir(exist_ok=True)
    told = {"checked": "2026-11-28T17:10:14Z", "interval": 60, "severity": "warning", "drain": False, "findings": [{"finding": "throttle"}]}
    file.write_text(json.dumps({**told, "memory": {"looks": {}}}))
    os.utime(file, (time.time() - 1000, time.time() - 1000))
    seen = look()["gpu_health"]
    assert 1000 <= seen.pop("age") < 1060 and seen == told
    file.write_text("{")
    assert look()["gpu_health"] == {}


def test_a_gateway_tells_where_it_sends_requests(look, tmp_path):
    assert look(gateway=True)["routes"] == {}
    (tmp_path / "state").mkdir()
    route = {"backend": "be_tiny_0f3a5c7e9b1d", "share": 25, "clients": ["qa"], "progress": {"switched": [0]}}
    write_routes(tmp_path / "state" / "routes.json", {"tiny": route})
    assert look(gateway=True)["routes"] == {"tiny": route}
    assert "routes" not in look()


def test_whether_the_docker_modules_find_what_they_need(look):
    has_it = subprocess.run([sys.executable, "-c", "import requests"], capture_output=True, check=False).returncode == 0
    assert look()["python_requests"] == has_it
