# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""nvidia-smi's answers: those of real machines (nvidia_smi/README.md says whose), and those that are no answers."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import nvidia_smi

FIXTURES = Path(__file__).parent / "nvidia_smi"
MIB = 2**20
H100 = (FIXTURES / "hopper_h100_nvswitch_580.xml").read_text()
# File: driver, CUDA, number of GPUs; of the first one address, MiB, capability, ECC (mode, uncorrected), limit and draw in watts, degrees
READ = {
    "kepler_k20m_340": ("340.24", "", 1, "0000:0d:00.0", 4799, "3.5", ("enabled", 0), 225.0, 48.05, 32),
    "pascal_quadro_p2000_525": ("525.125.06", "12.0", 1, "0000:17:00.0", 5120, "6.1", ("", None), 75.0, 4.61, 34),
    "pascal_gtx1070ti_short": ("", "", 1, "0000:01:00.0", 4096, "", ("", None), None, None, 39),
    "turing_gtx1660ti_418": ("418.43", "10.1", 1, "0000:43:00.0", 5912, "7.5", ("", None), 130.0, 8.93, 40),
    "turing_t4_595": ("595.91.07", "13.2", 1, "0000:00:1e.0", 15360, "7.5", ("enabled", 0), 70.0, 33.51, 33),
    "ampere_a10g_515": ("515.105.01", "11.7", 1, "0000:00:1e.0", 23028, "", ("enabled", 0), 300.0, 25.58, 17),
    "ampere_a100_mig_535": ("535.54.03", "12.2", 1, "0000:01:00.0", 81920, "8.0", ("enabled", 0), 500.0, 67.03, 27),
    "ampere_a100_570": ("570.148.08", "12.8", 1, "0000:06:00.0", 40960, "8.0", ("enabled", 0), 400.0, 49.68, 33),
    "ampere_rtx3060_570": ("570.124.04", "12.8", 1, "0000:2d:00.0", 12288, "8.6", ("", None), 170.0, 11.63, 42),
    "ampere_rtx3080_595": ("595.58.03", "13.2", 1, "0000:0c:00.0", 10240, "8.6", ("", None), 320.0, 142.33, 27),
    "ada_rtx4000_595": ("595.84", "13.2", 1, "0000:06:00.0", 20475, "8.9", ("disabled", None), 70.0, 8.44, 38),
    "ada_l40s_595": ("595.91.07", "13.2", 1, "0000:30:00.0", 46068, "8.9", ("enabled", 0), 350.0, 66.16, 29),
    "hopper_h100_nvswitch_580": ("580.105.08", "13.0", 8, "0000:53:00.0", 81559, "9.0", ("enabled", 0), 700.0, 68.92, 29),
    "blackwell_b200_580": ("580.105.08", "13.0", 2, "0000:8f:00.0", 183359, "10.0", ("enabled", 0), 1000.0, 195.79, 39),
    "blackwell_gb200_580": ("580.173.02", "13.0", 2, "0000:29:00.0", 189471, "10.0", ("enabled", 0), 1200.0, 165.93, 27),
    "blackwell_gb300_580": ("580.173.02", "13.0", 2, "0008:06:00.0", 284208, "10.3", ("enabled", 0), 1400.0, 180.29, 38),
    "mock_gb200_lost_580": ("580.65.06", "13.0", 2, "0000:0a:00.0", 196608, "9.0", ("enabled", 5), 1000.0, 565.11, 63),
}


def log(name):
    return nvidia_smi.parse_log((FIXTURES / f"{name}.xml").read_text())


def test_every_document_is_expected_to_be_read():
    assert {path.stem for path in FIXTURES.glob("*.xml")} == set(READ)


