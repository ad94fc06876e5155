# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The module as Ansible runs it on this machine, with programs in place of nvidia-smi and journalctl."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.gpu_state import STATES

FIXTURES = Path(__file__).parents[1] / "module_utils" / "nvidia_smi"
REPO = Path(__file__).resolve().parents[4]
HAS_GPU = Path("/proc/driver/nvidia/version").exists()


@pytest.fixture
def programs(tmp_path):
    """A folder of programs that a test writes; nothing of this machine's journal is read."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def write(name: str, script: str):
        program = folder / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    write("journalctl", "exit 0")
    write.folder = folder
    return write


@pytest.fixture
def look(run_module, programs):
    def run(**arguments):
        return run_module("gpu_info", path=programs.folder, **arguments)

    return run


@pytest.mark.skipif(HAS_GPU, reason="this machine has a driver")
def test_a_host_without_gpus_is_no_error(look):
    seen = look()
    assert "failed" not in seen and seen["changed"] is False
    assert (seen["state"], seen["problem"], seen["gpus"], seen["xids"]) == ("no_gpu", "", [], [])
    assert seen["kernel"]["release"] == os.uname().release


def test_gpus_are_told_in_any_locale(look, programs, monkeypatch):
    """The double speaks with commas unless it is asked in the C locale."""
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    programs("nvidia-smi", f"""[ "$*" = "-q -x" ] || exit 2
    if [ "$LC_ALL" = C ]; then cat {FIXTURES}/ada_l40s_595.xml; else tr . , < {FIXTURES}/ada_l40s_595.xml; fi""")
    [gpu] = look()["gpus"]
    assert (gpu["power"]["draw"], gpu["compute_capability"], gpu["nvlink"]) == (66.16, "8.9", {"links": None, "active": None})


def test_xids_come_from_the_journal(look, programs):
    line = json.dumps({"MESSAGE": "NVRM: Xid (PCI:0000:01:00): 63, Row remapping pending", "__REALTIME_TIMESTAMP": "1795885814000000"})
    programs("journalctl", f"cat <<'END'\n{line}\nEND")
    assert look()["xids"] == [{"time": "2026-11-28T17:10:14Z", "address": "0000:01:00.0", "code": 63, "text": "Row remapping pending"}]


@pytest.mark.parametrize(
    ("script", "state"),
    [("sleep 60", "failing"), ("exit 3", "no_gpu"), ("echo 'Failed to initialize NVML: Driver/library version mismatch'", "mismatch")],
)
@pytest.mark.skipif(HAS_GPU, reason="this machine has a driver")
def test_nothing_that_nvidia_smi_does_fails_the_module(look, programs, script, state):
    programs("nvidia-smi", script)
    seen = look(timeout=1)
    assert "failed" not in seen and seen["state"] == state


def test_check_mode_makes_no_difference(run_module, programs):
    programs("nvidia-smi", f"cat {FIXTURES}/turing_t4_595.xml")
    assert run_module("gpu_info", path=programs.folder, check_mode=True) == run_module("gpu_info", path=programs.folder)


def test_the_documentation_has_every_value_that_is_returned(look, programs):
    programs("nvidia-smi", f"cat {FIXTURES}/ampere_a100_mig_535.xml")
    text = (REPO / "plugins" / "modules" / "gpu_info.py").read_text()
    told = yaml.safe_load(text.split('RETURN = r"""')[1].split('"""')[0])
    seen = {key: value for key, value in look().items() if key not in ("changed", "invocation", "warnings")}
    assert set(told) == set(seen)
    for name in ("driver", "fabric_manager", "kernel"):
        assert set(told[name]["sample"]) == set(seen[name]), name
    assert set(told["gpus"]["sample"][0]) == set(seen["gpus"][0])
    assert all(f"V({state})" in " ".join(told["state"]["description"]) for state in STATES)
