# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.catalog import check_catalog

PROFILES = {
    "llamacpp": {
        "name": "llamacpp",
        "settings": {
            "threads": {"type": "int", "flag": "--threads", "min": 1, "max": 64},
            "mode": {"type": "str", "flag": "--mode", "choices": ["fast", "exact"]},
            "split": {"type": "list", "flag": "--split"},
            "warm": {"type": "bool", "flag": "--warm"},
            "scale": {"type": "float", "flag": "--scale"},
        },
        "container": {"command": [["--port", "{port}"]]},
        "extra_args": {"deny": ["--api-key"]},
    },
}
HOSTS = ["gpu1", "gpu2"]
DEMO = {"name": "demo"}


def model(**changes):
    """A sound model, with keys changed; a key set to None counts as left out."""
    sound = {
        "name": "tiny",
        "version": "1.0.0",
        "versions": {"1.0.0": {"source": "file:///srv/tiny.gguf"}},
        "engine": "llamacpp",
        "access": ["demo"],
    }
    return {**sound, **changes}


def check(*models, clients=(DEMO,), hosts=HOSTS):
    return check_catalog(list(models), list(clients), PROFILES, hosts)


def test_a_sound_catalog_has_no_fault_and_gets_its_defaults():
    models, clients, faults = check(model())
    assert faults == []
    assert models[0]["context"] > 0
    assert models[0]["parallel"] > 0
    assert models[0]["replicas"] == 1
    assert models[0]["gpus"] == 0
    assert models[0]["placement"] == {"hosts": ["*"], "labels": {}, "gpu": [], "spread": None, "apart": []}
    assert models[0]["settings"] == {}
    assert set(clients[0]["limits"]) == {"requests_per_minute", "concurrent"}


def test_nobody_has_access_by_default():
    assert check(model(access=None))[0][0]["access"] == []


def test_what_is_written_is_kept():
    signature = {"key": None, "ca": "/srv/ca.pem", "identity": "models@example.com", "file": "release.sig"}
    written = model(
        versions={"1.0.0": {"source": "file:///srv/tiny.gguf", "signature": "none"}},
        signature=signature,
        settings={"threads": 2, "mode": "fast", "split": [3, 1], "warm": False, "scale": 0.5},
        extra_args=["--fast", "--depth=3"],
        context=512,
        parallel=2,
        replicas="all",
        per_host=2,
        gpus=2,
        share=True,
        placement={"hosts": ["gpu*"], "labels": {"rack": ["r1", "r2"]}, "gpu": ["*H100*"], "spread": "rack", "apart": ["tiny"]},
        access=["*"],
        queue=0,
        limits={"memory": "8g", "gpu_memory": "20g", "cpus": 2, "pids": 100},
        smoke=[{"prompt": "Say hello", "expect": "hello"}],
        gates={
            "path": "/v1/completions",
            "ttft_p95": 2.0,
            "tpot_p95": 0.1,
            "error_rate": 0.0,
            "slowdown": 1.5,
            "samples": 5,
            "concurrency": 1,
            "max_tokens": 8,
            "timeout": 30,
        },
        rollout={
            "strategy": "surge",
            "batches": [1, "50%"],
            "max_unavailable": 1,
            "canary": {"share": 10, "clients": [], "bake": 600, "min_requests": 5},
        },
        intent="answers questions about orders",
    )
    models, _clients, faults = check(copy.deepcopy(written))
    assert faults == []
    assert models == [written]


def test_checking_twice_changes_nothing():
    models, clients, _faults = check(model(limits={"memory": "8g"}, settings={"threads": 2}))
    assert check_catalog(models, clients, PROFILES, HOSTS) == (models, clients, [])


