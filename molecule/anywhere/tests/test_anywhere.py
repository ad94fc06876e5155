# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""From anywhere: the tarball has what it needs, and needs nothing but what is in it."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

# Who works on the collection needs these; who runs it does not.
FOR_DEVELOPERS = ("inventories/demo/", "molecule/", "testbed/", "tests/", "Makefile", "ansible.cfg", "pyproject.toml")


def for_developers(name: str) -> bool:
    return name.startswith((*FOR_DEVELOPERS, "."))


# What is in it


def test_tarball_holds_all_that_a_user_runs(tarball):
    wanted = {name for name in tarball.sources if not for_developers(name)} - {"galaxy.yml"}
    assert wanted - tarball.names == set()
    for folder in ("docs", "meta", "playbooks", "plugins", "roles"):
        assert any(name.startswith(f"{folder}/") for name in tarball.names), f"nothing of {folder}/ is in the tarball"
    assert {"LICENSE", "README.md"} <= tarball.names


def test_tarball_holds_nothing_else(tarball):
    made_by_galaxy = {"MANIFEST.json", "FILES.json"}
    assert {name for name in tarball.names if for_developers(name)} == set()
    assert tarball.names - set(tarball.sources) == made_by_galaxy


def test_tarball_holds_nothing_that_work_leaves_in_a_checkout(tarball):
    assert tarball.left_behind, ".gitignore names nothing"
    assert tarball.names & set(tarball.left_behind) == set()


# Where it runs


def test_nothing_of_the_checkout_is_in_reach(environment):
    checkout = Path(__file__).parents[3]
    seen = environment.command("ls", "-A", checkout).stdout.split()
    assert set(seen) <= {".venv", environment.state.relative_to(checkout).parts[0]}


def test_the_user_may_change_nothing_of_the_collection(environment):
    installed = environment.collections / "ansible_collections" / "localfirst" / "llm_fleet"
    assert environment.command("cat", installed / "MANIFEST.json").returncode == 0
    assert environment.command("touch", installed / "playbooks" / "site.yml").returncode != 0
    assert environment.command("sh", "-c", f"> {installed}/new").returncode != 0


def test_the_user_is_nobody_in_particular(environment):
    told = environment.command("sh", "-c", "id -u; id -G; env; ls -A ~ /etc/ansible")
    uid, groups, *rest = told.stdout.splitlines()
    assert uid == groups == str(environment.uid)
    assert not [line for line in rest if line.startswith("ANSIBLE_") or line.endswith("ansible.cfg")]


# What runs there


def problems(job) -> str:
    """What a failed job said, for the person who reads the test's output."""
    failed = [e["stdout"] for e in job.events if e["event"] in ("runner_on_failed", "runner_on_unreachable")]
    return "\n".join(failed) or job.output[-4000:]


@pytest.fixture
def hosts(fleet) -> set:
    return {*fleet.hosts("gateways"), *fleet.hosts("gpu_nodes")}


def test_site_finds_nothing_to_do(environment, inventory, hosts):
    job = environment.play("site", inventory)
    assert job.rc == 0, problems(job)
    assert hosts <= set(job.recap["ok"])
    # What ran is what was installed.
    origins = {e["event_data"]["task_path"] for e in job.events if "task_path" in e.get("event_data", {})}
    assert origins
    assert [origin for origin in origins if not origin.startswith(str(environment.collections))] == []
    assert {host: n for host, n in job.recap["changed"].items() if n} == {}


def test_status_comes_as_a_file_and_as_data(environment, inventory, fleet):
    file = environment.home / "status.json"
    job = environment.play("status", inventory, status_file=str(file))
    assert job.rc == 0, problems(job)
    status = json.loads(file.read_text())
    assert status == job.data["llm_fleet_status"]
    assert sorted(row["instance"] for row in status["instances"]) == sorted(i["id"] for i in fleet.instances())
    assert {row["state"] for row in status["instances"]} == {"running"}


def test_plan_comes_as_a_file_and_as_data(environment, inventory, fleet):
    file = environment.home / "plan.json"
    job = environment.play("plan", inventory, plan_file=str(file))
    assert job.rc == 0, problems(job)
    assert json.loads(file.read_text()) == job.data["llm_fleet_plan"] == fleet.plan()
    assert job.data["llm_fleet_actions"] == []


# Secrets: AWX keeps what a job printed, forever


def test_a_token_goes_into_a_file_and_nowhere_else(environment, inventory, gateway):
    file = environment.home / "token"
    job = environment.play("tokens", inventory, do="issue", client="alice", token_file=str(file))
    assert job.rc == 0, problems(job)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    token = file.read_text().strip()
    assert gateway.ask("GET", "/v1/models", token).status == 200
    assert token not in job.everything
    assert (environment.state / "ca" / "engine-key-seed").read_text().strip() not in job.everything


def test_a_token_without_a_file_is_refused_rather_than_printed(environment, inventory):
    job = environment.play("tokens", inventory, do="issue", client="alice")
    assert job.rc != 0
    assert "token_file" in problems(job)


# What cannot be guessed under AWX


@pytest.mark.parametrize("variable", ["llm_fleet_ca_dir", "llm_fleet_lockfile"])
def test_a_path_that_is_missing_is_named(environment, inventory, variable):
    del inventory["all"]["vars"][variable]
    job = environment.play("preflight", inventory)
    assert job.rc != 0
    assert f"set {variable} to" in problems(job)
