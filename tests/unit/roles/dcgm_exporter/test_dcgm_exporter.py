# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What the role hands to the exporter, and the double that stands for it, started with exactly that."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.tests.unit.support.fleet_ca import FleetCa
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_bench import free_port
from ansible_collections.localfirst.llm_fleet.tests.unit.support.role_template import Role

REPO = Path(__file__).resolve().parents[4]
DOUBLE = REPO / "testbed/doubles/dcgm_exporter/dcgm_exporter.py"
DIGEST = "sha256:" + "0f" * 32
IMAGE = f"registry.example:5000/nvidia/dcgm-exporter@{DIGEST}"
WHOLE, PARTED, LOST = (f"GPU-{n}1111111-2222-3333-4444-555555555555" for n in "abc")
SCENARIO = {
    "driver": "580.95.05",
    "apps": [{"uuid": WHOLE, "pid": 7, "name": "engine", "memory": 60000}],
    "xids": [{"address": "0000:53:00", "code": 31, "text": "a page fault"}],
    "gpus": [
        {"address": "0000:53:00.0", "uuid": WHOLE, "name": "NVIDIA H100 80GB HBM3", "memory": 81559, "temperature": 51,
         "power": {"draw": 412.5}, "ecc": True, "mig": False, "errors": {"corrected": 3}, "nvlink": {"links": 18, "active": 18}},
        {"address": "0000:64:00.0", "uuid": PARTED, "name": "NVIDIA H100 80GB HBM3", "memory": 81559, "temperature": 29,
         "power": {"draw": 70.1}, "ecc": False, "mig": True,
         "instances": [{"id": 2, "profile": "3g.40gb", "slices": 4}, {"id": 11, "profile": "1g.10gb", "slices": 1}]},
        {"address": "0000:75:00.0", "uuid": LOST, "name": "NVIDIA H100 80GB HBM3", "memory": 81559, "power": {}, "lost": "handle"},
    ],
}


def role(**variables) -> Role:
    return Role("dcgm_exporter", **{
        "ansible_managed": "managed", "llm_fleet_address": "10.0.0.5", "llm_fleet_ca_dir": "/srv/ca",
        "llm_fleet_monitor_password": "s3cret", "dcgm_exporter_image": IMAGE, "llm_fleet_image_names": {IMAGE: IMAGE}, **variables,
    })


def fits(one: Role) -> bool:
    """Whether all checks before the first change pass."""
    for task in one.tasks("check.yml"):
        that = task["ansible.builtin.assert"]["that"]
        if not all(one.evaluate(condition) for condition in (that if isinstance(that, list) else [that])):
            return False
    return True


@pytest.mark.parametrize("image, pinned", [
    (f"nvcr.io/nvidia/k8s/dcgm-exporter@{DIGEST}", True), (f"registry.example:5000/dcgm-exporter@{DIGEST}", True),
    ("nvcr.io/nvidia/k8s/dcgm-exporter:4.5.3-4.8.2-ubuntu22.04", False), ("nvcr.io/nvidia/k8s/dcgm-exporter", False), ("", False),
    (f"nvcr.io/nvidia/k8s/dcgm-exporter:4.5@{DIGEST}", False), ("nvcr.io/nvidia/k8s/dcgm-exporter@sha256:0f0f", False),
])
def test_only_an_image_by_digest_will_do(image, pinned):
    assert fits(role(dcgm_exporter_image=image)) is pinned


@pytest.mark.parametrize("settings, right", [
    ({"llm_fleet_address": "0.0.0.0"}, False), ({"llm_fleet_address": "fd00::5"}, True), ({"llm_fleet_ca_dir": "ca"}, False),
    ({"llm_fleet_monitor_password": ""}, False), ({"llm_fleet_monitor_password": "", "dcgm_exporter_password_hash": "$2y$10$x"}, True),
    ({"dcgm_exporter_counters": {"DCGM_FI_DEV_GPU_UTIL": ["gauge", "a, b"]}}, False),
    ({"dcgm_exporter_counters": {"DCGM_FI_DEV_GPU_UTIL": ["gauge", 'a "b"']}}, False),
    ({"dcgm_exporter_counters": {"DCGM_FI_DEV_GPU_UTIL": ["number", "a"]}}, False),
    ({"dcgm_exporter_counters": {"DCGM_FI_DEV_GPU_UTIL": ["gauge"]}}, False),
    ({"dcgm_exporter_counters": {"gpu util": ["gauge", "a"]}}, False),
    ({"dcgm_exporter_counters": {"DCGM_FI_PROF_SM_ACTIVE": ["gauge", "a"]}}, False),
    ({"dcgm_exporter_counters": {"DCGM_FI_PROF_SM_ACTIVE": ["gauge", "a"]}, "dcgm_exporter_profiling": True}, True),
])
def test_what_it_was_given_is_checked(settings, right):
    assert fits(role(**settings)) is right


