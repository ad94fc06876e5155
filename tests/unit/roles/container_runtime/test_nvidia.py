# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""NVIDIA's half of the role: its decisions as Ansible evaluates them, and its commands on trees and programs of the test's own."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import docker_daemon
from ansible_collections.localfirst.llm_fleet.tests.unit.support.apt_root import AptRoot, usable
from ansible_collections.localfirst.llm_fleet.tests.unit.support.role_template import Role

PACKAGES = ["libnvidia-container1", "libnvidia-container-tools", "nvidia-container-toolkit-base", "nvidia-container-toolkit"]
GPU = ["GPU-11111111-2222-3333-4444-555555555555", "GPU-66666666-7777-8888-9999-aaaaaaaaaaaa"]
# Merges as NVIDIA's program does (1.20): its own entries win, and of `features` only its own is left.
NVIDIA_CTK = """#!/usr/bin/env python3
import json, sys
arguments, options = sys.argv[1:], dict(a.lstrip("-").partition("=")[::2] for a in sys.argv[1:] if a.startswith("-"))
print("time=... level=info msg=started", file=sys.stderr)
if arguments[:2] == ["runtime", "configure"]:
    assert options["runtime"] == "docker"
    with open(options["config"]) as file:
        config = json.load(file)
    config.setdefault("runtimes", {})["nvidia"] = {"args": [], "path": "nvidia-container-runtime"}
    if "cdi.enabled" in options:
        config["features"] = {"cdi": True}
    print("Wrote updated config")
    with open(options["config"], "w") as file:
        file.write(json.dumps(config, indent=4))
elif arguments[:2] == ["cdi", "generate"]:
    with open(options["output"], "w") as file:
        file.write("---\\ncdiVersion: 0.5.0\\nkind: nvidia.com/gpu\\n\\n")
    print("Generated CDI spec")
"""


def role(installed: dict | None = None, held: list = (), **variables) -> Role:
    """The role on a host with these packages."""
    lines = [f"{'hi' if name in held else 'ii'} {name}={version}" for name, version in (installed or {}).items()]
    facts = {"os_family": "Debian", "distribution": "Debian", "distribution_major_version": "12", "distribution_release": "bookworm"}
    return Role("container_runtime", **{
        "ansible_facts": facts, "ansible_managed": "managed",
        "__container_runtime_listed": {"stdout_lines": lines}, "__container_runtime_nvidia_found": {"stdout": ""}, **variables,
    })


def record(*packages: str) -> dict:
    return {"content": base64.b64encode(json.dumps({"packages": packages}).encode()).decode()}


def toolkit(version: str = "1.18.2-1") -> dict:
    return dict.fromkeys(PACKAGES, version)


def shell(command: str, folder: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "TMPDIR": str(folder)}
    return subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, env=environment, check=False)


@pytest.fixture
def programs(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "nvidia-ctk").write_text(NVIDIA_CTK)
    (folder / "nvidia-ctk").chmod(0o755)
    return folder


# Whether it is on


@pytest.mark.parametrize("setting, found, installed, on", [
    ("auto", "0000:17:00.0", {}, True),
    ("auto", "", {}, False),
    ("auto", "", toolkit(), True),  # the GPU has fallen off the bus
    (True, "", {}, True), ("true", "", {}, True),
    (False, "0000:17:00.0", toolkit(), False), ("false", "0000:17:00.0", {}, False),
])
def test_when_it_is_on(setting, found, installed, on):
    one = role(installed, container_runtime_nvidia=setting, __container_runtime_nvidia_found={"stdout": found})
    assert one.evaluate("__container_runtime_nvidia_on") is on


def test_gpus_are_found_on_the_bus(tmp_path):
    devices = {
        "0000:17:00.0": ("0x10de", "0x030200"),  # a GPU
        "0000:01:00.0": ("0x10de", "0x030000"),  # one with a monitor's socket
        "0000:01:00.1": ("0x10de", "0x040300"),  # its sound
        "0000:07:00.0": ("0x10de", "0x068000"),  # an NVSwitch
        "0000:00:02.0": ("0x8086", "0x030000"),  # somebody else's GPU
    }
    for address, (vendor, kind) in devices.items():
        folder = tmp_path / address
        folder.mkdir()
        (folder / "vendor").write_text(f"{vendor}\n")
        (folder / "class").write_text(f"{kind}\n")
    command = role().evaluate("__container_runtime_nvidia_look").replace("/sys/bus/pci/devices", str(tmp_path))
    done = shell(command, tmp_path)
    assert (done.returncode, sorted(done.stdout.split()), done.stderr) == (0, ["0000:01:00.0", "0000:17:00.0"], "")
    nothing = shell(command.replace(str(tmp_path), str(tmp_path / "none")), tmp_path)
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (0, "", "")


