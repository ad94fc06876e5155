# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What hosts learn from the plan."""

from __future__ import annotations

import hashlib
import json

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.engine_profile import PLACEHOLDERS
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.views import (
    engine_key,
    engine_keys,
    gateway_servers,
    gateway_view,
    host_instances,
    settled_instances,
    status_rows,
)
from ansible_collections.localfirst.llm_fleet.tests.unit.plugins.module_utils.fleet_builders import (
    host,
    labels,
    model,
    opened,
    plan,
    record,
    surged,
)

DEMO, QA = {"name": "demo", "limits": {"requests_per_minute": 60, "concurrent": 2}}, {"name": "qa"}
HOSTS = [host("gpu1"), host("gpu2")]
RELEASE = record("tiny")["release"]


def servers(view):
    """{backend: {server: its address and port}}."""
    return {
        backend["name"]: {server["name"]: f"{server['address']}:{server['port']}" for server in backend["servers"]}
        for backend in view["backends"]
    }


def state(name, *instances, **other):
    """A host as host_info describes it."""
    return {"host": name, "reachable": True, "plan": None, "instances": list(instances), **other}


# Nodes


def test_a_host_gets_its_own_instances_with_their_releases():
    planned = plan([model("tiny", 2)], HOSTS).plan
    [instance] = host_instances(planned, "gpu2")
    assert (instance["id"], instance["record"]) == ("tiny-1-a", record("tiny"))
    assert host_instances(planned, "gpu3") == []


# Keys


def test_every_model_and_every_seed_has_its_own_key():
    keys = [engine_key("seed", "a"), engine_key("seed", "b"), engine_key("other seed", "a")]
    assert len(set(keys)) == len(keys)
    assert engine_key("seed", "a") == keys[0]


def test_a_key_needs_a_secret():
    with pytest.raises(ValueError, match="empty"):
        engine_key("", "a")


def test_keys_of_leaving_models_are_there_until_they_are_drained():
    first = plan([model("tiny"), model("old")], HOSTS)
    result = plan([model("tiny")], HOSTS, first.plan)
    assert set(engine_keys(result.plan, "seed")) == {"tiny"}
    keys = engine_keys(result.plan, "seed", result.leaving)
    assert keys == {name: engine_key("seed", name) for name in ("tiny", "old")}


# Gateways


def test_a_model_has_one_backend_with_a_server_for_each_instance():
    planned = plan([model("tiny", 2, queue=3)], HOSTS).plan
    view = gateway_view(planned, [DEMO])
    first, second = planned["instances"]
    name = f"be_tiny_{RELEASE}"
    assert servers(view) == {
        name: {
            "tiny-0-a": f"{first['address']}:{first['port']}",
            "tiny-1-a": f"{second['address']}:{second['port']}",
        }
    }
    [backend] = view["backends"]
    assert (backend["queue"], backend["api_key"]) == (3, True)
    assert {server["maxconn"] for server in backend["servers"]} == {record("tiny")["parallel"]}
    assert view["models"] == {"tiny": name, "tiny@1.0.0": name, f"tiny@{RELEASE}": name}


def test_probes_know_the_model():
    catalog = [model("tiny"), model("other", engine="ollama")]
    other, tiny = gateway_view(plan(catalog, HOSTS).plan, [])["backends"]
    assert tiny["ready"][1]["contains"] == '"id":"tiny"'
    assert tiny["ready"][0]["status"] == 200
    assert other["ready"][0]["contains"] == '"name":"other:1.0.0"'


def test_a_probe_may_use_every_placeholder_of_a_profile():
    planned = plan([model("tiny")], HOSTS).plan
    planned["engines"]["llamacpp"] = {
        **planned["engines"]["llamacpp"],
        "ready": [{"path": "/" + "/".join(f"{{{name}}}" for name in PLACEHOLDERS)}],
    }
    [backend] = gateway_view(planned, [])["backends"]
    assert "{" not in backend["ready"][0]["path"]


def test_two_releases_have_two_backends_and_the_name_without_version_leads_to_the_running_one():
    planned = surged(plan([model("tiny", 2)], HOSTS).plan, "tiny-0-a", "1.1.0")
    view = gateway_view(planned, [DEMO])
    old, new = f"be_tiny_{RELEASE}", f"be_tiny_{record('tiny', '1.1.0')['release']}"
    later = record("tiny", "1.1.0")["release"]
    assert view["models"] == {"tiny": old, "tiny@1.0.0": old, f"tiny@{RELEASE}": old, "tiny@1.1.0": new, f"tiny@{later}": new}
    assert set(servers(view)[old]) == {"tiny-0-a", "tiny-1-a"}
    assert set(servers(view)[new]) == {"tiny-0-b"}


