# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Health over time, on what the survey finds on the double of nvidia-smi."""

from __future__ import annotations

import json

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import gpu_health
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.gpu_health import Boot, Settings
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.gpu_health_metrics import metrics
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.gpu_survey import GpuSurvey
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gpu_host import RELEASE, GpuHost

START = 1795885814  # 2026-11-28 17:10:14 UTC
A, B = "0000:31:00.0", "0000:4b:00.0"


class Watched:
    """A host that is looked at once a minute. What the journal holds is in `journal`."""

    def __init__(self, host: GpuHost, **settings) -> None:
        self.host, self.settings = host, Settings(**settings)
        self.journal: list[dict] = []
        self.state: dict = {}
        self.now = START
        self.boot = Boot("first")
        self.changes: dict[str, dict] = {A: {}, B: {}}
        self.surveyed: dict | None = None

    def change(self, gpu: str = A, **keys) -> None:
        """Change a GPU of the scenario."""
        self.changes[gpu] = keys
        scenario = json.loads((self.host.root / "etc/testbed/gpus.json").read_text())
        gpus = [{**one, **self.changes[one["address"]]} for one in scenario["gpus"]]
        self.host.use("l4x2", gpus=gpus)
        self.load()

    def load(self) -> None:
        self.host.load()
        self.surveyed = None

    def log(self, code: int, text: str = "", gpu: str = A, ago: int = 0) -> None:
        self.journal.append({"time": gpu_health.iso(self.now - ago), "address": gpu, "code": code, "text": text})

    def facts(self) -> dict:
        """What the survey finds; it is not asked again before something changes."""
        self.surveyed = self.surveyed or GpuSurvey(root=self.host.root, release=RELEASE, which=self.host.which).collect()
        return {**self.surveyed, "xids": list(self.journal)}

    def look(self, times: int = 1, **facts) -> list[str]:
        """What is told after so many looks."""
        for _ in range(times):
            self.now += 60
            # As it is kept on disk in between.
            before = json.loads(json.dumps(self.state))
            self.state = gpu_health.assess({**self.facts(), **facts}, before, self.settings, self.boot, self.now)
        return [f"{one['severity']} {one['finding']} {one['gpu']}".strip() for one in self.state["findings"]]

    @property
    def word(self) -> str:
        return gpu_health.agent_word(self.state)


@pytest.fixture
def watch(tmp_path):
    def make(scenario: str = "l4x2", **settings) -> Watched:
        host = GpuHost(tmp_path / "host")
        host.use(scenario)
        host.install("580.95.05")
        host.load()
        return Watched(host, **settings)

    return make


def test_a_host_that_is_well_has_no_findings(watch):
    seen = watch()
    assert seen.look(3) == [] and seen.word == "100%\n"
    assert [gpu["address"] for gpu in seen.state["gpus"]] == [A, B]


@pytest.mark.parametrize("code", [13, 31, 43, 45])
def test_what_an_engine_does_wrong_alarms_nobody(watch, code):
    seen = watch()
    seen.log(code, "pid=1122, name=python")
    assert seen.look() == [] and seen.word == "100%\n"
    labels = f'gpu="GPU-36947d4f-546c-586d-9ec0-efaf0cd4ec6c",address="{A}",code="{code}"'
    assert f"llm_fleet_gpu_xid_total{{{labels}}} 1\n" in metrics(seen.state)


@pytest.mark.parametrize("code", [48, 64, 74, 79, 95, 119, 120])
def test_what_needs_a_reset_is_critical_until_the_machine_boots(watch, code):
    seen = watch()
    seen.log(code, "something")
    assert seen.look(5) == [f"critical xid-{code} {A}"] and seen.word == "0%\n"
    seen.journal.clear()  # journald has made room
    assert seen.look() == [f"critical xid-{code} {A}"]
    seen.boot = Boot("second")
    assert seen.look() == [] and seen.word == "100%\n"


