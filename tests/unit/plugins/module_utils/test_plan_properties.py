# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What holds for every fleet, whatever happens to it. Hypothesis looks for a fleet for which it does not."""

from __future__ import annotations

import copy
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.tests.unit.plugins.module_utils.fleet_builders import (
    host,
    labels,
    model,
    plan,
    surged,
)

MODELS = ("a", "b", "c", "d")
HOSTS = ("n0", "n1", "n2", "n3")
# Room for 6 replicas: chains of changes use it up, and have to take ports back.
NARROW = (20000, 20011)

moderate = settings(max_examples=150, deadline=None)


@st.composite
def catalogs(draw):
    return [
        model(
            name,
            draw(st.sampled_from((2, 1, 3, 0, "all"))),
            draw(st.sampled_from((1, 0, 2))),
            version=draw(st.sampled_from(("1.0.0", "1.1.0"))),
            engine=draw(st.sampled_from(("llamacpp", "llamacpp", "ollama"))),
            placement={"hosts": draw(st.sampled_from((["*"], ["*"], ["n[0-1]"], ["n2", "n3"])))},
        )
        for name in draw(st.lists(st.sampled_from(MODELS), unique=True, min_size=1))
    ]


@st.composite
def fleets(draw):
    # Mostly with GPUs for everybody: a fleet of which every plan is a fault would prove little.
    return [
        host(name, draw(st.sampled_from((4, 2, 3, 1))), reachable=draw(st.sampled_from((True, True, True, False))))
        for name in draw(st.lists(st.sampled_from(HOSTS), unique=True, min_size=2))
    ]


@st.composite
def histories(draw):
    """(applied plan or None, the next catalog, the next hosts): a fleet somewhere in its life."""
    current = None
    for _step in range(draw(st.sampled_from((1, 2, 3, 0)))):
        current = apply(draw, current, draw(catalogs()), draw(fleets())) or current
    return current, draw(catalogs()), draw(fleets())


def apply(draw, current, catalog, hosts, **options):
    """The next applied plan, now and then in the middle of a rollout; None where the plan is refused."""
    result = plan(catalog, hosts, current, **options)
    if result.faults:
        return None
    return surge(result.plan, hosts, draw(st.integers(0, 9)))


def surge(planned, hosts, pick):
    """Puts a new release into the other slot of one replica, on free GPUs of its host, as a rollout does."""
    if pick >= len(planned["instances"]):
        return planned
    old = planned["instances"][pick]
    slots = [it for it in planned["instances"] if (it["model"], it["replica"]) == (old["model"], old["replica"])]
    used = {gpu for instance in planned["instances"] for gpu in instance["gpus"]}
    free = [gpu for node in hosts if node["name"] == old["host"] for gpu in node["gpus"] if gpu not in used]
    if len(slots) == 2 or len(free) < len(old["gpus"]):
        return planned
    return surged(planned, old["id"], "2.0.0", gpus=free[: len(old["gpus"])])


def placed(planned):
    """What must not move: where each instance is, and with what."""
    return {it["id"]: (it["host"], it["port"], it["gpus"], it["release"]) for it in planned["instances"]}


def check_sound(result, hosts):
    """What no plan may ever get wrong."""
    planned, nodes = result.plan, {node["name"]: node for node in hosts}
    instances = planned["instances"]
    assert len({it["id"] for it in instances}) == len(instances)

    everything = instances + result.leaving
    gpus = [gpu for it in everything for gpu in it["gpus"]]
    assert len(set(gpus)) == len(gpus), "a GPU was given away twice"
    for it in instances:
        assert it["host"] in nodes
        if nodes[it["host"]]["reachable"]:
            assert set(it["gpus"]) <= set(nodes[it["host"]]["gpus"])

    pairs = [port for first in planned["ports"].values() for port in (first, first + 1)]
    assert len(set(pairs)) == len(pairs), "two replicas share a port"
    for it in everything:
        assert it["port"] == planned["ports"][f"{it['model']}/{it['replica']}"] + "ab".index(it["slot"])

    assert set(planned["releases"]) == {it["release"] for it in instances}
    assert {it["model"] for it in instances} <= set(planned["models"])
    needed = {planned["releases"][it["release"]]["engine"] for it in instances}
    assert needed | {entry["engine"] for entry in planned["models"].values()} == set(planned["engines"])
    assert json.loads(json.dumps(planned)) == planned, "what is read back from plan.json differs"


