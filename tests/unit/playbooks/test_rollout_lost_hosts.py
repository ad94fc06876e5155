# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The coordinator of a rollout, as it is written, in a fleet whose hosts do not answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lease import Lease
from ansible_collections.localfirst.llm_fleet.tests.unit.conftest import REPO

PLAYBOOKS = REPO / "playbooks"
# Nobody says how to connect, as in most inventories: that is SSH.
UNREACHABLE = {"ansible_host": "127.0.0.1", "ansible_port": 9, "ansible_ssh_common_args": "-o ConnectTimeout=2"}
HERE = {"ansible_connection": "local", "ansible_become": False, "ansible_python_interpreter": sys.executable}
KEPT = ("rollout_ending", "rollout_back", "rollout_blame", "rollout_rejected", "rollout_silent", "rollout_marks")
INSTANCES = [
    {"id": f"tiny-0-{slot}", "replica": 0, "host": "gpu1", "server": f"be_tiny/tiny-0-{slot}", "address": "127.0.0.1"} for slot in "ab"
]


def rollout(strategy: str, **changes) -> dict:
    old, new = INSTANCES
    batch = {"number": 1, "of": 1, "old": [old], "new": [new], "done": False, "canary": False, "switched": [0], "switched_before": []}
    return {
        "id": "r-1",
        "model": "tiny",
        "from_version": "1.0.0",
        "to_version": "1.1.0",
        "strategy": strategy,
        "backend": "be_tiny_new",
        "old_backend": "be_tiny_old",
        "batches": [{**batch, "share": 100, "meanwhile": 0}],
        "old": [old],
        "new": [new],
        "total": 1,
        "undo": False,
        "why": "",
        "gates": {"path": "none"},
        "progress": {"switched": [], "baked": False, "back": ""},
        **changes,
    }


class Controller:
    """Runs plays on this machine as the coordinator, beside the task files of the collection."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("tasks", "vars"):
            (folder / name).symlink_to(PLAYBOOKS / name)

    def run(self, play: dict, opened: dict, **hosts: dict) -> tuple[int, str, dict]:
        """(exit status, what was printed, the coordinator's facts)."""
        groups = {
            group: {"hosts": {name: about for name, about in hosts.items() if name.startswith(prefix)}}
            for group, prefix in (("gateways", "gw"), ("gpu_nodes", "gpu"))
        }
        variables = {"llm_fleet_models": [], "llm_fleet_state_dir": str(self.folder / "state")}
        (self.folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"vars": variables, "children": groups}}))
        facts = {
            "llm_fleet_planned": {"rollout": opened},
            "llm_fleet_plan": {"engines": {}},
            "llm_fleet_engine_keys": {"tiny": "geheim"},
            "rollout_ready": True,
        }
        told = {"hosts": "all", "gather_facts": False, "tasks": [{"name": "Be told", "ansible.builtin.set_fact": facts}]}
        known = ", ".join(f"'{name}': {name} | default('')" for name in KEPT)
        copied = {"content": "{{ {" + known + "} | to_json }}", "dest": str(self.folder / "facts.json")}
        keep = {"name": "Keep what it knows", "ansible.builtin.copy": copied}
        kept = {"hosts": "localhost", "gather_facts": False, "tasks": [keep]}
        (self.folder / "play.yml").write_text(yaml.safe_dump([told, play, kept], sort_keys=False))
        environment = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(REPO / ".venv/collections"),
            "ANSIBLE_LOCAL_TEMP": str(self.folder / "tmp"),
            "ANSIBLE_REMOTE_TEMP": str(self.folder / "tmp"),
            "ANSIBLE_NOCOLOR": "true",
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        }
        command = [Path(sys.executable).parent / "ansible-playbook", "-i", self.folder / "hosts.yml", self.folder / "play.yml"]
        done = subprocess.run(
            command, env=environment, cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=600
        )
        facts_file = self.folder / "facts.json"
        return done.returncode, done.stdout, json.loads(facts_file.read_text()) if facts_file.exists() else {}

    def include(self, file: str, opened: dict, variables: dict, facts: dict, **hosts: dict) -> tuple[int, str, dict]:
        """One task file, in a rollout that has begun."""
        begun = {"rollout": opened, "rollout_silent": [], "rollout_blame": "release", "rollout_marks": [], "rollout_back": "", **facts}
        tasks = [
            {"name": "Be there", "ansible.builtin.set_fact": begun},
            {"name": "Do it", "ansible.builtin.include_tasks": f"tasks/rollout/{file}", "vars": variables},
        ]
        return self.run(self.play(tasks), opened, **hosts)

    @staticmethod
    def play(tasks: list[dict]) -> dict:
        settings = {"ansible.builtin.import_role": {"name": "localfirst.llm_fleet.llm_fleet", "tasks_from": "settings"}}
        about = {"hosts": "localhost", "gather_facts": False, "vars_files": ["vars/coordinator.yml"]}
        return {**about, "tasks": [{"name": "Have the settings", **settings}, *tasks]}


