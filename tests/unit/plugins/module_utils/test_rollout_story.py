# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""A rollout as its coordinator goes through it, and as people read it."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.rollout import commit
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.rollout_story import (
    common_progress,
    rollout_lines,
    rollout_story,
)
from ansible_collections.localfirst.llm_fleet.tests.unit.plugins.module_utils.fleet_builders import (
    host,
    model,
    opened,
    plan,
    record,
    rollout_settings,
)

HOSTS = [host("gpu1"), host("gpu2")]
OLD, NEW = record("tiny"), record("tiny", "1.1.0")
NOTHING = {"switched": [], "baked": False, "back": ""}


def rolling(replicas: int = 4, **asked) -> dict:
    return opened(plan([model("tiny", replicas), model("other")], HOSTS).plan, HOSTS, "tiny", **asked)


def story(replicas: int = 4, progress: dict | None = None, **asked) -> dict:
    return rollout_story(rolling(replicas, **asked), "tiny", progress)


def each(told: dict, key: str) -> list:
    return [batch[key] for batch in told["batches"]]


# The story


def test_it_says_what_goes_where_and_which_backends_are_concerned():
    told = story(2, why="faster")
    said = {"model": "tiny", "from": OLD["release"], "to": NEW["release"], "from_version": "1.0.0", "to_version": "1.1.0"}
    said |= {"id": "r-1", "who": "ann on laptop", "why": "faster", "undo": False, "strategy": "surge", "engine": "llamacpp"}
    said |= {"backend": f"be_tiny_{NEW['release']}", "old_backend": f"be_tiny_{OLD['release']}", "total": 2}
    assert said.items() <= told.items()
    assert [it["id"] for it in told["new"]] == ["tiny-0-b", "tiny-1-b"]
    assert [it["id"] for it in told["old"]] == ["tiny-0-a", "tiny-1-a"]


def test_each_instance_has_its_record_and_the_gateways_name_for_it():
    told = story(1)
    [new], [old] = told["batches"][0]["new"], told["batches"][0]["old"]
    assert (new["record"], new["server"]) == (NEW, f"be_tiny_{NEW['release']}/tiny-0-b")
    assert (old["record"], old["server"]) == (OLD, f"be_tiny_{OLD['release']}/tiny-0-a")


def test_batches_are_numbered_and_know_what_has_switched():
    told = story(4)
    assert each(told, "replicas") == [[0], [1, 2, 3]]
    assert each(told, "number") == [1, 2] and each(told, "of") == [2, 2]
    assert each(told, "switched") == [[0], [0, 1, 2, 3]]
    assert each(told, "switched_before") == [[], [0]]


@pytest.mark.parametrize(
    ("replicas", "shares"),
    [(1, [100]), (2, [50, 100]), (3, [33, 100]), (4, [25, 100]), (8, [12, 25, 100])],
)
def test_the_share_is_that_of_the_replicas(replicas, shares):
    assert each(story(replicas), "share") == shares


def test_while_some_are_away_the_requests_are_for_those_that_stay():
    told = story(3, strategy="replace")
    assert each(told, "replicas") == [[0], [1], [2]]
    # Of the two that stay in the end both have switched.
    assert each(told, "meanwhile") == [0, 50, 100] and each(told, "share") == [33, 67, 100]
    # With nobody left there is nothing to divide.
    assert each(story(1, strategy="replace", accept_outage=True), "meanwhile") == [0]


def test_the_first_batch_is_the_canary_while_both_releases_answer():
    assert each(story(4), "canary") == [True, False]
    assert each(story(1), "canary") == [True]
    assert each(story(4, settings=rollout_settings(canary="none")), "canary") == [False, False]
    assert each(story(2, strategy="replace"), "canary") == [True, False]
    assert each(story(1, strategy="replace", accept_outage=True), "canary") == [False]


def test_what_has_switched_everywhere_is_done():
    told = story(4, {"switched": [0], "baked": True})
    assert each(told, "done") == [True, False]
    assert told["progress"] == {"switched": [0], "baked": True, "back": ""}
    assert each(story(4, {"switched": [0, 1, 3]}), "done") == [True, False]
    assert each(story(4, {"switched": [0, 1, 2, 3]}), "done") == [True, True]
    assert each(story(4), "done") == [False, False] and story(4)["progress"] == NOTHING


def test_replicas_that_ran_it_before_count_as_switched():
    fleet = plan([model("tiny", 4)], HOSTS).plan
    done = commit(opened(fleet, HOSTS, "tiny"), "tiny", "")
    instances = sorted(fleet["instances"][:2] + done["instances"][2:], key=lambda it: it["replica"])
    mixed = {**fleet, "instances": instances, "releases": {**fleet["releases"], **done["releases"]}}
    told = rollout_story(opened(mixed, HOSTS, "tiny"), "tiny")
    assert (told["total"], each(told, "replicas"), each(told, "share")) == (4, [[0], [1]], [75, 100])
    assert [it["id"] for it in told["new"]] == ["tiny-0-b", "tiny-1-b"]