# Packages


def test_on_a_bare_host_all_four_are_missing():
    one = role({}, __container_runtime_record={})
    assert one.evaluate("__container_runtime_nvidia_names") == PACKAGES
    assert one.evaluate("__container_runtime_nvidia_foreign") is False


def test_a_toolkit_of_somebody_elses_is_left_alone():
    one = role(toolkit("1.17.0-1"), container_runtime_nvidia_version="1.18.2-1", __container_runtime_record=record("docker.io"))
    assert one.evaluate("__container_runtime_nvidia_foreign") is True
    assert one.evaluate("__container_runtime_nvidia_off_version") == []


@pytest.mark.parametrize("running, names", [("", PACKAGES), ("3f2a dcgm", PACKAGES), ("3f2a dcgm\n77aa ", []), ("77aa ", [])])
def test_another_version_comes_to_all_four_and_only_while_nothing_runs(running, names):
    one = role(
        toolkit("1.17.0-1"), container_runtime_nvidia_version="1.18.2-1", __container_runtime_record=record(*PACKAGES),
        __container_runtime_containers={"rc": 0, "stdout": running, "stdout_lines": running.split("\n") if running else []},
    )
    assert one.evaluate("__container_runtime_nvidia_off_version") == PACKAGES
    assert one.evaluate("__container_runtime_nvidia_names") == names


def test_a_docker_that_does_not_answer_counts_as_busy():
    one = role(__container_runtime_containers={"rc": 1, "stdout": "", "stdout_lines": []})
    assert one.evaluate("__container_runtime_idle") is False


@pytest.mark.parametrize("wanted", ["1.18.2-1", "1.18.*", ""])
def test_the_version_that_is_there_stays(wanted):
    one = role(
        toolkit(), held=PACKAGES, container_runtime_nvidia_version=wanted, __container_runtime_record=record(*PACKAGES),
        __container_runtime_containers={},
    )
    assert one.evaluate("__container_runtime_nvidia_names") == []
    assert sorted(one.evaluate("__container_runtime_nvidia_held")) == sorted(PACKAGES)


def test_all_four_are_asked_for_in_one_version():
    (block,) = [task for task in role().tasks("nvidia_packages.yml") if "block" in task]
    (install,) = [task for task in block["block"] if "install.yml" in str(task.get("ansible.builtin.include_tasks"))]
    one = role({}, container_runtime_nvidia_version="1.18.2-1", __container_runtime_record={}, **install["vars"])
    assert one.evaluate("__container_runtime_specs") == [f"{name}=1.18.2-1" for name in PACKAGES]


# Repositories

MIRROR = {"url": "http://mirror.example/apt", "key": "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmDMEZQ==\n-----END PGP PUBLIC KEY BLOCK-----"}
needs_apt = pytest.mark.skipif(not usable(), reason="needs apt, dpkg, gpg and root")


@needs_apt
@pytest.mark.parametrize("file, changes, lines", [
    ("repository.yml", {}, ["URIs: https://download.docker.com/linux/debian", "Suites: bookworm", "Components: stable",
                            "Signed-By: {root}/etc/apt/keyrings/llm-fleet-docker.asc"]),
    ("repository.yml", {"container_runtime_repository": {**MIRROR, "suite": "/"}},
     ["URIs: http://mirror.example/apt", "Suites: /", "Signed-By: {root}/etc/apt/keyrings/llm-fleet-docker.asc"]),
    ("nvidia_repository.yml", {}, ["URIs: https://nvidia.github.io/libnvidia-container/stable/deb/$(ARCH)", "Suites: /",
                                   "Signed-By: {root}/etc/apt/keyrings/llm-fleet-nvidia-container.asc"]),
    ("nvidia_repository.yml", {"container_runtime_nvidia_repository": {**MIRROR, "suite": "all", "components": ["main"]}},
     ["URIs: http://mirror.example/apt", "Suites: all", "Components: main",
      "Signed-By: {root}/etc/apt/keyrings/llm-fleet-nvidia-container.asc"]),
])
def test_repositories_as_apt_is_told_of_them(tmp_path, file, changes, lines):
    host = AptRoot(tmp_path / "root")
    told = role({}, __container_runtime_record={}, **changes).arguments(file, "apt_source")
    done = host.module("apt_source", check_mode=True, **told)
    stanza = [line for line in done["diff"][-1]["after"].splitlines() if not line.startswith("#")]
    assert stanza == ["Types: deb", *(line.format(root=host.root) for line in lines)]


