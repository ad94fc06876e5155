# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""From `-e model=… -e version=…` to an open rollout: which release is meant, and what is refused."""

from __future__ import annotations

import re

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.lookup.engine_profiles import BUILT_IN, read_profiles
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.catalog import check_catalog
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.gpu_choice import with_gpus
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.plan import make_plan
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.release import engine_interfaces, wanted_releases
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.rollout_request import ASKED, Rollouts
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.shape_config import shape_of_config
from ansible_collections.localfirst.llm_fleet.tests.unit.support.known_models import CONFIGS

GIB = 2**30
PROFILES = read_profiles([BUILT_IN])[0]
VERSIONS = ("1.0.0", "1.1.0", "2.0.0")
LOCK = {
    "images": {"llamacpp": {"image": "registry.example/llamacpp", "digest": f"sha256:{'a' * 64}"}},
    "models": {
        "tiny": {
            version: {
                "source": f"https://models.example/{version}.gguf",
                "format": "gguf",
                "size": 10,
                "files": [{"path": "tiny.gguf", "size": 10, "sha256": f"{number:064x}"}],
            }
            for number, version in enumerate(VERSIONS)
        }
    },
}
NODES = [{"name": name, "address": "10.0.0.2", "gpus": [f"GPU-{name}"], "reachable": True} for name in ("gpu1", "gpu2")]
ANSWERED = {node["name"]: {"memory_free": 2**40, "gpu_free": {}, "instances": []} for node in NODES}


def catalog(version: str = "1.0.0", **other) -> list:
    """The checked catalog with one model."""
    versions = {version: {"source": f"https://models.example/{version}.gguf"} for version in VERSIONS}
    written = {"name": "tiny", "version": version, "versions": versions, "engine": "llamacpp", "replicas": 2, **other}
    models, _clients, faults = check_catalog([written], [], PROFILES, ["gpu1", "gpu2"])
    assert not faults, faults
    return models


def asked(**other) -> dict:
    """What the module passes on: all options, with their defaults."""
    return {**{name: option.get("default") for name, option in ASKED.items()}, "model": "tiny", "who": "ann", **other}


@pytest.fixture
def fleet():
    """What site.yml made of version 1.0.0."""
    models = catalog()
    result = make_plan(models, wanted_releases(models, LOCK, PROFILES), engine_interfaces(PROFILES, ["llamacpp"]), NODES, None)
    assert not result.faults
    return result.plan


def ask(current: dict | None, *, models: list | None = None, profiles: dict = PROFILES, nodes=NODES, answered=ANSWERED, **other):
    return Rollouts(models or catalog("1.1.0"), LOCK, profiles, current).open(asked(**other), nodes, answered)


def close(current: dict, how: str, rejected: str = "") -> tuple:
    return Rollouts(catalog("1.1.0"), LOCK, PROFILES, current).close(asked(close=how, rejected=rejected))


def versions(planned: dict) -> list:
    return sorted({it["version"] for it in planned["instances"]})


# The release that is meant


def test_by_default_it_is_what_the_catalog_wants(fleet):
    opened = ask(fleet)
    assert opened.faults == [] and opened.rollout["to_version"] == "1.1.0" and not opened.rollout["override"]
    assert versions(opened.plan) == ["1.0.0", "1.1.0"]
    assert opened.plan["releases"][opened.rollout["to"]] == wanted_releases(catalog("1.1.0"), LOCK, PROFILES)["tiny"]


def test_a_version_by_hand_is_any_that_is_locked(fleet):
    opened = ask(fleet, version="2.0.0")
    assert opened.rollout["to_version"] == "2.0.0" and opened.rollout["override"]
    assert opened.plan["models"]["tiny"]["wanted_version"] == "1.1.0"
    assert not ask(fleet, version="1.1.0").rollout["override"]


def test_settings_alone_are_a_rollout_too(fleet):
    opened = ask(fleet, models=catalog("1.0.0", context=512))
    assert opened.rollout["from_version"] == opened.rollout["to_version"] == "1.0.0"
    assert opened.rollout["from"] != opened.rollout["to"]


def test_without_a_difference_there_is_nothing_to_switch(fleet):
    assert ask(fleet, models=catalog("1.0.0")) == (fleet, None, False, [])


