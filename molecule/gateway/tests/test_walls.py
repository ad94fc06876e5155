# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Engines are reached from gateways and by no other route, and reach nobody."""

from __future__ import annotations

import contextlib
import json
import socket

import pytest


@pytest.fixture(scope="module", params=["gpu1", "gpu2"])
def engine(fleet, request):
    """An instance on each kind of node, with the address of its container."""
    instance = next(i for i in fleet.instances(model="tiny") if i["host"] == request.param)
    networks = json.loads(
        fleet.shell(request.param, f"docker inspect -f '{{{{json .NetworkSettings.Networks}}}}' {instance['id']}")
    )
    assert list(networks) == ["llm_fleet"]
    return {**instance, "inside": networks["llm_fleet"]["IPAddress"]}


CONNECT = "timeout 4 bash -c 'exec 3<>/dev/tcp/{host}/{port}' 2>/dev/null && echo open || echo closed"


def inside(engine: dict, namespaces: str, command: str) -> str:
    """The command where the engine is, without `docker exec`, which now and then cannot start anything on a busy machine."""
    return f"nsenter -t $(docker inspect -f '{{{{.State.Pid}}}}' {engine['id']}) {namespaces} {command}"


def reach(fleet, source: str, host: str, port: int) -> str:
    return fleet.shell(source, CONNECT.format(host=host, port=port))


@pytest.mark.parametrize("source", ["gw1", "gw2"])
def test_gateways_reach_engines(fleet, engine, source):
    assert reach(fleet, source, engine["address"], engine["port"]) == "open"


def test_other_hosts_do_not(fleet, engine):
    other = next(host for host in fleet.hosts("gpu_nodes") if host != engine["host"])
    for source in ("upstream", other):
        assert reach(fleet, source, engine["address"], engine["port"]) == "closed"


def test_this_machine_does_not(engine):
    """It is a peer on the fleet's network, as any laptop in the office would be."""
    with pytest.raises(OSError), contextlib.closing(socket.create_connection((engine["address"], engine["port"]), timeout=4)):
        pass


def test_a_peer_that_routes_to_the_container_itself_does_not(fleet, engine):
    route = f"{engine['inside']}/32 via {engine['address']}"
    fleet.shell("upstream", f"ip route add {route}")
    try:
        assert reach(fleet, "upstream", engine["inside"], 8080) == "closed"
    finally:
        fleet.shell("upstream", f"ip route del {route}")


IN_CONTAINER = (
    "docker run --rm {network} --entrypoint bash $(docker inspect -f '{{{{.Image}}}}' {id}) "
    "-c 'timeout 4 bash -c \"exec 3<>/dev/tcp/{host}/{port}\" 2>/dev/null && echo open || echo closed'"
)


def at_once(fleet, host: str, scripts: list[str]) -> list[str]:
    """What each script prints; all run at the same time, as a closed door is only known after a while."""
    begun = "\n".join(f"({script}) > $d/{number} &" for number, script in enumerate(scripts))
    outputs = " ".join(f"$d/{number}" for number in range(len(scripts)))
    return fleet.shell(host, f"d=$(mktemp -d)\n{begun}\nwait; tail -qn 1 {outputs}; rm -r $d").splitlines()


def test_neighbour_containers_do_not(fleet, engine):
    targets = [(engine["inside"], 8080), (engine["address"], engine["port"])]
    asked = [
        IN_CONTAINER.format(network=f"--network {network}", id=engine["id"], host=host, port=port)
        for network in ("llm_fleet", "bridge") for host, port in targets
    ]
    assert at_once(fleet, engine["host"], asked) == ["closed"] * 4


def test_an_engine_reaches_nobody(fleet, engine):
    """Not the outside world, no gateway, not the machine that all runs on, not its own node."""
    there = [("10.203.1.2", 80), ("10.203.1.2", 5000), ("10.203.1.10", 443)]
    targets = [*there, ("10.203.1.1", 22), (engine["address"], 22)]
    # The same connections from the node itself show that there is something to reach.
    connect = [CONNECT.format(host=host, port=port) for host, port in there]
    assert at_once(fleet, engine["host"], connect) == ["open"] * len(there)
    asked = [inside(engine, "-n", f"bash <<'END'\n{CONNECT.format(host=host, port=port)}\nEND\n") for host, port in targets]
    assert at_once(fleet, engine["host"], asked) == ["closed"] * len(targets)


def test_an_engine_resolves_no_names(fleet, engine):
    script = inside(engine, "-n -m", "timeout 6 getent hosts deb.debian.org && echo resolved || echo silent")
    assert fleet.shell(engine["host"], script).splitlines()[-1] == "silent"


def test_an_engine_wants_its_own_models_key(fleet, engine):
    """The second wall: even a gateway gets nothing without the key of the model."""
    ask = (
        "timeout 5 bash -c 'exec 3<>/dev/tcp/{address}/{port}; "
        "printf \"POST /v1/chat/completions HTTP/1.0\\r\\nContent-Length: 2\\r\\n\\r\\n{{}}\" >&3; head -1 <&3'"
    )
    assert " 401" in fleet.shell("gw1", ask.format(**engine))


def test_the_walls_stand_after_docker_and_the_node_restart(fleet, engine, wait_until):
    fleet.shell(engine["host"], "systemctl restart docker")
    wait_until(lambda: reach(fleet, "gw1", engine["address"], engine["port"]) == "open")
    assert reach(fleet, "upstream", engine["address"], engine["port"]) == "closed"
    assert fleet.shell(engine["host"], "nft list table inet llm_fleet")
