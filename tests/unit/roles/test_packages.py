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
KNOWN = yaml.safe_load((REPO / "playbooks/vars/bundle.yml").read_text())["bundle_roles"]
# It compiles a driver against the host's own kernel, from NVIDIA's repository or a mirror of it: docs/airgap.md.
BY_MIRROR = {"nvidia_driver"}


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
    if role in BY_MIRROR or path.name == "absent.yml":
        return
    brought = [task for task, _around in found if task.get("ansible.builtin.include_role", {}).get("name") == BRING]
    names = {task["vars"]["local_packages_names"] for task in brought}
    for task, around in found:
        if not installs(task):
            continue
        arguments = next(task[key] for key in INSTALLERS if key in task)
        assert arguments["name"] in names, f"{path}: {task['name']}: nobody brings {arguments['name']}"
        environment = next((one["environment"] for one in (task, *around) if "environment" in one), "")
        assert "local_packages_environment" in environment, f"{path}: {task['name']}"


def named(tmp_path: Path, release: list[str], **variables) -> dict[str, list]:
    """What the roles name for a distribution, by their own entry points."""
    play = {
        "hosts": "localhost", "gather_facts": False, "vars": {"package_release": release, **variables},
        "tasks": [
            {"ansible.builtin.include_role": {"name": f"localfirst.llm_fleet.{role}", "tasks_from": "named"}} for role in KNOWN
        ] + [{"ansible.builtin.copy": {
            "dest": str(tmp_path / "named.json"),
            "content": "{{ {" + ", ".join(f"'{role}': {role}_named" for role in KNOWN) + "} | to_json }}",
        }}],
    }
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    program = Path(sys.executable).parent / "ansible-playbook"
    environment = {
        "PATH": f"{program.parent}:/usr/bin:/bin", "HOME": str(tmp_path), "ANSIBLE_COLLECTIONS_PATH": str(REPO / ".venv/collections"),
        "LC_ALL": "C.UTF-8",
    }
    done = subprocess.run(
        [program, "-i", "localhost,", "-c", "local", tmp_path / "play.yml"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((tmp_path / "named.json").read_text())


def test_roles_name_what_they_install_on_that_distribution(tmp_path):
    twelve = named(tmp_path, ["Debian", "12"])
    assert twelve["container_runtime"] == [["docker.io", "python3-requests"]] and twelve["gateway"] == [["haproxy", "openssl"]]
    thirteen = named(tmp_path, ["Debian", "13"])
    assert thirteen["container_runtime"] == [["docker-cli", "docker.io", "python3-requests"]]
    pinned = named(tmp_path, ["Debian", "12"], container_runtime_version="20.10.24*")
    assert sorted(pinned["container_runtime"][0]) == ["docker.io=20.10.24*", "python3-requests"]


def test_files_that_are_brought_are_those_that_apt_would_fetch():
    """The pattern in the role's variables, on what apt prints."""
    text = yaml.safe_load((REPO / "roles/local_packages/vars/main.yml").read_text())["__local_packages_needed"]
    pattern = re.search(r'regex_findall\("(.+?)"\)', text)[1]
    printed = (
        "'file:/var/lib/llm_fleet/packages/repository/./libc6_2.36-9%2bdeb12u14_amd64.deb' libc6_2.36-9+deb12u14_amd64.deb 5 SHA256:0\n"
        "'http://deb.debian.org/x/other_1_all.deb' other_1_all.deb 1 SHA256:1\n"
    )
    assert re.findall(pattern.replace("\\\\", "\\"), printed) == ["libc6_2.36-9%2bdeb12u14_amd64.deb"]
