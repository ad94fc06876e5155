# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""From one MIG layout to another."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.nvidia_mig import gpu_users, mig_changes
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gpu_hosts import gpu, mig


def changes(gpus, *wish, busy=None) -> dict:
    return mig_changes(gpus, [{"gpu": which, "profiles": list(profiles)} for which, profiles in wish], busy or {}, "gpu1")


NOTHING = {"steps": [], "lacks": [], "waits": [], "gone": [], "faults": [], "text": ""}


def test_the_same_parts_in_another_order_are_the_same():
    there = gpu(mig=mig("1g.10gb", "3g.40gb", "1g.10gb"))
    assert changes([there], ("all", ["3g.40gb", "1g.10gb", "1g.10gb"])) == NOTHING
    assert changes([there], ("all", ["3g.40gb", "1g.10gb"]))["steps"], "one less is a difference"


def test_a_whole_gpu_is_divided_large_parts_first():
    step, = changes([gpu()], ("0", ["1g.10gb", "3g.40gb", "2g.20gb"]))["steps"]
    assert step == {"uuid": "GPU-0", "index": 0, "mode": "1", "destroy": [], "create": ["3g.40gb", "2g.20gb", "1g.10gb"]}


def test_a_divided_gpu_is_taken_apart_first():
    step, = changes([gpu(mig=mig("7g.80gb"))], ("GPU-0", ["1g.10gb"] * 7))["steps"]
    assert (step["mode"], step["destroy"], step["create"]) == ("", ["7g.80gb"], ["1g.10gb"] * 7)
    # The part, not what it is a part of.
    assert changes([gpu(mig=mig("7g.80gb"))], ("all", []))["gone"] == [mig("7g.80gb")["devices"][0]["uuid"]]


def test_no_profiles_means_whole_again():
    step, = changes([gpu(mig=mig("7g.80gb"))], ("all", []))["steps"]
    assert (step["mode"], step["destroy"], step["create"]) == ("0", ["7g.80gb"], [])
    assert changes([gpu()], ("all", []))["steps"] == []


def test_a_mode_that_waits_for_a_reboot_is_not_set_again():
    waiting = gpu(mig=mig(mode="disabled", pending="enabled"))
    step, = changes([waiting], ("all", ["3g.40gb"]))["steps"]
    assert step["mode"] == ""


def test_later_entries_win_and_others_are_left_alone():
    gpus = [gpu(0), gpu(1), gpu(2, mig=mig("7g.80gb"))]
    steps = changes(gpus, ("all", ["3g.40gb"]), ("1", []), ("GPU-2", ["7g.80gb"]))["steps"]
    assert [step["index"] for step in steps] == [0]


def test_a_gpu_in_use_is_left_alone_and_others_are_not():
    result = changes([gpu(0), gpu(1)], ("all", ["3g.40gb"]), busy={"GPU-0": ["process 4711 (python3)"]})
    assert [step["index"] for step in result["steps"]] == [1]
    assert result["waits"] == ["MIG layout of GPU 0: whole -> 3g.40gb, in use by process 4711 (python3)"]
    assert result["lacks"] == ["MIG layout of GPU 0: whole -> 3g.40gb", "MIG layout of GPU 1: whole -> 3g.40gb"]
    assert result["faults"] == [] and result["gone"] == ["GPU-0", "GPU-1"]
    assert changes([gpu(0, mig=mig("3g.40gb"))], ("all", ["3g.40gb"]), busy={"GPU-0": ["x"]}) == NOTHING


@pytest.mark.parametrize(
    ("which", "profiles", "told"),
    [("7", ["1g.10gb"], "names GPU 7"), ("all", ["1g10gb"], "1g10gb is no MIG profile"), ("all", ["1c.2g.20gb"], "no MIG profile")],
)
def test_wishes_that_cannot_be(which, profiles, told):
    result = changes([gpu()], (which, profiles))
    assert result["steps"] == [] and told in result["text"] and "host gpu1" in result["text"]


def test_a_gpu_without_mig_cannot_be_divided():
    plain = gpu(mig={"mode": "", "pending": "", "devices": []})
    assert "cannot be divided" in changes([plain], ("all", ["1g.10gb"]))["text"]
    assert changes([plain], ("all", [])) == NOTHING


def test_users_are_programs_and_engines():
    gpus = [gpu(0), gpu(1)]
    apps = "GPU-0, 4711, /usr/bin/python3, with a comma\nnot a line\n"
    assert gpu_users(apps, [], gpus) == {"GPU-0": ["process 4711 (/usr/bin/python3, with a comma)"]}
    assert gpu_users("", ["tiny-0-a"], gpus) == {"GPU-0": ["the engine tiny-0-a"], "GPU-1": ["the engine tiny-0-a"]}
    assert gpu_users("", [], gpus) == {}
