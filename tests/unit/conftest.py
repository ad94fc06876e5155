# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What tests of several modules need: modules as Ansible runs them, and a disk that is soon full."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from ansible_collections.localfirst.llm_fleet.tests.unit.support import module_process

REPO = Path(__file__).resolve().parents[2]

# How long an example takes says more about what else the machine does than about what is tested.
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=500, print_blob=True)
# A change is judged by the same examples each time, so that what it did not touch cannot fail; new ones are looked for at length.
settings.register_profile("same", settings.get_profile("search"), max_examples=100, derandomize=True)
settings.load_profile("search" if os.environ.get("LLM_FLEET_LONG") else "same")


@pytest.fixture
def run_module(tmp_path):
    """A process of its own, arguments as JSON in, one JSON document out.

    `run_module("host_info", gateway=True)` returns what the module prints; `path` goes before the programs of the system.
    """

    def run(name: str, path: Path | None = None, check_mode: bool = False, diff: bool = False, **arguments) -> dict:
        arguments |= {"_ansible_remote_tmp": str(tmp_path), "_ansible_check_mode": check_mode, "_ansible_diff": diff}
        programs = f"{path}:/usr/bin:/bin" if path else "/usr/bin:/bin"
        return module_process.call(name, arguments, {**os.environ, "PATH": programs})

    return run


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MiB, where it may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)
