# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Every role that installs packages can do so across an air gap: it says which, and lets them be brought from a bundle."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).resolve().parents[3]
INSTALLERS = {"ansible.builtin.apt", "ansible.builtin.package", "localfirst.llm_fleet.held_packages"}
BRING = "localfirst.llm_fleet.local_packages"
ASKED = yaml.safe_load((REPO / "playbooks/vars/bundle.yml").read_text())
KNOWN = ASKED["bundle_roles"] + ASKED["bundle_node_roles"]
# It asks apt first which parts of which version are to be brought.
BY_VERSION = {"nvidia_driver"}


FURTHER = [
    "container_runtime_named_elsewhere", "container_runtime_named_images", "dcgm_exporter_named_images", "nvidia_driver_named_elsewhere",
    "nvidia_driver_named_unknown",
]


def tasks(entries: list, around: tuple = ()) -> Iterator[tuple[dict, tuple]]:
    for entry in entries or []:
        yield entry, around
        for section in ("block", "rescue", "always"):
            yield from tasks(entry.get(section), (*around, entry))


def installs(task: dict) -> bool:
    name = next((key for key in INSTALLERS if key in task), "")
    return bool(name) and task[name].get("state", "present") != "absent" and not task[name].get("autoremove")


def files() -> Iterator[tuple[str, Path, list]]:
    for path in sorted(REPO.glob("roles/*/tasks/**/*.yml")):
        found = list(tasks(yaml.safe_load(path.read_text())))
        if any(installs(task) for task, _around in found):
            yield path.relative_to(REPO / "roles").parts[0], path, found


INSTALLING = [pytest.param(role, path, found, id=str(path.relative_to(REPO / "roles"))) for role, path, found in files()]


def test_bundles_ask_every_role_that_installs_something():
    assert sorted({param.values[0] for param in INSTALLING}) == sorted(KNOWN)
    assert all((REPO / "roles" / role / "tasks" / "named.yml").is_file() for role in KNOWN)


@pytest.mark.parametrize(("role", "path", "found"), INSTALLING)
def test_what_is_installed_may_come_from_a_bundle(role, path, found):
    if path.name in ("absent.yml", "packages_redhat.yml"):
        return
    brought = [task for task, _around in found if task.get("ansible.builtin.include_role", {}).get("name") == BRING]
    names = {task["vars"]["local_packages_names"] for task in brought}
    for task, around in found:
        if not installs(task):
            continue
        arguments = next(task[key] for key in INSTALLERS if key in task)
        environment = next((one["environment"] for one in (task, *around) if "environment" in one), "")
        if role in BY_VERSION:
            assert names and "__nvidia_driver_apt" in environment, f"{path}: {task['name']}"
            continue
        assert arguments["name"] in names, f"{path}: {task['name']}: nobody brings {arguments['name']}"
        assert "local_packages_environment" in environment, f"{path}: {task['name']}"


def named(tmp_path: Path, release: list[str], **variables) -> dict[str, list]:
    """What the roles name for a distribution, by their own entry points."""
    told = (*(f"{role}_named" for role in KNOWN), *FURTHER)
    asked = [{"ansible.builtin.include_role": {"name": f"localfirst.llm_fleet.{role}", "tasks_from": "named"}} for role in KNOWN]
    return play(tmp_path, asked, told, package_release=release, **variables)


