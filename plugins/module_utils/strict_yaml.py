# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""YAML that means what it shows.

PyYAML silently takes the last of two equal keys, and aliases let a small file grow without bound; a tag makes
another thing of a text, or fails at it in a way of its own. None of them has a place in a file that decides what
is served, so all are faults here, with their line.
"""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

try:
    import yaml
except ImportError:  # nodes have no PyYAML; the controller has, because Ansible needs it, and depots, because they may lock
    HAS_YAML = False
else:
    HAS_YAML = True

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault

NO_YAML = "Python's YAML library is missing"

TOO_DEEP = "lists or mappings lie too deep in each other"
DEEPEST = 32  # libyaml's loader recurses, and crashes the process where data nest without end


class Lines:
    """Where the parts of a text stand, under the names that the schema's checks have for places."""

    def __init__(self, root: Any = None) -> None:
        self._root = root
        self._found: dict[str, int] = {}

    def of(self, place: str) -> int | None:
        """The line of a place such as 'models.tiny.files[0]'; '' is the whole. None where there is no such place."""
        if not self._found and self._root is not None:
            self._found[""] = self._root.start_mark.line + 1
            self._note(self._root, "")
        return self._found.get(place)

    def _note(self, node: Any, place: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                name = str(key.value) if isinstance(key, yaml.ScalarNode) else ""
                self._add(f"{place}.{name}" if place else name, key, value)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._add(f"{place}[{index}]", item, item)

    def _add(self, place: str, start: Any, value: Any) -> None:
        self._found.setdefault(place, start.start_mark.line + 1)
        self._note(value, place)


def load_yaml(text: Any, name: str) -> tuple[Any, list[Fault]]:
    """The data in `text`, or None and what is wrong with it; `name` is the file's name for messages."""
    data, faults, _lines = load_with_lines(text, name)
    return data, faults


def load_with_lines(text: Any, name: str) -> tuple[Any, list[Fault], Lines]:
    """The same, and where each part of the data stands."""
    if not HAS_YAML:
        return None, [Fault(NO_YAML, name, "install the package python3-yaml (RHEL: python3-pyyaml) on the host that reads it")], Lines()
    if not isinstance(text, str):
        return None, [Fault("this is not a text file", name, "write it in YAML")], Lines()
    # libyaml where there is one: ten times as fast on a long lockfile.
    loader_class = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        faults = list(_event_faults(yaml.parse(text, loader_class), name))
        if faults:
            return None, faults, Lines()
        loader = loader_class(text)
        node = loader.get_single_node()
        faults = list(_repeated_keys(node, name))
        if faults or node is None:
            return None, faults, Lines()
        lines = Lines(node)
        return loader.construct_document(node), [], lines
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark or error.context_mark, str(error.problem or error.context)
        # Newer ones of libyaml have a limit of their own, which they come to first.
        what = TOO_DEEP if "nesting depth" in problem else f"this is not YAML: {problem}"
        return None, [Fault(what, _line(name, mark), "correct it")], Lines()
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # a date such as 2026-99-99, or broken Unicode
        return None, [Fault(f"this is not YAML: {str(error).splitlines()[0]}", name, "correct it")], Lines()


def _event_faults(events: Iterator[Any], name: str) -> Iterator[Fault]:
    """Aliases, tags, and data that nest too deep to be built."""
    depth = 0
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            what = f"the alias *{event.anchor} stands for other text"
            yield Fault(what, _line(name, event.start_mark), "write that text out here")
        if getattr(event, "tag", None):
            what = f"the tag {event.tag.replace('tag:yaml.org,2002:', '!!')[:60]} makes another thing of what is written"
            yield Fault(what, _line(name, event.start_mark), "leave it out; put a text in quotes")
        if depth > DEEPEST:
            yield Fault(TOO_DEEP, _line(name, event.start_mark), "correct it")
            return


def _repeated_keys(root: Any, name: str) -> Iterator[Fault]:
    """Keys that a mapping has twice."""
    if isinstance(root, yaml.MappingNode):
        keys = set()
        for key, value in root.value:
            text = key.value if isinstance(key, yaml.ScalarNode) else None
            if text in keys:
                yield Fault(f"the key '{text}' is there twice", _line(name, key.start_mark), "keep one of them")
            if text is not None:
                keys.add(text)
            yield from _repeated_keys(value, name)
    elif isinstance(root, yaml.SequenceNode):
        for item in root.value:
            yield from _repeated_keys(item, name)


def _line(name: str, mark: Any) -> str:
    return name if mark is None else f"{name}: line {mark.line + 1}"
