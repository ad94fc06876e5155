# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Engines have the GPUs that the plan gives them, monitors and nobody else see what is measured, and ill GPUs get no request."""

from __future__ import annotations

import copy
import re

import pytest

from ansible_collections.localfirst.llm_fleet.molecule.conftest import until
from ansible_collections.localfirst.llm_fleet.molecule.gpu_host.tests.conftest import GPUS, STATE, uuids

EXPORTERS = {"node exporter": 9100, "DCGM exporter": 9400}


def weights(fleet) -> dict:
    """{node: weight} of the instances behind the gateway; 0 while a node asks for no request."""
    hosts = {instance["id"]: instance["host"] for instance in fleet.plan()["instances"]}
    return {hosts[name]: int(row["weight"]) for name, row in fleet.servers("gw1").items() if name in hosts}


def scrape(fleet, host: str, node: str, port: int, password: str | None = None) -> tuple[str, str]:
    """(status, metrics) that a host gets from a node's exporter; status 000 where it gets no connection."""
    own = f"-u monitor:{password}" if password is not None else ""
    fleet.shell(host, f"cat > /tmp/ca.pem <<'END'\n{fleet.ca.read_text()}END")
    command = f"curl -s -m 5 --cacert /tmp/ca.pem {own} -w '\\n%{{http_code}}' https://{fleet.address(node)}:{port}/metrics"
    body, _, status = fleet.shell(host, command, check=False).rpartition("\n")
    return status, body


@pytest.fixture(scope="module")
def password(serving) -> str:
    return (STATE / "ca" / "monitor-password").read_text().strip()


def test_engines_have_the_gpus_of_the_plan_and_answer(fleet, serving, token):
    instances = fleet.instances(model="talk")
    assert {instance["host"] for instance in instances} == set(GPUS)
    for instance in instances:
        assert len(instance["gpus"]) == 1
        seen = fleet.shell(instance["host"], f"docker exec {instance['id']} nvidia-smi -L")
        assert uuids(seen) == instance["gpus"]
    assert fleet.gateway().chat(token, "talk").status == 200


@pytest.mark.parametrize("port", EXPORTERS.values(), ids=EXPORTERS)
@pytest.mark.parametrize("node", GPUS)
def test_monitors_and_nobody_else_see_what_is_measured(fleet, serving, password, node, port):
    status, metrics = scrape(fleet, "mon1", node, port, password)
    assert status == "200"
    here = set(uuids(fleet.shell(node, "nvidia-smi -L")))
    if port == EXPORTERS["DCGM exporter"]:
        assert set(re.findall(r'^DCGM_FI_DEV_GPU_TEMP{.*?UUID="([^"]+)"', metrics, re.MULTILINE)) == here
    else:
        assert set(re.findall(r'^llm_fleet_gpu_health{.*?gpu="([^"]+)".*} 0', metrics, re.MULTILINE)) == here
        assert "node_memory_MemTotal_bytes" in metrics
    assert scrape(fleet, "mon1", node, port)[0] == "401"
    assert scrape(fleet, "mon1", node, port, "guessed")[0] == "401"
    for stranger in ("gw1", "upstream"):
        assert scrape(fleet, stranger, node, port, password)[0] == "000"


def test_exporters_and_engines_survive_a_restart_of_docker(fleet, serving, password):
    running = "docker ps --no-trunc -q | sort"
    before = fleet.shell("gpu1", running)
    fleet.shell("gpu1", "systemctl restart docker")
    assert fleet.shell("gpu1", running) == before
    for port in EXPORTERS.values():
        assert scrape(fleet, "mon1", "gpu1", port, password)[0] == "200"


def test_a_lost_gpu_gets_no_request_until_it_is_back(fleet, serving, scenario, health, token):
    until(lambda: set(weights(fleet).values()) == {100} or set(weights(fleet).values()) == {1})
    well = weights(fleet)
    with scenario("gpu2") as seen:
        seen["gpus"][1]["lost"] = "handle"
        address = seen["gpus"][1]["address"]
        seen["xids"] = [{"address": address, "code": 79, "text": "GPU has fallen off the bus."}]
    found = {one["finding"]: one for one in health("gpu2", "xid-79")["findings"]}
    assert found["lost"]["severity"] == "critical" and found["lost"]["gpu"] == address
    until(lambda: weights(fleet) == {**well, "gpu2": 0})
    status = " ".join(fleet.playbook("status", *serving).stdout.split())
    assert re.search(rf"gpu2 +{address} +critical +lost", status) and "gpu2: " in status
    # The other node answers meanwhile.
    assert {fleet.gateway().chat(token, "talk").status for _ in range(4)} == {200}
    with scenario("gpu2") as seen:
        seen["gpus"][1]["lost"] = False
        seen["xids"] = []
    health("gpu2", gone="lost")
    # An XID that wants a reset stays until somebody says that there was one.
    assert weights(fleet)["gpu2"] == 0
    fleet.shell("gpu2", f"gpu-health --forget {address}")
    health("gpu2", gone="xid-79")
    until(lambda: weights(fleet) == well)


def heat(seen):
    seen["gpus"][0]["throttle"] = ["hw_thermal_slowdown"]


def uncorrected(seen):
    seen["gpus"][0]["errors"] = {"uncorrected": 3}


def worn_out(seen):
    seen["gpus"][0]["repair"] = "failed"


def mismatch(seen):
    seen["mismatch"] = True


def reset(seen):
    seen["gpus"][0]["recovery"] = "Reset"


def missing(seen):
    seen["gpus"][0]["lost"] = "bus"


@pytest.mark.long
@pytest.mark.parametrize(
    ("change", "finding", "severity"),
    [
        (heat, "throttle", "warning"), (uncorrected, "uncorrected", "warning"), (worn_out, "memory_failed", "critical"),
        (mismatch, "mismatch", "warning"), (reset, "reset_required", "critical"), (missing, "missing", "warning"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_each_state_is_told(fleet, serving, scenario, health, password, change, finding, severity):
    with scenario("gpu2") as seen:
        well = copy.deepcopy(seen)
        change(seen)
    try:
        found = {one["finding"]: one for one in health("gpu2", finding)["findings"]}
        assert found[finding]["severity"] == severity and found[finding]["text"]
        until(lambda: f'finding="{finding}"' in scrape(fleet, "mon1", "gpu2", EXPORTERS["node exporter"], password)[1])
        until(lambda: (weights(fleet)["gpu2"] == 0) == (severity == "critical"))
    finally:
        with scenario("gpu2") as seen:
            seen.clear()
            seen.update(well)
    health("gpu2", gone=finding)
    until(lambda: weights(fleet)["gpu2"] > 0)