def test_a_warning_is_shown_for_a_day_and_drains_nobody(watch):
    seen = watch()
    seen.log(94, "Contained")
    seen.log(63, "Row remapped", gpu=B)
    assert seen.look() == [f"warning xid-94 {A}", f"warning xid-63 {B}"] and seen.word == "100%\n"
    seen.now += 86400
    assert seen.look() == []
    seen.log(94, "Contained")
    assert seen.look() == [f"warning xid-94 {A}"]


def test_an_operator_may_be_of_another_opinion(watch):
    seen = watch(severities={"xid-94": "critical", "xid-79": "", "throttle": "critical"}, throttle_looks=1)
    seen.log(94)
    seen.log(79, gpu=B)
    seen.change(throttle=["hw_thermal_slowdown"])
    assert seen.look() == [f"critical throttle {A}", f"critical xid-94 {A}"] and seen.word == "0%\n"


def test_an_unknown_code_is_a_warning_that_says_where_to_look(watch):
    seen = watch()
    seen.log(999, "new")
    assert seen.look() == [f"warning xid-999 {A}"]
    assert "catalog" in seen.state["findings"][0]["advice"]


def test_what_the_driver_asks_for_in_xid_154_counts_and_its_end_too(watch):
    seen = watch()
    seen.log(79, "GPU has fallen off the bus.")
    seen.log(154, "GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)")
    assert seen.look() == [f"critical xid-154 {A}", f"critical xid-79 {A}"]
    seen.log(154, "GPU recovery action changed from 0x2 (Node Reboot Required) to 0x0 (None)")
    assert seen.look() == [] and seen.word == "100%\n"
    seen.log(79, "GPU has fallen off the bus.")
    assert seen.look() == [f"critical xid-79 {A}"]
    assert "(2 times since boot)" in seen.state["findings"][0]["text"]


def test_the_last_action_counts_not_the_worst(watch):
    seen = watch()
    seen.log(154, "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)")
    seen.look()
    seen.log(154, "GPU recovery action changed from 0x1 (GPU Reset Required) to 0x3 (Drain P2P)")
    assert seen.look() == [f"warning xid-154 {A}"]


def test_nvlink_5_errors_count_by_whether_they_are_fatal(watch):
    seen = watch()
    seen.log(149, "NETIR_LINK_EVT Nonfatal XC0 i0 Link 08 (0x004505c6 0x00000000)")
    assert seen.look() == [f"warning xid-149 {A}"]
    seen.log(149, "NETIR_LINK_EVT Fatal XC0 i0 Link 08 (0x004505c6 0x00000000)")
    seen.look()
    seen.log(149, "NETIR_LINK_EVT Nonfatal XC0 i0 Link 09 (0x004505c6 0x00000000)")
    assert seen.look() == [f"critical xid-149 {A}"]


def test_a_reset_that_shows_in_the_gpu_ends_what_was_before(watch):
    seen = watch()
    seen.log(48, "DBE")
    seen.change(recovery="Reset")
    assert seen.look() == [f"critical reset_required {A}", f"critical xid-48 {A}"]
    seen.change(recovery="None")
    assert f"critical xid-48 {A}" not in seen.look()
    assert seen.look(2) == []


def test_errors_that_count_from_zero_again_are_a_reset(watch):
    seen = watch()
    seen.log(95, "Uncontained")
    seen.change(errors={"corrected": 1, "uncorrected": 3})
    assert seen.look() == [f"critical xid-95 {A}", f"warning uncorrected {A}"]
    seen.change(errors={"corrected": 0, "uncorrected": 0})
    assert seen.look(3) == []


def test_another_driver_that_was_loaded_is_a_reset(watch):
    seen = watch()
    seen.log(119, "Timeout")
    assert seen.look() == [f"critical xid-119 {A}"]
    seen.host.install("590.10.01")
    seen.load()
    assert seen.look() == []


