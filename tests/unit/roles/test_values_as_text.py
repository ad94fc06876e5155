# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""With -e and from surveys of AWX numbers and truths are text, and no specification changes that. Roles take it for what it says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleError

from ansible_collections.localfirst.llm_fleet.tests.unit.support.role_template import ROLES, Role

NAMES = sorted(path.name for path in ROLES.iterdir() if path.is_dir())
# What a role is given by playbooks, by facts, or by its tasks before.
GIVEN = {
    "ansible_facts": {"os_family": "Debian", "distribution": "Debian", "distribution_major_version": "12"},
    "ansible_managed": "managed", "llm_fleet_address": "10.0.0.5", "llm_fleet_ca_dir": "/srv/ca", "hostvars": {"gpu1": {}},
    "llm_fleet_monitor_password": "s3cret", "llm_fleet_image_names": {}, "role_path": "/roles/x",
    "dcgm_exporter_image": "registry.example/dcgm@sha256:" + "0f" * 32, "dcgm_exporter_counters": {"DCGM_FI_PROF_X": ["gauge", "x"]},
    "gateway_view": {
        "backends": [{"name": "be_tiny", "model": "tiny", "release": "a", "queue": 0, "api_key": False, "ready": [], "servers": []}],
        "model_lists": {"demo": "x" * 20000}, "limits": {}, "access": [], "models": {}, "paths": {}, "routes": {},
    },
    "gateway_engine_keys": {},
    "firewall_peers": ["10.0.0.6", "fd00::6"], "firewall_gateways": ["10.0.0.11"], "gpu_health_textfile_dir": "/var/lib/text",
    "__engine_instance": {"record": {"container": {"healthcheck": ["true"]}}},
    "__container_runtime_nvidia_on": True, "__container_runtime_nvidia_written": {"stdout": "{}"},
    "__local_packages_there": True, "__node_exporter_running": ["node_exporter"],
}


def kinds(role: str) -> dict[str, str]:
    """The role's numbers and truths, and lists of numbers."""
    options = yaml.safe_load((ROLES / role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    found = {name: option.get("elements", "") + option["type"] for name, option in options.items()}
    return {name: kind for name, kind in found.items() if kind in ("int", "bool", "intlist")}


def values(role: str, truth: bool) -> dict[str, Any]:
    """A value for each of them, the default where that is more than nothing."""
    known = Role(role)
    return {
        name: truth if kind == "bool" else known.evaluate(name) or (9400 if kind == "int" else [9100, 9400])
        for name, kind in kinds(role).items()
    }


def as_text(value: Any) -> Any:
    return [as_text(each) for each in value] if isinstance(value, list) else str(value)


def pieces(role: Role) -> Iterator[tuple[str, str, Callable[[Role], Any]]]:
    """What the role decides by itself, each with its text and what it comes to: variables, templates, conditions and arguments of tasks."""
    for name in (name for name in role.variables if name.startswith(f"__{role.folder.name}_")):
        yield name, str(role.variables[name]), lambda at, name=name: at.evaluate(name)
    for path in sorted(role.folder.glob("templates/**/*.j2")):
        yield path.name, path.read_text(), lambda at, path=path: at.render(str(path.relative_to(role.folder / "templates")))
    for file in sorted(role.folder.glob("tasks/**/*.yml")):
        for task in tasks(role.tasks(str(file.relative_to(role.folder / "tasks")))):
            what = f"{file.name}: {task.get('name')}"
            for text in conditions(task):
                yield f"{what}: {text}", text, lambda at, task=task, text=text: at.with_variables(task).evaluate(text)
            for text in texts([value for key, value in task.items() if "." in key or key in ("loop", "vars")]):
                # Modules know their types. In a list, because that may be left out.
                yield f"{what}: {text}", text, lambda at, task=task, text=text: as_text(at.with_variables(task).fill_in([text]))


def tasks(entries: list) -> Iterator[dict]:
    for entry in entries or []:
        yield entry
        for section in ("block", "rescue", "always"):
            yield from tasks(entry.get(section))


def conditions(task: dict) -> Iterator[str]:
    for found in (task.get("ansible.builtin.assert", {}).get("that", []), *map(task.get, ("when", "until", "failed_when", "changed_when"))):
        yield from (condition for condition in (found if isinstance(found, list) else [found]) if isinstance(condition, str))


def texts(value: Any) -> Iterator[str]:
    """The expressions in arguments of a task; not its messages."""
    if isinstance(value, str):
        yield from [value] if "{{" in value else []
    elif isinstance(value, list | dict):
        for each in [value[key] for key in value if key not in ("msg", "fail_msg")] if isinstance(value, dict) else value:
            yield from texts(each)


def outcome(role: Role, judge: Callable[[Role], Any]) -> Any:
    try:
        return judge(role)
    except AnsibleError as error:
        return error


@pytest.mark.parametrize("truth", [True, False])
@pytest.mark.parametrize("name", [name for name in NAMES if kinds(name)])
def test_text_is_taken_for_the_number_or_the_truth_that_it_says(name, truth):
    given = values(name, truth)
    real, text = (Role(name, **{**GIVEN, **now}) for now in (given, {option: as_text(value) for option, value in given.items()}))
    wrong = []
    for what, source, judge in pieces(real):
        wanted = outcome(real, judge)
        if isinstance(wanted, AnsibleError):
            # It looks at what tasks before have found, and at none of these as they are.
            assert not re.search(rf"\b({'|'.join(given)})\b(?! \| (int|bool)\b)", source), f"{what}: {wanted}"
        elif outcome(real, judge) == wanted != outcome(text, judge):  # and neither chance nor the time of day
            wrong.append(what)
    assert wrong == []
