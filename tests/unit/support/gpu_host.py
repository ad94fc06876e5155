# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""A host with GPUs in a directory: the doubles of nvidia-smi and of the kernel, with all their files below one root."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

DOUBLE = Path(__file__).resolve().parents[3] / "testbed" / "doubles" / "nvidia_smi"
SCENARIOS = sorted(path.stem for path in (DOUBLE / "scenarios").glob("*.json"))
RELEASE = "6.1.0-32-amd64"


class GpuHost:
    """`host.use("l4x2"); host.install("580.95.05"); host.load()`, and then `host.smi("-L")`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / "usr" / "bin"
        self.bin.mkdir(parents=True)
        self.boots = 1

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "TESTBED_ROOT": str(self.root), "TESTBED_BOOT": str(self.boots)}

    def write(self, path: str, text: str) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def gpus(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, DOUBLE / "testbed-gpus", *arguments], env=self.environment, check=False, capture_output=True, text=True
        )

    def use(self, scenario: str, **changes: Any) -> None:
        """A scenario, with keys of it changed."""
        document = {**json.loads((DOUBLE / "scenarios" / f"{scenario}.json").read_text()), **changes}
        done = self.gpus("use", str(self.write("scenario.json", json.dumps(document))))
        assert done.returncode == 0, done.stderr

    def install(self, version: str, flavour: str = "open") -> None:
        """What the double of the driver's packages would leave."""
        for name, text in (("kernel-version", version), ("library-version", version), ("flavour", flavour)):
            self.write(f"usr/lib/testbed-nvidia/{name}", f"{text}\n")
        variables = f"export TESTBED_ROOT={self.root} TESTBED_BOOT={self.boots}"
        self.program("nvidia-smi", f'{variables}\nexec {sys.executable} {DOUBLE}/nvidia_smi.py "$@"')

    def program(self, name: str, script: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def load(self) -> None:
        done = self.gpus("load")
        assert done.returncode == 0, done.stderr

    def boot(self) -> None:
        """The module that is installed is loaded, and what was pending takes effect."""
        self.boots += 1
        self.gpus("unload")
        self.install((self.root / "usr/lib/testbed-nvidia/kernel-version").read_text().strip())
        self.load()

    def which(self, name: str) -> str | None:
        return shutil.which(name, path=str(self.bin))

    def smi(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([self.bin / "nvidia-smi", *arguments], check=False, capture_output=True, text=True)

    @property
    def scenario(self) -> dict[str, Any]:
        return json.loads((self.root / "etc/testbed/gpus.json").read_text())
