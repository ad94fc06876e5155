# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Rollouts on the fleet with three nodes, while clients stream through both gateways."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import subprocess
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.molecule.conftest import REPO, Fleet, until
from ansible_collections.localfirst.llm_fleet.tests.load.stream_load import StreamLoad, answer_prefix

# What each version says first, the same every time: versions are told apart by it, and a golden prompt asks for it.
QUESTION = "What is a fleet?"
GOOD = "repa|mavete"


@pytest.fixture(scope="session")
def fleet() -> Fleet:
    return Fleet(REPO / "molecule" / "rollout" / "inventory")


@pytest.fixture(scope="session")
def token(fleet, tmp_path_factory) -> str:
    return fleet.token("alice", file=tmp_path_factory.mktemp("token") / "alice")


@pytest.fixture(scope="session")
def catalog(fleet) -> list:
    """The catalog of the inventory, with its paths filled in."""
    text = json.dumps(fleet.inventory["_meta"]["hostvars"]["gw1"]["llm_fleet_models"])
    return json.loads(text.replace("{{ testbed_state_dir }}", str(fleet.state)))


@dataclasses.dataclass
class Ended:
    """How a rollout ended: its exit status, its output, and the report that it wrote."""

    status: int
    output: str
    report: dict

    def changed(self) -> dict:
        """Changed tasks by host."""
        return {host: int(count) for host, count in re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", self.output, re.MULTILINE)}

    def mark(self, what: str) -> float:
        """When something happened, in seconds since 1970."""
        return next(mark["at"] for mark in self.report["marks"] if mark["what"].startswith(what))


@dataclasses.dataclass
class Rollouts:
    """Rolls out on the fleet, as an operator does who has the catalog in a file."""

    fleet: Fleet
    catalog: list
    folder: Path

    def variables(self, model: str, **changes) -> list:
        """The arguments for a catalog in which one model differs."""
        models = copy.deepcopy(self.catalog)
        entry = next(entry for entry in models if entry["name"] == model)
        # Few samples and no long watch: what they measure is another test's business.
        entry["smoke"] = [{"prompt": QUESTION, "regex": GOOD, "max_tokens": 8}] if model == "talk" else []
        entry["gates"] = {"samples": 3, "concurrency": 1, "max_tokens": 8}
        entry["rollout"] = {"canary": {"share": 20, "bake": "3s", "min_requests": 5}}
        for key, value in changes.items():
            entry[key] = {**entry[key], **value} if isinstance(value, dict) and isinstance(entry.get(key), dict) else value
        file = self.folder / "variables.json"
        file.write_text(json.dumps({"llm_fleet_models": models}))
        return ["-e", f"@{file}", "-e", f"report_file={self.folder / 'report.json'}", "-e", f"model={model}"]

    def run(self, model: str, *arguments: str, playbook: str = "rollout", cwd: Path = REPO, insist: bool = True, **changes) -> Ended:
        report = self.folder / "report.json"
        report.unlink(missing_ok=True)
        # What an earlier test has taken back is no reason to refuse it here.
        more = ("-e", "retry_rejected=true") if insist else ()
        done = self.fleet.playbook(playbook, *self.variables(model, **changes), *arguments, *more, check=False, cwd=cwd)
        output = done.stdout + done.stderr
        return Ended(done.returncode, output, json.loads(report.read_text()) if report.exists() else {})

    def start(self, model: str, *arguments: str, output: Path, playbook: str = "rollout", **changes) -> subprocess.Popen:
        insist = ("-e", "retry_rejected=true")
        return self.fleet.start(playbook, *self.variables(model, **changes), *arguments, *insist, output=output)


@pytest.fixture
def rollouts(fleet, catalog, tmp_path) -> Rollouts:
    return Rollouts(fleet, catalog, tmp_path)


@pytest.fixture
def load(fleet, token):
    """`with load(clients=6) as clients: …; clients.report`: people who ask through both gateways all the while."""

    def start(models=("talk",), **options) -> StreamLoad:
        gateways = [f"{fleet.address(name)}:443" for name in fleet.hosts("gateways")]
        ca = str(fleet.ca)
        # What runs now is told by how its answers begin; another version's answers begin otherwise.
        told = {"old": answer_prefix(gateways[0], ca, token, models[0])}
        # They think between two requests: without that, their answers leave the machine no time for what is tested.
        options = {"clients": 6, "seconds": 900, "tokens": (16, 200), "pause": 0.8, "tell": told, **options}
        return StreamLoad(gateways=gateways, ca=ca, token=token, models=list(models), **options)

    return start


def versions(fleet: Fleet, model: str = "talk") -> dict:
    """{node: versions that run there}, as Docker on the nodes says."""
    found = {}
    for node in fleet.hosts("gpu_nodes"):
        running = f"docker ps --filter label=llm_fleet.model={model}"
        lines = fleet.shell(node, f"{running} --format '{{{{.Label \"llm_fleet.version\"}}}}'", check=False)
        if lines:
            found[node] = sorted(lines.split())
    return found


def everywhere(fleet: Fleet, version: str, model: str = "talk") -> bool:
    """Whether this version, and no other, runs on every node, is what the plan says, and is what both gateways send requests to."""
    nodes = {instance["host"] for instance in fleet.instances(model=model)}
    plans = [fleet.plan(host) for group in ("gateways", "gpu_nodes") for host in fleet.hosts(group)]
    told = all(plan["models"][model]["version"] == version and model not in plan["rollouts"] for plan in plans)
    release = fleet.plan()["models"][model]["release"]
    for gateway in fleet.hosts("gateways"):
        rows = [line.split(",") for line in fleet.haproxy(gateway, "show stat").splitlines() if line.startswith(f"be_{model}_")]
        told = told and {row[0] for row in rows} == {f"be_{model}_{release}"}
        told = told and {row[17] for row in rows if row[1] not in ("BACKEND", "FRONTEND")} == {"UP"}
    return told and versions(fleet, model) == {node: [version] for node in nodes}


@dataclasses.dataclass
class Turn:
    """From which version to which a test goes: a test ends where it ends, and the next one goes the other way."""

    old: str
    new: str

    @property
    def arguments(self) -> tuple:
        return ("-e", f"version={self.new}")


@pytest.fixture
def turn_of(fleet, rollouts):
    """`turn_of("talk")`, once no rollout of it is open."""

    def begin(model: str) -> Turn:
        if model in fleet.plan()["rollouts"]:
            rollouts.run(model, playbook="rollback")
        old = fleet.plan()["models"][model]["version"]
        until(lambda: everywhere(fleet, old, model), 30)
        return Turn(old, "1.1.0" if old == "1.0.0" else "1.0.0")

    return begin


@pytest.fixture
def turn(turn_of) -> Turn:
    return turn_of("talk")
