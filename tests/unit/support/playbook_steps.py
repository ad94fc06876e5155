# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Reads playbooks as Ansible would, with every task file that they lead to, and finds delegated steps whose host may be lost unnoticed.

Ansible goes on where a host of a delegated step cannot be reached: `rescue` does not run for it, and with `ignore_unreachable` alone
the step counts as done. So each of them has to hand what it registered to something that fails.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

STRATEGY = "{{ rollout.strategy }}"
INCLUDES = ("ansible.builtin.include_tasks", "ansible.builtin.import_tasks")
ASSERT, DEBUG, SET_FACT = "ansible.builtin.assert", "ansible.builtin.debug", "ansible.builtin.set_fact"
SECTIONS = ("block", "rescue", "always")
# A lock that could not be given back ends by itself. It is enough to say so.
TOLD_ONLY = {"unlock.yml"}


class Step(NamedTuple):
    """A task, with what it stands in."""

    file: Path
    task: dict[str, Any]
    after: list[dict[str, Any]]  # the tasks of the same file that follow it
    around: tuple[dict[str, Any], ...]  # play and blocks, the outermost first

    @property
    def where(self) -> str:
        return f"{self.file.name}: {self.task.get('name', '?')}"

    def has(self, keyword: str) -> Any:
        """The keyword as it holds here: from the task, or from what is around it."""
        return next((one[keyword] for one in (self.task, *reversed(self.around)) if keyword in one), None)

    @property
    def delegated(self) -> bool:
        return self.task.get("delegate_to", "localhost") != "localhost"


def steps(playbook: Path, strategies: list[str]) -> Iterator[Step]:
    """All tasks that a playbook leads to. What it imports and includes is read once for each place that does so."""
    for play in _load(playbook):
        if "ansible.builtin.import_playbook" in play:
            yield from steps(_beside(playbook, play["ansible.builtin.import_playbook"]), strategies)
        for section in ("pre_tasks", "tasks", "post_tasks"):
            yield from _tasks(playbook, play.get(section, []), [], (play,), strategies, ())


def _tasks(file: Path, tasks: list, later: list, around: tuple, strategies: list[str], files: tuple) -> Iterator[Step]:
    for number, task in enumerate(tasks):
        after = [*tasks[number + 1 :], *later]
        yield Step(file, task, after, around)
        for section in SECTIONS:
            yield from _tasks(file, task.get(section, []), after, (*around, task), strategies, files)
        for name in (_file_of(task[include]) for include in INCLUDES if include in task):
            for included in [name.replace(STRATEGY, strategy) for strategy in strategies] if STRATEGY in name else [name]:
                path = _beside(file, included)
                if path not in files:
                    yield from _tasks(path, _load(path), [], (*around, _passed_on(task)), strategies, (*files, path))


def _passed_on(task: dict) -> dict:
    """What a file gets of the task that brings it in: all keywords with an import, and nothing but variables with an include."""
    return task if "ansible.builtin.import_tasks" in task else {"vars": task.get("vars", {})}


def unnoticed(found: Step) -> str:
    """How a step may fail to notice that its host is lost; nothing where it does."""
    task, register = found.task, found.task.get("register", "")
    if not found.delegated:
        return ""
    if task.get("ignore_unreachable") is not True or not register:
        return f"{found.where}: it needs ignore_unreachable: true and register"
    if found.has("run_once"):
        return f"{found.where}: with run_once, Ansible ends the play for everybody where its host is lost, and gives no reason"
    if found.has("become") is not True:
        return f"{found.where}: it needs become: true"
    variables = {name for one in (task, *found.around) for name in one.get("vars", {})}
    if found.has("connection") is not None or "ansible_connection" in variables:
        return f"{found.where}: what is around it says how to connect, and so it does not run on its host"
    if found.file.name in TOLD_ONLY:
        return "" if _goes_through(found.after, register, DEBUG) else f"{found.where}: nobody is told who did not answer"
    follower = found.after[0] if found.after else {}
    answered = any(Path(_file_of(follower.get(include, ""))).name == "answered.yml" for include in INCLUDES)
    if answered:
        right = _names((follower.get("vars") or {}).get("step", "")) == {register} and "when" not in follower
        return "" if right else f"{found.where}: answered.yml is not given {register}, or not always"
    return "" if _goes_through(found.after, register, ASSERT) else f"{found.where}: nothing fails where {register} has no answer"


def _goes_through(after: list[dict], register: str, action: str) -> bool:
    """Whether a task of this kind looks at what was registered, or at a fact made of it, through a filter that knows of silence."""
    known = {register}
    for task in after:
        known |= {fact for fact, value in task.get(SET_FACT, {}).items() if known & _names(value)}
        text = str(task.get(action, "")) if action != ASSERT else str(task.get(action, {}).get("that", ""))
        # One that runs under a condition would have to be looked at by people.
        always = "when" not in task or action == DEBUG
        if always and re.search(r"\b(lock_held|unanswered)\b", text) and known & _names(text):
            return True
    return False


def _names(value: Any) -> set[str]:
    return set(re.findall(r"[A-Za-z_]\w*", str(value)))


def _file_of(include: Any) -> str:
    return include["file"] if isinstance(include, dict) else include


def _beside(file: Path, name: str) -> Path:
    path = (file.parent / name).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"{file} leads to {name}, and there is no such file")
    return path


def _load(path: Path) -> list:
    return yaml.safe_load(path.read_text()) or []
