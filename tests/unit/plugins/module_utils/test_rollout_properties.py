# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What holds for every rollout in every fleet. Hypothesis looks for one for which it does not."""

from __future__ import annotations

import copy
import json

from hypothesis import assume, given
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.rollout import abandon, closed_leaving, commit, held_releases
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.rollout_story import rollout_story
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.rollout_strategy import REPLACE, SURGE, most_at_once
from ansible_collections.localfirst.llm_fleet.tests.unit.plugins.module_utils.fleet_builders import (
    asked,
    measured,
    plan,
    record,
    rollout_settings,
)
from ansible_collections.localfirst.llm_fleet.tests.unit.plugins.module_utils.test_plan_properties import catalogs, fleets, moderate

AT = "2026-01-02T04:00:00Z"
STAGES = st.lists(st.sampled_from((1, 2, 3, "25%", "50%", "100%")), min_size=1, max_size=4)
SETTINGS = st.builds(
    lambda **written: rollout_settings(**written),
    strategy=st.sampled_from(("auto", "replace")),
    batches=STAGES,
    max_unavailable=st.sampled_from((1, 2, 100, "25%", "50%", "100%")),
    canary=st.sampled_from(("none", {}, {"share": 0})),
)


@st.composite
def lives(draw):
    """(applied plan, its catalog, its hosts): a fleet that has gone through something, and where everybody answers now."""
    current = catalog = hosts = None
    for _step in range(draw(st.integers(1, 3))):
        asked_for, nodes = draw(catalogs()), [{**node, "reachable": True} for node in draw(fleets())]
        settled = settle(asked_for, nodes, current)
        if settled is not None:
            current, catalog, hosts = settled, asked_for, nodes
    assume(current is not None and current["instances"])
    return current, catalog, hosts


def settle(catalog, hosts, current):
    """The plan when all that waits for others to leave has come; None where it is refused."""
    result = plan(catalog, hosts, current)
    while not result.faults and any("run again" in sentence for sentence in result.pending):
        result = plan(catalog, hosts, result.plan)
    return None if result.faults else result.plan


@st.composite
def rollouts(draw, current, catalog, hosts):
    """What comes of asking for a rollout of any model of a fleet to a release that it does not run."""
    entry = draw(st.sampled_from([one for one in catalog if of(current, one["name"])]))
    wanted = record(entry["name"], entry["version"], entry["engine"])
    targets = [record(entry["name"], version, draw(st.sampled_from(("llamacpp", "ollama")))) for version in ("1.0.0", "1.1.0", "2.0.0")]
    running = current["models"][entry["name"]]["release"]
    target = draw(st.sampled_from([one for one in [wanted, *targets] if one["release"] != running]))
    free = draw(st.sampled_from((0, 2**40)))
    states = measured(current, hosts, gpu_free=dict.fromkeys([gpu for node in hosts for gpu in node["gpus"]], free))
    settings = draw(SETTINGS)
    options = {"accept_outage": True, "retry_rejected": True, "undo": draw(st.booleans())}
    before = copy.deepcopy((current, target, wanted, settings, states))
    result = asked(current, hosts, entry["name"], target, wanted=wanted, settings=settings, states=states, **options)
    assert (current, target, wanted, settings, states) == before, "what was given was changed"
    assert result.faults == []
    return result, settings


def of(planned, name):
    return [it for it in planned["instances"] if it["model"] == name]


def others(planned, name):
    return [it for it in planned["instances"] if it["model"] != name]