def test_an_operator_who_has_reset_a_gpu_says_so(watch):
    seen = watch()
    seen.log(48, "DBE")
    seen.log(48, "DBE", gpu=B)
    assert seen.look() == [f"critical xid-48 {A}", f"critical xid-48 {B}"]
    seen.state = gpu_health.forget(seen.state, [A], seen.now)
    assert seen.look() == [f"critical xid-48 {B}"]
    seen.state = gpu_health.forget(seen.state, ["GPU-2203fb71-f5da-5b48-b1d6-c6638104e0b9"], seen.now)
    assert seen.look() == []
    seen.log(48, "DBE")
    assert seen.look() == [f"critical xid-48 {A}"]


def test_slow_for_a_moment_is_no_finding(watch):
    seen = watch(throttle_looks=3)
    seen.change(throttle=["hw_thermal_slowdown"])
    assert seen.look(2) == []
    seen.change(throttle=[])
    assert seen.look() == []
    seen.change(throttle=["hw_thermal_slowdown", "hw_power_brake_slowdown"])
    assert seen.look(2) == []
    assert seen.look() == [f"warning throttle {A}"]
    assert "hw_thermal_slowdown, hw_power_brake_slowdown" in seen.state["findings"][0]["text"]
    seen.change(throttle=["sw_power_cap"])  # the limit under load is everyday
    assert seen.look(2) == [f"warning throttle {A}"]
    assert seen.look() == []


def test_a_driver_that_hangs_for_a_moment_is_no_finding_and_hides_none(watch):
    seen = watch()
    seen.change(recovery="Reboot")
    hangs = {"state": "failing", "problem": "nvidia-smi did not answer within 30 s", "gpus": []}
    assert seen.look() == [f"critical reboot_required {A}"]
    assert seen.look(2, **hangs) == [f"critical reboot_required {A}"]
    assert seen.look(**hangs) == ["critical failing", f"critical reboot_required {A}"]
    assert [gpu["address"] for gpu in seen.state["gpus"]] == [A, B], "metrics of the GPUs go on"
    assert seen.look(2) == ["critical failing", f"critical reboot_required {A}"]
    assert seen.look() == [f"critical reboot_required {A}"]


def test_a_lost_gpu_is_named_with_what_is_known_of_it(watch):
    seen = watch()
    seen.look()
    seen.change(gpu=B, lost="bus")
    seen.log(79, "GPU has fallen off the bus.", gpu=B)
    lost = [{**gpu, "address": B, "uuid": "", "state": "lost", "index": -1, "name": ""} for gpu in seen.facts()["gpus"][:1]]
    told = seen.look(state="lost", problem="one is lost", gpus=[*seen.facts()["gpus"], *lost])
    assert told == [f"critical lost {B}", f"critical xid-79 {B}"]
    assert {one["uuid"] for one in seen.state["findings"]} == {"GPU-2203fb71-f5da-5b48-b1d6-c6638104e0b9"}


def test_the_double_that_lost_a_gpu_is_drained(watch):
    seen = watch("lost")
    assert "critical lost 0000:75:00.0" in seen.look() and seen.word == "0%\n"


def test_a_gpu_that_is_gone_after_a_boot_is_missed_until_somebody_says_that_it_was_taken_out(watch):
    seen = watch()
    seen.look()
    gone = "GPU-2203fb71-f5da-5b48-b1d6-c6638104e0b9"
    seen.change(gpu=B, lost="bus")
    seen.boot = Boot("second")
    assert seen.look() == [f"warning missing {gone}"] and seen.word == "100%\n"
    assert seen.state["findings"][0]["uuid"] == gone
    seen.state = gpu_health.forget(seen.state, [gone], seen.now)
    assert seen.look(4) == []


def test_a_gpu_in_the_place_of_another_one_replaces_it(watch):
    seen = watch()
    seen.look()
    seen.change(uuid="GPU-99999999-0000-0000-0000-000000000000")
    seen.boot = Boot("second")
    assert seen.look() == []


