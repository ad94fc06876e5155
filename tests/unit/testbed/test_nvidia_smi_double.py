# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The double of nvidia-smi does what roles rely on: changes, refusals, exit statuses, and what a restart brings and takes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.nvidia_smi import parse_islands
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gpu_host import DOUBLE, SCENARIOS, GpuHost


@pytest.fixture
def host(tmp_path):
    return GpuHost(tmp_path)


def ready(host, scenario, **changes):
    host.use(scenario, **changes)
    host.install("580.95.05")
    host.load()
    return host


def query(host, fields, *arguments, form="csv,noheader,nounits"):
    done = host.smi(f"--query-gpu={fields}", f"--format={form}", *arguments)
    assert done.returncode == 0, done.stdout
    return list(csv.reader(done.stdout.splitlines(), skipinitialspace=True))


def test_there_is_a_scenario_of_each_name():
    assert {"h100x8_nvswitch", "l4x2", "rtx4090", "mig", "lost", "none"} <= set(SCENARIOS)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_all_answers_are_of_the_same_gpus(host, scenario):
    ready(host, scenario) if scenario != "none" else host.use(scenario) or host.install("580.95.05")
    listed = [line for line in host.smi("-L").stdout.splitlines() if line.startswith("GPU ")]
    if scenario == "none":
        assert host.smi("-L").returncode == 9 and listed == []
        return
    rows = [row for row in query(host, "index,uuid,name") if len(row) == 3]
    assert [f"GPU {index}: {name} (UUID: {uuid})" for index, uuid, name in rows] == listed
    document = host.smi("-q", "-x")
    assert document.returncode == 0
    assert all(f"<uuid>{uuid}</uuid>" in document.stdout for _index, uuid, _name in rows)
    assert document.stdout.count("<gpu id=") == len(rows)


def test_exit_statuses_are_the_originals(host):
    host.use("l4x2")
    host.install("580.95.05")
    done = host.smi("-q", "-x")
    assert done.returncode == 9 and "couldn't communicate with the NVIDIA driver" in done.stdout
    host.load()
    assert host.smi("-q", "-x").returncode == 0 and host.smi().returncode == 0
    host.install("580.105.08")
    done = host.smi("-L")
    assert done.returncode == 18
    assert done.stdout == "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.105\n"
    host.boot()
    assert host.smi("--nonsense").returncode == 2 and host.smi("-L", "-i", "7").returncode == 6
    assert host.smi("--query-gpu=nonsense", "--format=csv").returncode == 2
    assert "DRIVER version      : 580.105.08" in host.smi("--version").stdout


def test_the_scenario_may_force_a_mismatch(host):
    ready(host, "l4x2", mismatch=True)
    assert host.smi("-L").returncode == 18


def test_a_power_limit_is_kept_until_a_restart_and_within_its_bounds(host):
    ready(host, "l4x2")
    assert host.smi("-i", "1", "-pl", "60").stdout == "Power limit for GPU 00000000:4B:00.0 was set to 60.00 W from 72.00 W.\nAll done.\n"
    assert query(host, "power.limit,power.max_limit") == [["72.00", "72.00"], ["60.00", "72.00"]]
    refused = host.smi("-pl", "300")
    assert refused.returncode == 2 and "should be between 40.00 W and 72.00 W" in refused.stdout
    host.boot()
    assert query(host, "power.limit") == [["72.00"], ["72.00"]]


def test_persistence_is_what_the_daemon_set_since_the_start(host):
    ready(host, "rtx4090")
    assert host.smi("-pm", "1").stdout == "Enabled persistence mode for GPU 00000000:84:00.0.\nAll done.\n"
    assert host.smi("-pm", "ENABLED").stdout.startswith("Persistence mode is already Enabled")
    assert query(host, "persistence_mode") == [["Enabled"]]
    host.boot()
    assert query(host, "persistence_mode") == [["Disabled"]]


@pytest.mark.parametrize("how", ["boot", "reset"])
def test_ecc_waits_for_a_restart_or_a_reset(host, how):
    ready(host, "l4x2")
    assert host.smi("-i", "0", "-e", "0").stdout == "Disabled ECC support for GPU 00000000:31:00.0.\nAll done.\nReboot required.\n"
    assert query(host, "ecc.mode.current,ecc.mode.pending", "-i", "0") == [["Enabled", "Disabled"]]
    host.boot() if how == "boot" else host.smi("--gpu-reset", "-i", "0")
    assert query(host, "ecc.mode.current,ecc.mode.pending") == [["Disabled", "Disabled"], ["Enabled", "Enabled"]]


def test_how_gpus_are_joined_is_told_as_the_fleet_reads_it(host):
    ready(host, "h100x8_nvswitch")
    assert set(parse_islands(host.smi("topo", "-m").stdout).values()) == {0}
    ready(host, "h100x8_nvswitch", joined=[[0, 1], [2, 3], [4, 5], [6, 7]])
    assert list(parse_islands(host.smi("topo", "-m").stdout).values()) == [0, 0, 2, 2, 4, 4, 6, 6]
    ready(host, "l4x2")
    assert parse_islands(host.smi("topo", "-m").stdout) == {0: 0, 1: 1}


