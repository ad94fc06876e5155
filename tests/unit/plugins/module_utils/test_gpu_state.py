# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Which state it is, by real messages and by what is on the bus, and whether the sentence says what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import gpu_state
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.nvidia_smi import Answer, Log, lost_gpu, parse_log

FIXTURES = Path(__file__).parent / "nvidia_smi"
ERRORS = json.loads((FIXTURES / "errors.json").read_text())
L40S = parse_log((FIXTURES / "ada_l40s_595.xml").read_text())
CARD = {"address": "0000:30:00.0", "device_id": "0x26b9", "driver": "nvidia", "kind": "gpu"}
KERNEL = {"release": "6.1.0-32-amd64", "headers": True, "nouveau": False, "secure_boot": "disabled"}


def judge(answer=None, **changes):
    """A host with one GPU on the bus and a module that is loaded, but for the changes."""
    seen = {"pci": [CARD], "log": None, "lost": [], "module": "580.95.05", "kernel": KERNEL, "built": True, "timeout": 30}
    state, problem = gpu_state.judge(gpu_state.Seen(answer=answer, **{**seen, **changes}))
    assert state in gpu_state.STATES and bool(problem) is (state not in (gpu_state.READY, gpu_state.NO_GPU))
    return state, problem


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error["text"][:60].strip())
@pytest.mark.parametrize("on", ["output", "errors"])
def test_real_messages_are_named_states(error, on):
    """nvidia-smi prints some on standard output and some on standard error."""
    answer = Answer(error["code"], error["text"], "") if on == "output" else Answer(error["code"], "", error["text"])
    assert judge(answer)[0] == error["state"]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error["text"][:60].strip())
def test_most_messages_are_known_whatever_the_status(error):
    if error["state"] != "failing":
        assert judge(Answer(1, error["text"]))[0] == error["state"]


def test_a_gpu_that_answers_is_ready():
    assert judge(Answer(0, ""), log=L40S) == ("ready", "")
    assert judge(Answer(0, ""), log=L40S, pci=[], module="") == ("ready", "")


def test_a_host_without_gpus_has_no_problem():
    assert judge(None, pci=[], module="") == ("no_gpu", "")
    assert judge(Answer(9, ERRORS[2]["text"]), pci=[], module="") == ("no_gpu", "")


def test_without_a_driver_the_gpu_is_named():
    state, problem = judge(None, module="")
    assert state == "no_driver" and "0000:30:00.0" in problem and "nvidia_driver" in problem
    assert "nvidia-smi" in judge(None)[1]


def test_a_mismatch_names_both_versions():
    state, problem = judge(Answer(18, ERRORS[0]["text"]))
    assert state == "mismatch" and "580.95.05" in problem and "580.126" in problem and "reboot" in problem


NOT_LOADED = Answer(9, ERRORS[2]["text"])


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"module": ""}, "modprobe nvidia"),
        ({}, "cannot talk to it"),
        ({"module": "", "pci": [{**CARD, "driver": "nouveau"}]}, "Keep nouveau from loading"),
        ({"module": "", "pci": [{**CARD, "driver": ""}], "kernel": {**KERNEL, "nouveau": True}}, "Keep nouveau from loading"),
        ({"module": "", "pci": [{**CARD, "driver": "vfio-pci"}]}, "vfio-pci"),
        ({"module": "", "built": False}, "dkms autoinstall"),
        ({"module": "", "built": False, "kernel": {**KERNEL, "headers": False}}, "Install the headers of kernel 6.1.0-32-amd64"),
        ({"module": "", "kernel": {**KERNEL, "secure_boot": "enabled"}}, "mokutil"),
    ],
)
def test_why_a_module_is_not_loaded_decides_what_to_do(changes, hint):
    state, problem = judge(NOT_LOADED, **changes)
    assert state == "not_loaded" and hint in problem


def test_lost_gpus_are_named_by_their_address():
    state, problem = judge(Answer(0, ""), log=L40S, lost=[lost_gpu("0000:5f:00.0")])
    assert state == "lost" and "a GPU at 0000:5f:00.0 fell off" in problem
    two = judge(Answer(0, ""), log=L40S, lost=[lost_gpu("0000:5f:00.0"), lost_gpu("0000:1f:00.0")])[1]
    assert "2 GPUs at 0000:1f:00.0, 0000:5f:00.0" in two


def test_a_module_without_any_gpu_left_has_lost_it():
    state, problem = judge(Answer(6, "No devices were found\n"), pci=[])
    assert state == "lost" and "no GPU is left on the PCI bus" in problem
    assert judge(Answer(0, ""), pci=[], log=Log("580.95.05", "13.0", [], []))[0] == "lost"


def test_a_gpu_that_the_module_does_not_take_is_not_lost():
    state, problem = judge(Answer(6, "No devices were found\n"), pci=[{**CARD, "driver": ""}])
    assert state == "not_loaded" and "does not support the GPU" in problem


def test_a_program_that_hangs_is_failing():
    state, problem = judge(Answer(None, ""))
    assert state == "failing" and "30 s" in problem and "reboot" in problem


def test_what_nobody_knows_is_told_in_its_own_words():
    state, problem = judge(Answer(14, "warning\n", "infoROM is corrupted\n\n"))
    assert state == "failing" and "status 14" in problem and "infoROM is corrupted" in problem
    assert "says: nothing" in judge(Answer(139, ""))[1]