def test_of_two_releases_of_one_version_the_name_leads_to_the_running_one():
    planned = surged(plan([model("tiny")], HOSTS).plan, "tiny-0-a", "1.0.0", engine="ollama")
    assert gateway_view(planned, [DEMO])["models"]["tiny@1.0.0"] == f"be_tiny_{RELEASE}"


def test_a_parked_model_is_known_and_has_no_server():
    view = gateway_view(plan([model("tiny", 0)], HOSTS).plan, [DEMO])
    assert servers(view) == {view["models"]["tiny"]: {}}


def test_a_leaving_instance_keeps_its_server_beside_the_others():
    first = plan([model("tiny", 2)], HOSTS)
    result = plan([model("tiny", 1)], HOSTS, first.plan)
    view = gateway_view(result.plan, [DEMO], result.leaving)
    assert set(servers(view)[f"be_tiny_{RELEASE}"]) == {"tiny-0-a", "tiny-1-a"}
    assert set(servers(gateway_view(result.plan, [DEMO]))[f"be_tiny_{RELEASE}"]) == {"tiny-0-a"}
    assert gateway_servers(result.leaving) == [f"be_tiny_{RELEASE}/tiny-1-a"]


def test_a_leaving_model_keeps_its_backend_and_nobody_finds_it():
    first = plan([model("tiny", access=["*"], engine="ollama")], HOSTS)
    result = plan([], HOSTS, first.plan)
    view = gateway_view(result.plan, [DEMO], result.leaving)
    [backend] = view["backends"]
    assert [server["name"] for server in backend["servers"]] == ["tiny-0-a"]
    assert backend["ready"][0]["contains"] == '"name":"tiny:1.0.0"'
    assert backend["api_key"] is False
    assert not view["models"] and not view["access"] and not view["paths"]


def test_a_server_name_is_unique_even_where_the_same_id_runs_on_two_hosts():
    first = plan([model("tiny")], HOSTS)
    [instance] = first.plan["instances"]
    result = plan([model("tiny")], HOSTS, first.plan, running={"gpu2": [labels(instance)]})
    view = gateway_view(result.plan, [DEMO], result.leaving)
    assert servers(view)[f"be_tiny_{RELEASE}"] == {
        "tiny-0-a": f"{HOSTS[0]['address']}:{instance['port']}",
        "tiny-0-a.gpu2": f"{HOSTS[1]['address']}:{instance['port']}",
    }
    assert gateway_servers(result.leaving) == [f"be_tiny_{RELEASE}/tiny-0-a.gpu2"]


def test_a_container_of_an_unknown_release_gets_no_server_and_keeps_its_name():
    first = plan([model("tiny")], HOSTS)
    stray = labels({**first.plan["instances"][0], "id": "odd-0-a", "model": "odd", "release": "0123456789ab"})
    result = plan([model("tiny")], HOSTS, first.plan, running={"gpu1": [stray]})
    assert len(result.leaving) == 1
    assert gateway_view(result.plan, [DEMO], result.leaving) == gateway_view(result.plan, [DEMO])
    # An interrupted run may have forgotten the release, while old workers of HAProxy still serve its streams.
    assert gateway_servers(result.leaving) == ["be_odd_0123456789ab/odd-0-a"]


def test_a_removed_model_on_an_unreachable_host_keeps_its_server_and_nobody_finds_it():
    first = plan([model("tiny")], HOSTS[:1])
    result = plan([], [{**HOSTS[0], "reachable": False}], first.plan)
    view = gateway_view(result.plan, [DEMO])
    assert set(servers(view)[f"be_tiny_{RELEASE}"]) == {"tiny-0-a"}
    assert not view["models"] and not view["access"] and not view["paths"]


def test_access_is_by_client_and_a_star_means_everybody():
    catalog = [model("open", access=["*"]), model("closed", access=["qa"]), model("nobody", access=[])]
    view = gateway_view(plan(catalog, HOSTS).plan, [QA, DEMO])
    assert view["access"] == ["demo|open", "qa|closed", "qa|open"]
    assert len(view["backends"]) == 3


def test_somebody_who_is_no_client_has_no_access():
    view = gateway_view(plan([model("tiny", access=["gone", "demo"])], HOSTS).plan, [DEMO])
    assert view["access"] == ["demo|tiny"]


