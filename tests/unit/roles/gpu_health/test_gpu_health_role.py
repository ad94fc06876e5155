# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The role on this machine, with all its files in a directory and a program in place of systemctl; and the program that it brings, on the
double of nvidia-smi."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from ansible_collections.localfirst.llm_fleet.tests.unit.conftest import REPO
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gpu_host import GpuHost

SYSTEMCTL = '''#!/usr/bin/env python3
"""Remembers what is enabled and what runs; writes down what it was told to do."""
import json, os, sys
from pathlib import Path
home = Path(__file__).parent
known = json.loads((home / "units").read_text()) if (home / "units").exists() else {}
command, unit = sys.argv[1], [word for word in sys.argv if word[0] != "-"][-1]
state = known.setdefault(unit, {"active": False, "enabled": False})
if command == "show":
    print("LoadState=loaded")
    print("ActiveState=" + ("active" if state["active"] else "inactive"))
elif command == "is-enabled":
    sys.exit(0 if state["enabled"] else 1)
elif command in ("start", "restart", "stop"):
    state["active"] = command != "stop"
elif command in ("enable", "disable"):
    state["enabled"] = command == "enable"
if command in ("start", "restart", "stop", "enable", "disable"):
    with (home / "told").open("a") as file:
        print(command, unit, file=file)
(home / "units").write_text(json.dumps(known))
'''
BOOT = "3f2b0c1e-0000-4000-8000-000000000001"


