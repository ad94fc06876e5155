#!/usr/bin/python3 -I
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Looks at the GPUs of this host and writes down how they are: a state, metrics for the node exporter, a word for gateways.

    gpu-health                      one look, as the timer does it
    gpu-health --show               what is wrong, by the last look
    gpu-health --forget [GPU ...]   these GPUs (PCI address or UUID), or all, were reset or replaced: what was found before counts no more
    gpu-health --check FILE         say whether FILE holds settings that can be used, and do nothing

What is read, and how, is the code of the module gpu_info; what is concluded is gpu_health.py. Both lie in python/ beside this program.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "python"))

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import gpu_health, gpu_health_rules
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.gpu_health_metrics import metrics
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.gpu_survey import GpuSurvey

METRICS = "llm_fleet_gpu_health.prom"
# A process 1 that started later than this many seconds after the kernel runs in a container, which shares the kernel's boot with others.
EARLY = 300


class Health:
    """One call: the settings, and the root of all files, which is another one in tests only."""

    def __init__(self, settings: dict, root: Path) -> None:
        self.root = root
        self.timeout = settings["timeout"]
        self.state_file = Path(settings["state_file"])
        self.word_file = Path(settings["word_file"])
        self.textfile_dir = Path(settings["textfile_dir"]) if settings["textfile_dir"] else None
        self.settings = gpu_health.Settings(**{key: settings[key] for key in gpu_health.Settings._fields})

    def look(self) -> dict:
        state = gpu_health.assess(self.facts(), self.state(), self.settings, self.boot(), time.time())
        self.write(state)
        return state

    def facts(self) -> dict:
        stuck = self.stuck()
        if not stuck:
            return GpuSurvey(timeout=self.timeout, root=self.root).collect()
        # Another one would hang as well, and no signal ends it: one a minute would fill the host.
        facts = GpuSurvey(timeout=self.timeout, root=self.root, which=lambda name: None).collect()
        problem = f"nvidia-smi (process {stuck}) hangs in the kernel: the driver or a GPU does not answer. {gpu_health_rules.REBOOT}"
        return {**facts, "state": "failing", "problem": problem}

    def stuck(self) -> int:
        """A process of nvidia-smi that has waited in the kernel for longer than it gets; 0 where there is none."""
        for path in sorted(self.root.glob("proc/[0-9]*/stat")):
            name, _close, fields = _text(path).rpartition(")")
            words = fields.split()
            if name.endswith("(nvidia-smi") and words[0] == "D" and self.uptime() - int(words[19]) / self.ticks() > self.timeout:
                return int(path.parent.name)
        return 0

    def boot(self) -> gpu_health.Boot:
        kernel = _text(self.root / "proc/sys/kernel/random/boot_id").strip()
        started = int(_text(self.root / "proc/1/stat").rpartition(")")[2].split()[19]) / self.ticks()
        if started < EARLY:
            return gpu_health.Boot(kernel)
        booted = re.search(r"^btime (\d+)$", _text(self.root / "proc/stat"), re.MULTILINE)
        return gpu_health.Boot(f"{kernel}/{started:.0f}", gpu_health.iso(int(booted[1]) + started) if booted else "")

    def uptime(self) -> float:
        return float(_text(self.root / "proc/uptime").split()[0])

    @staticmethod
    def ticks() -> int:
        return os.sysconf("SC_CLK_TCK")

    def state(self) -> dict:
        """What the last look left. A file that is none of ours is as good as none."""
        try:
            state = json.loads(_text(self.state_file))
        except ValueError:
            return {}
        return state if isinstance(state, dict) and state.get("format") == gpu_health.FORMAT else {}

    def write(self, state: dict) -> None:
        """State, word, metrics: each file is replaced as a whole."""
        replace(self.state_file, json.dumps(state, indent=1, sort_keys=True) + "\n")
        replace(self.word_file, gpu_health.agent_word(state))
        # The directory belongs to the node exporter; without one nobody reads the metrics.
        if self.textfile_dir and self.textfile_dir.is_dir():
            replace(self.textfile_dir / METRICS, metrics(state))

    def forget(self, gpus: list) -> str:
        state = self.state()
        known = state.get("memory", {}).get("known", {})
        names = {*known, *(one["address"] for one in known.values()), *state.get("memory", {}).get("xids", {})}
        unknown = sorted(set(gpus) - names)
        if unknown:
            return f"{self.state_file} has no GPU {', '.join(unknown)}. Name one of: {', '.join(sorted(names)) or 'none is known yet'}"
        replace(self.state_file, json.dumps(gpu_health.forget(state, gpus, time.time()), indent=1, sort_keys=True) + "\n")
        self.look()
        return ""

    def show(self) -> str:
        state = self.state()
        if not state:
            return f"{self.state_file} is not there yet: the GPUs were not looked at"
        lines = [f"{one['severity']}: {one['gpu'] or 'host'} {one['uuid']}: {one['text']}. {one['advice']}" for one in state["findings"]]
        return "\n".join([f"looked at {state['checked']}: {state['severity'] or 'nothing to tell'}", *lines])


def replace(path: Path, text: str) -> None:
    """A crash leaves the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
        os.replace(name, path)
    except OSError:
        os.unlink(name)
        raise


def faults(settings: object) -> list:
    """What is wrong with settings, as far as a mistake of an operator can make it wrong."""
    if not isinstance(settings, dict) or not isinstance(settings.get("severities"), dict):
        return ["the settings are no JSON object with severities"]
    names = [name for name in settings["severities"] if name not in gpu_health_rules.RULES and not re.fullmatch(r"xid-[0-9]+", name)]
    words = [word for word in settings["severities"].values() if word not in gpu_health_rules.SEVERITIES]
    known = ", ".join([*gpu_health_rules.RULES, "xid-<number>"])
    return [f"severities: there is no finding {name}; there are {known}" for name in names] + [
        f"severities: {word!r} is no severity; write warning, critical or an empty string" for word in words
    ]


def _text(path: Path) -> str:
    """A file's text; nothing where it is not there, or ends while it is read, as processes do."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def main() -> str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--forget", nargs="*", metavar="GPU")
    parser.add_argument("--check", type=Path, metavar="FILE")
    parser.add_argument("--settings", type=Path, default=Path("/etc/llm_fleet/gpu-health.json"))
    parser.add_argument("--root", type=Path, default=Path("/"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    settings = json.loads((args.check or args.settings).read_text(encoding="utf-8"))
    wrong = faults(settings)
    if wrong or args.check:
        return "; ".join(wrong)
    health = Health(settings, args.root)
    if args.show:
        print(health.show())
        return ""
    if args.forget is not None:
        return health.forget(args.forget)
    health.look()
    return ""


if __name__ == "__main__":
    sys.exit(main() or 0)