def test_the_list_of_models_is_what_the_client_may_use():
    catalog = [model("b", access=["demo"]), model("a", access=["*"])]
    lists = gateway_view(plan(catalog, HOSTS).plan, [DEMO, QA])["model_lists"]
    bodies = {client: json.loads(body) for client, body in lists.items()}
    assert [entry["id"] for entry in bodies["demo"]["data"]] == ["a", "b"]
    assert [entry["id"] for entry in bodies["qa"]["data"]] == ["a"]
    assert all(body["object"] == "list" for body in bodies.values())
    assert not any(character.isspace() for body in lists.values() for character in body)


def test_paths_are_those_of_the_engine_that_runs():
    first = plan([model("tiny")], HOSTS)
    pending = plan([model("tiny", engine="ollama")], HOSTS, first.plan).plan
    assert gateway_view(pending, [])["paths"] == gateway_view(first.plan, [])["paths"]


def test_limits_are_the_clients_own():
    limits = gateway_view(plan([], HOSTS).plan, [DEMO, QA])["limits"]
    assert limits["demo"] == DEMO["limits"]
    assert limits["qa"]["requests_per_minute"] > 0 and limits["qa"]["concurrent"] > 0


def test_the_view_does_not_depend_on_the_order_of_anything():
    catalog = [model("b", 2), model("a", 2)]
    straight = plan(catalog, HOSTS).plan
    upside_down = {**straight, "models": dict(reversed(straight["models"].items())),
                   "instances": straight["instances"][::-1]}
    assert json.dumps(gateway_view(upside_down, [QA, DEMO])) == json.dumps(gateway_view(straight, [DEMO, QA]))


def test_a_leaving_container_without_an_address_gets_no_server():
    first = plan([model("tiny")], HOSTS)
    [instance] = first.plan["instances"]
    result = plan([model("tiny")], HOSTS, first.plan, running={"gone": [labels(instance)]})
    assert [it["host"] for it in result.leaving] == ["gone"]
    assert gateway_view(result.plan, [DEMO], result.leaving) == gateway_view(result.plan, [DEMO])


# Status


@pytest.mark.parametrize(
    ("container", "shown"),
    [
        ({"state": "running", "health": "healthy"}, "running"),
        ({"state": "running", "health": "none"}, "running"),
        ({"state": "running", "health": "starting"}, "starting"),
        ({"state": "running", "health": "unhealthy"}, "unhealthy"),
        ({"state": "restarting", "health": "none"}, "unhealthy"),
        ({"state": "paused", "health": "healthy"}, "stopped"),
        ({"state": "exited", "health": "unhealthy"}, "stopped"),
    ],
)
def test_the_state_of_a_container(container, shown):
    planned = plan([model("tiny")], HOSTS).plan
    [row] = status_rows(planned, [state("gpu1", labels(planned["instances"][0], **container)), state("gpu2")])
    assert (row["host"], row["instance"], row["state"]) == ("gpu1", "tiny-0-a", shown)


def test_a_row_says_what_should_run():
    planned = plan([model("tiny")], HOSTS).plan
    [instance] = planned["instances"]
    [row] = status_rows(planned, [state("gpu1", labels(instance)), state("gpu2")])
    assert (row["model"], row["version"], row["engine"], row["port"]) == ("tiny", "1.0.0", "llamacpp", instance["port"])
    assert (row["release"], row["wanted_release"], row["pending"], row["drift"]) == (RELEASE, RELEASE, False, "")


def test_what_is_planned_and_not_there_is_missing():
    [row] = status_rows(plan([model("tiny")], HOSTS).plan, [state("gpu1")])
    assert row["state"] == "missing" and row["drift"]


@pytest.mark.parametrize("states", [[], [{"host": "gpu1", "reachable": False}]])
def test_a_silent_host_is_unreachable(states):
    [row] = status_rows(plan([model("tiny")], HOSTS).plan, states)
    assert row["state"] == "unreachable"


def test_what_runs_without_a_plan_is_unexpected():
    [instance] = plan([model("tiny")], HOSTS).plan["instances"]
    for planned in (None, plan([], HOSTS).plan):
        [row] = status_rows(planned, [state("gpu2", labels(instance))])
        assert (row["host"], row["instance"], row["state"]) == ("gpu2", "tiny-0-a", "unexpected")
        assert not row["pending"]


def test_the_same_id_on_another_host_is_unexpected_there():
    planned = plan([model("tiny")], HOSTS).plan
    found = labels(planned["instances"][0])
    rows = status_rows(planned, [state("gpu1", found), state("gpu2", found)])
    assert [(row["host"], row["state"]) for row in rows] == [("gpu1", "running"), ("gpu2", "unexpected")]