@moderate
@given(histories())
def test_every_plan_is_sound(history):
    current, catalog, hosts = history
    check_sound(plan(catalog, hosts, current), hosts)


@moderate
@given(histories(), st.randoms(use_true_random=False))
def test_order_does_not_matter_and_nothing_given_is_changed(history, random):
    current, catalog, hosts = history
    given_before = copy.deepcopy(history)
    result = plan(catalog, hosts, current)
    assert (current, catalog, hosts) == given_before
    shuffled, shuffled_hosts = random.sample(catalog, len(catalog)), random.sample(hosts, len(hosts))
    other = current and {**current, "instances": random.sample(current["instances"], len(current["instances"]))}
    assert json.dumps(plan(shuffled, shuffled_hosts, current)) == json.dumps(result)
    assert plan(shuffled, shuffled_hosts, other).plan["instances"] == result.plan["instances"]
    assert plan(shuffled, shuffled_hosts, other).leaving == result.leaving


@moderate
@given(histories())
def test_planning_again_changes_nothing(history):
    current, catalog, hosts = history
    result = plan(catalog, hosts, current)
    # A replica that waits for the GPUs of one that leaves gets them in the next run.
    while any("run again" in sentence for sentence in result.pending):
        following = plan(catalog, hosts, result.plan)
        assert following.plan["generation"] == result.plan["generation"] + 1
        result = following
    again = plan(catalog, hosts, result.plan)
    assert again.plan == result.plan
    assert not again.actions and not again.leaving
    assert again.pending == result.pending


@moderate
@given(histories())
def test_the_generation_counts_changes_and_every_change_is_said(history):
    current, catalog, hosts = history
    result = plan(catalog, hosts, current)
    if current is None:
        assert result.plan["generation"] == 1
        return
    changed = {**result.plan, "generation": current["generation"]} != current
    assert result.plan["generation"] == current["generation"] + changed
    assert bool(result.actions) == changed


@moderate
@given(histories())
def test_every_wanted_replica_is_placed_or_accounted_for(history):
    current, catalog, hosts = history
    result = plan(catalog, hosts, current)
    if result.faults:
        return
    for entry in catalog:
        own = [it for it in result.plan["instances"] if it["model"] == entry["name"]]
        waiting = [sentence for sentence in result.pending if sentence.startswith(f"{entry['name']}: replica")]
        if entry["replicas"] == "all":
            patterns = {"*": HOSTS, "n[0-1]": HOSTS[:2], "n2": HOSTS[2:]}[entry["placement"]["hosts"][0]]
            wanted = {node["name"] for node in hosts} & set(patterns)
            assert len(wanted - {it["host"] for it in own}) == len(waiting)
        else:
            missing = set(range(entry["replicas"])) - {it["replica"] for it in own}
            assert len(missing) == len(waiting)


@moderate
@given(histories())
def test_nothing_is_lost_what_is_not_planned_leaves(history):
    current, catalog, hosts = history
    result = plan(catalog, hosts, current)
    before = {(it["id"], it["host"]) for it in current["instances"]} if current else set()
    after = {(it["id"], it["host"]) for it in result.plan["instances"]}
    assert {(it["id"], it["host"]) for it in result.leaving} == before - after
    names = [it["server"] for it in result.leaving] + [it["id"] for it in result.plan["instances"]]
    assert len(set(names)) == len(names)
    assert all("release_record" in it and "engine_record" in it for it in result.leaving)


@moderate
@given(histories())
def test_an_unreachable_host_keeps_its_entries_and_gets_none(history):
    current, catalog, hosts = history
    result = plan(catalog, hosts, current)
    for node in hosts:
        if not node["reachable"]:
            before = [it for it in current["instances"] if it["host"] == node["name"]] if current else []
            assert [it for it in result.plan["instances"] if it["host"] == node["name"]] == before


@moderate
@given(histories())
def test_a_running_model_is_never_switched_to_another_release(history):
    current, catalog, hosts = history
    result = plan(catalog, hosts, current)
    running = {}
    for it in (current or {"instances": []})["instances"]:
        running.setdefault(it["model"], set()).add(it["release"])
    for it in result.plan["instances"]:
        assert it["release"] in running.get(it["model"], {it["release"]})


