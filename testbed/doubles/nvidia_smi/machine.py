# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The machine that the double stands on: its scenario, what was changed since, and the driver that is installed and loaded."""
from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

ROOT = Path(os.environ.get("TESTBED_ROOT", "/"))
SCENARIO = Path(os.environ.get("TESTBED_GPUS", ROOT / "etc/testbed/gpus.json"))
STATE = ROOT / "var/lib/testbed-gpus.json"
APPS = ROOT / "run/testbed/gpu-apps.json"
VERSIONS = ROOT / "usr/lib/testbed-nvidia"
LOADED = ROOT / "proc/driver/nvidia/version"
NAMESPACE = uuid.UUID("6ba7b812-9dad-11d1-80b4-00c04fd430c8")


class Stop(Exception):
    """What the original prints before it ends with a status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def mig_uuid(gpu: str, instance: int, compute: int) -> str:
    """The same for the same place on the same GPU, as the original's."""
    return f"MIG-{uuid.uuid5(NAMESPACE, f'{gpu}/{instance}/{compute}')}"


class Machine:
    """GPUs as they are now. A change is kept in a file; what only a restart or a reset brings is pending in it until then."""

    def __init__(self) -> None:
        self.scenario = json.loads(read(SCENARIO) or "{}")
        loaded = read(LOADED).split()
        self.module = next((word for word in loaded if word[0].isdigit() and "." in word), "")
        self.library = read(VERSIONS / "library-version") or self.module
        self.changes: dict[str, dict[str, Any]] = {}
        # A container's boot_id is the machine's own, so the boot is known by when process 1 has started.
        booted = self.booted()
        if STATE.exists():
            kept = json.loads(STATE.read_text(encoding="utf-8"))
            self.changes = kept["gpus"]
            if kept["booted"] != booted:
                for change in self.changes.values():
                    self.after_reset(change, boot=True)
        self.state = {"booted": booted, "gpus": self.changes}
        there = [gpu for gpu in self.scenario.get("gpus", []) if gpu.get("lost") != "bus"]
        self.gpus = [{**gpu, "index": number, **self.current(gpu)} for number, gpu in enumerate(there)]

    @staticmethod
    def booted() -> str:
        if "TESTBED_BOOT" in os.environ:  # for unit tests, which have no process 1 to restart
            return os.environ["TESTBED_BOOT"]
        # Field 22 of proc(5)'s stat, counted from behind the program's name.
        return read(Path("/proc/1/stat")).rpartition(")")[2].split()[19]

    def current(self, gpu: dict[str, Any]) -> dict[str, Any]:
        """What was changed of a GPU, over what the scenario says."""
        change, ecc, mig = self.changes.get(gpu["uuid"], {}), gpu.get("ecc"), gpu.get("mig")
        power = gpu["power"]
        return {
            "persistence": change.get("persistence", gpu.get("persistence", False)),
            "limit": change.get("limit", power.get("limit", power.get("default"))),
            "ecc": change.get("ecc", ecc),
            "ecc_pending": change.get("ecc_pending", gpu.get("ecc_pending", change.get("ecc", ecc))),
            "mig": change.get("mig", mig),
            "mig_pending": change.get("mig_pending", gpu.get("mig_pending", change.get("mig", mig))),
            "instances": change.get("instances", gpu.get("instances", [])),
            "lost": gpu.get("lost", False),
        }

    def change(self, gpu: dict[str, Any], **values: Any) -> None:
        self.changes.setdefault(gpu["uuid"], {}).update(values)
        gpu.update(values)
        STATE.parent.mkdir(parents=True, exist_ok=True)
        fresh = STATE.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(self.state, indent=1) + "\n", encoding="utf-8")
        fresh.replace(STATE)

    @staticmethod
    def after_reset(change: dict[str, Any], boot: bool = False) -> None:
        """Pending modes come into effect. A boot takes what only a running driver knows, and all that was partitioned."""
        for mode in ("ecc", "mig"):
            if f"{mode}_pending" in change:
                change[mode] = change.pop(f"{mode}_pending")
        if boot:
            for name in ("persistence", "limit", "instances"):
                change.pop(name, None)

    @property
    def apps(self) -> list[dict[str, Any]]:
        """Processes that use a GPU: [{"uuid", "pid", "name", "memory" in MiB}], of the scenario and of a file that tests write."""
        return [*self.scenario.get("apps", []), *json.loads(read(APPS) or "[]")]

    def in_use(self, *uuids: str) -> bool:
        return any(app["uuid"] in uuids for app in self.apps)

    def check_driver(self) -> None:
        """Ends as the original does where it cannot talk to the kernel module."""
        if not self.module:
            raise Stop(9, (
                "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
                " Make sure that the latest NVIDIA driver is installed and running.\n"
            ))
        if self.scenario.get("mismatch") or self.library != self.module:
            short = ".".join(self.library.split(".")[:2])
            raise Stop(18, f"Failed to initialize NVML: Driver/library version mismatch\nNVML library version: {short}\n")
        if not self.gpus:
            raise Stop(6, "No devices were found\n")

    def pick(self, wanted: str | None) -> list[dict[str, Any]]:
        """The GPUs that -i names by index, UUID or address; all of them without."""
        if wanted is None:
            return self.gpus
        found = []
        for name in wanted.split(","):
            names = ((gpu, (str(gpu["index"]), gpu["uuid"].lower(), gpu["address"], bus_id(gpu).lower())) for gpu in self.gpus)
            same = [gpu for gpu, known in names if name.lower() in known]
            if not same:
                raise Stop(6, "No devices were found\n")
            if same[0]["lost"] == "handle":
                raise Stop(15, unreachable(same[0]))
            found += same
        return found


def bus_id(gpu: dict[str, Any]) -> str:
    """The address as nvidia-smi writes it."""
    return f"0000{gpu['address']}".upper()


def unreachable(gpu: dict[str, Any]) -> str:
    return f"Unable to determine the device handle for GPU{gpu['index']}: {gpu['address'].upper()}: Unknown Error\n"