def test_partitions_are_laid_out_and_taken_away(host):
    ready(host, "l4x2")
    assert host.smi("-mig", "1").returncode == 3  # an L4 has no MIG
    ready(host, "h100x8_nvswitch")
    assert host.smi("mig", "-lgi").returncode == 6
    assert "Enabled MIG Mode for GPU 00000000:53:00.0" in host.smi("-i", "0", "-mig", "1").stdout
    made = host.smi("mig", "-i", "0", "-cgi", "3g.40gb,14", "-C")
    assert made.returncode == 0 and made.stdout.count("Successfully created GPU instance") == 2
    before = host.smi("-L").stdout
    assert "MIG 3g.40gb" in before and "MIG 2g.20gb" in before and "3g.40gb" in host.smi("mig", "-lgi").stdout
    full = host.smi("mig", "-i", "0", "-cgi", "7g.80gb")
    assert full.returncode == 23 and "Insufficient Resources" in full.stdout
    assert host.smi("-i", "0", "-mig", "0").returncode == 19
    refused = host.smi("mig", "-dgi", "-i", "0")
    assert refused.returncode == 19 and "In use by another client" in refused.stdout
    host.boot()
    assert "MIG 3g" not in host.smi("-L").stdout and query(host, "mig.mode.current")[0] == ["Enabled"]
    host.smi("mig", "-i", "0", "-cgi", "3g.40gb,14", "-C")
    assert host.smi("-L").stdout == before  # the same places have the same names
    assert host.smi("mig", "-dci", "-i", "0").returncode == host.smi("mig", "-dgi", "-i", "0").returncode == 0
    assert host.smi("-i", "0", "-mig", "0").returncode == 0 and query(host, "mig.mode.current")[0] == ["Disabled"]


def test_what_is_in_use_cannot_be_changed(host):
    ready(host, "mig")
    device = next(line for line in host.smi("-L").stdout.splitlines() if "MIG" in line).split("UUID: ")[1].rstrip(")")
    whole = host.scenario["gpus"][1]["uuid"]
    apps = [{"uuid": device, "pid": 41, "name": "llama-server", "memory": 1000}, {"uuid": whole, "pid": 42, "name": "vllm", "memory": 2000}]
    host.write("run/testbed/gpu-apps.json", json.dumps(apps))
    listed = host.smi("--query-compute-apps=gpu_uuid,pid,process_name,used_memory", "--format=csv,noheader,nounits").stdout
    assert listed == f"{device}, 41, llama-server, 1000\n{whole}, 42, vllm, 2000\n"
    assert query(host, "memory.used", "-i", "1") == [["2000"]]
    assert host.smi("mig", "-i", "0", "-dci").returncode == 19 and host.smi("--gpu-reset", "-i", "1").returncode == 19
    pending = host.smi("-i", "1", "-mig", "1")
    assert pending.returncode == 0 and "pending enable state" in pending.stdout
    assert query(host, "mig.mode.current,mig.mode.pending", "-i", "1") == [["Disabled", "Enabled"]]
    host.write("run/testbed/gpu-apps.json", "[]")
    assert host.smi("--gpu-reset", "-i", "1").returncode == 0
    assert query(host, "mig.mode.current,mig.mode.pending", "-i", "1") == [["Enabled", "Enabled"]]


def test_a_lost_gpu_is_named_and_the_others_answer(host):
    ready(host, "lost")
    done = host.smi("-q", "-x")
    assert done.returncode == 0 and done.stderr == "Unable to determine the device handle for GPU2: 0000:75:00.0: Unknown Error\n"
    assert host.smi("-q", "-x", "-i", "0000:75:00.0").returncode == 15 and host.smi("-i", "2", "-pl", "300").returncode == 15
    assert host.smi("-i", "0", "-pl", "300").returncode == 0


def test_a_module_is_loaded_only_where_there_is_one_and_a_gpu(host):
    host.use("l4x2")
    assert host.gpus("load").returncode != 0
    host.install("580.95.05", "proprietary")
    host.load()
    text = (host.root / "proc/driver/nvidia/version").read_text()
    assert "x86_64 Kernel Module  580.95.05 " in text
    assert (host.root / "sys/bus/pci/devices/0000:31:00.0/driver").resolve().name == "nvidia"
    assert host.gpus("unload").returncode == 0
    assert host.smi("-L").returncode == 9 and not (host.root / "sys/bus/pci/devices/0000:31:00.0/driver").exists()
    host.use("none")
    assert host.gpus("load").returncode != 0


def test_applying_again_changes_nothing_and_another_scenario_everything(host):
    ready(host, "l4x2")
    bus = host.root / "sys/bus/pci/devices"
    before = sorted(str(path) for path in bus.rglob("*"))
    assert host.gpus("apply").returncode == 0 and sorted(str(path) for path in bus.rglob("*")) == before
    host.smi("-pl", "50")
    host.use("rtx4090")
    assert [path.name for path in bus.iterdir()] == ["0000:84:00.0"]
    host.use("l4x2")
    assert query(host, "power.limit") == [["72.00"], ["72.00"]]  # these are others


def test_an_unknown_scenario_is_refused_with_the_known_ones(host):
    done = host.gpus("use", "h200")
    assert done.returncode != 0 and all(name in done.stderr for name in SCENARIOS)


def test_the_double_needs_python_and_nothing_else(host):
    """It runs on hosts where only the distribution's Python is."""
    ready(host, "l4x2")
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys, runpy; sys.path.insert(0, {str(DOUBLE)!r}); sys.argv = ['nvidia-smi', '-L'];"
         f" runpy.run_path({str(DOUBLE / 'nvidia_smi.py')!r}, run_name='__main__')"],
        env=host.environment, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout == host.smi("-L").stdout