def test_another_release_or_port_than_planned_is_drift():
    planned = plan([model("tiny")], HOSTS).plan
    found = labels(planned["instances"][0], release="0123456789ab", port=20400)
    [row] = status_rows(planned, [state("gpu1", found)])
    assert row["state"] == "running"
    assert "0123456789ab" in row["drift"] and RELEASE in row["drift"] and "20400" in row["drift"]


def test_a_host_with_an_older_plan_is_drift():
    planned = plan([model("tiny")], HOSTS).plan
    newer = {**planned, "generation": 7}
    [row] = status_rows(newer, [state("gpu1", labels(planned["instances"][0]), plan=planned)])
    assert "generation 1" in row["drift"] and "7" in row["drift"]


def test_a_pending_rollout_shows_in_every_row_of_the_model():
    first = plan([model("tiny", 2)], HOSTS).plan
    rows = status_rows(plan([model("tiny", 2, version="1.1.0")], HOSTS, first).plan, [])
    assert {row["wanted_release"] for row in rows} == {record("tiny", "1.1.0")["release"]}
    assert [row["pending"] for row in rows] == [True, True]


def test_during_a_rollout_only_the_old_instance_is_pending():
    first = plan([model("tiny", 2)], HOSTS).plan
    planned = surged(plan([model("tiny", 2, version="1.1.0")], HOSTS, first).plan, "tiny-0-a", "1.1.0")
    pending = {row["instance"]: row["pending"] for row in status_rows(planned, [])}
    assert pending == {"tiny-0-a": True, "tiny-0-b": False, "tiny-1-a": True}


def test_the_key_is_an_hmac_that_others_can_compute():
    """RFC 2104, written out: engines and gateways of later versions must come to the same key."""
    block = b"seed".ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block) + b"llm_fleet engine key:tiny").digest()
    assert engine_key("seed", "tiny") == hashlib.sha256(bytes(byte ^ 0x5C for byte in block) + inner).hexdigest()


# An open rollout


@pytest.fixture
def rolling():
    """tiny goes from 1.0.0 to 1.1.0, one replica on each host; other does not."""
    return opened(plan([model("tiny", 2), model("other")], HOSTS).plan, HOSTS, "tiny")


def test_what_waits_or_leaves_in_a_rollout_is_nobody_elses_to_start(rolling):
    duties = {it["id"]: it["duty"] for name in ("gpu1", "gpu2") for it in host_instances(rolling, name)}
    assert duties == {"tiny-0-a": "leave", "tiny-0-b": "wait", "tiny-1-a": "leave", "tiny-1-b": "wait", "other-0-a": "serve"}
    assert [it["id"] for it in settled_instances(rolling)] == ["other-0-a"]
    first = plan([model("tiny", 2)], HOSTS).plan
    assert settled_instances(first) == first["instances"]
    assert {it["duty"] for it in host_instances(first, "gpu1")} == {"serve"}


def test_both_releases_have_a_backend_and_people_get_the_one_that_ran(rolling):
    view, later = gateway_view(rolling, [DEMO]), record("tiny", "1.1.0")["release"]
    assert set(servers(view)[f"be_tiny_{later}"]) == {"tiny-0-b", "tiny-1-b"}
    assert view["models"]["tiny"] == f"be_tiny_{RELEASE}" and view["models"][f"tiny@{later}"] == f"be_tiny_{later}"


@pytest.mark.parametrize(
    ("instance", "container", "shown"),
    [
        ("tiny-0-a", None, "stopped"),
        ("tiny-0-a", {"state": "exited"}, "stopped"),
        ("tiny-0-b", None, "waiting"),
        ("tiny-0-b", {"state": "created"}, "waiting"),
        ("tiny-0-b", {"state": "running"}, "running"),
        ("tiny-0-b", {"state": "restarting"}, "unhealthy"),
        ("other-0-a", None, "missing"),
        ("other-0-a", {"state": "exited"}, "stopped"),
    ],
)
def test_in_a_rollout_not_everything_that_is_planned_has_to_run(rolling, instance, container, shown):
    [found] = [it for it in rolling["instances"] if it["id"] == instance]
    there = [labels(found, **container)] if container else []
    [row] = [row for row in status_rows(rolling, [state(found["host"], *there)]) if row["instance"] == instance]
    assert row["state"] == shown
    # What the rollout has not started yet, or has stopped, is no drift.
    assert bool(row["drift"]) == (shown in ("unhealthy", "missing") or instance == "other-0-a")