@pytest.mark.parametrize(
    ("changes", "where", "words"),
    [
        ({"engine": "lamacpp"}, "engine", "llamacpp"),
        ({"engine": None}, "", "'engine' is missing"),
        ({"verison": "1.0.0"}, "", "'version'"),
        ({"version": "1.1.0"}, "version", "1.1.0 is not among"),
        ({"version": 1.0}, "version", "in quotes"),
        ({"version": "1.0"}, "version", "semantic version"),
        ({"version": "~1.2"}, "version", "'~1.2' allows none"),
        ({"version": ">=2"}, "version", "1.0.0"),
        ({"version": "1.x"}, "version", "a constraint such as"),
        ({"versions": {}}, "version", "not among"),
        ({"versions": {}, "version": "latest"}, "version", "none yet"),
        ({"versions": {"1.0.0": {"source": "ftp://h/a"}}}, "versions.1.0.0.source", "'ftp'"),
        ({"versions": {"1.0.0": {}}}, "versions.1.0.0", "'source' is missing"),
        ({"versions": {"1.0.0": {"source": "file:///a"}, "1.1": {"source": "file:///b"}}}, "versions.1.1", "semantic"),
        ({"settings": {"thread": 1}}, "settings", "'threads'"),
        ({"settings": {"threads": 65}}, "settings.threads", "from 1 to 64"),
        ({"settings": {"threads": "2"}}, "settings.threads", "whole number"),
        ({"settings": {"threads": True}}, "settings.threads", "whole number"),
        ({"settings": {"mode": "fsat"}}, "settings.mode", "'fast'"),
        ({"settings": {"split": []}}, "settings.split", "too short"),
        ({"settings": {"split": ["a,b"]}}, "settings.split[0]", "commas"),
        ({"settings": {"warm": 1}}, "settings.warm", "true or false"),
        ({"settings": {"scale": "1"}}, "settings.scale", "number"),
        ({"settings": ["threads"]}, "settings", "not a mapping"),
        ({"context": 0}, "context", "whole number"),
        ({"parallel": 0}, "parallel", "whole number"),
        ({"replicas": -1}, "replicas", "'all'"),
        ({"replicas": "every"}, "replicas", "'all'"),
        ({"gpus": 0.5}, "gpus", "whole number"),
        ({"queue": -1}, "queue", "whole number"),
        ({"access": ["dmeo"]}, "access", "'demo'"),
        ({"access": ["*", "demo"]}, "access", "every client"),
        ({"access": "demo"}, "access", "not a list"),
        ({"placement": {"hosts": ["gpu1", "gpx*"]}}, "placement.hosts", "'gpx*' matches no host"),
        ({"placement": {"hosts": []}}, "placement.hosts", "too short"),
        ({"placement": {"host": ["gpu1"]}}, "placement", "'hosts'"),
        ({"placement": {"labels": {"rack": 3}}}, "placement.labels.rack", "a list"),
        ({"placement": {"apart": ["tinny"]}}, "placement.apart", "did you mean 'tiny'?"),
        ({"per_host": 2, "replicas": 3}, "per_host", "replicas: all"),
        ({"share": "yes"}, "share", "true or false"),
        ({"limits": {"memory": "8 GB"}}, "limits.memory", "a size"),
        ({"limits": {"memory": 8}}, "limits.memory", "in quotes"),
        ({"limits": {"memory": "63m"}}, "limits.memory", "64m"),
        ({"limits": {"cpus": 0}}, "limits.cpus", "number"),
        ({"limits": {"pids": 1}}, "limits.pids", "whole number"),
        ({"smoke": [{"expect": "x"}]}, "smoke[0]", "'prompt' is missing"),
        ({"smoke": [{"prompt": "x", "expects": "x"}]}, "smoke[0]", "'expect'"),
        ({"smoke": [{"prompt": " "}]}, "smoke[0].prompt", "a text"),
        ({"intent": 1}, "intent", "a text"),
    ],
)
def test_one_slip_is_one_fault_that_says_where_and_what(changes, where, words):
    _models, _clients, faults = check(model(**changes))
    assert len(faults) == 1
    assert faults[0].where == "llm_fleet_models[tiny]" + (f".{where}" if where else "")
    assert words in faults[0].text()


