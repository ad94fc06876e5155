# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Decisions of the role as Ansible evaluates them: how a container gets its GPUs, and as whom it runs."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.tests.unit.support.role_template import Role

GPU = ["GPU-11111111-2222-3333-4444-555555555555", "MIG-66666666-7777-8888-9999-aaaaaaaaaaaa"]
FOLDERS = {"rc": 0, "stdout": '["/etc/cdi","/var/run/cdi"]'}


def role(gpus=(), container=None, **variables) -> Role:
    """The role on a host without containers, at an instance with these GPUs."""
    record = {"image": "registry.example/echo@sha256:" + "e" * 64, "container": {"user": "fleet", **(container or {})}}
    instance = {"id": "tiny-0-a", "model": "tiny", "version": "1.0.0", "port": 20000, "gpus": list(gpus), "record": record}
    host = {"instances": [], "docker": {"state": "running", "version": "28.1.0"}}
    passwd = {"getent_passwd": {"llm-fleet": ["x", "990", "980"]}}
    return Role(
        "engine",
        **{
            "ansible_host": "10.0.0.5",
            "ansible_facts": passwd,
            "engine_instances": [instance],
            "__engine_instance": instance,
            "__engine_host": host,
            "omit": "omitted",
            **variables,
        },
    )


def described(*gpus: str) -> dict:
    """What the task that looks for GPUs in specifications returns, where these are found."""
    return {"results": [{"item": gpu, "matched": int(gpu in gpus)} for gpu in GPU]}


def arguments(one: Role) -> dict:
    """What docker_container is handed."""
    (task,) = [task for task in one.tasks("instance.yml") if "community.docker.docker_container" in task]
    keys = ("device_requests", "user")
    one.variables["__arguments"] = {key: task["community.docker.docker_container"][key] for key in keys}
    return one.evaluate("__arguments")


BY_CDI = [{"driver": "cdi", "device_ids": [f"nvidia.com/gpu={gpu}" for gpu in GPU]}]
BY_HOOK = [{"driver": "nvidia", "device_ids": GPU, "capabilities": [["gpu"]]}]


@pytest.mark.parametrize(
    ("variables", "requests"),
    [
        ({"__engine_cdi_folders": FOLDERS, "__engine_cdi_specs": described(*GPU)}, BY_CDI),
        ({"__engine_cdi_folders": FOLDERS, "__engine_cdi_specs": described(GPU[0])}, BY_HOOK),
        ({"__engine_cdi_folders": FOLDERS, "__engine_cdi_specs": described(*GPU), "engine_gpu_access": "runtime"}, BY_HOOK),
        ({"__engine_cdi_folders": {"rc": 0, "stdout": "null"}, "__engine_cdi_specs": {"skipped": True}}, BY_HOOK),
        ({"__engine_cdi_folders": {"rc": 1, "stdout": ""}, "__engine_cdi_specs": {"skipped": True}}, BY_HOOK),
    ],
)
def test_a_container_gets_its_gpus_as_docker_knows_them(variables, requests):
    assert arguments(role(GPU, **variables))["device_requests"] == requests


def test_a_container_without_gpus_asks_for_none():
    assert arguments(role())["device_requests"] == "omitted"


@pytest.mark.parametrize(("version", "known"), [("24.0.9", False), ("25.0.0", True), ("29.1.0", True)])
def test_docker_before_25_has_no_cdi(version, known):
    host = {"instances": [], "docker": {"state": "running", "version": version}}
    assert role(GPU, __engine_cdi_folders=FOLDERS, __engine_host=host).evaluate("__engine_cdi_dirs | length > 0") is known


def test_where_cdi_is_wanted_the_gpus_that_it_lacks_are_named():
    (stop,) = [task for task in role().tasks("gpus.yml") if "ansible.builtin.assert" in task]
    one = role(GPU, engine_gpu_access="cdi", __engine_cdi_folders=FOLDERS, __engine_cdi_specs=described(GPU[0]))
    assert not one.evaluate(stop["ansible.builtin.assert"]["that"])
    message = one.fill_in(stop["ansible.builtin.assert"]["fail_msg"])
    assert GPU[1] in message and GPU[0] not in message


@pytest.mark.parametrize(("user", "ids"), [("fleet", "990:980"), ("bare-root", "0:980")])
def test_an_engine_runs_as_its_profile_says_and_reads_the_store_by_its_group(user, ids):
    assert arguments(role(container={"user": user}))["user"] == ids


def test_a_release_from_before_there_was_a_choice_runs_as_the_fleets_user():
    one = role()
    del one.variables["__engine_instance"]["record"]["container"]["user"]
    assert arguments(one)["user"] == "990:980"
