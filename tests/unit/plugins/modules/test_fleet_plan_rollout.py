# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The module that plans, asked for a rollout: what playbooks get from it while one is opened, gone through and closed."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.lookup.engine_profiles import BUILT_IN, read_profiles
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile_text import render_lockfile
from ansible_collections.localfirst.llm_fleet.tests.unit.support.host_answers import BARE_HOST

VERSIONS = ("1.0.0", "1.1.0", "2.0.0")
SOURCES = {version: {"source": f"https://models.example/tiny-{version}.gguf"} for version in VERSIONS}
DIGESTS = {version: f"{number:064x}" for number, version in enumerate(VERSIONS)}
NODES = ("gpu1", "gpu2")


def host(name: str, **other) -> dict:
    """A host as host_info describes it."""
    return {
        "name": name,
        "address": f"10.0.0.{sum(name.encode()) % 250}",
        **BARE_HOST,
        "gpus": [],
        "memory_free": 2**40,
        "gpu_free": {},
        **({"routes": {}} if name.startswith("gw") else {}),
        **other,
    }


def labels(it: dict) -> dict:
    """A running container, as host_info sees it."""
    keys = ("id", "model", "version", "release", "replica", "slot", "port")
    return {**{key: it[key] for key in keys}, "state": "running", "health": "healthy"}


@pytest.fixture
def plan(run_module, tmp_path):
    """Plan for tiny with two replicas, in a fleet where `current` was applied last and hosts differ as `told` says."""
    files = {version: [{"path": "tiny.gguf", "size": 10, "sha256": digest}] for version, digest in DIGESTS.items()}

    def run(rollout: dict | None = None, current: dict | None = None, version="1.1.0", told: dict | None = None, **arguments) -> dict:
        locked = {
            one: {"asked": entry["source"], "source": entry["source"], "format": "gguf", "files": files[one]}
            for one, entry in SOURCES.items()
            if one in arguments.get("locked", VERSIONS)
        }
        arguments.pop("locked", None)
        images = {"llamacpp": {"image": "registry.example/llamacpp", "digest": f"sha256:{'a' * 64}"}}
        (tmp_path / "models.lock.yml").write_text(render_lockfile({"images": images, "models": {"tiny": locked}}))
        model = {"name": "tiny", "version": version, "versions": SOURCES, "engine": "llamacpp", "replicas": 2}
        model |= arguments.pop("model", {})
        asked = arguments.pop("asked", ["gw1", "gw2", *NODES])
        hosts = [host(name, plan=current, **(told or {}).get(name, {})) for name in asked]
        return run_module(
            "fleet_plan",
            models=[model],
            clients=[],
            profiles=read_profiles([BUILT_IN])[0],
            lockfile=str(tmp_path / "models.lock.yml"),
            ca_dir=str(tmp_path),
            gateways=["gw1", "gw2"],
            nodes=list(NODES),
            asked=asked,
            hosts=hosts,
            **({"rollout": {"model": "tiny", "who": "ann on laptop", **rollout}} if rollout is not None else {}),
            **arguments,
        )

    return run


@pytest.fixture
def fleet(plan):
    """What site.yml made of version 1.0.0."""
    return plan(version="1.0.0")["plan"]


@pytest.fixture
def opened(plan, fleet):
    return plan({}, fleet)


def versions(planned: dict) -> list:
    return sorted(it["version"] for it in planned["instances"])


def test_a_rollout_is_opened_and_told(opened, fleet):
    assert not opened.get("failed") and opened["changed"] is False
    assert versions(opened["plan"]) == ["1.0.0"] * 2 + ["1.1.0"] * 2
    assert opened["plan"]["generation"] == fleet["generation"] + 1
    rollout = opened["rollout"]
    assert (rollout["model"], rollout["to_version"], rollout["strategy"], rollout["resumed"]) == ("tiny", "1.1.0", "surge", False)
    assert opened["actions"] == rollout["lines"] and "1.0.0 -> 1.1.0" in rollout["lines"][0]
    assert [batch["share"] for batch in rollout["batches"]] == [50, 100]
    assert opened["pending"] and "is open since" in opened["pending"][0]
    assert opened["leaving"] == [] and not opened["frozen"]
    assert (opened["diff"]["before"], opened["diff"]["after"]) == (fleet, opened["plan"])


def test_hosts_learn_which_files_both_releases_need(opened):
    for name in NODES:
        assert [one["version"] for one in opened["artifacts"][name]] == ["1.0.0", "1.1.0"]
    # And of a version that git does not want.
    assert not [one for artifacts in opened["artifacts"].values() for one in artifacts if one["version"] == "2.0.0"]