@moderate
@given(histories(), st.sampled_from(HOSTS))
def test_a_host_that_comes_moves_nothing(history, name):
    current, catalog, hosts = history
    hosts = [node for node in hosts if node["name"] != name]
    before = plan(catalog, hosts, current).plan
    after = placed(plan(catalog, [*hosts, host(name, 4)], before).plan)
    assert placed(before).items() <= after.items()


@moderate
@given(histories(), st.sampled_from(HOSTS))
def test_a_host_that_goes_moves_only_what_it_held(history, name):
    current, catalog, hosts = history
    first = plan(catalog, hosts, current)
    second = plan(catalog, [node for node in hosts if node["name"] != name], first.plan).plan
    elsewhere = {key: seat for key, seat in placed(first.plan).items() if seat[0] != name}
    assert elsewhere.items() <= placed(second).items()
    held = {(it["model"], it["replica"]) for it in first.plan["instances"] if it["host"] == name}
    new = {(it["model"], it["replica"]) for it in second["instances"] if it["id"] not in elsewhere}
    if not first.faults and not any("run again" in sentence for sentence in first.pending):
        assert new <= held


@moderate
@given(histories(), st.sampled_from(MODELS), st.integers(0, 3), st.integers(0, 2))
def test_a_model_that_comes_goes_or_grows_moves_no_other(history, name, replicas, gpus):
    current, catalog, hosts = history
    before = plan(catalog, hosts, current).plan
    changed = [entry for entry in catalog if entry["name"] != name]
    others = {key: seat for key, seat in placed(before).items() if key.rsplit("-", 2)[0] != name}
    assert others.items() <= placed(plan(changed, hosts, before).plan).items()
    changed.append(model(name, replicas, gpus))
    assert others.items() <= placed(plan(changed, hosts, before).plan).items()


@moderate
@given(histories(), st.sampled_from(MODELS), st.integers(0, 3), st.integers(0, 3))
def test_scaling_keeps_the_lower_replicas(history, name, many, few):
    current, catalog, hosts = history
    catalog = [entry for entry in catalog if entry["name"] != name]
    before = plan([*catalog, model(name, max(many, few))], hosts, current).plan
    after = placed(plan([*catalog, model(name, min(many, few))], hosts, before).plan)
    kept = {
        it["id"]: placed(before)[it["id"]]
        for it in before["instances"]
        if it["model"] == name and it["replica"] < min(many, few)
    }
    assert kept.items() <= after.items()


@moderate
@given(st.data())
def test_along_a_life_every_plan_is_sound_and_no_port_changes_its_replica(data):
    current, owners = None, {}
    for _step in range(data.draw(st.integers(1, 7))):
        hosts = data.draw(fleets())
        catalog = data.draw(catalogs())
        found = {}
        for it in (current or {"instances": []})["instances"]:
            found.setdefault(it["host"], []).append(labels(it))
        running = {node["name"]: found.get(node["name"], []) for node in hosts if node["reachable"]}
        result = plan(catalog, hosts, current, running=running)
        check_sound(result, hosts)
        if not result.faults:  # otherwise it is not applied, and nobody learns its ports
            for replica, first in result.plan["ports"].items():
                assert owners.setdefault(first, replica) == replica
            current = surge(result.plan, hosts, data.draw(st.integers(0, 9)))


@moderate
@given(st.data())
def test_a_narrow_range_never_lets_two_replicas_share_a_port(data):
    current = None
    for _step in range(data.draw(st.integers(1, 7))):
        hosts = data.draw(fleets())
        lowest, highest = data.draw(st.sampled_from((NARROW, NARROW, (20001, 20012), (20004, 20020))))
        result = plan(data.draw(catalogs()), hosts, current, port_range=(lowest, highest))
        check_sound(result, hosts)
        known = current["ports"] if current else {}
        stands = {f"{it['model']}/{it['replica']}" for it in current["instances"]} if current else set()
        assert {key: known[key] for key in stands}.items() <= result.plan["ports"].items()
        given = [first for key, first in result.plan["ports"].items() if known.get(key) != first]
        assert all(lowest <= first and first + 1 <= highest for first in given)
        if not result.faults:
            current = result.plan