@pytest.fixture
def controller(tmp_path):
    return Controller(tmp_path)


def coordinator(name: str) -> dict:
    plays = yaml.safe_load((PLAYBOOKS / name).read_text())
    return next(play for play in plays if any("block" in task for task in play.get("tasks", [])))


ASK = {
    "name": "Ask every host",
    "ansible.builtin.ping": {},
    "delegate_to": "{{ item }}",
    "loop": ["gw1", "gw2", "gw3"],
    "ignore_unreachable": True,
    "register": "asked",
}
ANSWERED = {"name": "See", "ansible.builtin.include_tasks": "tasks/rollout/answered.yml", "vars": {"step": "{{ asked }}"}}


@pytest.mark.parametrize(("back", "fails"), [("", True), ("too slow", False)])
def test_a_host_without_an_answer_is_a_failure_with_its_name_and_on_the_way_back_it_is_passed_over(controller, back, fails):
    begun = {"rollout_silent": ["gpu7"], "rollout_blame": "release", "rollout_back": back}
    # What it knows is kept whatever comes of it.
    told = {"name": "Failed", "ansible.builtin.debug": {"msg": "{{ ansible_failed_result.msg }}"}}
    block = {"name": "Go", "block": [ASK, ANSWERED], "rescue": [told]}
    play = controller.play([{"name": "Begin", "ansible.builtin.set_fact": begun}, block])
    hosts = {"gw1": UNREACHABLE, "gw2": HERE, "gw3": UNREACHABLE}
    _code, output, facts = controller.run(play, rollout("surge"), **hosts)
    assert ("gw1, gw3: no answer" in output) == fails, output
    assert sorted(facts["rollout_silent"]) == ["gpu7", "gw1", "gw3"] and facts["rollout_back"] == back
    assert facts["rollout_blame"] == ("hosts" if fails else "release")


def test_where_all_answer_nobody_is_blamed(controller):
    begun = {"rollout_silent": [], "rollout_blame": "release", "rollout_back": ""}
    play = controller.play([{"name": "Begin", "ansible.builtin.set_fact": begun}, ASK, ANSWERED])
    code, output, facts = controller.run(play, rollout("surge"), gw1=HERE, gw2=HERE, gw3=HERE)
    assert code == 0 and facts["rollout_silent"] == [] and facts["rollout_blame"] == "release", output


@pytest.mark.parametrize("strategy", ["surge", "replace"])
def test_a_rollout_whose_gateway_is_lost_is_unfinished_and_says_so(controller, strategy):
    """The play of rollout.yml, up to the gateway that is not there, and the whole way back."""
    code, output, facts = controller.run(coordinator("rollout.yml"), rollout(strategy), gw1=UNREACHABLE, gpu1=UNREACHABLE)
    assert code == 0, output
    assert facts["rollout_ending"] == "stuck" and facts["rollout_silent"] == ["gw1"], output
    # A release is not at fault where a host is.
    assert facts["rollout_rejected"] == "" and facts["rollout_blame"] == "hosts"
    assert "gateways said who holds the lock" in facts["rollout_back"], facts
    assert "geheim" not in output


def test_it_also_goes_back_where_ansible_does_not_say_why(controller):
    """As after a step with run_once whose host is lost. It goes back all the way; Ansible then leaves the rest of the playbook out."""
    play = coordinator("rollout.yml")
    (block,) = [task for task in play["tasks"] if "block" in task]
    block["block"].insert(1, {**ASK, "loop": ["gw1"], "run_once": True})
    _code, output, _facts = controller.run(play, rollout("surge"), gw1=UNREACHABLE, gpu1=UNREACHABLE)
    assert "tiny goes back to 1.0.0: a step: no reason given" in output, output
    assert "fatal" not in output.partition("Say how the rollout ends")[2]


def test_a_rollout_that_is_taken_back_is_unfinished_while_a_gateway_is_silent(controller):
    code, output, facts = controller.run(coordinator("rollback.yml"), rollout("surge"), gw1=UNREACHABLE, gpu1=UNREACHABLE)
    assert code == 0, output
    assert facts["rollout_ending"] == "stuck" and facts["rollout_silent"] == ["gw1"], output
    assert facts["rollout_back"].startswith("taken back by ")


STEPS = ["drain.yml", "let_in.yml", "route.yml"]


