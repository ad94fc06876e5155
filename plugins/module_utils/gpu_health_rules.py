# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What counts as an ill GPU, and how bad it is: data. Pure: no I/O.

Critical is what a request can run into although the engine's own health check may still pass: a GPU that is lost, hangs, has broken
memory or waits for a reset. Only that takes a host's requests away. A warning is for people: what runs goes on.
"""

from __future__ import annotations

import re
from typing import NamedTuple

GOOD, WARNING, CRITICAL = "", "warning", "critical"
SEVERITIES = (GOOD, WARNING, CRITICAL)

REBOOT = "Drain the host and reboot it"
RESET = "Drain the host, then reset the GPU (nvidia-smi --gpu-reset -i {gpu}) or reboot the host"
REPLACE = "Drain the host and have the card replaced"


class Rule(NamedTuple):
    """How bad a finding is, how many looks in a row have to see it, and what to do."""

    severity: str
    looks: int
    advice: str


# What one look at the GPUs can find. The first four and `lost` are states of gpu_info, which come with a sentence that says what to do.
RULES = {
    "no_driver": Rule(WARNING, 1, ""),
    "not_loaded": Rule(WARNING, 1, ""),
    "mismatch": Rule(WARNING, 1, ""),
    "failing": Rule(CRITICAL, 3, ""),
    "lost": Rule(CRITICAL, 1, f"{REBOOT}; if it happens again, have the card, its power and its slot checked"),
    # It was there, and is no longer on the bus after a boot. An engine that needs it does not start, and so gets no request anyway.
    "missing": Rule(WARNING, 1, "Have the card and its slot checked; if it was taken out, run: gpu-health --forget {gpu}"),
    # Engines that run end by themselves when it ends, new ones do not start.
    "fabric_manager": Rule(WARNING, 2, "Look into `journalctl -u nvidia-fabricmanager`: its version must be the driver's"),
    "reset_required": Rule(CRITICAL, 1, RESET),
    "reboot_required": Rule(CRITICAL, 1, REBOOT),
    "drain_and_reset": Rule(CRITICAL, 1, RESET),
    "drain_p2p": Rule(WARNING, 1, "End what uses several GPUs at once, and start it again"),
    "recovery": Rule(WARNING, 1, "Look up what the driver asks for: nvidia-smi -q -i {gpu}"),
    "memory_failed": Rule(CRITICAL, 1, REPLACE),
    "memory_pending": Rule(WARNING, 1, RESET),
    "uncorrected": Rule(WARNING, 1, "Look for XIDs 48, 63, 64, 94 and 95. A reset ends it; have a card checked that counts them again"),
    # How many looks, says a setting: a GPU that is slow for a minute has done what it should.
    "throttle": Rule(WARNING, 0, "Look at the inlets, the fans and the power supplies (nvidia-smi -q -d TEMPERATURE,POWER -i {gpu})"),
}

# What `nvidia-smi -q` says under "GPU Recovery Action" (nvmlDeviceGpuRecoveryAction_t), and what XID 154 says in brackets.
RECOVERY = {
    "Reset": "reset_required",
    "GPU Reset Required": "reset_required",
    "PF FLR": "reset_required",
    "Reboot": "reboot_required",
    "Node Reboot Required": "reboot_required",
    "OS Reboot": "reboot_required",
    "Drain P2P": "drain_p2p",
    "Drain and Reset": "drain_and_reset",
}


RECOVERY_XID = 154


class Xid(NamedTuple):
    """An XID in a few words, and the immediate action of NVIDIA's catalog."""

    title: str
    action: str