def play(tmp_path: Path, asked: list[dict], told: tuple, *options: str, **variables) -> dict[str, list]:
    """The facts that are there after some tasks."""
    content = "{{ {" + ", ".join(f"'{name}': {name}" for name in told) + "} | to_json }}"
    note = {"ansible.builtin.copy": {"dest": str(tmp_path / "told.json"), "content": content}, "check_mode": False}
    play = {"hosts": "localhost", "gather_facts": False, "vars": variables, "tasks": [*asked, note]}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    program = Path(sys.executable).parent / "ansible-playbook"
    environment = {
        "PATH": f"{program.parent}:/usr/bin:/bin", "HOME": str(tmp_path), "ANSIBLE_COLLECTIONS_PATH": str(REPO / ".venv/collections"),
        "LC_ALL": "C.UTF-8",
    }
    command = [program, "-i", "localhost,", "-c", "local", tmp_path / "play.yml", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((tmp_path / "told.json").read_text())


def test_roles_name_what_they_install_on_that_distribution(tmp_path):
    twelve = named(tmp_path, ["Debian", "12"])
    assert twelve["container_runtime_named"] == [["docker.io", "python3-requests"]] and twelve["gateway_named"] == [["haproxy", "openssl"]]
    # Nobody thinks that there are GPUs.
    assert [twelve[name] for name in FURTHER] == [[], [], [], [], ""]
    thirteen = named(tmp_path, ["Debian", "13"])
    assert thirteen["container_runtime_named"] == [["docker-cli", "docker.io", "python3-requests"]]
    pinned = named(tmp_path, ["Debian", "12"], container_runtime_version="20.10.24*")
    assert sorted(pinned["container_runtime_named"][0]) == ["docker.io=20.10.24*", "python3-requests"]


IMAGES = [f"hub.example/{name}@sha256:{'ab' * 32}" for name in ("check", "dcgm-exporter")]


def test_roles_name_what_servers_with_gpus_want_besides(tmp_path):
    wanted = named(
        tmp_path, ["Debian", "12"], package_gpus=True, package_architecture="arm64", container_runtime_nvidia_version="1.18.2-1",
        container_runtime_nvidia_repository={"url": "https://mirror.example/toolkit"}, nvidia_driver_version="580.95.05",
        nvidia_driver_flavour="open", container_runtime_nvidia_check_image=IMAGES[0], dcgm_exporter_image=IMAGES[1],
    )
    [toolkit], [driver] = wanted["container_runtime_named_elsewhere"], wanted["nvidia_driver_named_elsewhere"]
    assert (toolkit["of"], toolkit["version"]) == ("toolkit", "1.18.2-1") and "nvidia-container-toolkit" in toolkit["packages"]
    key = "https://nvidia.github.io/libnvidia-container/gpgkey"
    assert toolkit["repository"] == {"url": "https://mirror.example/toolkit", "suite": "/", "components": [], "key": key}
    assert (driver["of"], driver["version"]) == ("driver", "580.95.05") and "nvidia-driver-cuda" in driver["packages"]
    # The repository of that distribution and architecture, though this machine is another.
    assert driver["repository"]["url"] == "https://developer.download.nvidia.com/compute/cuda/repos/debian12/sbsa/"
    assert {"linux-image-arm64", "linux-headers-arm64", "dkms"} <= set(driver["beside"]) and wanted["nvidia_driver_named_unknown"] == ""
    assert wanted["container_runtime_named_images"] == IMAGES[:1] and wanted["dcgm_exporter_named_images"] == IMAGES[1:]


def test_what_only_a_host_could_say_is_left_out_with_a_word(tmp_path):
    off = {"container_runtime_nvidia": "false", "container_runtime_nvidia_check_image": IMAGES[0]}
    wanted = named(tmp_path, ["Debian", "12"], package_gpus=True, **off)
    assert [wanted[name] for name in FURTHER[:-1]] == [[], [], [], []]
    assert "set nvidia_driver_version and nvidia_driver_flavour" in wanted["nvidia_driver_named_unknown"]
    mirror = {"container_runtime_nvidia": True, "container_runtime_nvidia_source": "host", "nvidia_driver_source": "preinstalled"}
    assert [named(tmp_path, ["Debian", "13"], package_gpus=True, **mirror)[name] for name in FURTHER] == [[], [], [], [], ""]


@pytest.mark.parametrize("options", [(), ("--check",)])
def test_a_role_may_ask_whether_bundles_have_something_before_it_describes_a_repository(tmp_path, options):
    text = yaml.safe_load((REPO / "roles/local_packages/vars/main.yml").read_text())["__local_packages_look"]
    here = subprocess.run(["/bin/sh", "-c", text], capture_output=True, text=True, check=True).stdout.strip()
    for name in (here, "plan9-4-mips"):
        (tmp_path / "packages" / name).mkdir(parents=True)
    (tmp_path / "packages/plan9-4-mips/Packages").write_text("Package: other\nVersion: 1\n")
    ask = [{"ansible.builtin.include_role": {"name": BRING, "tasks_from": "offer"}}]
    wanted = {"local_packages_names": ["tool=1.2*", "library", "other"], "local_packages_source": str(tmp_path / "packages")}
    told = ("local_packages_offered",)
    # Not for this distribution yet; then of the three only what is a package there, and no other field's word.
    assert play(tmp_path, ask, told, *options, **wanted) == {told[0]: []}
    (tmp_path / "packages" / here / "Packages").write_text("Package: tool\nDepends: library\nProvides: other\n\nPackage: unwanted\n")
    assert play(tmp_path, ask, told, *options, **wanted) == {told[0]: ["tool"]}
    assert play(tmp_path, ask, told, *options, **{**wanted, "local_packages_source": ""}) == {told[0]: []}


def test_files_that_are_brought_are_those_that_apt_would_fetch():
    """The pattern in the role's variables, on what apt prints."""
    text = yaml.safe_load((REPO / "roles/local_packages/vars/main.yml").read_text())["__local_packages_needed"]
    pattern = re.search(r'regex_findall\("(.+?)"\)', text)[1]
    printed = (
        "'file:/var/lib/llm_fleet/packages/repository/./libc6_2.36-9%2bdeb12u14_amd64.deb' libc6_2.36-9+deb12u14_amd64.deb 5 SHA256:0\n"
        "'http://deb.debian.org/x/other_1_all.deb' other_1_all.deb 1 SHA256:1\n"
    )
    assert re.findall(pattern.replace("\\\\", "\\"), printed) == ["libc6_2.36-9%2bdeb12u14_amd64.deb"]
