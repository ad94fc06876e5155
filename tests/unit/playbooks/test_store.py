# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The playbooks that look after stores, on hosts that are directories of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_fetch import Fetcher
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_staging import Staging
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_store import Store
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile_text import render_lockfile
from ansible_collections.localfirst.llm_fleet.tests.unit.conftest import REPO
from ansible_collections.localfirst.llm_fleet.tests.unit.plugins.module_utils import fleet_builders
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import Places, artifact, digest, entry, tree_of

RUNNING, LOCKED, GARBAGE = "1.0.0", "1.1.0", "0.9.0"
VERSIONS = {version: {"tiny.gguf": f"the weights of {version}".encode()} for version in (RUNNING, LOCKED, GARBAGE)}
HOSTS = ("gw1", "gpu1", "depot1")


class Fleet:
    """An inventory of three hosts that share this machine, each with a state directory of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs = folder / "bin"
        self.programs.mkdir()
        self.docker("exit 0")
        local = {"ansible_connection": "local", "ansible_become": False, "ansible_python_interpreter": sys.executable}
        groups = {
            group: {"hosts": {host: {"llm_fleet_state_dir": str(folder / host), "llm_fleet_address": "127.0.0.1"}}}
            for group, host in (("gateways", "gw1"), ("gpu_nodes", "gpu1"), ("depots", "depot1"))
        }
        inventory = {"all": {"vars": {**local, "llm_fleet_models": []}, "children": groups}}
        (folder / "hosts.yml").write_text(yaml.safe_dump(inventory))
        self.lock(RUNNING, LOCKED)
        self.plan(RUNNING)
        for host in ("gpu1", "depot1"):
            self.stage(host)

    def docker(self, script: str) -> None:
        program = self.programs / "docker"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    def lock(self, *versions: str) -> None:
        entries = {
            version: {
                "asked": f"https://models.example/{version}/tiny.gguf",
                "source": f"https://models.example/{version}/tiny.gguf",
                "format": "gguf",
                "files": [entry(path, body) for path, body in VERSIONS[version].items()],
            }
            for version in versions
        }
        (self.folder / "models.lock.yml").write_text(render_lockfile({"images": {}, "models": {"tiny": entries}}))

    def plan(self, version: str) -> None:
        """What was applied last, on all hosts but the depot."""
        files = [entry(path, body) for path, body in VERSIONS[version].items()]
        wanted = {"tiny": fleet_builders.record("tiny", version, files=files)}
        made = fleet_builders.plan([fleet_builders.model("tiny", version=version)], [fleet_builders.host("gpu1")], wanted=wanted)
        for host in HOSTS:
            (self.folder / host).mkdir(exist_ok=True)
        for host in ("gw1", "gpu1"):
            (self.folder / host / "plan.json").write_text(json.dumps(made.plan))

    def store(self, host: str) -> Store:
        return Store(self.folder / host / "store")

    def stage(self, host: str) -> None:
        artifacts = []
        for version, contents in VERSIONS.items():
            for path, body in contents.items():
                (self.folder / "upstream" / version).mkdir(parents=True, exist_ok=True)
                (self.folder / "upstream" / version / path).write_bytes(body)
            artifacts.append(artifact(f"file://{self.folder}/upstream/{version}", contents, version))
        Staging(self.store(host), artifacts, link=host != "depot1").run(Fetcher([Places()]))

    def here(self, host: str) -> set[str]:
        """The versions whose contents a host has."""
        return {version for version, contents in VERSIONS.items() if (self.store(host).blobs / digest(contents["tiny.gguf"])).exists()}

    def run(self, playbook: str, *options: str) -> tuple[int, str]:
        environment = {
            **os.environ,
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "ANSIBLE_COLLECTIONS_PATH": str(REPO / ".venv/collections"),
            "ANSIBLE_LOCAL_TEMP": str(self.folder / "tmp"),
            "ANSIBLE_REMOTE_TEMP": str(self.folder / "tmp"),
            "ANSIBLE_ASYNC_DIR": str(self.folder / "jobs"),
            "ANSIBLE_NOCOLOR": "true",
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "yaml",
        }
        program = Path(sys.executable).parent / "ansible-playbook"
        command = [program, f"localfirst.llm_fleet.{playbook}", "-i", self.folder / "hosts.yml", *options]
        done = subprocess.run(
            command, env=environment, cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=600
        )
        return done.returncode, done.stdout


@pytest.fixture
def fleet(tmp_path):
    return Fleet(tmp_path)


def test_gc_frees_what_is_neither_planned_nor_locked(fleet):
    fleet.lock(LOCKED)
    before = {host: fleet.here(host) for host in ("gpu1", "depot1")}
    code, output = fleet.run("gc", "--check", "-e", "grace=0")
    assert code == 0 and "WOULD FREE" in output and GARBAGE in output, output
    assert before == {host: fleet.here(host) for host in ("gpu1", "depot1")}
    code, output = fleet.run("gc", "-e", "grace=0")
    assert code == 0 and "FREED" in output, output
    assert fleet.here("gpu1") == fleet.here("depot1") == {RUNNING, LOCKED}
    assert tree_of(fleet.store("gpu1").root, RUNNING) == VERSIONS[RUNNING]
    code, output = fleet.run("gc", "-e", "grace=0", "-e", "locked=false")
    assert code == 0 and fleet.here("gpu1") == fleet.here("depot1") == {RUNNING}, output
    code, output = fleet.run("gc", "-e", "grace=0", "-e", "locked=false")
    assert code == 0 and "changed=1" not in output, output


def test_gc_refuses_what_it_cannot_know(fleet):
    (fleet.folder / "gw1" / "plan.json").write_text("half a pl")
    code, output = fleet.run("gc", "-e", "grace=0")
    assert code != 0 and "Nothing is removed" in output and "plan.json is not JSON" in output, output
    fleet.plan(RUNNING)
    (fleet.folder / "models.lock.yml").write_text("lockfile: 1\n")
    code, output = fleet.run("gc", "-e", "grace=0", "-e", "locked=false")
    assert code != 0 and "cut off" in output, output
    fleet.lock(RUNNING)
    fleet.docker("echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    code, output = fleet.run("gc", "-e", "grace=0")
    assert code != 0 and "Cannot connect to the Docker daemon" in output, output
    assert fleet.here("gpu1") == fleet.here("depot1") == set(VERSIONS)


def test_verify_reads_all_hosts_names_what_is_damaged_and_sets_it_aside(fleet):
    body = VERSIONS[RUNNING]["tiny.gguf"]
    bad = body[:-1] + b"!"
    for host in ("gpu1", "depot1"):
        blob = fleet.store(host).blobs / digest(body)
        blob.chmod(0o600)
        blob.write_bytes(bad)
    code, output = fleet.run("verify", "--check")
    assert code != 0 and digest(bad) in output and fleet.here("depot1") == set(VERSIONS), output
    code, output = fleet.run("verify")
    assert code != 0, output
    words = " ".join(output.split())
    for host in ("gpu1", "depot1"):
        assert f"{host}: tiny {RUNNING} tiny.gguf (expected {digest(body)}, actual {digest(bad)})" in words, output
    assert fleet.here("gpu1") == fleet.here("depot1") == {LOCKED, GARBAGE}
    for host in ("gpu1", "depot1"):
        fleet.stage(host)
    code, output = fleet.run("verify")
    assert code == 0 and "All files are what they should be" in output and "changed=1" not in output, output


def test_verify_needs_neither_lockfile_nor_plan_nor_stores(fleet):
    fleet.lock()
    (fleet.folder / "models.lock.yml").unlink()
    for host in ("gw1", "gpu1"):
        (fleet.folder / host / "plan.json").unlink()
    begun = time.time()
    code, output = fleet.run("verify")
    assert code == 0 and "3 contents" in output, output
    assert fleet.store("gpu1").marks.when(digest(VERSIONS[RUNNING]["tiny.gguf"])) >= begun - 1
    for host in ("gpu1", "depot1"):
        subprocess.run(["rm", "-rf", fleet.store(host).root], check=True)
    code, output = fleet.run("verify")
    assert code == 0, output


@pytest.mark.parametrize("playbook", ["gc", "status", "tokens", "verify"])
def test_an_inventory_without_a_fleet_is_no_success(fleet, playbook):
    (fleet.folder / "hosts.yml").write_text("all: {}\n")
    code, said = fleet.run(playbook, "-e", "do=list")
    assert code != 0 and "The inventory has no fleet" in said


def test_a_report_is_not_written_into_the_collection(fleet):
    code, said = fleet.run("status", "-e", "status_file=status.json")
    assert code != 0 and "'status.json' is not an absolute path" in said
    assert not (REPO / "playbooks" / "status.json").exists()
