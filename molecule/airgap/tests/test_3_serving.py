# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""From bare hosts to answers, by what was carried across."""

from __future__ import annotations

import json

import pytest


@pytest.mark.long
def test_check_mode_on_bare_hosts_says_what_would_be_done(fleet, imported):
    done = fleet.playbook("site", "--check")
    assert "docker.io" in done.stdout and "haproxy" in done.stdout and "nvidia-container-toolkit" in done.stdout
    done = fleet.playbook("hosts", "-e", "prepare=all", "--check")
    assert "nvidia-driver-cuda" in done.stdout and "nvidia-container-toolkit" in done.stdout
    assert fleet.shell("gpu1", "ls /usr/bin/dockerd /usr/bin/nvidia-smi /var/lib/llm_fleet 2>/dev/null || true") == ""


@pytest.mark.parametrize("model", ["tiny", "later"])
def test_an_answer_comes_over_tls_with_a_token(fleet, token, model):
    answer = fleet.gateway().chat(token, model=model)
    assert answer.status == 200, answer.body
    assert answer.json["usage"]["completion_tokens"] == 8


def test_nobody_without_a_token_gets_one(fleet, serving):
    assert fleet.gateway().chat("nonsense").status == 401


def test_the_engine_runs_from_the_image_that_is_locked(fleet, serving):
    plan = fleet.plan()
    instance = fleet.instances(model="tiny")[0]
    wanted = set(plan["releases"][instance["release"]]["image_ids"].values())
    runs = json.loads(fleet.shell("gpu1", f"docker inspect {instance['id']}"))[0]["Image"]
    # Docker calls it by its configuration, or by its manifest where containerd keeps its images.
    images = json.loads((serving.first / "manifest.json").read_text())["images"]
    (archive,) = [each for each in images if each["image"].endswith("/llamacpp")]
    assert runs == archive["id"] and archive["id"] in wanted


def test_packages_are_the_bundles_and_the_hosts_own_sources_are_as_they_were(fleet, serving):
    for host, package in (("gw1", "haproxy"), ("gpu1", "docker.io"), ("depot1", "nginx"), ("gpu1", "prometheus-node-exporter")):
        version = fleet.shell(host, f"dpkg-query -W -f '${{Version}}' {package}")
        names = [path.name for path in (serving.first / "packages" / "debian-12-amd64").glob(f"{package}_*.deb")]
        assert names == [f"{package}_{version}_amd64.deb"]
        assert fleet.shell(host, "grep -rl llm_fleet /etc/apt/sources.list* /etc/apt/apt.conf.d || true") == ""


@pytest.mark.long
def test_a_second_run_changes_nothing(fleet, serving):
    done = fleet.playbook("site")
    recap = [line for line in done.stdout.splitlines() if "changed=" in line and "unreachable=" in line]
    assert recap and all("changed=0 " in line for line in recap), recap


@pytest.mark.long
def test_a_node_that_lost_its_images_gets_them_again(fleet, token, exporter):
    fleet.shell("gpu1", "docker rm -f $(docker ps -aq) >/dev/null; docker image prune -af >/dev/null; test -z \"$(docker images -q)\"")
    fleet.playbook("site")
    assert fleet.gateway().chat(token).status == 200
    assert fleet.shell("gpu1", "docker inspect -f '{{.Image}}' llm-fleet-dcgm-exporter") in (exporter.id, exporter.manifest)