def container(**variables) -> dict:
    """The arguments of docker_container, evaluated."""
    one = role(**variables)
    (task,) = [task for task in one.tasks("run.yml") if "community.docker.docker_container" in task]
    arguments = task["community.docker.docker_container"]
    one.variables |= {"__arguments": arguments, "omit": "omitted"}
    return one.evaluate("__arguments")


def test_the_container_is_closed_and_comes_back():
    arguments = container()
    assert arguments["published_ports"] == ["10.0.0.5:9400:9400"] and arguments["restart_policy"] == "unless-stopped"
    assert arguments["cap_drop"] == ["ALL"] and arguments["capabilities"] == []
    assert arguments["networks"] == [{"name": "llm_fleet_exporters"}]
    assert arguments["device_requests"] == [{"driver": "nvidia", "count": -1, "capabilities": [["gpu"]]}]
    assert container(llm_fleet_address="fd00::5")["published_ports"] == ["[fd00::5]:9400:9400"]
    assert container(dcgm_exporter_device_requests=[])["device_requests"] == "omitted"


def test_an_image_out_of_an_archive_is_run_by_what_docker_calls_it():
    assert container()["image"] == IMAGE and container(llm_fleet_image_names={IMAGE: "sha256:5"})["image"] == "sha256:5"


def test_profiling_asks_for_one_capability():
    arguments = container(dcgm_exporter_profiling=True)
    assert arguments["capabilities"] == ["SYS_ADMIN"] and arguments["env"]["NVIDIA_MIG_MONITOR_DEVICES"] == "all"
    assert "NVIDIA_MIG_MONITOR_DEVICES" not in container()["env"]


def test_other_counters_make_another_container():
    one, same = (container()["labels"] for _time in range(2))
    other = container(dcgm_exporter_counters={"DCGM_FI_DEV_GPU_UTIL": ["gauge", "busy"]})["labels"]
    assert one == same and one["llm_fleet.counters"] != other["llm_fleet.counters"]


def test_its_environment_is_made_of_strings():
    environment = container(dcgm_exporter_interval=5, dcgm_exporter_environment={"MORE": "1"})["env"]
    assert all(isinstance(value, str) for value in environment.values())
    assert environment["DCGM_EXPORTER_INTERVAL"] == "5000" and environment["NODE_NAME"] == "gpu1" and environment["MORE"] == "1"


class Double:
    """The double as the role's container would start it, its files in the test's directory."""

    def __init__(self, folder: Path, run_module, **variables) -> None:
        self.folder, self.run_module = folder, run_module
        self.ca = FleetCa(folder)
        self.pair = self.ca.issue("server", client=False)
        self.port = free_port()
        self.scenario(SCENARIO)
        self.password("s3cret")
        one = role(**variables)
        (folder / "counters.csv").write_text(one.render("counters.csv.j2"))
        self.environment = {
            name: value.replace("/etc/llm_fleet/dcgm_exporter", str(folder))
            for name, value in one.evaluate("__dcgm_exporter_environment").items()
        }
        self.environment |= {"DCGM_EXPORTER_LISTEN": f"127.0.0.1:{self.port}", "TESTBED_GPUS": str(folder / "gpus.json")}
        self.process: subprocess.Popen | None = None

    def scenario(self, content: dict) -> None:
        (self.folder / "gpus.json").write_text(json.dumps(content))

    def password(self, text: str) -> None:
        self.run_module("exporter_web_config", dest=str(self.folder / "web.yml"), cert_file="server.pem", key_file="server.key",
                        username="monitor", password=text, cost=4)

    def start(self, *arguments: str) -> Double:
        self.process = subprocess.Popen(
            [sys.executable, DOUBLE, *arguments], env={**os.environ, **self.environment}, stderr=subprocess.PIPE, text=True,
        )
        self.said = []
        for line in self.process.stderr:
            self.said.append(line)
            if "TLS is" in line:
                return self
        self.process.wait()
        return self

    def ask(self, path: str = "/metrics", password: str | None = "s3cret", user: str = "monitor") -> tuple[int, str]:
        context = ssl.create_default_context(cafile=self.ca.pem)
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=10, context=context)
        login = base64.b64encode(f"{user}:{password}".encode()).decode()
        connection.request("GET", path, headers={} if password is None else {"Authorization": f"Basic {login}"})
        answer = connection.getresponse()
        self.shown = connection.sock.getpeercert() if connection.sock else None
        return answer.status, answer.read().decode()

    def series(self, name: str) -> dict:
        """{labels that tell devices apart: value} of one metric."""
        found = {}
        for labels, value in re.findall(rf"^{name}{{(.*)}} (.*)$", self.ask()[1], re.MULTILINE):
            label = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            found[(label["UUID"], label.get("GPU_I_ID"))] = float(value)
        return found

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stderr.close()