@pytest.mark.parametrize("installed, version, again", [({}, "", True), (toolkit(), "", False), (toolkit(), "1.19.0-1", True)])
def test_a_key_is_fetched_again_whenever_something_is_to_be_installed(installed, version, again):
    one = role(installed, container_runtime_nvidia_version=version, __container_runtime_record=record(*PACKAGES))
    assert one.arguments("nvidia_repository.yml", "apt_source")["force"] is again
    docker = dict.fromkeys(["docker-ce", "docker-ce-cli", "containerd.io", "python3-requests"], "5:28.0.0-1") if installed else {}
    one = role(docker, container_runtime_source="repository", container_runtime_version=version)
    assert one.arguments("repository.yml", "apt_source")["force"] is again


@needs_apt
def test_one_mirror_may_have_the_driver_the_toolkit_and_docker(tmp_path):
    """apt reads no source at all where two of one place name different keys."""
    host = AptRoot(tmp_path / "root")
    driver = Role("nvidia_driver", nvidia_driver_source="local", nvidia_driver_repository=MIRROR, __nvidia_driver_offer={})
    ours = role({}, __container_runtime_record={}, container_runtime_nvidia_repository=MIRROR,
                container_runtime_repository={**MIRROR, "suite": "/"})
    told = [driver.arguments("repository.yml", "apt_source")]
    told += [ours.arguments(file, "apt_source") for file in ("nvidia_repository.yml", "repository.yml")]
    for changes in (True, False):
        assert {host.module("apt_source", **one)["changed"] for one in told} == {changes}
        host.run("apt-get", "indextargets")
    assert host.module("apt_source", **driver.arguments("absent.yml", "apt_source"))["changed"]
    host.run("apt-get", "indextargets")
    (task,) = [task for task in ours.tasks("absent.yml") if "localfirst.llm_fleet.apt_source" in task]
    for name in ours.fill_in(task["loop"]):
        ours.variables["item"] = name
        assert host.module("apt_source", **ours.arguments("absent.yml", "apt_source"))["changed"]
    assert [path for folder in ("sources.list.d", "keyrings") for path in (host.root / "etc/apt" / folder).iterdir()] == []


# What Docker is told


def settings(one: Role, programs: Path) -> dict:
    done = shell(one.evaluate("__container_runtime_nvidia_configure"), programs)
    assert done.returncode == 0, done.stderr
    one.variables |= {"__container_runtime_nvidia_written": {"stdout": done.stdout}, "container_runtime_nvidia": True}
    assert [path.name for path in programs.iterdir()] == ["nvidia-ctk"], "nothing is left behind"
    return one.evaluate("__container_runtime_log_defaults | combine(__container_runtime_nvidia_settings)")


# Whether it is there or still to come: a second run must not want anything else than the first.
@pytest.mark.parametrize("docker", [{}, {"docker.io": "20.10.24+dfsg1-1+deb12u1"}, {"docker-ce": "5:28.3.0-1~debian.12~bookworm"}])
def test_docker_is_told_the_same_whichever_it_is(programs, docker):
    told = settings(role(docker), programs)
    assert told["features"] == {"cdi": True}
    assert told["runtimes"] == {"nvidia": {"args": [], "path": "nvidia-container-runtime"}}
    assert told["exec-opts"] == ["native.cgroupdriver=cgroupfs"] and told["log-driver"] == "json-file"


def test_an_operators_own_settings_survive_and_come_back(programs):
    operators = {
        "runtimes": {"nvidia": {"path": "/opt/own/runtime"}, "kata": {"path": "kata"}}, "features": {"buildkit": True},
        "exec-opts": ["native.cgroupdriver=systemd"], "default-runtime": "nvidia",
    }
    text = json.dumps(operators)
    told = settings(role({"docker.io": "26.1.5"}), programs)
    outcome = docker_daemon.decide(text, None, [], {"live-restore": True}, told)
    assert outcome.after["runtimes"] == {"nvidia": {"path": "/opt/own/runtime", "args": []}, "kata": {"path": "kata"}}
    assert outcome.after["features"] == {"buildkit": True, "cdi": True}
    assert outcome.after["exec-opts"] == operators["exec-opts"] and outcome.after["default-runtime"] == "nvidia"
    assert docker_daemon.decide(outcome.text, text, outcome.record, {"live-restore": True}, told).text == outcome.text
    assert docker_daemon.decide(outcome.text, text, outcome.record, {}, {}).text == text