@pytest.mark.parametrize("name", READ)
def test_documents_of_all_generations_are_read(name):
    found, first = log(name), log(name).gpus[0]
    assert READ[name] == (
        found.driver, found.cuda, len(found.gpus), first["address"], first["memory_total"] // MIB, first["compute_capability"],
        (first["ecc"]["mode"], first["ecc"]["uncorrected"]), first["power"]["limit"], first["power"]["draw"], first["temperature"],
    )  # fmt: skip
    assert [gpu["index"] for gpu in found.gpus] == list(range(len(found.gpus)))
    assert len({gpu["uuid"] for gpu in found.gpus}) == len(found.gpus) and all(gpu["name"] for gpu in found.gpus)
    assert first["state"] == "ready" and 0 < first["memory_free"] <= first["memory_total"]


def test_a_gpu_that_is_lost_says_so_in_place_of_values():
    ready, lost = log("mock_gb200_lost_580").gpus
    assert (ready["state"], lost["state"]) == ("ready", "lost")
    assert lost["uuid"].startswith("GPU-b200") and lost["memory_total"] is None and lost["temperature"] is None
    assert lost["ecc"]["uncorrected"] is None and lost["power"]["limit"] == 1000.0


def test_mig_devices_have_sizes_and_get_their_names_from_the_list():
    [gpu] = log("ampere_a100_mig_535").gpus
    assert gpu["mig"]["mode"] == "enabled" and [one["memory_total"] // MIB for one in gpu["mig"]["devices"]] == [19968] * 4
    names = [{"uuid": f"MIG-{number}", "profile": "1g.20gb"} for number in range(4)]
    [named] = nvidia_smi.with_mig([gpu], {gpu["uuid"]: names})
    assert [(one["uuid"], one["profile"], one["memory_total"] // MIB) for one in named["mig"]["devices"]] == [
        (f"MIG-{number}", "1g.20gb", 19968) for number in range(4)
    ]
    # Where the two do not agree, nobody knows which size is whose.
    [odd] = nvidia_smi.with_mig([gpu], {gpu["uuid"]: names[:1]})
    assert odd["mig"]["devices"] == [{"uuid": "MIG-0", "profile": "1g.20gb", "memory_total": None, "memory_free": None}]


@pytest.mark.parametrize("name", ["list_mig_azure", "list_mig_450"])
def test_the_list_of_mig_devices_is_read_in_its_old_form_too(name):
    text = (FIXTURES / f"{name}.txt").read_text()
    [(parent, devices)] = nvidia_smi.parse_list(text).items()
    assert parent in text.splitlines()[0] and len(devices) == len(text.splitlines()) - 1
    assert all(one["profile"] == "1g.5gb" and one["uuid"] in line for one, line in zip(devices, text.splitlines()[1:], strict=True))


def test_links_are_counted():
    links = nvidia_smi.parse_links((FIXTURES / "nvlink_a100.txt").read_text())
    assert list(links.values()) == [{"links": 12, "active": 12}] * 2
    one = "GPU 0: X (UUID: GPU-1)\n\t Link 0: 25 GB/s\n\t Link 1: <inactive>\nNVML: something else\n"
    assert nvidia_smi.parse_links(one) == {"GPU-1": {"links": 2, "active": 1}}
    assert nvidia_smi.parse_links("") == {}


def matrix(*rows, head="\x1b[4m\t{}\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m"):
    """The answer to `topo -m`, as drivers since 470 give it: an underlined head, a column of a network card, and a legend."""
    names = "\t".join(f"GPU{number}" for number in range(len(rows)))
    lines = [f"GPU{number}\t" + "\t".join(row.split()) + "\tPIX\t0-23,48-71\t0\t\tN/A" for number, row in enumerate(rows)]
    return "\n".join([head.format(names), *lines, "NIC0\tPIX\tPIX\t X", "", "Legend:", "", "  X    = Self", "  NV#  = bonded NVLinks"])


@pytest.mark.parametrize(("rows", "islands"), [
    (("X NV18 NV18", "NV18 X NV18", "NV18 NV18 X"), {0: 0, 1: 0, 2: 0}),
    (("X NV4 SYS SYS", "NV4 X SYS SYS", "SYS SYS X NV4", "SYS SYS NV4 X"), {0: 0, 1: 0, 2: 2, 3: 2}),
    # Joined through others, as on machines of eight GPUs without switches.
    (("X NV1 SYS SYS", "NV1 X NODE NV2", "SYS NODE X NV1", "SYS NV2 NV1 X"), {0: 0, 1: 0, 2: 0, 3: 0}),
    (("X PHB PIX", "PHB X NODE", "PIX NODE X"), {0: 0, 1: 1, 2: 2}),
])
def test_gpus_that_nvlink_joins_are_an_island(rows, islands):
    assert nvidia_smi.parse_islands(matrix(*rows)) == islands
    assert nvidia_smi.parse_islands(matrix(*rows, head="\t{}\tCPU Affinity")) == islands


@pytest.mark.parametrize("prefix", ["clocks_event_reason", "clocks_throttle_reason"])
def test_only_reasons_that_mean_trouble_are_told(prefix):
    text = H100.replace("clocks_event_reason", prefix)
    for reason in ("sw_power_cap", "hw_slowdown", "sw_thermal_slowdown"):
        text = text.replace(f"<{prefix}_{reason}>Not Active", f"<{prefix}_{reason}>Active", 1)
    found = nvidia_smi.parse_log(text).gpus
    assert found[0]["throttle"] == ["hw_slowdown", "sw_thermal_slowdown"] and found[1]["throttle"] == []


def test_the_fabric_and_what_the_driver_asks_for_are_told():
    text = H100.replace("<gpu_recovery_action>None", "<gpu_recovery_action>Reset", 1)
    first, second = nvidia_smi.parse_log(text).gpus[:2]
    assert first["fabric"] == {"state": "Completed", "status": "Success"}
    assert (first["recovery"], second["recovery"]) == ("Reset", "")
    assert log("ada_l40s_595").gpus[0]["fabric"] == {"state": "", "status": ""}


def test_corrected_and_uncorrected_errors_are_summed_by_their_names():
    text = (FIXTURES / "kepler_k20m_340.xml").read_text()
    begin, volatile, rest = text.partition("<volatile>")
    single, double, end = rest.partition("<double_bit>")
    old = begin + volatile + single.replace("<total>0", "<total>7", 1) + double + end.replace("<total>0", "<total>2", 1)
    assert nvidia_smi.parse_log(old).gpus[0]["ecc"] == {"mode": "enabled", "pending": "enabled", "corrected": 7, "uncorrected": 2}
    new = H100.replace("uncorrectable_parity>0", "uncorrectable_parity>1", 1).replace("uncorrectable_secded>0", "uncorrectable_secded>2", 1)
    new = new.replace("<dram_uncorrectable>0", "<dram_uncorrectable>4", 1).replace("<dram_correctable>0", "<dram_correctable>9", 1)
    assert nvidia_smi.parse_log(new).gpus[0]["ecc"] == {"mode": "enabled", "pending": "enabled", "corrected": 9, "uncorrected": 7}


@pytest.mark.parametrize(
    ("was", "now", "repair"),
    [
        ("<remapped_row_pending>No", "<remapped_row_pending>Yes", "pending"),
        ("<remapped_row_failure>No", "<remapped_row_failure>Yes", "failed"),
        ("<sram_threshold_exceeded>No", "<sram_threshold_exceeded>Yes", "failed"),
        ("<channel_repair_pending>No", "<channel_repair_pending>Yes", "pending"),
    ],
)
def test_memory_that_waits_for_repair_or_cannot_be_repaired_is_told(was, now, repair):
    assert was in H100
    first, second = nvidia_smi.parse_log(H100.replace(was, now, 1)).gpus[:2]
    assert (first["repair"], second["repair"]) == (repair, "")


def test_pages_that_wait_to_be_retired_are_told_of_older_gpus():
    text = (FIXTURES / "kepler_k20m_340.xml").read_text()
    assert nvidia_smi.parse_log(text).gpus[0]["repair"] == ""
    [gpu] = nvidia_smi.parse_log(text.replace("<pending_retirement>No", "<pending_retirement>Yes")).gpus
    assert gpu["repair"] == "pending"


@pytest.mark.parametrize("place", ["before", "after", "between"])
def test_a_line_about_another_gpu_hides_none(place):
    line = "Unable to determine the device handle for GPU3: 0000:5F:00.0: Unknown Error\n"
    text = {"before": line + H100, "after": H100 + line, "between": H100.replace("\t<gpu id", f"{line}\t<gpu id", 1)}[place]
    found = nvidia_smi.parse_log(text)
    assert len(found.gpus) == 8 and found.unreached == ["0000:5f:00.0"]


def test_versions_that_only_point_to_new_names_are_followed():
    text = H100.replace("<driver_version>580.105.08", "<driver_version>Deprecated, see kmd_version").replace(
        "</cuda_version>", "</cuda_version><kmd_version>615.23</kmd_version>"
    )
    assert nvidia_smi.parse_log(text).driver == "615.23"


@pytest.mark.parametrize("text", ["", "No devices were found\n", H100[: len(H100) // 2], "<?xml version='1.0'?><a></nvidia_smi_log>"])
def test_what_is_no_document_is_none(text):
    assert nvidia_smi.parse_log(text) is None


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_document_is_read_or_refused(data):
    """Values may say anything: words for numbers, nothing, another alphabet."""
    text = (FIXTURES / "ampere_a100_mig_535.xml").read_text()
    values = ["N/A", "", "GPU is lost", "[Unknown Error]", "-1 MiB", "1,5 W", "९ MiB", "9" * 40 + " MiB", "Enabled"]
    for _ in range(data.draw(st.integers(1, 6))):
        start = text.index(">", data.draw(st.integers(300, len(text) - 300))) + 1
        stop = text.index("<", start)
        if text[start:stop].strip():
            text = text[:start] + data.draw(st.sampled_from(values) | st.text("<>&;\x00\x1bé", max_size=4)) + text[stop:]
    found = nvidia_smi.parse_log(text)
    for gpu in found.gpus if found else []:
        assert gpu["state"] in ("ready", "lost") and (gpu["memory_total"] is None or gpu["memory_total"] >= 0)


@given(st.text())
def test_any_text_is_a_list_of_nothing_rather_than_an_error(text):
    assert nvidia_smi.parse_log(text) is None
    assert nvidia_smi.parse_list(text) == nvidia_smi.parse_links(text) == nvidia_smi.parse_islands(text) == {}
    assert all(len(row) == 2 for row in nvidia_smi.parse_rows(text, 2))


@pytest.fixture
def program(tmp_path):
    def write(script: str) -> str:
        path = tmp_path / "program"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)

    return write


def test_programs_run_in_the_c_locale(program, monkeypatch):
    for name in ("LANG", "LC_ALL", "LC_NUMERIC", "LANGUAGE"):
        monkeypatch.setenv(name, "de_DE.UTF-8")
    answer = nvidia_smi.ask([program('echo "$LC_ALL,$LANGUAGE"; printf "\\377" >&2; exit 18')], 10)
    assert (answer.code, answer.text, answer.errors) == (18, "C,C\n", "�")


def test_a_program_that_hangs_is_ended_with_all_that_it_started(program, tmp_path):
    began = time.monotonic()
    answer = nvidia_smi.ask([program(f"trap '' TERM; sleep 60 & echo $! > {tmp_path}/child; wait")], 0.5)
    assert answer.hung and time.monotonic() - began < 20
    child = int((tmp_path / "child").read_text())
    for _ in range(50):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            break
        stat = Path(f"/proc/{child}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        pytest.fail("what it started still runs")


def test_a_program_that_cannot_be_started_is_an_answer(tmp_path):
    assert nvidia_smi.ask([str(tmp_path / "nowhere")], 5).code == 127