@pytest.fixture
def double(tmp_path, run_module):
    made = []

    def make(**variables) -> Double:
        made.append(Double(tmp_path, run_module, **variables))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def test_nobody_gets_in_without_the_password(double):
    one = double().start()
    for path in ("/metrics", "/health", "/"):
        assert one.ask(path, password=None)[0] == 401
        assert one.ask(path, password="wrong")[0] == 401
        assert one.ask(path, user="somebody")[0] == 401
        assert one.ask(path)[0] == 200
    assert one.ask("/health") == (200, "OK")
    assert one.ask("/debug/pprof/")[0] == 404


def test_without_tls_nobody_is_answered_and_it_goes_on(double):
    one = double().start()
    with pytest.raises((http.client.HTTPException, OSError)):
        plain = http.client.HTTPConnection("127.0.0.1", one.port, timeout=5)
        plain.request("GET", "/metrics")
        plain.getresponse()
    assert one.ask()[0] == 200


def test_a_new_password_and_a_new_certificate_need_no_restart(double, tmp_path):
    one = double().start()
    one.password("an0ther")
    assert one.ask()[0] == 401 and one.ask(password="an0ther")[0] == 200
    serial = ssl.get_server_certificate(("127.0.0.1", one.port))
    other = one.ca.issue("renewed", client=False)
    shutil.copy(other.key, one.pair.key)
    shutil.copy(other.certificate, one.pair.certificate)
    assert ssl.get_server_certificate(("127.0.0.1", one.port)) != serial


def test_every_gpu_and_every_mig_instance_has_labels_of_its_own(double):
    one = double().start()
    assert one.series("DCGM_FI_DEV_FB_USED") == {(WHOLE, None): 60000, (PARTED, "2"): 12, (PARTED, "11"): 12}
    assert one.series("DCGM_FI_DEV_GPU_UTIL") == {(WHOLE, None): 100}
    assert one.series("DCGM_FI_DEV_XID_ERRORS")[(WHOLE, None)] == 31
    assert one.series("DCGM_FI_DEV_ECC_SBE_VOL_TOTAL") == {(WHOLE, None): 3}
    text = one.ask()[1]
    assert 'gpu="0",UUID="' + WHOLE + '",pci_bus_id="00000000:53:00.0",device="nvidia0",modelName="NVIDIA H100 80GB HBM3"' in text
    assert 'GPU_I_PROFILE="3g.40gb",GPU_I_ID="2",Hostname="gpu1",DCGM_FI_DRIVER_VERSION="580.95.05"' in text
    assert LOST not in text


def test_all_counters_of_the_role_are_ones_that_it_knows(double):
    one = double().start()
    text = one.ask()[1]
    wanted = {name for name, (kind, _text) in role().evaluate("dcgm_exporter_counters").items() if kind != "label"}
    assert {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")} == wanted


def test_it_follows_the_scenario(double):
    one = double().start()
    changed = json.loads(json.dumps(SCENARIO))
    changed["gpus"][0]["temperature"] = 88
    one.scenario(changed)
    deadline = time.monotonic() + 5
    while one.series("DCGM_FI_DEV_GPU_TEMP")[(WHOLE, None)] != 88:
        assert time.monotonic() < deadline


@pytest.mark.parametrize("line", ["DCGM_FI_DEV_GPU_UTIL, gauge", "gpu_util, gauge, busy", "DCGM_FI_DEV_GPU_UTIL, number, busy"])
def test_a_list_that_the_original_refuses_ends_it(double, line):
    one = double()
    (one.folder / "counters.csv").write_text(f"# a comment\n{line}\n")
    assert one.start().process.returncode == 1 and any("level=ERROR" in said for said in one.said)


def test_without_a_gpu_it_does_not_start(double):
    one = double()
    one.scenario({"gpus": []})
    assert one.start().process.returncode == 1


def test_a_hash_that_is_none_ends_it(double):
    one = double()
    (one.folder / "web.yml").write_text("basic_auth_users:\n  monitor: plain\n")
    assert one.start().process.returncode == 1
