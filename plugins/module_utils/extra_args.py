# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Arguments of an operator's own for an engine's command line: `extra_args` in the catalog.

Each is `--flag` or `--flag=value`, so that no word can be taken for anything else. What the fleet relies on stays out:
what the profile denies, and what its command or a setting says already. Parsers take several spellings for one flag
('_' for '-', 'no-' in front, the beginning of it alone), so a flag is refused in all of them.
"""
from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.schema import show

_ARGUMENT = re.compile(r"(--[A-Za-z0-9][A-Za-z0-9_.+-]*)(?:=(.*))?", re.DOTALL)
_NUMBER = re.compile(r"-[0-9]+(?:\.[0-9]+)?")


def extra_args_faults(profile: dict[str, Any], arguments: list[str], where: str) -> Iterator[Fault]:
    """Everything that is wrong with a model's `extra_args` under this profile."""
    rules = profile.get("extra_args")
    if arguments and not rules:
        what = f"the engine '{profile['name']}' takes no arguments of one's own"
        yield Fault(what, where, "take them out; what it can be told is in its settings (docs/engines.md)")
        return
    seen: set[str] = set()
    for index, argument in enumerate(arguments):
        place, found = f"{where}[{index}]", _ARGUMENT.fullmatch(argument)
        if found is None:
            yield Fault(f"{show(argument)} is no long flag", place, "write --flag or --flag=value, as one item")
            continue
        flag, value = found[1], found[2]
        reason = _refusal(profile, rules, flag)
        if reason is not None:
            yield Fault(reason[0], place, reason[1])
        elif _bare(flag) in seen:
            yield Fault(f"{flag} is there twice", place, "keep one")
        elif _separate(rules) and value is not None and value.startswith("-") and not _NUMBER.fullmatch(value):
            yield Fault(f"the engine would take the value of {flag} for a flag", place, "give it a value without '-' in front")
        seen.add(_bare(flag))


def argument_words(profile: dict[str, Any], arguments: list[str]) -> list[str]:
    """The words that checked `extra_args` become on the engine's command line."""
    if not _separate(profile.get("extra_args") or {}):
        return list(arguments)
    return [word for argument in arguments for word in argument.split("=", 1)]


def _separate(rules: dict[str, Any]) -> bool:
    """Whether the engine reads '--flag value' and not '--flag=value'."""
    return rules.get("values") == "separate"


def _bare(flag: str) -> str:
    """A flag without what does not change its meaning: '_' for '-', 'no-' in front, and the part of a value after a dot."""
    name = flag.lstrip("-").replace("_", "-").split(".")[0].rstrip("+")
    return name[3:] if name.startswith("no-") else name


def _refusal(profile: dict[str, Any], rules: dict[str, Any], flag: str) -> tuple[str, str] | None:
    """Why a flag may not be given, and what to do instead; None if it may."""
    name = _bare(flag)
    settings = {_bare(spec["flag"]): key for key, spec in profile["settings"].items() if spec.get("flag")}
    command = {_bare(words[0]): words[0] for words in profile["container"]["command"] if words[0].startswith("-")}
    denied = {_bare(one): one for one in rules["deny"]}
    if name in settings:
        return f"{flag} is set from two sides", f"write it as settings.{settings[name]}"
    if name in command:
        return f"{flag} is set by the fleet itself", "take it out; context, parallel and gpus of the model are where it comes from"
    if name in denied:
        return f"{flag} is not for operators: the fleet relies on it", "take it out"
    for known in sorted({*settings, *command, *denied}) if rules.get("abbreviated") else []:
        if known.startswith(name):
            return f"{flag} may be read as --{known}, which is not to be given here", "write the whole name of the flag that you mean"
    return None