def test_a_version_by_hand_brings_its_files_too(plan, fleet):
    result = plan({"version": "2.0.0"}, fleet)
    assert versions(result["plan"])[-1] == "2.0.0"
    assert "2.0.0" in {one["version"] for one in result["artifacts"]["gpu1"]}
    assert result["plan"]["models"]["tiny"]["wanted_version"] == "1.1.0"


def test_without_the_option_no_release_changes(plan, fleet):
    result = plan(None, fleet)
    assert versions(result["plan"]) == ["1.0.0"] * 2 and result["rollout"] is None
    assert [line for line in result["pending"] if line.startswith("tiny: pending rollout")]


def test_only_the_model_changes_all_else_waits_for_site(plan, fleet):
    result = plan({}, fleet, model={"replicas": 3, "access": ["*"]})
    assert len(result["plan"]["instances"]) == 4
    entry = result["plan"]["models"]["tiny"]
    assert (entry["replicas"], entry["access"]) == (2, [])


def test_what_runs_already_is_no_rollout(plan, fleet):
    result = plan({}, fleet, version="1.0.0")
    assert result["rollout"] is None and result["plan"] == fleet and result["actions"] == []


def test_asked_again_it_goes_on_where_all_gateways_are(plan, opened):
    def route(*switched):
        progress = {"rollout": opened["rollout"]["id"], "switched": list(switched), "baked": True, "back": ""}
        return {"routes": {"tiny": {"backend": "be", "share": 50, "progress": progress}}}

    again = plan({"who": "bob"}, opened["plan"], told={"gw1": route(0, 1), "gw2": route(0)})
    assert again["plan"] == opened["plan"] and again["rollout"]["resumed"]
    assert again["rollout"]["id"] == opened["rollout"]["id"]
    assert again["rollout"]["progress"]["switched"] == [0]
    assert [batch["done"] for batch in again["rollout"]["batches"]] == [True, False]
    # A gateway that is new, or lost what it knew.
    assert plan({}, opened["plan"], told={"gw1": route(0, 1)})["rollout"]["progress"]["switched"] == []


def test_site_keeps_an_open_rollout_as_it_is(plan, opened):
    running = {name: {"instances": [labels(it) for it in opened["plan"]["instances"] if it["host"] == name]} for name in NODES}
    result = plan(None, opened["plan"], told=running)
    assert result["plan"] == opened["plan"] and not result["leaving"] and not result["actions"]
    gone = plan(None, opened["plan"], removed=["gpu2"])
    assert gone["failed"] and [fault["where"] for fault in gone["faults"]] == ["host gpu2"]


def test_a_commit_leaves_the_new_release(plan, opened):
    running = {name: {"instances": [labels(it) for it in opened["plan"]["instances"] if it["host"] == name]} for name in NODES}
    result = plan({"close": "commit"}, opened["plan"], told=running)
    assert versions(result["plan"]) == ["1.1.0"] * 2 and result["plan"]["rollouts"] == {}
    assert [it["id"] for it in result["leaving"]] == ["tiny-0-a", "tiny-1-a"]
    assert all("release_record" in it and "engine_record" in it for it in result["leaving"])
    assert [line for line in result["actions"] if "remove tiny-0-a" in line] and result["rollout"] is None
    assert result["pending"] == []
    # Closed once more, or planned by site.yml: nothing.
    for asked in ({"close": "commit"}, {"close": "abandon", "rejected": "slow"}, None):
        again = plan(asked, result["plan"])
        assert again["plan"] == result["plan"] and again["actions"] == [] and again["leaving"] == []


def test_an_abandoned_one_leaves_the_old_release_and_says_why(plan, opened, fleet):
    result = plan({"close": "abandon", "rejected": "ttft_p95: 9 s"}, opened["plan"])
    assert result["plan"]["instances"] == fleet["instances"]
    assert [it["id"] for it in result["leaving"]] == ["tiny-0-b", "tiny-1-b"]
    assert "rejected at" in result["pending"][0] and "ttft_p95: 9 s" in result["pending"][0]
    refused = plan({}, result["plan"])
    assert refused["failed"] and "ttft_p95: 9 s" in refused["msg"] and "retry_rejected" in refused["msg"]
    assert not plan({"retry_rejected": True}, result["plan"]).get("failed")