def check_rollable(planned):
    """What holds while a rollout is open and after it."""
    instances = planned["instances"]
    for key in (lambda it: it["id"], lambda it: it["port"], lambda it: (it["model"], it["replica"], it["slot"])):
        assert len({key(it) for it in instances}) == len(instances)
    for it in instances:
        assert it["port"] == planned["ports"][f"{it['model']}/{it['replica']}"] + "ab".index(it["slot"])
    # Both instances of one replica may have one GPU: it has room for both, or they come one after the other.
    owners = {}
    for it in instances:
        for gpu in it["gpus"]:
            assert owners.setdefault(gpu, (it["model"], it["replica"])) == (it["model"], it["replica"])
    assert set(planned["releases"]) == {it["release"] for it in instances} | held_releases(planned)
    engines = {one["engine"] for one in planned["releases"].values()} | {one["engine"] for one in planned["models"].values()}
    assert set(planned["engines"]) == engines
    assert json.loads(json.dumps(planned)) == planned, "what is read back from plan.json differs"


def check_settled(planned, name):
    """When it is over, each replica has one instance, and no GPU has two."""
    gpus = [gpu for it in planned["instances"] for gpu in it["gpus"]]
    assert len(set(gpus)) == len(gpus)
    assert len({it["replica"] for it in of(planned, name)}) == len(of(planned, name))
    assert {it["release"] for it in of(planned, name)} == {planned["models"][name]["release"]}
    assert name not in planned["rollouts"]


@moderate
@given(lives(), st.data())
def test_while_it_is_open_only_its_model_has_more(life, data):
    current, catalog, hosts = life
    result, _settings = data.draw(rollouts(*life))
    [name] = result.plan["rollouts"]
    check_rollable(result.plan)
    assert result.plan["generation"] == current["generation"] + 1
    assert others(result.plan, name) == others(current, name)
    assert result.plan["ports"] == current["ports"]
    news = [it for it in of(result.plan, name) if it["release"] == result.rollout["to"]]
    assert [it for it in of(result.plan, name) if it not in news] == of(current, name)
    for old, new in zip(of(current, name), news):
        assert (new["replica"], new["host"]) == (old["replica"], old["host"]) and new["slot"] != old["slot"]
        assert len(new["gpus"]) == len(old["gpus"])
        node = next(node for node in hosts if node["name"] == new["host"])
        assert set(new["gpus"]) <= set(node["gpus"])
    assert plan(catalog, hosts, result.plan).plan == result.plan


@moderate
@given(lives(), st.data())
def test_abandoned_it_is_as_it_was(life, data):
    current, catalog, hosts = life
    opened, _settings = data.draw(rollouts(*life))
    [name] = opened.plan["rollouts"]
    why = data.draw(st.sampled_from(("", "slow")))
    before = copy.deepcopy(opened.plan)
    ended = abandon(opened.plan, name, AT, why)
    assert opened.plan == before
    check_rollable(ended)
    check_settled(ended, name)
    assert ended["instances"] == current["instances"] and ended["ports"] == current["ports"]
    assert {it["release"] for it in closed_leaving(opened.plan, ended)} == {opened.rollout["to"]}
    assert ended["generation"] == opened.plan["generation"] + 1
    assert plan(catalog, hosts, ended).plan == ended


@moderate
@given(lives(), st.data())
def test_committed_the_new_ones_are_alone(life, data):
    current, catalog, hosts = life
    opened, _settings = data.draw(rollouts(*life))
    [name] = opened.plan["rollouts"]
    before = copy.deepcopy(opened.plan)
    ended = commit(opened.plan, name, AT)
    assert opened.plan == before
    check_rollable(ended)
    check_settled(ended, name)
    assert ended["models"][name]["release"] == opened.rollout["to"]
    assert others(ended, name) == others(current, name) and ended["ports"] == current["ports"]
    assert [(it["replica"], it["host"]) for it in of(ended, name)] == [(it["replica"], it["host"]) for it in of(current, name)]
    assert {(it["id"], it["host"]) for it in closed_leaving(opened.plan, ended)} == {(it["id"], it["host"]) for it in of(current, name)}
    after = plan(catalog, hosts, ended)
    assert after.plan == ended and not after.actions and not after.leaving


