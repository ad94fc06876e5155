# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""XIDs, in the lines that `journalctl --output=json` prints."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.gpu_xids import COMMAND, MOST, parse_journal

LINES = (Path(__file__).parent / "nvidia_smi" / "xids.txt").read_text().splitlines()
STAMP = 1795885814123456  # 2026-11-28 17:10:14 UTC


def entry(message, stamp=STAMP):
    return json.dumps({"MESSAGE": message, "__REALTIME_TIMESTAMP": str(stamp), "_BOOT_ID": "b"})


def test_real_messages_are_read():
    xids, fallen = parse_journal("\n".join(map(entry, LINES)))
    assert [(one["address"], one["code"]) for one in xids] == [("0000:91:00.0", 79), ("0000:9b:00.0", 119), ("0018:01:00.0", 149)]
    assert xids[0]["text"] == "pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
    assert xids[1]["text"].startswith("pid=2024380, name=nvidia-smi, Timeout after 6s")
    assert {one["time"] for one in xids} == {"2026-11-28T17:10:14Z"}
    assert fallen == {"0000:91:00.0"}


def test_older_and_partitioned_gpus_are_named_in_other_ways():
    forms = ["(0000:03:00): 31, Ch 0000", "(PCI:0009:01:00 GPU-I:05): 94, Contained", "(PCI:0000:01:00): 45"]
    xids, fallen = parse_journal("\n".join(entry(f"NVRM: Xid {form}") for form in forms))
    assert [(one["address"], one["code"], one["text"]) for one in xids] == [
        ("0000:03:00.0", 31, "Ch 0000"), ("0009:01:00.0", 94, "Contained"), ("0000:01:00.0", 45, ""),
    ]
    assert fallen == set()


def test_a_gpu_that_was_gone_before_the_driver_came_has_no_xid():
    message = (
        "NVRM: The NVIDIA GPU 0000:b3:00.0\nNVRM: (PCI ID: 10de:26b5) installed in this system has\n"
        "NVRM: fallen off the bus and is not responding to commands."
    )
    assert parse_journal(entry(message)) == ([], {"0000:b3:00.0"})


def test_a_message_that_is_not_text_is_a_list_of_bytes():
    xids, _fallen = parse_journal(entry([*b"NVRM: Xid (PCI:0000:01:00): 13, \xff"]))
    assert (xids[0]["code"], xids[0]["text"]) == (13, "�")


def test_only_the_newest_are_told():
    text = "\n".join(entry(f"NVRM: Xid (PCI:0000:01:00): 31, number {number}", STAMP + number * 10**6) for number in range(MOST + 5))
    xids, _fallen = parse_journal(text)
    assert len(xids) == MOST and (xids[0]["text"], xids[-1]["text"]) == ("number 5", f"number {MOST + 4}")


def test_not_anybody_can_write_xids():
    """journald itself says who logged; only root may under the kernel's name."""
    assert COMMAND.index("SYSLOG_IDENTIFIER=kernel") + 1 == COMMAND.index("_UID=0")
    assert "+" in COMMAND and "_TRANSPORT=kernel" in COMMAND


@given(st.lists(st.text() | st.builds(entry, st.text() | st.lists(st.integers()) | st.none() | st.integers(), st.text())))
def test_any_journal_is_read(lines):
    xids, fallen = parse_journal("\n".join([*lines, entry(LINES[0])]))
    assert xids[-1]["code"] == 79 and "0000:91:00.0" in fallen