def test_turned_off_it_tells_docker_nothing():
    one = role(container_runtime_nvidia=False)
    assert one.evaluate("__container_runtime_nvidia_settings") == {}


def test_an_nvidia_ctk_that_fails_is_not_taken_for_an_answer(programs):
    (programs / "nvidia-ctk").write_text("#!/bin/sh\necho 'unknown flag' >&2; exit 1\n")
    for command in ("__container_runtime_nvidia_configure", "__container_runtime_nvidia_generate"):
        done = shell(role().evaluate(command), programs)
        assert (done.returncode, done.stdout) == (1, "") and "unknown flag" in done.stderr


def test_the_description_keeps_each_byte(programs):
    done = shell(role().evaluate("__container_runtime_nvidia_generate"), programs)
    assert base64.b64decode(done.stdout) == b"---\ncdiVersion: 0.5.0\nkind: nvidia.com/gpu\n\n"


# What a container sees


@pytest.mark.parametrize("version, ways", [("20.10.24", ["gpus"]), ("25.0.3", ["gpus", "cdi"]), ("29.1.0", ["gpus", "cdi"])])
def test_the_ways_that_this_docker_has(version, ways):
    assert role(__container_runtime_server={"stdout": version}).evaluate("__container_runtime_nvidia_ways") == ways


def test_a_container_gets_one_gpu_and_another_gets_all():
    listed = "".join(f"GPU {index}: NVIDIA L4 (UUID: {uuid})\n" for index, uuid in enumerate(GPU))
    one = role(__container_runtime_nvidia_listed={"stdout": listed})
    assert one.evaluate("__container_runtime_nvidia_shares") == [GPU[:1], GPU]
    one.variables["item"] = ["gpus", GPU]
    assert one.evaluate("__container_runtime_nvidia_given") == ["--gpus", f'"device={GPU[0]},{GPU[1]}"']
    one.variables["item"] = ["cdi", GPU]
    assert one.evaluate("__container_runtime_nvidia_given") == [f"--device=nvidia.com/gpu={uuid}" for uuid in GPU]


def test_of_a_gpu_in_parts_the_parts_are_given():
    part = "MIG-11111111-2222-3333-4444-555555555555"
    listed = (
        f"GPU 0: NVIDIA A100 (UUID: {GPU[0]})\n  MIG 3g.40gb     Device  0: (UUID: {part})\n"
        f"GPU 1: NVIDIA A100 (UUID: {GPU[1]})"
    )
    one = role(__container_runtime_nvidia_listed={"stdout": listed})
    assert one.evaluate("__container_runtime_nvidia_uuids") == [part, GPU[1]]


@pytest.mark.parametrize("code, seen, right", [
    (0, GPU[:1], True), (0, GPU, False), (0, [], False), (0, GPU[1:], False), (1, GPU[:1], False),
])
def test_only_what_it_was_given_will_do(code, seen, right):
    output = "\n".join(f"GPU 0: NVIDIA L4 (UUID: {uuid})" for uuid in seen)
    result = {"rc": code, "stdout": output, "stderr_lines": ["pulling", "no such GPU"] if code else [], "item": ["gpus", GPU[:1]]}
    wrong = role(__container_runtime_nvidia_seen={"results": [result]}).evaluate("__container_runtime_nvidia_wrong")
    assert (wrong == []) is right
    if not right:
        (line,) = wrong
        assert line.startswith(f"{GPU[0]} (--gpus) sees {', '.join(seen) or 'none'}")
        assert line.endswith("because no such GPU") is (code != 0)


@pytest.mark.parametrize("image, named", [
    ("registry.example:5000/cuda@sha256:" + "a" * 64, True), ("registry.example/cuda:12.4", False), ("cuda@sha256:abc", False),
])
def test_an_image_without_a_digest_is_refused(image, named):
    check = role().tasks("nvidia_check.yml")[0]["ansible.builtin.assert"]["that"]
    assert bool(role(container_runtime_nvidia_check_image=image).evaluate(check)) is named


def test_units_write_to_the_one_place_before_docker_starts():
    unit, dropin = role().render("llm-fleet-cdi.service.j2"), role().render("nvidia-cdi-refresh.service.conf.j2")
    assert "Before=docker.service" in unit and "cdi generate --output=/etc/cdi/nvidia.yaml" in unit
    # NVIDIA's unit comes after multi-user.target in toolkit 1.19.0: before Docker as well, that would be a circle.
    assert "CDI_OUTPUT_FILE_PATH=/etc/cdi/nvidia.yaml" in dropin and "docker.service" not in dropin.split("[Service]")[1]
