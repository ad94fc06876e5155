# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Models and hosts come and go; whatever is not concerned does not move."""

from __future__ import annotations

import copy
import json
import re
import subprocess

import pytest
import yaml

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile_text import render_lockfile


@pytest.fixture(scope="module")
def catalog(fleet) -> list:
    """The catalog of the inventory, with its paths filled in."""
    text = json.dumps(fleet.inventory["_meta"]["hostvars"]["gw1"]["llm_fleet_models"])
    return json.loads(text.replace("{{ testbed_state_dir }}", str(fleet.state)))


@pytest.fixture
def run(fleet, tmp_path):
    """Run a playbook with another catalog, and afterwards bring the fleet back to that of its inventory."""

    def with_catalog(models, *arguments, playbook="site", **options):
        lock = yaml.safe_load((fleet.state / "models.lock.yml").read_text())
        for entry in models:
            # A model that is only here is the file of `tiny` under another name.
            lock["models"].setdefault(entry["name"], copy.deepcopy(lock["models"]["tiny"]))
        (tmp_path / "models.lock.yml").write_text(render_lockfile(lock))
        variables = {"llm_fleet_models": models, "llm_fleet_lockfile": str(tmp_path / "models.lock.yml")}
        (tmp_path / "variables.json").write_text(json.dumps(variables))
        return fleet.playbook(playbook, "-e", f"@{tmp_path / 'variables.json'}", *arguments, **options)

    yield with_catalog
    fleet.playbook("site")


