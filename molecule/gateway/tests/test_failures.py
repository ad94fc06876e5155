# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What fails is missed by nobody, and returns by itself."""

from __future__ import annotations

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest


@pytest.fixture(scope="module")
def alice(tokens):
    return tokens["alice"]


def up(fleet, gateway: str, server: str) -> bool:
    return fleet.servers(gateway)[server]["status"].startswith("UP")


def all_up(fleet) -> bool:
    return all(up(fleet, name, i["id"]) for name in fleet.hosts("gateways") for i in fleet.instances())


@pytest.fixture(autouse=True)
def healthy_before_and_after(fleet, wait_until):
    wait_until(lambda: all_up(fleet), seconds=120)
    yield
    wait_until(lambda: all_up(fleet), seconds=120)


def answers(gateway, token, times: int = 6) -> list:
    return [gateway.chat(token).status for _ in range(times)]


def down(fleet, server):
    return lambda: not up(fleet, "gw1", server)


def test_a_killed_engine_is_not_missed_and_returns(fleet, gateway, alice, wait_until):
    victim = next(i for i in fleet.instances(model="tiny") if i["host"] == "gpu1")
    process = fleet.shell("gpu1", f"docker inspect -f '{{{{.State.Pid}}}}' {victim['id']}")
    fleet.shell("gpu1", f"kill -9 {process}")
    # A request may be lost on the connection that just broke; from then on all are answered.
    gateway.chat(alice)
    assert answers(gateway, alice) == [200] * 6
    wait_until(lambda: up(fleet, "gw1", victim["id"]))
    assert fleet.shell("gpu1", f"docker inspect -f '{{{{.State.Pid}}}}' {victim['id']}") != process


@pytest.mark.parametrize("host", ["gpu1", "gpu2"])
def test_engines_live_through_the_death_of_docker(fleet, gateway, alice, host):
    victim = next(i for i in fleet.instances(model="tiny") if i["host"] == host)
    process = fleet.shell(host, f"docker inspect -f '{{{{.State.Pid}}}}' {victim['id']}")
    fleet.shell(host, "systemctl kill -s KILL docker.service")
    assert answers(gateway, alice) == [200] * 6
    fleet.shell(host, "systemctl start docker")
    assert fleet.shell(host, f"docker inspect -f '{{{{.State.Pid}}}}' {victim['id']}") == process, "live-restore is off"


def test_a_node_that_dies_is_not_missed_and_returns(fleet, gateway, alice, wait_until):
    victim = next(i for i in fleet.instances(model="tiny") if i["host"] == "gpu2")
    subprocess.run(["docker", "kill", fleet.container("gpu2")], check=True, capture_output=True)
    try:
        wait_until(down(fleet, victim["id"]))
        assert answers(gateway, alice) == [200] * 6
    finally:
        subprocess.run(["docker", "start", fleet.container("gpu2")], check=True, capture_output=True)
    wait_until(lambda: up(fleet, "gw1", victim["id"]), seconds=120)


def test_503_where_nobody_is_left(fleet, gateway, alice, wait_until):
    instance = fleet.instances(model="private")[0]
    fleet.shell(instance["host"], f"docker stop -t 1 {instance['id']}")
    try:
        wait_until(down(fleet, instance["id"]))
        answer = gateway.chat(alice, model="private")
        assert answer.status == 503
        assert answer.error["request_id"] == answer.headers["x-request-id"]
        assert gateway.chat(alice).status == 200
    finally:
        fleet.shell(instance["host"], f"docker start {instance['id']}")


@pytest.mark.parametrize(("status", "ends"), [(502, True), (504, False)])
def test_an_engine_that_breaks_off_or_falls_silent(fleet, gateway, alice, status, ends):
    """Stopped before its first byte, and then killed (502), or left silent until the gateway gives up (504)."""
    instance = fleet.instances(model="private")[0]
    process = fleet.shell(instance["host"], f"docker inspect -f '{{{{.State.Pid}}}}' {instance['id']}")
    fleet.shell(instance["host"], f"kill -STOP {process}")
    try:
        with ThreadPoolExecutor() as pool:
            answer = pool.submit(gateway.chat, alice, model="private", timeout=60)
            time.sleep(1)
            if ends:
                fleet.shell(instance["host"], f"kill -KILL {process}")
            answer = answer.result()
    finally:
        fleet.shell(instance["host"], f"kill -CONT {process}", check=False)
    assert answer.status == status, answer.body
    assert answer.error["request_id"] == answer.headers["x-request-id"]


def test_site_repairs_what_was_removed_by_hand(fleet, gateway, alice):
    victim = next(i for i in fleet.instances(model="tiny") if i["host"] == "gpu1")
    fleet.shell("gpu1", f"docker rm -f {victim['id']}; nft delete table inet llm_fleet")
    fleet.playbook("site", "--limit", "gpu1")
    assert fleet.shell("gpu1", f"docker inspect -f '{{{{.State.Running}}}}' {victim['id']}") == "true"
    assert fleet.shell("gpu1", "nft list table inet llm_fleet")


def test_a_gateway_restart_keeps_servers_ready(fleet, alice, wait_until):
    fleet.shell("gw2", "systemctl restart haproxy")
    wait_until(lambda: fleet.gateway("gw2").chat(alice).status == 200, seconds=30)
    wait_until(lambda: all_up(fleet))


def test_a_stream_survives_reloads(fleet, gateway, alice):
    stream = gateway.stream(alice, max_tokens=900)
    next(stream)
    for _ in range(3):
        fleet.shell("gw1", "systemctl reload haproxy")
    assert list(stream)[-1][1] == "[DONE]"