@pytest.mark.parametrize("name", ["tiny", "TINY"])
def test_two_models_with_one_name_are_a_fault_in_any_letter_case(name):
    models, _clients, faults = check(model(), model(name=name))
    assert [found["name"] for found in models] == ["tiny"]
    assert [fault.where for fault in faults] == ["llm_fleet_models[1].name"]


def test_a_second_model_with_a_taken_name_is_checked_all_the_same():
    faults = check(model(), model(engine="vlm"))[2]
    assert {fault.where for fault in faults} == {"llm_fleet_models[1].name", "llm_fleet_models[tiny].engine"}


def test_two_clients_with_one_name_are_a_fault():
    _models, clients, faults = check(clients=[DEMO, DEMO])
    assert len(clients) == 1
    assert [fault.where for fault in faults] == ["llm_fleet_clients[1].name"]


@pytest.mark.parametrize(
    ("client", "where"),
    [
        ({"name": "demo", "limit": {}}, "llm_fleet_clients[demo]"),
        ({"name": "Demo"}, "llm_fleet_clients[Demo].name"),
        ({}, "llm_fleet_clients[0]"),
        ({"name": "demo", "limits": {"concurrent": 0}}, "llm_fleet_clients[demo].limits.concurrent"),
        ({"name": "a", "limits": {"requests_per_minute": "9"}}, "llm_fleet_clients[a].limits.requests_per_minute"),
    ],
)
def test_slips_in_clients(client, where):
    assert [fault.where for fault in check(clients=[client])[2]] == [where]


def test_what_cannot_be_used_comes_back_as_none_so_that_other_checks_can_go_on():
    found = check(model(engine="vlm", version="1", settings={"threads": 1}))[0][0]
    assert (found["engine"], found["version"], found["settings"]) == (None, None, {})


def test_without_hosts_no_placement_is_blamed():
    assert check(model(placement={"hosts": ["gpu9"]}), hosts=[])[2] == []


@pytest.mark.parametrize("wanted", ["latest", "~1", "~1.0", "^1.0", ">=1 <2", "=1.0.0"])
def test_a_constraint_stays_one(wanted):
    models, _clients, faults = check(model(version=wanted))
    assert faults == [] and models[0]["version"] == wanted


def test_arguments_that_the_fleet_relies_on_are_refused():
    [fault] = check(model(extra_args=["--fast", "--api-key=x"]))[2]
    assert fault.where == "llm_fleet_models[tiny].extra_args[1]"


def test_all_faults_come_at_once():
    faults = check(model(engine="vlm", version="2", access=["x"], replicas=-1), model(name="b", gpus=-1), clients=[])[2]
    assert [fault.where.partition("].")[2] for fault in faults] == [
        "version",
        "replicas",
        "engine",
        "access",
        "gpus",
        "access",
    ]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = ["name", "version", "versions", "engine", "settings", "context", "parallel", "replicas", "gpus", "placement"]
KEYS += ["extra_args", "share", "per_host", "access", "queue", "limits", "smoke", "gates", "rollout", "intent", "signature", "unknown"]


@given(st.data())
def test_nothing_that_json_can_hold_raises(data):
    near = st.dictionaries(st.sampled_from(KEYS), ANYTHING, max_size=5).map(lambda changes: model(**changes))
    entries = ANYTHING | st.lists(ANYTHING | near, max_size=3)
    models, clients, faults = check_catalog(data.draw(entries), data.draw(entries), PROFILES, HOSTS)
    json.dumps([models, clients, [fault.as_dict() for fault in faults]])
    for found in models:
        assert set(found) == set(KEYS) - {"unknown"}


@given(st.sampled_from(KEYS), ANYTHING)
def test_a_catalog_without_fault_is_ready_to_plan_with(key, value):
    models, _clients, faults = check(model(**{key: value}))
    if not faults:
        # No signature is demanded unless one is written.
        assert all(value is not None for key, value in models[0].items() if key != "signature")
