# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What holds for every role."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).resolve().parents[3]
ROLES = sorted(path for path in (REPO / "roles").iterdir() if path.is_dir())
ALL_TEMPLATES = sorted(template for role in ROLES for template in role.glob("templates/**/*") if template.is_file())
# A part of another template is no file of its own on the host.
PARTS = {
    template.parent / part
    for template in ALL_TEMPLATES
    for part in re.findall(r"{%-?\s*(?:include|from|import)\s+'([^']+)'", template.read_text())
}
TEMPLATES = [template for template in ALL_TEMPLATES if template not in PARTS]
INCLUDES = {"ansible.builtin.include_tasks", "ansible.builtin.import_tasks"}
AROUND_INCLUDES = {"name", "when", "tags", "vars", "loop", "loop_control"}
# Formats that have no comments, or whose text goes to clients as it is.
WITHOUT_COMMENTS = {".json", ".html", ".http", ".txt", ".lst", ".map", ".pem"}

every_role = pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)


def load(path: Path):
    return yaml.safe_load(path.read_text())


def defaults(role: Path) -> dict:
    return load(role / "defaults/main.yml") or {}


def options(role: Path) -> dict:
    return load(role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]


@every_role
def test_the_specification_has_exactly_the_keys_of_the_defaults(role):
    # An option without a meaningful default has none, and stands in the defaults as a comment.
    described = re.findall(r"^#\s?(\w+):", (role / "defaults/main.yml").read_text(), re.MULTILINE)
    assert set(defaults(role)) <= set(options(role))
    assert set(options(role)) - set(defaults(role)) <= set(described)


@every_role
def test_every_option_has_a_description_and_a_type(role):
    for name, option in options(role).items():
        assert option.get("description") and option.get("type"), name


@every_role
def test_a_literal_default_is_the_one_that_the_specification_names(role):
    for name, value in defaults(role).items():
        computed = "{{" in str(value)
        if not computed and "default" in options(role)[name]:
            assert options(role)[name]["default"] == value, name


@every_role
def test_variables_carry_the_name_of_their_role(role):
    for name in defaults(role):
        assert name.startswith((f"{role.name}_", "llm_fleet_")), name
    internal = [path for path in role.glob("vars/*.yml")]
    for name in (key for path in internal for key in load(path) or {}):
        assert name.startswith(f"__{role.name}_"), name


@every_role
def test_every_default_is_explained(role):
    """The comment stands right above, or above a group of defaults without an empty line in between."""
    lines = (role / "defaults/main.yml").read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"\w+:", line):
            above = lines[:number]
            block = above[max((i + 1 for i, text in enumerate(above) if not text.strip()), default=0):]
            assert any(text.startswith("#") for text in block), line


@every_role
def test_the_readme_names_every_variable(role):
    readme = (role / "README.md").read_text()
    assert readme.startswith(f"# {role.name}\n")
    missing = [name for name in options(role) if f"`{name}`" not in readme]
    assert missing == []


@every_role
def test_the_main_task_file_only_includes(role):
    for task in load(role / "tasks/main.yml"):
        assert len(INCLUDES & set(task)) == 1, task
        assert set(task) <= INCLUDES | AROUND_INCLUDES, task
        assert any(tag.startswith(role.name) for tag in task["tags"]), task


@every_role
def test_a_role_says_who_made_it_and_where_it_runs(role):
    about = load(role / "meta/main.yml")["galaxy_info"]
    assert about["role_name"] == role.name
    assert about["license"] == "Apache-2.0" and about["min_ansible_version"] == "2.19"
    assert about["author"] and about["description"] and about["platforms"]


@every_role
def test_a_role_knows_no_groups(role):
    """Which hosts there are is for playbooks to say."""
    for path in [*role.glob("*/*.yml"), *role.glob("templates/**/*")]:
        if path.is_file():
            found = re.search(r"\bgroups\s*[\[.]|\bgroup_names\b", path.read_text())
            assert not found, f"{path}: {found[0]}"


@every_role
def test_every_task_has_a_name(role):
    def tasks(entries):
        for entry in entries or []:
            yield entry
            for section in ("block", "rescue", "always"):
                yield from tasks(entry.get(section))

    for path in [*role.glob("tasks/**/*.yml"), *role.glob("handlers/*.yml")]:
        for task in tasks(load(path)):
            assert task.get("name", "").strip(), f"{path}: {task}"
        assert len(path.read_text().splitlines()) <= 120, path


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: str(path.relative_to(REPO / "roles")))
def test_a_rendered_file_says_that_it_is_managed(template):
    if Path(template.name.removesuffix(".j2")).suffix in WITHOUT_COMMENTS:
        return
    head = template.read_text().splitlines()[:3]
    assert any(re.search(r"\{\{ ansible_managed \| comment(\(.*\))? \}\}", line) for line in head)