# NVIDIA's XID catalog: https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html, as read in November 2026.
# A code that is not in here is a warning.
XIDS = {
    8: Xid("the GPU stopped processing", "RESTART_APP"),
    11: Xid("invalid push buffer", "RESTART_APP"),
    13: Xid("graphics engine exception", "RESTART_APP"),
    25: Xid("invalid push buffer", "RESTART_APP"),
    31: Xid("memory page fault", "RESTART_APP"),
    32: Xid("invalid push buffer", "RESTART_APP"),
    41: Xid("copy engine exception", "RESTART_APP"),
    43: Xid("the GPU stopped processing", "IGNORE"),
    44: Xid("fault while switching between programs", "IGNORE"),
    45: Xid("clean-up after another error", "WORKFLOW_XID_45"),
    46: Xid("the GPU stopped processing", "RESET_GPU"),
    48: Xid("double bit memory error", "WORKFLOW_XID_48"),
    54: Xid("auxiliary power is not connected", "CHECK_MECHANICALS"),
    62: Xid("internal micro-controller halted", "RESET_GPU"),
    63: Xid("memory row remapped or page retired", "IGNORE"),
    64: Xid("memory row could not be remapped", "RESET_GPU"),
    69: Xid("graphics engine class error", "RESTART_APP"),
    74: Xid("NVLink error", "WORKFLOW_NVLINK_ERR"),
    79: Xid("fallen off the bus", "RESTART_BM"),
    92: Xid("many single bit memory errors", "IGNORE"),
    94: Xid("memory error, contained to one program", "RESTART_APP"),
    95: Xid("memory error, not contained", "RESET_GPU"),
    109: Xid("timeout while switching between programs", "RESET_GPU"),
    110: Xid("security fault", "RESET_GPU"),
    119: Xid("the GPU's system processor does not answer", "RESET_GPU"),
    120: Xid("error in the GPU's system processor", "RESET_GPU"),
    136: Xid("link training failed", "RESET_GPU"),
    137: Xid("NVLink access without permission", "IGNORE"),
    140: Xid("unrecovered memory error", "RESET_GPU"),
    142: Xid("video encoder error", "CONTACT_SUPPORT"),
    143: Xid("the GPU could not be initialised", "RESET_GPU"),
    **{code: Xid("NVLink 5 error", "WORKFLOW_NVLINK5_ERR") for code in range(144, 151)},
    151: Xid("key rotation failed", "RESTART_VM"),
    154: Xid("the driver asks for an action", "XID_154"),
    155: Xid("NVLink error defined by software", "RESET_GPU"),
    156: Xid("a part of the GPU was retired", "RESET_GPU"),
    157: Xid("a part of the GPU could not be retired", "IGNORE"),
    158: Xid("fatal timeout", "RESET_GPU"),
    171: Xid("the memory error of XID 48 was in DRAM", "NONE"),
    172: Xid("the memory error of XID 48 was in SRAM", "NONE"),
}

ACTIONS = {
    # An engine's own fault, or the trace of another error: counted, and no finding.
    "IGNORE": (GOOD, ""),
    "NONE": (GOOD, ""),
    "RESTART_APP": (GOOD, ""),
    "WORKFLOW_XID_45": (GOOD, ""),
    "CONTACT_SUPPORT": (WARNING, "Ask the vendor if it happens again"),
    "WORKFLOW_NVLINK5_ERR": (WARNING, "Decode it by NVIDIA's XID catalog; if it happens again, reset the GPU"),
    "RESET_GPU": (CRITICAL, RESET),
    "WORKFLOW_XID_48": (CRITICAL, f"{RESET}. If it comes back, have the card replaced"),
    "WORKFLOW_NVLINK_ERR": (CRITICAL, f"{RESET}. If it comes back, have the links and the card checked"),
    "CHECK_MECHANICALS": (CRITICAL, "Drain the host, shut it down and check the power cables of the card"),
    "RESTART_VM": (CRITICAL, REBOOT),
    "RESTART_BM": (CRITICAL, "Drain the host, and switch its power off and on. If it comes back, have card, power and slot checked"),
}

# Where this collection is of another opinion than the immediate action, because of what an operator wants to know or to keep.
DIFFERENT = {
    63: (WARNING, f"{RESET} when it suits: until then the row is not remapped"),
    92: (WARNING, "Plan to have the card checked"),
    94: (WARNING, f"The engine that had the error was ended. {RESET} when it suits"),
    155: (WARNING, "Look at the links (nvidia-smi nvlink --status -i {gpu}); they also report each other's resets"),
    156: (WARNING, f"{RESET} when it suits"),
    157: (WARNING, "Plan to have the card replaced: it cannot repair itself any more"),
}
UNKNOWN = (WARNING, "Look it up in NVIDIA's XID catalog, and tell the role (gpu_health_severities) what it means to you")

_ASKED = re.compile(r"changed from 0x[0-9a-fA-F]+ \([^)]*\) to 0x([0-9a-fA-F]+) \(([^)]*)\)")


def judge_xid(code: int, text: str) -> tuple[str, str]:
    """How bad an XID is, and what to do."""
    if code == RECOVERY_XID:
        name = RECOVERY.get(asked_for(text), "recovery") if asked_for(text) else ""
        return (RULES[name].severity, RULES[name].advice) if name else (GOOD, "")
    if code in DIFFERENT:
        return DIFFERENT[code]
    if code not in XIDS:
        return UNKNOWN
    severity, advice = ACTIONS[XIDS[code].action]
    if XIDS[code].action == "WORKFLOW_NVLINK5_ERR" and re.search(r"\bFatal\b", text):
        return CRITICAL, RESET
    return severity, advice


def asked_for(text: str) -> str:
    """The action that an XID 154 names; an empty string where it says that none is needed any more."""
    match = _ASKED.search(text)
    if match is None:
        return "an action"
    return "" if int(match[1], 16) == 0 else match[2]


def ends_reset(code: int, text: str) -> bool:
    """Whether this XID says that the GPU needs nothing any more, so what was before is over."""
    return code == RECOVERY_XID and not asked_for(text)


def title(code: int) -> str:
    return f"XID {code}" + (f", {XIDS[code].title}" if code in XIDS else "")


def worst(severities: list[str]) -> str:
    return max(severities, key=SEVERITIES.index, default=GOOD)
