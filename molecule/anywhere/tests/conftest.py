# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The collection as a user gets it: built, installed read-only, and run by ansible-runner far from the checkout."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[3]
INVENTORY = REPO / "molecule" / "inventory"
VENV = Path(sys.prefix)
ENTER = Path(__file__).with_name("enter.py")
SUDO = [] if os.geteuid() == 0 else ["sudo", "-n"]


def run(*command: object, **options) -> str:
    done = subprocess.run([*map(str, command)], check=False, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def source_files() -> list[str]:
    """What git has of the collection, and what it would have after `git add`."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=REPO).split("\0")
    return sorted(name for name in set(listed) if name and (REPO / name).is_file())


@dataclasses.dataclass
class Tarball:
    """The built collection, and the files that it was built from."""

    path: Path
    sources: list[str]
    left_behind: list[str]

    @cached_property
    def names(self) -> set[str]:
        with tarfile.open(self.path) as archive:
            return {member.name for member in archive if member.isfile()}


@dataclasses.dataclass
class Job:
    """What ansible-runner left of a run: its directory of artifacts, as AWX stores it."""

    rc: int
    artifacts: Path
    output: str

    @cached_property
    def events(self) -> list[dict]:
        files = (self.artifacts / "job_events").glob("[0-9]*-*.json")
        return [json.loads(path.read_text()) for path in sorted(files, key=lambda p: int(p.name.split("-")[0]))]

    @cached_property
    def recap(self) -> dict[str, dict]:
        """{what: {host: number}}, as in the recap at the end of a run."""
        last = next(e["event_data"] for e in reversed(self.events) if e["event"] == "playbook_on_stats")
        return {what: last[what] for what in ("ok", "changed", "failures", "dark", "artifact_data") if what in last}

    @cached_property
    def data(self) -> dict:
        """What the playbook returned with set_stats: AWX passes it on to the next job of a workflow."""
        return self.recap.get("artifact_data", {})

    @cached_property
    def everything(self) -> str:
        """All that AWX would keep of the job."""
        kept = [p.read_text(errors="replace") for p in sorted(self.artifacts.rglob("*")) if p.is_file()]
        return "\n".join([self.output, *kept])


class ExecutionEnvironment:
    """A machine that has Ansible, this collection and an inventory script, and knows nothing else of us."""

    def __init__(self, root: Path, tarball: Path, state: Path) -> None:
        # Above all accounts and below the range that systemd gives to services.
        self.root, self.uid = root, random.randint(30000, 59999)
        self.state, self.home, self.collections = state, root / "home", root / "collections"
        self.count = 0
        self._install(tarball)
        for path in (self.home, root / "stage"):
            path.mkdir()
        copy = root / "state"
        # What an operator keeps on storage that outlives a job: CA, lockfile and models.
        shutil.copytree(state, copy, ignore=shutil.ignore_patterns("ssh_key*"))
        self._give(self.home, copy)
        self.spec = root / "spec.json"
        self.spec.write_text(json.dumps(self._spec(copy)))

    def _install(self, tarball: Path) -> None:
        galaxy = VENV / "bin" / "ansible-galaxy"
        clean = {k: v for k, v in os.environ.items() if not k.startswith("ANSIBLE_")}
        run(
            galaxy, "collection", "install", "--offline", "--no-deps", "-p", self.collections, tarball,
            cwd=self.root, env={**clean, "HOME": str(self.root), "PATH": f"{VENV / 'bin'}:{os.environ['PATH']}"},
        )
        for path in [self.collections, *self.collections.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        run(*SUDO, "chown", "-R", "0:0", self.collections)

    def _spec(self, state_copy: Path) -> dict:
        show = [
            {"from": VENV, "at": VENV},
            {"from": self.collections, "at": self.collections},
            # At its own path: it is part of what the lockfile calls a model's source.
            {"from": state_copy, "at": self.state, "writable": True},
        ]
        if not sys.base_prefix.startswith("/usr"):
            show.append({"from": sys.base_prefix, "at": sys.base_prefix})
        return {
            "uid": self.uid,
            "home": str(self.home),
            "path": f"{VENV / 'bin'}:/usr/bin:/bin",
            "hide": str(REPO),
            "stage": str(self.root / "stage"),
            "show": [{**item, "from": str(item["from"]), "at": str(item["at"])} for item in show],
        }

    def _give(self, *paths: Path) -> None:
        run(*SUDO, "chown", "-R", f"{self.uid}:{self.uid}", *paths)

    def command(self, *command: object, timeout: float = 300) -> subprocess.CompletedProcess:
        """Run a command in there."""
        enter = [*SUDO, "unshare", "--mount", "--propagation", "private", sys.executable, ENTER, self.spec]
        return subprocess.run(
            [*map(str, [*enter, *command])], check=False, capture_output=True, text=True, timeout=timeout, cwd="/"
        )

    def play(self, playbook: str, inventory: dict, **extra_vars: object) -> Job:
        """Run a playbook as a job of AWX: ansible-runner, inventory script, key in an agent, the job's variables."""
        self.count += 1
        job = self.root / f"job{self.count}"
        for name in ("inventory", "env", "project"):
            (job / name).mkdir(parents=True)
        script = job / "inventory" / "hosts"
        # AWX writes its inventory as a script that prints JSON, too.
        script.write_text(f"#!/usr/bin/env python3\nprint({json.dumps(inventory)!r})\n")
        script.chmod(0o755)
        number = 1000 + self.count
        (job / "env" / "extravars").write_text(json.dumps({"awx_job_id": number, "tower_job_id": number, **extra_vars}))
        (job / "env" / "envvars").write_text(json.dumps({"ANSIBLE_COLLECTIONS_PATH": str(self.collections)}))
        (job / "env" / "settings").write_text(json.dumps({"job_timeout": 240}))
        shutil.copy(self.state / "ssh_key", job / "env" / "ssh_key")
        self._give(job)
        done = self.command("ansible-runner", "run", job, "-p", f"localfirst.llm_fleet.{playbook}", "--ident", "1")
        # The directory is the other user's; what is in it is ours to read again.
        run(*SUDO, "chown", "-R", f"{os.geteuid()}:{os.getegid()}", job)
        return Job(done.returncode, job / "artifacts" / "1", done.stdout + done.stderr)


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """A directory that every user may enter; pytest's own are closed."""
    path = Path(tempfile.mkdtemp(prefix="llm-fleet-anywhere-"))
    path.chmod(0o755)
    yield path
    run(*SUDO, "rm", "-rf", path)


@pytest.fixture(scope="session")
def tarball(place) -> Tarball:
    """Built from a copy of the sources, with all of that beside them that work in a checkout leaves there."""
    build, sources = place / "build", source_files()
    for name in sources:
        (build / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / name, build / name)
    ignored = [line.strip("/") for line in (REPO / ".gitignore").read_text().splitlines() if line.startswith("/")]
    left_behind = [name.replace("*", "localfirst-llm_fleet-0.0.1") for name in ignored if "." in name]
    left_behind = [name if name.endswith(".gz") else f"{name}/leftover" for name in left_behind]
    for name in left_behind:
        (build / name).parent.mkdir(parents=True, exist_ok=True)
        (build / name).write_text("a token, say")
    run(VENV / "bin" / "ansible-galaxy", "collection", "build", "--output-path", place, build, cwd=place)
    return Tarball(next(place.glob("localfirst-llm_fleet-*.tar.gz")), sources, left_behind)


@pytest.fixture(scope="session")
def environment(place, tarball, fleet) -> ExecutionEnvironment:
    return ExecutionEnvironment(place, tarball.path, fleet.state)


@pytest.fixture
def inventory(fleet) -> dict:
    """The fleet's inventory as a script prints it: absolute paths, no files beside it, no key."""
    command = [VENV / "bin" / "ansible-inventory", "-i", INVENTORY, "--list", "--export"]
    inventory = json.loads(run(*command, cwd=REPO))
    variables = inventory["all"]["vars"]
    variables["testbed_state_dir"] = str(fleet.state)
    # AWX hands the key to an ssh-agent.
    del variables["ansible_ssh_private_key_file"]
    return inventory