def changed(done) -> dict:
    """Changed tasks by host, from the recap."""
    return {host: int(count) for host, count in re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", done.stdout, re.MULTILINE)}


def containers(fleet, host) -> dict:
    lines = fleet.shell(host, "docker ps -a --filter label=llm_fleet.instance --format '{{.Names}} {{.ID}}'").splitlines()
    return dict(line.split() for line in lines)


def model(catalog, name) -> dict:
    return next(model for model in catalog if model["name"] == name)


def test_a_model_that_comes_and_goes_moves_nothing_else(fleet, gateway, tokens, catalog, run):
    before = {host: containers(fleet, host) for host in fleet.hosts("gpu_nodes")}
    extra = {**copy.deepcopy(model(catalog, "tiny")), "name": "extra", "replicas": 1, "access": ["*"]}
    run([*catalog, extra])
    assert gateway.chat(tokens["bob"], model="extra").status == 200
    instance = fleet.instances(model="extra")[0]
    for host, held in before.items():
        assert held.items() <= containers(fleet, host).items(), "what ran was touched"

    # A request in flight ends by itself, although the model is no longer wanted.
    stream = gateway.stream(tokens["bob"], model="extra", max_tokens=900)
    next(stream)
    run(catalog)
    assert list(stream)[-1][1] == "[DONE]"
    assert gateway.chat(tokens["bob"], model="extra").status == 404
    assert {host: containers(fleet, host) for host in before} == before
    assert instance["id"] not in fleet.servers("gw1")
    again = run(catalog)
    assert set(changed(again).values()) == {0}


def test_another_version_waits_for_a_rollout(fleet, gateway, tokens, catalog, run):
    before = {host: containers(fleet, host) for host in fleet.hosts("gpu_nodes")}
    changed_catalog = copy.deepcopy(catalog)
    model(changed_catalog, "tiny")["context"] = 2048
    done = run(changed_catalog)
    assert "pending rollout" in done.stdout
    assert {host: containers(fleet, host) for host in before} == before
    assert gateway.chat(tokens["alice"]).status == 200


def test_a_host_is_taken_out_and_comes_back(fleet, gateway, tokens):
    stay = containers(fleet, "gpu1")
    stream = gateway.stream(tokens["alice"], max_tokens=900)
    next(stream)
    done = fleet.playbook("hosts", "-e", "remove=gpu2")
    assert "out of the inventory" in done.stdout
    assert list(stream)[-1][1] == "[DONE]"
    assert containers(fleet, "gpu2") == {}
    assert {i["host"] for i in fleet.instances()} == {"gpu1"}
    assert stay.items() <= containers(fleet, "gpu1").items()
    assert fleet.shell("gpu2", "test -e /var/lib/llm_fleet/plan.json && echo there || echo gone") == "gone"
    assert gateway.chat(tokens["alice"]).status == 200
    # The host is still in the inventory: the next run may use it, but moves nothing to it.
    fleet.playbook("site")
    assert {i["host"] for i in fleet.instances(model="tiny")} == {"gpu1"}


def test_scaling_down_and_up_spreads_again(fleet, catalog, run):
    fewer = copy.deepcopy(catalog)
    model(fewer, "tiny")["replicas"] = 1
    run(fewer)
    assert len(fleet.instances(model="tiny")) == 1
    fleet.playbook("site")
    assert {i["host"] for i in fleet.instances(model="tiny")} == {"gpu1", "gpu2"}


def test_a_run_for_one_node_leaves_the_gateways_whole(fleet, catalog, run):
    before = fleet.shell("gw1", "cat /etc/haproxy/haproxy.cfg")
    plan = fleet.plan()
    done = run([*catalog, {**model(catalog, "tiny"), "name": "extra"}], "--limit", "gpu1")
    assert "without --limit" in done.stdout
    assert fleet.plan("gpu1") == plan
    assert fleet.shell("gw1", "cat /etc/haproxy/haproxy.cfg") == before


def test_an_unreachable_node_keeps_its_entries(fleet, catalog, run, wait_until):
    """A catalog that changes while a node is away changes nothing of what that node holds."""
    held = fleet.instances(host="gpu2")
    subprocess.run(["docker", "stop", "-t", "5", fleet.container("gpu2")], check=True, capture_output=True)
    try:
        done = run([entry for entry in catalog if entry["name"] != "tiny"], check=False)
        assert "unreachable=1" in done.stdout
        assert fleet.instances(host="gpu2") == held
        assert [i for i in fleet.instances(model="tiny") if i["host"] == "gpu1"] == []
    finally:
        subprocess.run(["docker", "start", fleet.container("gpu2")], check=True, capture_output=True)
        wait_until(lambda: fleet.shell("gpu2", "systemctl is-active ssh docker", check=False).split() == ["active", "active"])


def test_nothing_stops_while_a_gateway_may_still_send_requests_to_it(fleet, catalog, run):
    """gw2 fails in the middle of the run: what is no longer wanted goes on until gw2 has let go of it."""
    before = {host: containers(fleet, host) for host in fleet.hosts("gpu_nodes")}
    fleet.shell("gw2", "systemctl stop haproxy && systemctl mask --runtime haproxy")
    try:
        done = run([entry for entry in catalog if entry["name"] != "tiny"], check=False)
        assert done.returncode != 0 and "gw2 failed above" in done.stdout + done.stderr
        assert {host: containers(fleet, host) for host in before} == before
    finally:
        fleet.shell("gw2", "systemctl unmask --runtime haproxy && systemctl start haproxy")


def test_check_mode_lists_what_would_be_done_and_does_nothing(fleet, catalog, run):
    before = {host: containers(fleet, host) for host in fleet.hosts("gpu_nodes")}
    plan = fleet.plan()
    done = run([*catalog, {**model(catalog, "tiny"), "name": "extra"}], "--check", "--diff")
    assert "create extra-0-a" in done.stdout
    assert fleet.plan() == plan
    assert {host: containers(fleet, host) for host in before} == before


def test_preflight_tells_all_faults_at_once_and_touches_nothing(fleet, catalog, run):
    plan = fleet.plan()
    broken = copy.deepcopy(catalog)
    model(broken, "tiny").update(engine="llamacp", access=["nobody"], replica=2)
    model(broken, "private").update(version="9.9.9", placement={"hosts": ["cpu*"]})
    done = run([*broken, copy.deepcopy(catalog[0])], check=False)
    output = done.stdout + done.stderr
    assert done.returncode != 0
    for clue in ("llamacp", "nobody", "replica", "9.9.9", "cpu*", "tiny"):
        assert clue in output, clue
    assert "llamacpp" in output and "replicas" in output, "the nearest known word is named"
    assert fleet.plan() == plan


def test_a_wrong_digest_leaves_nothing_behind(fleet, catalog, tmp_path):
    lock = yaml.safe_load((fleet.state / "models.lock.yml").read_text())
    file = lock["models"]["tiny"]["1.0.0"]["files"][0]
    actual, file["sha256"] = file["sha256"], "0" * 64
    lock["models"]["wrong"] = lock["models"].pop("tiny")
    # Not changed by hand, but locked wrong: the version's own digest fits.
    (tmp_path / "models.lock.yml").write_text(render_lockfile(lock))
    wrong = {**model(catalog, "tiny"), "name": "wrong", "replicas": 1}
    (tmp_path / "variables.json").write_text(
        json.dumps({"llm_fleet_models": [wrong], "llm_fleet_lockfile": str(tmp_path / "models.lock.yml")})
    )
    done = fleet.playbook("site", "-e", f"@{tmp_path / 'variables.json'}", check=False)
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "0" * 64 in output and actual in output and "tiny.gguf" in output
    for host in fleet.hosts("gpu_nodes"):
        store = fleet.shell(host, "find /var/lib/llm_fleet/store -name '*wrong*' -o -name '0000*' -o -name '*.part'")
        assert store == ""
    fleet.playbook("site")


def test_a_lockfile_changed_by_hand_is_refused_before_any_host_is_touched(fleet, tmp_path):
    plan = fleet.plan()
    text = (fleet.state / "models.lock.yml").read_text()
    digest = yaml.safe_load(text)["models"]["tiny"]["1.0.0"]["files"][0]["sha256"]
    (tmp_path / "models.lock.yml").write_text(text.replace(digest, "0" * 64))
    done = fleet.playbook("site", "-e", f"llm_fleet_lockfile={tmp_path / 'models.lock.yml'}", check=False)
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "models.tiny.1.0.0.digest" in output and "line " in output
    assert fleet.plan() == plan


@pytest.mark.parametrize("lost", ["all", "conflicting"])
def test_a_fleet_without_a_clear_plan_is_never_started_afresh(fleet, lost):
    hosts = [*fleet.hosts("gateways"), *fleet.hosts("gpu_nodes")]
    path = "/var/lib/llm_fleet/plan.json"
    for host in hosts:
        fleet.shell(host, f"cp -p {path} /root/plan.json")
    try:
        if lost == "all":
            for host in hosts:
                fleet.shell(host, f"rm {path}")
        else:
            fleet.shell("gpu1", f"sed -i 's/\"queue\": [0-9]*/\"queue\": 99/' {path}")
        done = fleet.playbook("preflight", check=False)
        assert done.returncode != 0
        assert "plan" in done.stdout + done.stderr
    finally:
        for host in hosts:
            fleet.shell(host, f"mv /root/plan.json {path}")
    fleet.playbook("preflight")