@pytest.mark.parametrize(
    ("replicas", "asked", "least"),
    [
        (3, {}, 3),
        (3, {"strategy": "replace"}, 2),
        (8, {"strategy": "replace"}, 6),
        (1, {"strategy": "replace", "accept_outage": True}, 0),
    ],
)
def test_how_many_serve_at_any_moment(replicas, asked, least):
    assert story(replicas, **asked)["least"] == least


# For people


def lines(replicas: int = 2, progress: dict | None = None, **asked) -> list:
    return rollout_lines(story(replicas, progress, **asked))


def test_the_lines_of_a_surge():
    old, new = OLD["release"], NEW["release"]
    where = [it["host"] for it in story(2)["old"]]
    assert lines() == [
        f"tiny 1.0.0 -> 1.1.0 (release {old} -> {new}): surge, 2 batches",
        "at any moment all 2 replicas serve",
        f"batch 1 of 2: {where[0]}: start tiny-0-b (port 20003, 4 bytes of files) beside tiny-0-a, gate it, drain tiny-0-a",
        "batch 1 of 2: bake for 300 s with 5 % of the requests, at least 100 requests",
        "batch 1 of 2: send 50 % of the requests to 1.1.0",
        f"batch 2 of 2: {where[1]}: start tiny-1-b (port 20005, 4 bytes of files) beside tiny-1-a, gate it, drain tiny-1-a",
        "batch 2 of 2: send 100 % of the requests to 1.1.0",
    ]


def test_the_lines_of_a_replacement_say_in_which_order_and_how_many_are_missing():
    told = lines(strategy="replace")
    assert told[1] == "at any moment at least 1 of 2 replicas serve, fewer than wanted"
    [first] = [line for line in told if "tiny-0-b" in line]
    assert first.index("stop tiny-0-a") < first.index("start tiny-0-b")


def test_an_outage_is_said_in_capitals():
    told = lines(1, strategy="replace", accept_outage=True)
    assert "1 batch" in told[0] and "1 batches" not in told[0]
    assert told[1].startswith("OUTAGE: ")
    assert not [line for line in lines(1) + lines(2, strategy="replace") if "OUTAGE" in line]
    assert lines(1)[1] == "its one replica serves at any moment"


def test_what_is_done_is_not_told_again():
    told = lines(2, {"switched": [0], "baked": True})
    assert "batch 1 of 2: done already" in told and not [line for line in told if "tiny-0-b" in line]
    assert [line for line in told if "tiny-1-b" in line]


def test_a_canary_that_was_watched_is_not_watched_again():
    assert [line for line in lines() if "bake" in line]
    assert not [line for line in lines(2, {"baked": True}) if "bake" in line]


def test_the_canary_says_who_it_is():
    canary = {"share": 0, "clients": ["qa", "demo"], "bake": "1m", "min_requests": 7}
    [line] = [line for line in lines(settings=rollout_settings(canary=canary)) if "bake" in line]
    assert line == "batch 1 of 2: bake for 60 s with the clients qa, demo, at least 7 requests"
    both = rollout_settings(canary={**canary, "share": 3})
    [line] = [line for line in lines(settings=both) if "bake" in line]
    assert "3 % of the requests and the clients qa, demo" in line


# How far it is


ROLLOUT = {"id": "r-1"}


def route(*switched: int, **other) -> dict:
    return {"progress": {"rollout": "r-1", "switched": list(switched), **other}}


def test_what_only_some_gateways_know_is_done_again():
    routes = [route(2, 0, 1, baked=True), route(0, 2), route(3, 2, 0, baked=True)]
    assert common_progress(ROLLOUT, routes) == {"switched": [0, 2], "baked": False, "back": ""}
    assert common_progress(ROLLOUT, [route(0, baked=True), route(0, baked=True)])["baked"] is True


ANOTHERS = {"progress": {"rollout": "r-0", "switched": [0, 1], "baked": True, "back": "slow"}}


@pytest.mark.parametrize("other", [{}, {"progress": {}}, ANOTHERS])
def test_a_gateway_that_knows_nothing_of_it_takes_all_back_to_the_beginning(other):
    assert common_progress(ROLLOUT, [route(0, 1, baked=True), other]) == NOTHING
    assert common_progress(ROLLOUT, [other]) == NOTHING


def test_without_a_gateway_nothing_is_known():
    assert common_progress(ROLLOUT, []) == NOTHING


def test_one_gateway_is_enough_to_go_back():
    assert common_progress(ROLLOUT, [route(0), route(0, back="slow"), {}])["back"] == "slow"
