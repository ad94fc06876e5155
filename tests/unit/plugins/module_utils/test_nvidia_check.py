# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Reasons for a reboot, and what has to hold after it."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.nvidia_check import check_after, reboot_reasons
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gpu_hosts import gpu, machine, mig


def upgraded(**changes) -> dict:
    driver = {"version": "590.48.01", "module_version": "580.95.05", "cuda_version": "", "flavour": "open"}
    return machine("hopper", **{"state": "mismatch", "driver": driver, **changes})


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (machine("hopper"), None),
        (upgraded(), "the loaded kernel module is 580.95.05, the installed driver is 590.48.01"),
        (machine("hopper", state="not_loaded", version=""), "not loaded"),
        (machine("hopper", state="no_driver", version=""), None),
        (machine("hopper", state="lost"), None),  # a reboot may or may not help: that is no reason of the driver's
    ],
)
def test_reasons(state, reason):
    reasons = reboot_reasons(state)
    assert (reasons == []) if reason is None else (len(reasons) == 1 and reason in reasons[0]), reasons


def test_nouveau_is_named():
    kernel = {"release": "6.1", "headers": True, "nouveau": True, "secure_boot": "disabled"}
    assert "nouveau holds the GPUs" in reboot_reasons(machine("hopper", state="not_loaded", version="", kernel=kernel))[0]


def test_packages_may_be_newer_than_all_that_runs():
    assert "the installed driver is 590.48.01" in reboot_reasons(machine("hopper"), installed="590.48.01")[0]
    assert reboot_reasons(machine("hopper"), installed="580.95.05") == []


def test_parameters_count_only_where_a_module_is_loaded():
    assert reboot_reasons(machine("hopper"), parameters_changed=True)
    assert not reboot_reasons(machine("hopper", state="no_driver", version=""), parameters_changed=True)


def test_modes_that_wait():
    waiting = gpu(0, ecc={"mode": "enabled", "pending": "disabled"}, mig=mig(mode="disabled", pending="enabled"))
    reasons = reboot_reasons(machine("ampere", gpus=[waiting, gpu(1)]))
    assert len(reasons) == 2 and "ECC mode enabled and waits to change to disabled" in reasons[0] and "MIG" in reasons[1]
    silent = gpu(0, ecc={"mode": "", "pending": ""}, mig={"mode": "", "pending": "", "devices": []})
    assert reboot_reasons(machine("ada", gpus=[silent])) == []


def test_after_a_change_all_is_well():
    before = machine("hopper", "hopper", state="no_driver", version="")
    assert check_after(before, machine("hopper", "hopper"), "gpu1", "580.95.05") == []


def test_a_gpu_that_stayed_away_is_named_also_where_no_driver_was_before():
    before, after = machine("hopper", "hopper", state="no_driver", version=""), machine("hopper")
    fault, = check_after(before, after, "gpu1")
    assert "0000:02:00.0" in fault.what
    after = machine("hopper", "hopper")
    after["gpus"][1]["state"] = "lost"
    assert "0000:02:00.0" in check_after(before, after, "gpu1")[0].what


def test_a_swapped_card_is_told():
    after = machine("hopper")
    after["gpus"][0]["uuid"] = "GPU-new"
    fault, = check_after(machine("hopper"), after, "gpu1")
    assert "another GPU in place of GPU-0" in fault.what


def test_a_driver_that_does_not_answer_is_all_there_is_to_say():
    fault, = check_after(machine("hopper"), upgraded(), "gpu1")
    assert fault.what == "the driver is mismatch" and "nvidia_driver_version" in fault.fix


def test_parts_of_different_versions_are_told():
    fault, = check_after(machine("hopper"), machine("hopper"), "gpu1", "590.48.01")
    assert "packages 590.48.01" in fault.what


@pytest.mark.parametrize(
    ("fabric", "told"),
    [
        ({"needed": True, "version": "580.95.05", "active": True}, []),
        ({"needed": True, "version": "590.48.01", "active": True}, ["must be one version"]),
        ({"needed": True, "version": "", "active": False}, ["does not run"]),
        ({"needed": False, "version": "590.48.01", "active": False}, []),
    ],
)
def test_the_fabric_manager_goes_with_the_driver(fabric, told):
    faults = check_after(machine("hopper"), machine("hopper", fabric_manager=fabric), "gpu1")
    assert len(faults) == len(told) and all(part in fault.what for part, fault in zip(told, faults))