def test_back_to_what_ran_before_without_the_lockfile_knowing_it(plan, opened, fleet):
    committed = plan({"close": "commit"}, opened["plan"])["plan"]
    back = plan({"undo": True}, committed, locked=("1.1.0", "2.0.0"))
    assert not back.get("failed") and back["rollout"]["undo"] and back["rollout"]["to_version"] == "1.0.0"
    assert {DIGESTS["1.0.0"], DIGESTS["1.1.0"]} == {file["sha256"] for one in back["artifacts"]["gpu1"] for file in one["files"]}
    ended = plan({"close": "commit"}, back["plan"])["plan"]
    assert ended["instances"] == fleet["instances"]
    assert [one["version"] for one in ended["models"]["tiny"]["rejected"]] == ["1.1.0"]


def test_out_of_an_open_rollout_the_way_back_is_the_same_rollout(plan, opened):
    back = plan({"undo": True}, opened["plan"])
    assert back["plan"] == opened["plan"]
    assert back["rollout"]["resumed"] and back["rollout"]["id"] == opened["rollout"]["id"] and not back["rollout"]["undo"]


def test_one_that_was_meant_and_has_ended_opens_nothing(plan, opened):
    meant = opened["rollout"]["id"]
    assert plan({"undo": True, "only": meant}, opened["plan"])["rollout"]["id"] == meant
    committed = plan({"close": "commit"}, opened["plan"])["plan"]
    result = plan({"undo": True, "only": meant}, committed)
    assert result["rollout"] is None and result["plan"] == committed and result["faults"] == []


@pytest.mark.parametrize(
    ("rollout", "where", "words"),
    [
        ({"version": "1.5.0"}, "-e version=…", "is not locked"),
        ({"model": "tinny"}, "-e model=…", "did you mean 'tiny'"),
        ({"bake": "long"}, "-e bake=…", "10m"),
        ({"undo": True}, "model", "nothing before"),
    ],
)
def test_a_slip_is_a_fault_and_the_plan_stays(plan, fleet, rollout, where, words):
    result = plan(rollout, fleet)
    assert result["failed"] and words in result["msg"]
    assert [fault["where"] for fault in result["faults"]] == [where]
    told = plan(rollout, fleet, strict=False)
    assert told["plan"] == fleet and told["rollout"] is None and told["actions"] == []


@pytest.mark.parametrize("rollout", [{"strategy": "blue"}, {"close": "stuck"}, {"accept_outage": "perhaps"}])
def test_what_the_module_does_not_know_is_refused(plan, fleet, rollout):
    result = plan(rollout, fleet)
    assert result["failed"] and next(iter(rollout)) in result["msg"]


@pytest.mark.parametrize("rollout", [{}, {"close": "commit"}, {"undo": True}])
def test_where_nothing_runs_there_is_nothing_to_roll(plan, rollout):
    result = plan(rollout)
    assert result["failed"] and "site.yml" in result["faults"][0]["fix"]


def test_a_rollout_needs_every_gateway_and_every_node_that_has_the_model(plan, fleet):
    limited = plan({}, fleet, asked=["gw1", *NODES])
    assert limited["failed"] and [fault["where"] for fault in limited["faults"]] == ["--limit"]
    assert "gw2" in limited["msg"] and "llm_fleet_gateways_out" in limited["msg"]
    assert not plan({}, fleet, asked=["gw1", *NODES], gateways_out=["gw2"]).get("failed")
    [fault] = plan({}, fleet, asked=["gw1", "gw2", "gpu1"])["faults"]
    assert fault["where"] == "host gpu2"


def test_a_container_in_the_other_slot_is_a_fault_and_others_of_the_model_leave(plan, fleet):
    stray = labels({**fleet["instances"][0], "id": "tiny-7-a", "replica": 7, "port": 20777})
    other = {**stray, "id": "odd-0-a", "model": "odd"}
    result = plan({}, fleet, told={"gpu1": {"instances": [stray, other]}})
    # What another model left is no matter of this rollout.
    assert [it["id"] for it in result["leaving"]] == ["tiny-7-a"]
    left = labels({**fleet["instances"][0], "id": "tiny-0-b", "slot": "b"})
    [fault] = plan({}, fleet, told={"gpu1": {"instances": [left]}})["faults"]
    assert "tiny-0-b" in fault["what"] and "site.yml" in fault["fix"]


def test_memory_decides_and_an_outage_needs_consent(plan):
    current = plan(version="1.0.0", model={"replicas": 1})["plan"]
    full = {name: {"memory_free": 0} for name in NODES}
    refused = plan({}, current, told=full, model={"replicas": 1})
    assert [fault["where"] for fault in refused["faults"]] == ["llm_fleet_models[tiny].replicas"]
    result = plan({"accept_outage": True}, current, told=full, model={"replicas": 1})
    assert result["rollout"]["strategy"] == "replace" and result["rollout"]["least"] == 0
    assert [line for line in result["actions"] if line.startswith("OUTAGE")]