class Node:
    """A host in a directory. `apply()` runs the role, `look()` the program that the role has brought."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.host = GpuHost(root / "host")
        self.programs = root / "programs"
        self.programs.mkdir()
        self.program("systemctl", SYSTEMCTL)
        self.program("journalctl", f"#!/bin/sh\ncat {root}/journal 2>/dev/null")
        self.textfiles = root / "textfiles"
        self.state_dir = root / "state"
        self.variables = {
            "gpu_health_state_dir": str(self.state_dir),
            "gpu_health_textfile_dir": str(self.textfiles),
            "__gpu_health_dir": str(root / "lib"),
            "__gpu_health_command": str(root / "gpu-health"),
            "__gpu_health_settings": str(root / "etc" / "gpu-health.json"),
            "__gpu_health_word_file": str(root / "run" / "word"),
            "__gpu_health_units": str(root / "units"),
        }
        (root / "units").mkdir()
        self.boot(BOOT)

    def program(self, name: str, text: str) -> None:
        (self.programs / name).write_text(text)
        (self.programs / name).chmod(0o755)

    def boot(self, number: str, started: int = 1) -> None:
        self.host.write("proc/sys/kernel/random/boot_id", f"{number}\n")
        self.process(1, "systemd", "S", started)
        self.host.write("proc/stat", "cpu 1 2 3\nbtime 1795880000\n")
        self.host.write("proc/uptime", "100000.00 1.00\n")

    def process(self, pid: int, name: str, state: str, started: float) -> None:
        """A process as proc(5) has it, since so many seconds after the kernel."""
        fields = [state, *["0"] * 18, str(int(started * os.sysconf("SC_CLK_TCK"))), "0"]
        self.host.write(f"proc/{pid}/stat", f"{pid} ({name}) {' '.join(fields)}\n")

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.host.bin}:{self.programs}:{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
        ansible = {"ANSIBLE_COLLECTIONS_PATH": str(REPO / ".venv/collections"), "ANSIBLE_PIPELINING": "1"}
        return {**self.host.environment, "PATH": path, **ansible}

    def run(self, *options: str, **variables) -> subprocess.CompletedProcess[str]:
        task = {"name": "The role", "ansible.builtin.include_role": {"name": "localfirst.llm_fleet.gpu_health"}, "tags": ["always"]}
        play = [{"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": [task]}]
        (self.root / "play.yml").write_text(yaml.safe_dump(play))
        extra = json.dumps({"ansible_python_interpreter": sys.executable, **self.variables, **variables})
        command = ["ansible-playbook", "-i", "localhost,", self.root / "play.yml", "-e", extra, *options]
        return subprocess.run(command, env=self.environment, cwd=self.root, capture_output=True, text=True, check=False)

    def apply(self, *options: str, **variables) -> int:
        """How many tasks have changed something."""
        done = self.run(*options, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return int(re.search(r"changed=(\d+)", done.stdout)[1])

    def told(self) -> list[str]:
        told = self.programs / "told"
        lines = told.read_text().splitlines() if told.exists() else []
        told.unlink(missing_ok=True)
        return lines

    def look(self, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        files = ["--settings", self.root / "etc" / "gpu-health.json", "--root", self.host.root]
        command = [self.root / "lib" / "gpu-health", *files, *options]
        bare = {key: value for key, value in self.environment.items() if not key.startswith("PYTHON")}
        return subprocess.run(command, env={**bare, **environment}, cwd="/", capture_output=True, text=True, check=False)

    def log(self, code: int, text: str, address: str = "0000:31:00") -> None:
        entry = {"MESSAGE": f"NVRM: Xid (PCI:{address}): {code}, {text}", "__REALTIME_TIMESTAMP": str(int(time.time() * 10**6))}
        with (self.root / "journal").open("a") as file:
            file.write(json.dumps(entry) + "\n")

    @property
    def state(self) -> dict:
        return json.loads((self.state_dir / "gpu-health.json").read_text())

    @property
    def word(self) -> str:
        return (self.root / "run" / "word").read_text()

    def files(self) -> set[str]:
        folders = [self.root / name for name in ("lib", "etc", "units", "state", "run")]
        return {str(path.relative_to(self.root)) for folder in folders for path in folder.rglob("*")}

    def forget(self) -> None:
        """As it was before the first look."""
        (self.root / "journal").unlink(missing_ok=True)
        for path in (self.state_dir, self.root / "run", self.textfiles, self.host.root / "proc"):
            shutil.rmtree(path, ignore_errors=True)
        self.state_dir.mkdir()
        self.boot(BOOT)
        self.host.use("l4x2")
        self.host.install("580.95.05")
        self.host.load()


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


@pytest.fixture(scope="module")
def brought(tmp_path_factory):
    node = Node(tmp_path_factory.mktemp("node"))
    node.apply("--tags", "gpu_health_program")
    return node


@pytest.fixture
def installed(brought):
    """A node that has the program, and was never looked at."""
    brought.forget()
    return brought


def test_check_mode_on_a_bare_host_says_all_and_makes_nothing(node):
    assert node.apply("--check", "--diff", gpu_health_drain=True, gpu_health_agent_port=9109, gpu_health_agent_address="10.0.20.21") >= 5
    assert node.files() == set() and node.told() == []


def test_a_second_run_changes_nothing_and_all_can_be_taken_away(node):
    drain = {"gpu_health_drain": True, "gpu_health_agent_port": 9109, "gpu_health_agent_address": "10.0.20.21"}
    assert node.apply(**drain) > 0
    assert {"enable llm-fleet-gpu-health.timer", "enable llm-fleet-gpu-agent.socket"} <= set(node.told())
    assert node.apply(**drain) == 0 and node.told() == []
    assert node.look().returncode == 0
    assert node.apply(gpu_health_drain=False) > 0
    assert "disable llm-fleet-gpu-agent.socket" in node.told()
    assert not [name for name in node.files() if "agent" in name]
    assert node.apply("--check", gpu_health_state="absent") > 0 and node.state
    assert node.apply(gpu_health_state="absent") > 0
    assert {"stop llm-fleet-gpu-health.timer", "disable llm-fleet-gpu-health.timer"} <= set(node.told())
    assert node.files() == set() and not (node.root / "gpu-health").is_symlink()
    assert node.apply(gpu_health_state="absent") == 0


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd checks the units")
def test_systemd_accepts_the_units(node):
    node.apply(gpu_health_drain=True, gpu_health_agent_port=9109, gpu_health_agent_address="fd00::21")
    folder = node.root / "units"
    socket = folder / "llm-fleet-gpu-agent.socket"
    assert re.findall(r"^Listen\w+=(.*)$", socket.read_text(), re.MULTILINE) == ["[fd00::21]:9109"], "the private address and no other"
    # A unit that serves connections is checked under the name of one of them.
    one = folder / "llm-fleet-gpu-agent@1.service"
    one.symlink_to(folder / "llm-fleet-gpu-agent@.service")
    units = [one, socket, folder / "llm-fleet-gpu-health.service", folder / "llm-fleet-gpu-health.timer"]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *units],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:"}, capture_output=True, text=True, check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "llm-fleet" in line or str(node.root) in line]
    assert ours == [] and done.returncode == 0, done.stderr


@pytest.mark.parametrize("wrong", [{"gpu_health_agent_port": 20000}, {"gpu_health_agent_address": "gpu1.example"}])
def test_a_drain_needs_to_know_where(node, wrong):
    settings = {"gpu_health_drain": True, "gpu_health_agent_port": 9109, "gpu_health_agent_address": "10.0.20.21", **wrong}
    done = node.run(**settings)
    assert done.returncode != 0 and "gpu_health_agent_port" in done.stdout and node.files() == set()


def test_settings_that_the_program_does_not_know_are_not_written(node):
    done = node.run("--tags", "gpu_health_program", gpu_health_severities={"mismatched": "critical", "xid-79": "bad"})
    assert done.returncode != 0 and "there is no finding mismatched" in done.stdout and "'bad' is no severity" in done.stdout
    assert "etc/gpu-health.json" not in node.files()


def test_the_code_that_is_brought_is_complete_and_the_modules_own(installed):
    """Nothing else of the collection is in reach of the program: not by PYTHONPATH, not by the working directory."""
    done = installed.look()
    assert done.returncode == 0, done.stderr
    assert installed.state["severity"] == "" and len(installed.state["gpus"]) == 2
    folder = installed.root / "lib/python/ansible_collections/localfirst/llm_fleet/plugins/module_utils"
    brought = sorted(folder.glob("*.py"))
    for path in brought:
        assert path.read_bytes() == (REPO / "plugins/module_utils" / path.name).read_bytes()
    # Nor is anything brought that the program does without.
    for path in brought:
        path.rename(path.with_suffix(".away"))
        assert installed.look().returncode != 0, path.name
        path.with_suffix(".away").rename(path)


def test_collections_that_the_host_has_are_in_nobodys_way(installed):
    decoy = installed.root / "site" / "ansible_collections"
    decoy.mkdir(parents=True)
    (decoy / "__init__.py").write_text("raise SystemExit('the wrong one')\n")
    program = installed.root / "lib" / "gpu-health"
    command = [sys.executable, program, "--settings", installed.root / "etc/gpu-health.json", "--show"]
    environment = {**installed.environment, "PYTHONPATH": str(decoy.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_look_leaves_a_state_a_word_and_metrics(installed):
    assert installed.look().returncode == 0
    assert installed.word == "100%\n" and not installed.textfiles.exists(), "nobody reads metrics here"
    installed.textfiles.mkdir()
    installed.log(79, "GPU has fallen off the bus.")
    assert installed.look().returncode == 0
    assert installed.word == "0%\n"
    [finding] = [one for one in installed.state["findings"] if one["finding"] == "xid-79"]
    assert (finding["gpu"], finding["uuid"]) == ("0000:31:00.0", "GPU-36947d4f-546c-586d-9ec0-efaf0cd4ec6c")
    [metrics] = installed.textfiles.iterdir()
    assert metrics.name == "llm_fleet_gpu_health.prom" and "llm_fleet_gpu_drain 1" in metrics.read_text()
    for path in (metrics, installed.state_dir / "gpu-health.json", installed.root / "run" / "word"):
        assert path.stat().st_mode & 0o777 == 0o644, path
    shown = installed.look("--show").stdout
    assert "critical: 0000:31:00.0" in shown and "fallen off the bus" in shown


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool knows the format of metrics")
def test_prometheus_accepts_the_metrics(installed):
    installed.textfiles.mkdir()
    installed.log(94, 'a "name" \\ more')
    installed.look()
    text = (installed.textfiles / "llm_fleet_gpu_health.prom").read_text()
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_gpu_that_was_reset_is_well_again(installed):
    installed.log(48, "DBE")
    installed.look()
    assert installed.word == "0%\n"
    time.sleep(1.1)
    assert installed.look("--forget", "0000:31:00.0").returncode == 0
    assert installed.word == "100%\n" and installed.state["findings"] == []
    wrong = installed.look("--forget", "0000:99:00.0")
    assert wrong.returncode != 0 and "0000:31:00.0" in wrong.stderr


def test_a_boot_ends_what_needed_one(installed):
    installed.log(79, "GPU has fallen off the bus.")
    installed.look()
    (installed.root / "journal").unlink()
    installed.look()
    assert installed.word == "0%\n"
    installed.boot("3f2b0c1e-0000-4000-8000-000000000002")
    installed.look()
    assert installed.word == "100%\n"


def test_a_container_that_starts_again_has_booted(installed):
    """It shares the kernel's boot and its journal with what was before."""
    installed.log(48, "DBE")
    installed.look()
    assert installed.word == "0%\n"
    installed.boot(BOOT, started=int(time.time()) - 1795880000 + 60)
    installed.look()
    assert installed.word == "100%\n"


def test_an_nvidia_smi_that_no_signal_ends_is_not_asked_again(installed):
    installed.process(4711, "nvidia-smi", "D", 90000)
    installed.host.program("nvidia-smi", f"touch {installed.root}/asked")
    for _ in range(3):
        assert installed.look().returncode == 0
    assert not (installed.root / "asked").exists()
    [finding] = installed.state["findings"]
    assert finding["finding"] == "failing" and "process 4711" in finding["text"] and installed.word == "0%\n"


def test_a_state_that_cannot_be_read_is_made_anew(installed):
    installed.look()
    (installed.state_dir / "gpu-health.json").write_text("{")
    assert installed.look().returncode == 0
    assert installed.state["severity"] == ""


def test_the_oldest_python_of_a_node_reads_the_program():
    import ast

    for path in [REPO / "roles/gpu_health/files/gpu_health.py", *(REPO / "plugins/module_utils").glob("gpu_health*.py")]:
        ast.parse(path.read_text(), feature_version=(3, 9))
