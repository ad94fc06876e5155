# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Templates and variables of a role as Ansible renders them, without a play."""

from __future__ import annotations

import functools
import importlib
from copy import copy
from pathlib import Path
from typing import Any, Callable

from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROLES = Path(__file__).resolve().parents[3] / "roles"
COLLECTION = "localfirst.llm_fleet"


@functools.cache
def filters() -> dict[str, Callable]:
    """The collection's own, by their full names. Without a play, Ansible does not look for them."""
    found = {}
    for path in (ROLES.parent / "plugins/filter").glob("*.py"):
        plugin = importlib.import_module(f"ansible_collections.{COLLECTION}.plugins.filter.{path.stem}")
        found |= {f"{COLLECTION}.{name}": each for name, each in plugin.FilterModule().filters().items()}
    return found


class Role:
    """A role with its defaults and internal variables, and what a test sets beside them."""

    def __init__(self, name: str, **variables: Any) -> None:
        self.folder = ROLES / name
        self._loader = DataLoader()
        self._loader.set_basedir(str(self.folder))
        self.variables = {"ansible_search_path": [str(self.folder)]}
        for part in ("defaults", "vars"):
            path = self.folder / part / "main.yml"
            if path.exists():
                self.variables |= self._loader.load_from_file(str(path), trusted_as_template=True) or {}
        self.variables |= {"inventory_hostname": "gpu1", "ansible_check_mode": False, **variables}

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, as it would stand in `when`."""
        return self._templar().evaluate_expression(trust_as_template(expression))

    def render(self, template: str) -> str:
        """The text that the role would write."""
        return self.evaluate(f"lookup('template', '{template}')")

    def arguments(self, name: str, module: str) -> dict:
        """What the first task of a file that calls a module of the collection hands it."""
        (arguments, *_others) = [task[key] for task in self.tasks(name) if (key := f"localfirst.llm_fleet.{module}") in task]
        return self.fill_in(arguments)

    def fill_in(self, value: Any) -> Any:
        """A value of a task, as it would come to its module."""
        return self._templar().template(value)

    def tasks(self, name: str) -> list:
        """A task file, its expressions ready for `evaluate`."""
        return self._loader.load_from_file(str(self.folder / "tasks" / name), trusted_as_template=True)

    def _templar(self) -> Templar:
        templar = Templar(loader=self._loader, variables=self.variables)
        templar.environment.filters.update(filters())
        return templar

    def with_variables(self, task: dict, **variables: Any) -> Role:
        """The same with the variables of a task, and further ones."""
        other = copy(self)
        other.variables = {**self.variables, **variables, **task.get("vars", {})}
        return other


class Playbooks(Role):
    """What playbooks share: their task files."""

    def __init__(self, **variables: Any) -> None:
        super().__init__("../playbooks", **variables)