def test_gpus_that_move_because_one_is_gone_replace_none(watch):
    seen = watch()
    seen.look()
    facts = seen.facts()
    moved = {**facts["gpus"][1], "address": A}
    seen.boot = Boot("second")
    assert seen.look(gpus=[moved]) == [f"warning missing {facts['gpus'][0]['uuid']}"]


@pytest.mark.parametrize("state", ["no_driver", "not_loaded", "mismatch"])
def test_a_driver_that_is_not_there_is_told_and_drains_nobody(watch, state):
    """Engines that run go on, and one that cannot start fails its own health check."""
    seen = watch()
    assert seen.look(state=state, problem="the reason", gpus=[]) == [f"warning {state}"] and seen.word == "100%\n"
    assert seen.state["findings"][0]["text"] == "the reason"


def test_a_fabric_manager_counts_where_it_is_needed(watch):
    seen = watch()
    assert seen.look(3, fabric_manager={"needed": False, "version": "", "active": False}) == []
    down = {"needed": True, "version": "580.95.05", "active": False}
    assert seen.look(fabric_manager=down) == [], "it may be restarting"
    assert seen.look(fabric_manager=down) == ["warning fabric_manager"]


@pytest.mark.parametrize(("repair", "told"), [("pending", f"warning memory_pending {A}"), ("failed", f"critical memory_failed {A}")])
def test_memory_that_is_worn_out(watch, repair, told):
    seen = watch()
    seen.change(repair=repair)
    assert seen.look() == [told]
    seen.boot = Boot("second")
    assert seen.look() == [told], "a boot does not mend what is still so"


def test_xids_are_counted_once_however_often_they_are_read(watch):
    seen = watch()
    seen.log(31, "one")
    seen.log(31, "another one in the same second")
    seen.look(3)
    seen.log(31, "a minute later")
    seen.look(2)
    seen.journal = seen.journal[-1:]  # only the newest are read
    seen.look()
    assert seen.state["memory"]["xids"][A]["31"]["count"] == 3


def test_what_another_container_on_this_kernel_has_logged_is_none_of_ours(watch):
    seen = watch()
    seen.log(79, "GPU has fallen off the bus.")
    seen.boot = Boot("kernel/900", gpu_health.iso(START + 30))
    assert seen.look() == []
    seen.log(79, "GPU has fallen off the bus.")
    assert seen.look() == [f"critical xid-79 {A}"]


def test_the_state_of_another_format_is_as_good_as_none(watch):
    seen = watch()
    seen.state = {"format": 99, "boot": "first", "memory": "?"}
    assert seen.look() == []


def test_metrics_have_a_line_for_each_gpu_and_finding(watch):
    seen = watch()
    seen.log(79, 'a "name"\n')
    seen.look()
    text = metrics(seen.state)
    assert f'llm_fleet_gpu_health{{gpu="GPU-36947d4f-546c-586d-9ec0-efaf0cd4ec6c",address="{A}",name="NVIDIA L4"}} 2\n' in text
    assert f'llm_fleet_gpu_health{{gpu="GPU-2203fb71-f5da-5b48-b1d6-c6638104e0b9",address="{B}",name="NVIDIA L4"}} 0\n' in text
    assert 'finding="xid-79",severity="critical"} 1\n' in text
    assert "llm_fleet_gpu_host_health 2\n" in text and "llm_fleet_gpu_drain 1\n" in text
    assert f"llm_fleet_gpu_health_checked_timestamp_seconds {seen.now}\n" in text
    names = [line.split("{")[0].split()[0] for line in text.splitlines() if not line.startswith("#")]
    for name in set(names):
        assert text.count(f"# TYPE {name} ") == text.count(f"# HELP {name} ") == 1
    assert names == sorted(names, key=names.index), "all series of a metric stand together"