def test_a_way_back_leads_to_the_record_that_ran(fleet):
    """Whatever catalog and lockfile say by now."""
    committed, _leaving = close(ask(fleet).plan, "commit")
    opened = ask(committed, models=catalog("1.1.0", context=512), undo=True)
    assert opened.faults == [] and opened.rollout["undo"]
    assert opened.plan["releases"][opened.rollout["to"]] == fleet["releases"][opened.rollout["to"]]
    assert opened.rollout["to"] == fleet["models"]["tiny"]["release"]


def test_a_way_back_out_of_an_open_rollout_is_that_rollout(fleet):
    first = ask(fleet)
    assert ask(first.plan, undo=True) == (first.plan, first.rollout, True, [])


def test_with_nothing_before_there_is_no_way_back(fleet):
    opened = ask(fleet, undo=True)
    assert opened.rollout is None and opened.plan == fleet and "version=" in opened.faults[0].fix


def test_what_is_asked_goes_into_the_rollout(fleet):
    rollout = ask(fleet, who="bob", why="faster", bake="2m", strategy="replace").rollout
    assert (rollout["who"], rollout["why"], rollout["canary"]["bake"], rollout["strategy"]) == ("bob", "faster", 120, "replace")
    assert re.fullmatch(r"r-\d{8}-\d{6}-[0-9a-f]{4}", rollout["id"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", rollout["started"])
    assert ask(fleet).rollout["id"] != rollout["id"]
    assert ask(fleet, bake="0").rollout["canary"]["bake"] == 0
    assert ask(fleet).rollout["canary"]["bake"] == catalog()[0]["rollout"]["canary"]["bake"]


# What is refused


@pytest.mark.parametrize(
    ("other", "where", "words"),
    [
        ({"model": "tinny"}, "-e model=…", "'tiny'"),
        ({"version": "1.2.0"}, "-e version=…", "1.1.0"),
        ({"version": "latest"}, "-e version=…", "lock.yml"),
        ({"bake": "soon"}, "-e bake=…", "10m"),
    ],
)
def test_a_slip_changes_nothing_and_says_what_there_is(fleet, other, where, words):
    opened = ask(fleet, **other)
    assert opened.plan == fleet and opened.rollout is None
    [fault] = opened.faults
    assert fault.where == where and words in fault.text()


def test_all_slips_come_at_once(fleet):
    assert [fault.where for fault in ask(fleet, bake="soon", version="9.9.9").faults] == ["-e bake=…", "-e version=…"]


def test_a_fleet_that_runs_nothing_has_no_rollout():
    opened = ask(None)
    assert opened.plan == {} and "site.yml" in opened.faults[0].fix


def test_what_stands_in_the_way_is_told(fleet):
    nodes = [NODES[0], {**NODES[1], "reachable": False}]
    opened = ask(fleet, nodes=nodes, answered={"gpu1": {**ANSWERED["gpu1"], "instances": [{"id": "tiny-0-b"}]}}, strategy="surge")
    assert {fault.where for fault in opened.faults} == {"host gpu1", "host gpu2", "strategy"}


# A rollout that is meant by its id


def test_the_one_that_is_meant_is_found(fleet):
    first = ask(fleet)
    assert ask(first.plan, undo=True, only=first.rollout["id"]).rollout == first.rollout


def test_one_that_has_ended_meanwhile_opens_nothing(fleet):
    first = ask(fleet)
    committed, _leaving = close(first.plan, "commit")
    # Without the id it would go back to what ran before.
    assert ask(committed, undo=True).rollout is not None
    for planned in (fleet, committed, ask(fleet).plan):
        assert ask(planned, undo=True, only=first.rollout["id"]) == (planned, None, False, [])


# Closing


def test_a_commit_and_the_way_back(fleet):
    first = ask(fleet)
    committed, leaving = close(first.plan, "commit")
    assert versions(committed) == ["1.1.0"] and [it["id"] for it in leaving] == ["tiny-0-a", "tiny-1-a"]
    back = ask(committed, undo=True)
    ended, leaving = close(back.plan, "commit")
    assert ended["instances"] == fleet["instances"] and [it["version"] for it in leaving] == ["1.1.0"] * 2
    [rejected] = ended["models"]["tiny"]["rejected"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", rejected["at"]) and rejected["version"] == "1.1.0"
    assert ask(ended).faults and not ask(ended, retry_rejected=True).faults


def test_an_abandoned_one_is_rejected_only_with_a_reason(fleet):
    first = ask(fleet)
    ended, leaving = close(first.plan, "abandon", "slow")
    assert versions(ended) == ["1.0.0"] and [it["id"] for it in leaving] == ["tiny-0-b", "tiny-1-b"]
    assert [one["why"] for one in ended["models"]["tiny"]["rejected"]] == ["slow"]
    assert "rejected" not in close(first.plan, "abandon")[0]["models"]["tiny"]


@pytest.mark.parametrize("how", ["commit", "abandon"])
def test_what_is_closed_stays_closed(fleet, how):
    committed, _leaving = close(ask(fleet).plan, "commit")
    assert close(committed, how, "slow") == (committed, [])


# What is known of nodes and engines


def test_idle_gpus_are_those_that_no_instance_has(fleet):
    with_gpu = {**fleet, "instances": [{**fleet["instances"][0], "gpus": ["GPU-gpu1"]}, *fleet["instances"][1:]]}
    told = Rollouts(catalog(), LOCK, PROFILES, with_gpu).hosts(NODES, {"gpu2": {**ANSWERED["gpu2"], "gpu_free": {"GPU-gpu2": 7}}})
    assert told == {
        "gpu1": {"reachable": True, "memory_free": 0, "gpu_free": {}, "gpus_idle": [], "standing": []},
        "gpu2": {"reachable": True, "memory_free": 2**40, "gpu_free": {"GPU-gpu2": 7}, "gpus_idle": ["GPU-gpu2"], "standing": []},
    }


def test_an_engine_without_a_profile_keeps_its_interface(fleet):
    rollouts = Rollouts(catalog(), LOCK, {}, fleet)
    record = fleet["releases"][fleet["models"]["tiny"]["release"]]
    assert rollouts.interface(record) == fleet["engines"]["llamacpp"]
    assert Rollouts(catalog(), LOCK, PROFILES, {"engines": {}}).interface(record) == fleet["engines"]["llamacpp"]


def test_the_coordinator_is_told_how_far_it_is_and_what_to_ask(fleet):
    models = catalog("1.1.0", smoke=[{"prompt": "2 + 2?", "expect": "4"}])
    opened = ask(fleet, models=models)
    rollouts = Rollouts(models, LOCK, PROFILES, fleet)
    route = {"progress": {"rollout": opened.rollout["id"], "switched": [0], "baked": True, "back": ""}}
    told = rollouts.told(opened, asked(), [{"routes": {"tiny": route}}, {"routes": {"tiny": route, "other": {}}}])
    assert (told["id"], told["resumed"]) == (opened.rollout["id"], False)
    assert (told["gates"], told["smoke"]) == (models[0]["gates"], models[0]["smoke"])
    assert told["progress"] == {"switched": [0], "baked": True, "back": ""} and told["batches"][0]["done"]
    assert "batch 1 of 2: done already" in told["lines"]
    # A gateway that never heard of it, or that knows no routes at all yet.
    for other in ({"routes": {}}, {}):
        assert rollouts.told(opened, asked(), [{"routes": {"tiny": route}}, other])["progress"]["switched"] == []
    assert rollouts.told(ask(fleet, models=catalog("1.0.0")), asked(), []) is None


def test_another_version_may_need_another_number_of_gpus():
    """2.0.0 is too large for one GPU; the catalog says 1.0.0, and so its number is for that one."""
    shape = shape_of_config(CONFIGS["Llama-3.1-8B"], 16 * GIB)
    lock = {"images": LOCK["images"], "models": {"tiny": {
        version: {**LOCK["models"]["tiny"][version], "shape": {**shape, "weights": size * GIB}}
        for version, size in (("1.0.0", 16), ("2.0.0", 100))
    }}}
    gpus = [f"GPU-{number}" for number in range(4)]
    nodes = [{**NODES[0], "gpus": gpus, "gpu_memory": dict.fromkeys(gpus, 80 * GIB)}]
    answered = {"gpu1": {**ANSWERED["gpu1"], "gpu_free": dict.fromkeys(gpus, 80 * GIB)}}
    models, faults = with_gpus(catalog(replicas=1, gpus="auto"), lock, PROFILES, nodes, None)
    current = make_plan(models, wanted_releases(models, lock, PROFILES), engine_interfaces(PROFILES, ["llamacpp"]), nodes, None).plan
    assert not faults and [len(it["gpus"]) for it in current["instances"]] == [1]
    opened = Rollouts(models, lock, PROFILES, current).open(asked(version="2.0.0"), nodes, answered)
    assert not opened.faults
    assert {it["version"]: len(it["gpus"]) for it in opened.plan["instances"]} == {"1.0.0": 1, "2.0.0": 2}
