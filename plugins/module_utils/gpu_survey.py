# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""All that can be known of a host's GPUs and their driver, from sysfs, nvidia-smi and the journal.

Reads only, and fails for nothing it finds.

`GpuSurvey().collect()` is what the module gpu_info returns. `collect(details=False)` leaves out what planning has no use for
(XIDs, the state of NVLink, fabric manager), and asks nvidia-smi once, once more where MIG is on, and where there are GPUs to choose among.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import gpu_pci, gpu_state, gpu_xids, nvidia_smi
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.nvidia_smi import Answer, Log

SECURE_BOOT = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_VERSION = re.compile(r"Kernel Module[^\n]*?\s([0-9]+(?:\.[0-9]+)+)")


class GpuSurvey:
    """One look at the host whose files are under `root`. `root` and `release` are for tests; a host has its own."""

    def __init__(
        self, timeout: float = 30, root: Path = Path("/"), release: str = "", which: Callable[[str], str | None] = shutil.which
    ) -> None:
        self.timeout = timeout
        self.root = root
        self.release = release or os.uname().release
        self.which = which
        self.deadline = time.monotonic() + timeout

    def collect(self, details: bool = True) -> dict[str, Any]:
        self.deadline = time.monotonic() + self.timeout
        devices = gpu_pci.PciBus(self.root / "sys/bus/pci/devices").nvidia()
        cards = [device for device in devices if device["kind"] == "gpu"]
        smi = self.which("nvidia-smi")
        xids, fallen = self.journal() if details else ([], set())
        answer = nvidia_smi.ask([smi, "-q", "-x"], self.timeout) if smi else None
        log = self.log_of(smi, answer, cards)
        lost = self.lost(log, cards, fallen)
        kernel, module = self.kernel(), self.module()
        state, problem = gpu_state.judge(
            gpu_state.Seen(cards, answer, log, lost, module["version"], kernel, self.has_module(), self.timeout)
        )
        gpus = [*log.gpus, *(gpu for gpu in lost if gpu not in log.gpus)] if log else []
        if smi and log and any(gpu["mig"]["devices"] for gpu in gpus):
            listed = nvidia_smi.parse_list(self.ask(smi, "-L").text)
            nameless = [gpu["address"] for gpu in gpus if gpu["mig"]["devices"] and not listed.get(gpu["uuid"])]
            if nameless:
                # Without this, a GPU whose partitions have no names would look like one that has none.
                state, problem = gpu_state.FAILING, gpu_state.nameless(nameless)
            gpus = nvidia_smi.with_mig(gpus, listed)
        numa = {device["address"]: device["numa_node"] for device in devices}
        gpus = [{**gpu, "numa_node": numa.get(gpu["address"], -1), "island": None} for gpu in gpus]
        # Of two, an engine gets one or both, however they are joined.
        if smi and len(gpus) > 2 and state in (gpu_state.READY, gpu_state.LOST):
            islands = nvidia_smi.parse_islands(self.ask(smi, "topo", "-m").text)
            gpus = [{**gpu, "island": islands.get(gpu["index"])} for gpu in gpus]
        if smi and details and state in (gpu_state.READY, gpu_state.LOST):
            gpus = self.with_details(smi, gpus)
        return {
            "state": state,
            "problem": problem,
            "pci": devices,
            "driver": {
                "version": (log.driver if log else "") or gpu_state.library_version(answer),
                "module_version": module["version"],
                "cuda_version": log.cuda if log else "",
                "flavour": module["flavour"],
            },
            "gpus": gpus,
            "fabric_manager": self.fabric_manager(devices) if details else {},
            "xids": xids,
            "kernel": kernel,
        }

    def log_of(self, smi: str | None, answer: Answer | None, cards: list[dict[str, Any]]) -> Log | None:
        """What nvidia-smi tells of all GPUs. Where one that is lost keeps it from that, it is asked for each of the others."""
        if smi is None or answer is None or answer.hung:
            return None
        log = nvidia_smi.parse_log(answer.said)
        if log is not None or gpu_state.says_mismatch(answer) or gpu_state.says_not_loaded(answer):
            return log
        logs = []
        for card in cards:
            if card["driver"] == "nvidia":
                alone = self.ask(smi, "-q", "-x", "-i", card["address"])
                if alone.hung:
                    return None
                logs.append(nvidia_smi.parse_log(alone.said))
        found = [one for one in logs if one and any(gpu["state"] == "ready" for gpu in one.gpus)]
        if not found:
            return None
        return Log(found[0].driver, found[0].cuda, [gpu for one in found for gpu in one.gpus], [])

    def lost(self, log: Log | None, cards: list[dict[str, Any]], fallen: set[str]) -> list[dict[str, Any]]:
        """GPUs that should answer and do not.

        They say so, or nvidia-smi cannot get hold of them, or it leaves out one that the module has on the bus, or had, says the journal.
        One on the bus that no driver holds should answer where the module has another one of the same kind; any other may be too old.
        """
        if log is None:
            return []
        gone = [gpu for gpu in log.gpus if gpu["state"] == "lost"]
        told = {gpu["address"] for gpu in log.gpus}
        taken = {card["device_id"] for card in cards if card["driver"] == "nvidia"}
        due = {card["address"] for card in cards if card["driver"] == "nvidia" or (not card["driver"] and card["device_id"] in taken)}
        missing = ({*log.unreached, *fallen} | {address for address in due if not self.excluded(address)}) - told
        return gone + [nvidia_smi.lost_gpu(address) for address in sorted(missing)]

    def excluded(self, address: str) -> bool:
        """Whether the operator keeps the driver from using this GPU (NVreg_ExcludedGpus)."""
        text = self.read(f"proc/driver/nvidia/gpus/{address}/information")
        return re.search(r"^(?:GPU Excluded|Blacklisted):\s*Yes", text, re.MULTILINE) is not None

    def with_details(self, smi: str, gpus: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The GPUs with their links, and with the compute capability of those whose chip is newer than the table."""
        answer = self.ask(smi, "nvlink", "--status")
        links = nvidia_smi.parse_links(answer.text)
        # A GPU that has no links may not even be named.
        none = {"links": 0, "active": 0} if answer.code == 0 else {"links": None, "active": None}
        capabilities = {}
        if any(gpu["uuid"] and not gpu["compute_capability"] for gpu in gpus):
            told = self.ask(smi, "--query-gpu=uuid,compute_cap", "--format=csv,noheader").text
            capabilities = {uuid: value for uuid, value in nvidia_smi.parse_rows(told, 2) if re.fullmatch(r"[0-9]+\.[0-9]+", value)}
        return [
            {
                **gpu,
                "nvlink": links.get(gpu["uuid"], none) if gpu["state"] == gpu_state.READY else gpu["nvlink"],
                "compute_capability": gpu["compute_capability"] or capabilities.get(gpu["uuid"], ""),
            }
            for gpu in gpus
        ]

    def module(self) -> dict[str, str]:
        """The kernel module that is loaded, by what it says of itself."""
        text = self.read("proc/driver/nvidia/version")
        match = _VERSION.search(text)
        version = match[1] if match else self.read("sys/module/nvidia/version").strip()
        flavour = "" if not version else "open" if "Open Kernel Module" in text else "proprietary"
        return {"version": version, "flavour": flavour}

    def has_module(self) -> bool:
        """Whether there is a module for the kernel that runs; Debian calls it nvidia-current."""
        modules = self.read(f"lib/modules/{self.release}/modules.dep")
        return re.search(r"/nvidia(?:-[a-z0-9-]+)?\.ko", modules) is not None

    def kernel(self) -> dict[str, Any]:
        return {
            "release": self.release,
            "headers": (self.root / f"lib/modules/{self.release}/build").is_dir(),
            "nouveau": (self.root / "sys/module/nouveau").is_dir(),
            "secure_boot": self.secure_boot(),
        }

    def secure_boot(self) -> str:
        """By the firmware's own variable: four bytes of attributes, and one that is 1 where it is on."""
        try:
            value = (self.root / "sys/firmware/efi/efivars" / SECURE_BOOT).read_bytes()
        except OSError:
            return "unsupported"
        return "enabled" if value[-1:] == b"\x01" else "disabled"

    def fabric_manager(self, devices: list[dict[str, Any]]) -> dict[str, Any]:
        manager = self.which("nv-fabricmanager")
        told = nvidia_smi.ask([manager, "--version"], 10).said if manager else ""
        match = re.search(r"([0-9]+(?:\.[0-9]+)+)", told)
        active = nvidia_smi.ask(["systemctl", "is-active", "nvidia-fabricmanager"], 10).text.strip() == "active"
        return {"needed": gpu_pci.needs_fabric_manager(devices), "version": match[1] if match else "", "active": active}

    def journal(self) -> tuple[list[dict[str, Any]], set[str]]:
        return gpu_xids.parse_journal(nvidia_smi.ask(gpu_xids.COMMAND, 60).text)

    def ask(self, smi: str, *arguments: str) -> Answer:
        """Another question, in what is left of the time; without an answer if nothing is."""
        left = self.deadline - time.monotonic()
        return nvidia_smi.ask([smi, *arguments], left) if left > 0 else Answer(None, "")

    def read(self, path: str) -> str:
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
