# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The whole look at a host, on the doubles of nvidia-smi and of the kernel's trees, and on real documents."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.gpu_survey import GpuSurvey
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gpu_host import RELEASE, SCENARIOS, GpuHost

FIXTURES = Path(__file__).parent / "nvidia_smi"
MIB = 2**20
OLD, NEW = "580.95.05", "590.48.01"


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A bare host, whose journal is empty and whose services do not run."""
    made = GpuHost(tmp_path)
    monkeypatch.setenv("PATH", f"{made.bin}:{os.environ['PATH']}")
    made.program("journalctl", "exit 0")
    made.program("systemctl", "echo inactive; exit 3")
    return made


def look(host, timeout=20, **options):
    return GpuSurvey(timeout=timeout, root=host.root, release=RELEASE, which=host.which).collect(**options)


def logged(host, *messages):
    entries = [json.dumps({"MESSAGE": message, "__REALTIME_TIMESTAMP": "1795885814000000"}) for message in messages]
    host.program("journalctl", "\n".join(["cat <<'END'", *entries, "END"]))


def ready(host, scenario, **changes):
    host.use(scenario, **changes)
    host.install(OLD)
    host.load()


def test_before_any_driver_gpus_are_known_from_the_bus(host):
    host.use("h100x8_nvswitch")
    seen = look(host)
    assert seen["state"] == "no_driver" and seen["gpus"] == [] and "8 GPUs" in seen["problem"]
    assert [one["kind"] for one in seen["pci"]].count("nvswitch") == 4
    assert {one["architecture"] for one in seen["pci"] if one["kind"] == "gpu"} == {"hopper"}
    assert {one["driver"] for one in seen["pci"]} == {""}
    assert seen["fabric_manager"]["needed"] is True
    assert seen["driver"] == {"version": "", "module_version": "", "cuda_version": "", "flavour": ""}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_each_scenario_is_told_as_it_is(host, scenario):
    host.use(scenario)
    host.install(OLD)
    if scenario == "none":
        assert look(host)["state"] == "no_gpu"
        return
    host.load()
    seen = look(host)
    there = {gpu["address"]: gpu for gpu in host.scenario["gpus"]}
    assert seen["state"] == ("lost" if scenario == "lost" else "ready")
    assert seen["driver"] == {"version": OLD, "module_version": OLD, "cuda_version": "13.0", "flavour": "open"}
    assert {gpu["address"] for gpu in seen["gpus"]} == set(there)
    for gpu in seen["gpus"]:
        said = there[gpu["address"]]
        if said.get("lost"):
            assert (gpu["state"], gpu["uuid"], gpu["index"]) == ("lost", "", -1)
            continue
        assert (gpu["state"], gpu["uuid"], gpu["name"]) == ("ready", said["uuid"], said["name"])
        assert gpu["memory_total"] == said["memory"] * MIB and gpu["compute_capability"] == said["compute_capability"]
        assert gpu["power"]["limit"] == said["power"]["default"] and gpu["nvlink"] == said.get("nvlink", {"links": 0, "active": 0})
        assert gpu["ecc"]["mode"] == ("enabled" if said["ecc"] else "disabled")
        assert gpu["fabric"]["state"] == said.get("fabric", "")


def test_mig_devices_have_names_sizes_and_profiles(host):
    ready(host, "mig")
    first, second = look(host)["gpus"]
    listed = host.smi("-L").stdout
    assert [one["profile"] for one in first["mig"]["devices"]] == ["3g.40gb", "2g.20gb", "1g.10gb"]
    assert all(one["uuid"] in listed and one["uuid"].startswith("MIG-") for one in first["mig"]["devices"])
    sizes = [one["memory_total"] for one in first["mig"]["devices"]]
    assert sizes == sorted(sizes, reverse=True) and sum(sizes) < first["memory_total"]
    assert second["mig"] == {"mode": "disabled", "pending": "disabled", "devices": []}


def test_an_upgrade_without_a_boot_is_a_mismatch_and_a_boot_cures_it(host):
    ready(host, "l4x2")
    host.install(NEW)
    seen = look(host)
    assert seen["state"] == "mismatch" and seen["gpus"] == []
    assert (seen["driver"]["module_version"], seen["driver"]["version"]) == (OLD, "590.48")
    assert OLD in seen["problem"] and "590.48" in seen["problem"]
    host.boot()
    assert look(host)["driver"]["version"] == NEW and look(host)["state"] == "ready"


def test_a_driver_that_was_installed_and_not_loaded_says_why(host):
    host.use("l4x2")
    host.install(OLD)
    seen = look(host)
    assert seen["state"] == "not_loaded" and "Install the headers" in seen["problem"]
    headers = host.root / "usr/src/linux-headers"
    headers.mkdir(parents=True)
    host.write(f"lib/modules/{RELEASE}/modules.dep", "kernel/fs/ext4.ko.xz:\n")
    (host.root / f"lib/modules/{RELEASE}/build").symlink_to(headers)
    assert "dkms autoinstall" in look(host)["problem"] and look(host)["kernel"]["headers"] is True
    host.write(f"lib/modules/{RELEASE}/modules.dep", "updates/dkms/nvidia-current-open.ko.xz:\n")
    assert "modprobe nvidia" in look(host)["problem"]
    host.write("sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c", "\x06\x00\x00\x00\x01")
    seen = look(host)
    assert seen["kernel"]["secure_boot"] == "enabled" and "mokutil" in seen["problem"]
    (host.root / "sys/module/nouveau").mkdir(parents=True)
    assert "nouveau" in look(host)["problem"]


@pytest.mark.parametrize(("byte", "state"), [("\x00", "disabled"), ("\x01", "enabled")])
def test_secure_boot_is_what_the_firmware_says(host, byte, state):
    assert look(host)["kernel"]["secure_boot"] == "unsupported"
    host.write("sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c", f"\x06\x00\x00\x00{byte}")
    assert look(host)["kernel"]["secure_boot"] == state


@pytest.mark.parametrize("how", ["handle", "fields"])
def test_one_lost_gpu_hides_no_other(host, how):
    gpus = [{**gpu, "lost": how if number == 1 else False} for number, gpu in enumerate(scenario(host, "h100x8_nvswitch"))]
    ready(host, "h100x8_nvswitch", gpus=gpus)
    seen = look(host)
    assert seen["state"] == "lost" and gpus[1]["address"] in seen["problem"]
    assert sorted(gpu["state"] for gpu in seen["gpus"]) == ["lost"] + ["ready"] * 7
    assert [gpu["address"] for gpu in seen["gpus"] if gpu["state"] == "lost"] == [gpus[1]["address"]]


def test_the_only_gpu_may_be_lost(host):
    ready(host, "rtx4090", gpus=[{**scenario(host, "rtx4090")[0], "lost": "handle"}])
    seen = look(host)
    assert seen["state"] == "lost" and seen["gpus"] == []


def test_a_gpu_that_left_the_bus_is_known_from_the_journal_only(host):
    gpus = scenario(host, "l4x2")
    ready(host, "l4x2", gpus=[gpus[0], {**gpus[1], "lost": "bus"}])
    assert look(host)["state"] == "ready"
    logged(host, f"NVRM: Xid (PCI:{gpus[1]['address'][:-2]}): 79, pid=1122, GPU has fallen off the bus.")
    seen = look(host)
    assert seen["state"] == "lost" and len(seen["pci"]) == 1 and gpus[1]["address"] in seen["problem"]
    assert [(one["address"], one["code"]) for one in seen["xids"]] == [(gpus[1]["address"], 79)]
    logged(host, f"NVRM: Xid (PCI:{gpus[0]['address'][:-2]}): 79, pid=1122, GPU has fallen off the bus.")
    assert look(host)["state"] == "ready"  # it answers again


def test_a_gpu_beside_its_like_that_the_driver_did_not_take_is_lost_and_an_old_one_is_not(host):
    gpus = scenario(host, "l4x2")
    ready(host, "l4x2", gpus=gpus[:1])
    bus = host.root / "sys/bus/pci/devices"
    for address, device in (("0000:4b:00.0", gpus[0]["device_id"]), ("0000:05:00.0", "0x128b")):
        (bus / address).mkdir()
        for name, value in (("vendor", "0x10de"), ("device", device), ("class", "0x030000"), ("numa_node", "0")):
            (bus / address / name).write_text(f"{value}\n")
    seen = look(host)
    assert seen["state"] == "lost" and "0000:4b:00.0" in seen["problem"] and "0000:05:00.0" not in seen["problem"]


def test_a_gpu_that_the_operator_excludes_is_not_missed(host):
    ready(host, "l4x2")
    gpus = scenario(host, "l4x2")
    host.use("l4x2", gpus=[gpus[0], {**gpus[1], "lost": "handle"}])
    host.load()
    host.program("nvidia-smi", f"cat {FIXTURES}/ada_l40s_595.xml")
    addresses = [gpu["address"] for gpu in gpus]
    assert {gpu["address"] for gpu in look(host)["gpus"] if gpu["state"] == "lost"} == set(addresses)
    for address in addresses:
        host.write(f"proc/driver/nvidia/gpus/{address}/information", "Model: \t\t NVIDIA L4\nGPU Excluded:\t Yes\n")
    assert look(host)["state"] == "ready"


def test_where_one_gpu_spoils_the_whole_answer_the_others_are_asked_alone(host):
    """As old drivers do it: the first dead GPU ends `-q -x`, and `-i` reaches the others."""
    ready(host, "l4x2")
    first, second = scenario(host, "l4x2")
    double = host.bin / "nvidia-smi"
    double.rename(host.bin / "real")
    host.program("nvidia-smi", f"""case "$*" in
        "-q -x"|*{second['address']}*) echo "Unable to determine the device handle for GPU {second['address']}: Unknown Error"; exit 255 ;;
        *) exec {host.bin}/real "$@" ;;
    esac""")
    seen = look(host)
    assert seen["state"] == "lost" and second["address"] in seen["problem"]
    assert [(gpu["address"], gpu["state"]) for gpu in seen["gpus"]] == [(first["address"], "ready"), (second["address"], "lost")]


def test_a_program_that_hangs_costs_its_time_and_no_more(host):
    ready(host, "l4x2", hang=60)
    seen = look(host, timeout=0.8)
    assert seen["state"] == "failing" and "0.8 s" in seen["problem"] and len(seen["pci"]) == 2


def test_partitions_without_names_are_not_no_partitions(host):
    ready(host, "mig")
    (host.bin / "nvidia-smi").rename(host.bin / "real")
    host.program("nvidia-smi", f'test "$1" != -L || exit 1\nexec {host.bin}/real "$@"')
    seen = look(host)
    assert seen["state"] == "failing" and "nvidia-smi -L" in seen["problem"]


@pytest.mark.parametrize(("name", "flavour", "version"), [("open", "open", "580.95.05"), ("proprietary", "proprietary", "535.54.03")])
def test_the_flavour_is_what_the_module_says_of_itself(host, name, flavour, version):
    text = (FIXTURES / "proc_version.txt").read_text()
    if name == "proprietary":
        text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue Jun  6 22:20:39 UTC 2023\nGCC version:  gcc version 12.2.0\n"
    host.write("proc/driver/nvidia/version", text)
    seen = look(host)["driver"]
    assert (seen["flavour"], seen["module_version"]) == (flavour, version)


def test_planning_asks_nvidia_smi_once(host):
    ready(host, "l4x2")
    (host.bin / "nvidia-smi").rename(host.bin / "real")
    host.program("nvidia-smi", f'echo "$*" >> {host.root}/asked\nexec {host.bin}/real "$@"')
    seen = look(host, details=False)
    assert seen["state"] == "ready" and (host.root / "asked").read_text() == "-q -x\n"


def test_the_fabric_manager_is_told_with_its_version(host):
    host.use("h100x8_nvswitch")
    host.program("nv-fabricmanager", 'echo "Fabric Manager version is : 580.95.05"')
    assert look(host)["fabric_manager"] == {"needed": True, "version": "580.95.05", "active": False}
    host.program("systemctl", "echo active")
    assert look(host)["fabric_manager"]["active"] is True


def scenario(host, name):
    host.use(name)
    return host.scenario["gpus"]