@moderate
@given(lives(), st.data())
def test_from_rollout_to_rollout_every_plan_is_sound(life, data):
    current, catalog, hosts = life
    for _step in range(data.draw(st.integers(1, 5))):
        opened, _settings = data.draw(rollouts(current, catalog, hosts))
        [name] = opened.plan["rollouts"]
        check_rollable(opened.plan)
        end = data.draw(st.sampled_from((commit, abandon)))
        ended = end(opened.plan, name, AT)
        check_rollable(ended)
        check_settled(ended, name)
        catalog, nodes = data.draw(st.just(catalog) | catalogs()), hosts
        settled = settle(catalog, nodes, ended)
        assume(settled is not None and settled["instances"])
        check_rollable(settled)
        current = settled


@moderate
@given(lives(), st.data())
def test_each_replica_is_switched_once_and_enough_go_on_answering(life, data):
    opened, settings = data.draw(rollouts(*life))
    rollout = opened.rollout
    [name] = opened.plan["rollouts"]
    replicas = [it["replica"] for it in of(life[0], name)]
    assert [replica for batch in rollout["batches"] for replica in batch] == sorted(replicas)
    assert all(rollout["batches"])
    largest, total = max(map(len, rollout["batches"])), len(replicas)
    assert largest <= most_at_once(rollout["strategy"], total, settings["max_unavailable"])
    story = rollout_story(opened.plan, name)
    assert story["total"] == total
    if rollout["strategy"] == REPLACE:
        assert largest < total or total == 1
        assert story["least"] == total - largest
        assert story["least"] > 0 or total == 1
    else:
        assert rollout["strategy"] == SURGE and story["least"] == total
    if rollout["undo"] and rollout["strategy"] == SURGE:
        assert len(rollout["batches"]) == 1


@moderate
@given(lives(), st.data())
def test_shares_rise_to_all_of_the_requests(life, data):
    opened, _settings = data.draw(rollouts(*life))
    [name] = opened.plan["rollouts"]
    story = rollout_story(opened.plan, name)
    shares = [batch["share"] for batch in story["batches"]]
    assert shares == sorted(shares) and shares[-1] == 100 and 100 not in shares[:-1]
    switched = []
    for batch in story["batches"]:
        assert batch["switched_before"] == sorted(switched)
        # While these are away, requests are for those that stay: none of them is left without any.
        staying = {it["replica"] for it in of(life[0], name)} - set(batch["replicas"])
        new = staying & set(switched)
        assert (batch["meanwhile"] == 100) == (bool(staying) and new == staying)
        assert (batch["meanwhile"] == 0) == (not new)
        switched += batch["replicas"]
        assert batch["switched"] == sorted(switched)
        for one, release in (("new", "to"), ("old", "from")):
            assert [it["replica"] for it in batch[one]] == batch["replicas"]
            assert {it["release"] for it in batch[one]} == {opened.rollout[release]}
    assert {it["id"] for it in story["new"] + story["old"]} == {it["id"] for it in of(opened.plan, name)}


@moderate
@given(lives(), st.data())
def test_meanwhile_the_catalog_and_the_hosts_may_say_what_they_like(life, data):
    opened, _settings = data.draw(rollouts(*life))
    [name] = opened.plan["rollouts"]
    catalog, hosts = data.draw(catalogs()), data.draw(fleets())
    result = plan(catalog, hosts, opened.plan)
    names = {node["name"] for node in hosts}
    assert of(result.plan, name) == [it for it in of(opened.plan, name) if it["host"] in names]
    assert result.plan["rollouts"] == opened.plan["rollouts"]
    cut_short = name not in {one["name"] for one in catalog} or not {it["host"] for it in of(opened.plan, name)} <= names
    assert bool([fault for fault in result.faults if f"rollout of {name} " in fault.what]) == cut_short
    gpus = {gpu for it in of(opened.plan, name) for gpu in it["gpus"]}
    assert not gpus & {gpu for it in others(result.plan, name) for gpu in it["gpus"]}