@pytest.mark.parametrize(
    ("file", "back", "fails"),
    [*((file, "", True) for file in STEPS), *((file, "too slow", False) for file in [*STEPS, "back_batch.yml"])],
)
def test_each_step_of_the_way_back_passes_over_who_is_silent_and_forward_it_stops(controller, file, back, fails):
    opened = rollout("surge")
    variables = {"departing": opened["new"], "arriving": opened["old"], "share": 0, "switched": [], "batch": opened["batches"][0]}
    known = {"rollout_gates": [], "rollout_baked": False, "rollout_switched": [], "rollout_engines": {}, "rollout_key": ""}
    facts = {"rollout_back": back, **known}
    code, output, known = controller.include(file, opened, variables, facts, gw1=UNREACHABLE, gpu1=UNREACHABLE)
    assert (code != 0) == fails and ("gw1: no answer" in output) == fails, output
    assert fails or set(known["rollout_silent"]) >= {"gw1"}
    # A silent gateway may still send requests to the new instances: nothing is stopped then, and so no node asked.
    assert fails or known["rollout_silent"] == ["gw1"]


def test_a_node_that_is_silent_on_the_way_back_is_passed_over(controller):
    facts = {"rollout_gates": [], "rollout_baked": False, "rollout_switched": [], "rollout_engines": {}, "rollout_key": ""}
    opened = rollout("surge")
    facts["rollout_back"] = "too slow"
    variables = {"batch": opened["batches"][0]}
    code, output, known = controller.include("back_batch.yml", opened, variables, facts, gpu1=UNREACHABLE)
    assert code == 0 and known["rollout_silent"] == ["gpu1"], output


def test_a_release_that_failed_is_rejected_although_a_node_is_lost_on_the_way_back(controller):
    facts = {"rollout_gates": [], "rollout_baked": False, "rollout_switched": [], "rollout_engines": {}, "rollout_key": ""}
    # As the rescue of rollout.yml says it: read anew wherever it is used.
    variables = {"back_why": "smoke[0] failed", "back_blame": "{{ rollout_blame }}"}
    code, output, known = controller.include("back.yml", rollout("surge"), variables, facts, gpu1=UNREACHABLE)
    assert code == 0 and known["rollout_silent"] == ["gpu1"], output
    assert known["rollout_ending"] == "abandon" and known["rollout_rejected"] == "smoke[0] failed"


def lock_play(controller, file: str) -> dict:
    """As the plays with several hosts take and give back locks; files of this machine stand for those of gateways."""
    variables = {"gateways_in": "{{ groups['gateways'] | sort }}"}
    lock = {"lock_name": "plan", "lock_purpose": "a test", "lock_lease": 600, "lock_wait": 0}
    folder = controller.folder / "locks"
    tasks = [
        {"name": "Do it", "ansible.builtin.include_tasks": f"tasks/{file}", "run_once": True, "vars": lock},
        {"name": "Go on", "ansible.builtin.debug": {"msg": "{{ inventory_hostname }} went on"}},
    ]
    where = {"localfirst.llm_fleet.fleet_lock": {"dir": f"{folder}/{{{{ item | default('') }}}}"}}
    about = {"hosts": "gateways:gpu_nodes", "gather_facts": False, "become": True, "module_defaults": where, "vars": variables}
    return {**about, "tasks": tasks}


def test_a_silent_gateway_keeps_nobody_from_taking_and_giving_back_a_lock(controller):
    hosts = {"gw1": UNREACHABLE, "gw2": HERE, "gw3": HERE, "gpu1": UNREACHABLE}
    code, output, _facts = controller.run(lock_play(controller, "lock.yml"), rollout("surge"), **hosts)
    assert code == 0 and all(f"{host} went on" in output for host in hosts), output
    code, output, _facts = controller.run(lock_play(controller, "unlock.yml"), rollout("surge"), **hosts)
    assert code == 0 and "gw1: no answer. The lock plan ends there by itself" in output, output
    assert all(f"{host} went on" in output for host in hosts), output


def test_where_another_run_has_the_lock_nobody_goes_on_and_it_is_named(controller):
    other = {"user": "bob", "host": "elsewhere", "job": "", "process": "1", "place": "elsewhere", "purpose": "a rollout"}
    for gateway in ("gw2", "gw3"):
        assert Lease(controller.folder / "locks" / gateway, "plan").take(other, 600)["taken"]
    hosts = {"gw1": UNREACHABLE, "gw2": HERE, "gw3": HERE, "gpu1": UNREACHABLE}
    code, output, _facts = controller.run(lock_play(controller, "lock.yml"), rollout("surge"), **hosts)
    assert code != 0 and "bob" in output.partition("Stop where another run has it")[2], output
    assert "went on" not in output


def test_where_a_gateway_cannot_say_who_has_the_lock_nobody_goes_on(controller):
    (controller.folder / "locks" / "gw2").mkdir(parents=True)
    (controller.folder / "locks" / "gw2" / "plan.json").write_text("{")
    hosts = {"gw1": UNREACHABLE, "gw2": HERE, "gw3": HERE, "gpu1": UNREACHABLE}
    code, output, _facts = controller.run(lock_play(controller, "lock.yml"), rollout("surge"), **hosts)
    assert code != 0 and "is damaged" in output.partition("Stop where a gateway cannot say")[2], output
    assert "went on" not in output
