# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Merge settings into Docker's daemon.json, and take exactly them out again.

Pure: documents in, documents out. A merge returns a record of what it changed; with that record
`unmerge` gives the operator's document back, whatever the operator has edited meanwhile.
"""

from __future__ import annotations

import json
import math
import re
from typing import NamedTuple

# Keys that dockerd reads again on SIGHUP. Of these it takes up a new value, but most keep the old
# one when the key is no longer there: only those of the first set fall back to the default.
RESETTABLE = frozenset(
    ["features", "max-concurrent-downloads", "max-concurrent-uploads", "max-download-attempts"]
)
RELOADABLE = RESETTABLE | {
    "allow-nondistributable-artifacts", "authorization-plugins", "debug", "default-runtime", "insecure-registries",
    "labels", "live-restore", "registry-mirrors", "runtimes", "shutdown-timeout",
}

# The one entry of `features` that dockerd looks at while it runs. The others, CDI among them, it reads when it starts.
LIVE_FEATURES = frozenset(["buildkit"])

_SECRET_KEY = re.compile(r"token|secret|password|credential", re.IGNORECASE)
_URL_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")


class BrokenDocument(ValueError):
    """The text is not a JSON object; the message says where."""


def parse(text: str) -> dict:
    """Read a daemon.json. A file without content counts as an empty object."""
    if not text.strip():
        return {}
    try:
        document = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise BrokenDocument(f"line {error.lineno}, column {error.colno}: {error.msg}") from error
    if not isinstance(document, dict):
        raise BrokenDocument("line 1, column 1: the document is not a JSON object")
    return document


def _no_constant(name: str):
    raise BrokenDocument(f"{name} is not a JSON value")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise BrokenDocument(f"the number {text} is too large")
    return number


def render(document: dict) -> str:
    """The document as text, keys in the order in which they came."""
    return json.dumps(document, indent=2) + "\n"


def same(one, other) -> bool:
    """Equality as JSON has it: unlike in Python, true is not 1, and the order of keys means nothing."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _contains(items: list, item) -> bool:
    return any(same(item, known) for known in items)


def wanted_settings(document: dict, config: dict, defaults: dict) -> dict:
    """What to merge: config as it is, and of the defaults what the operator leaves open.

    The options of a log driver fit that driver only, and a wrong one keeps dockerd from starting:
    where another driver is chosen, the default driver's options are left out too.
    """
    wanted = _copy(config)
    default_driver = defaults.get("log-driver")
    driver = config.get("log-driver", document.get("log-driver", default_driver))
    for key, value in defaults.items():
        if key == "log-opts" and driver != default_driver:
            continue
        _fill(wanted, document, key, value)
    return wanted


def _fill(wanted: dict, document: dict, key: str, value) -> None:
    """Put a default into `wanted` unless `wanted` or the document has a say there already."""
    if isinstance(value, dict):
        inner = wanted.get(key, {})
        there = document.get(key, {})
        if isinstance(inner, dict) and isinstance(there, dict):
            inner = _copy(inner)
            for name, item in value.items():
                _fill(inner, there, name, item)
            if inner or key in wanted:
                wanted[key] = inner
    elif key not in wanted and key not in document:
        wanted[key] = _copy(value)


def _copy(value):
    return json.loads(json.dumps(value))


def merge(document: dict, settings: dict) -> tuple[dict, list]:
    """Return (merged document, record). Objects merge, lists unite, any other value of ours wins."""
    merged, record = _copy(document), []
    _merge(merged, settings, [], record)
    return merged, record


def _merge(target: dict, settings: dict, path: list, record: list) -> None:
    for key, value in settings.items():
        here = [*path, key]
        there = target.get(key)
        if isinstance(value, dict) and (key not in target or isinstance(there, dict)):
            if key not in target:
                record.append({"path": here, "kind": "object"})
                target[key] = {}
            _merge(target[key], value, here, record)
        elif isinstance(value, list) and (key not in target or isinstance(there, list)):
            added = []
            for item in value:
                if not _contains([*(there or []), *added], item):
                    added.append(_copy(item))
            if added or key not in target:
                record.append({"path": here, "kind": "list", "added": added, "new": key not in target})
                target[key] = [*(there or []), *added]
        elif key not in target:
            record.append({"path": here, "kind": "value", "value": _copy(value)})
            target[key] = _copy(value)
        elif not same(there, value):
            record.append({"path": here, "kind": "value", "value": _copy(value), "before": there})
            target[key] = _copy(value)


def unmerge(document: dict, record: list) -> dict:
    """Take out what the record says was put in. What has been edited since is the operator's, and stays."""
    restored = _copy(document)
    for entry in reversed(record):
        *parents, key = entry["path"]
        holder = restored
        for name in parents:
            holder = holder.get(name) if isinstance(holder, dict) else None
        if isinstance(holder, dict) and key in holder:
            _undo(holder, key, entry)
    return restored


def _undo(holder: dict, key: str, entry: dict) -> None:
    there = holder[key]
    if entry["kind"] == "value":
        if same(there, entry["value"]):
            if "before" in entry:
                holder[key] = _copy(entry["before"])
            else:
                del holder[key]
    elif entry["kind"] == "list" and isinstance(there, list):
        for item in entry["added"]:
            # Ours were appended, so the last of several equal items is ours.
            last = next((i for i in reversed(range(len(there))) if same(there[i], item)), None)
            if last is not None:
                del there[last]
        if entry["new"] and not there:
            del holder[key]
    elif entry["kind"] == "object" and there == {}:
        del holder[key]


class Outcome(NamedTuple):
    """What the file should be, and what to remember about it."""

    before: dict  # the document as it is
    after: dict  # the document as it should be
    text: str | None  # the file as it should be; None for no file
    original: str | None  # the operator's own file; None for no file
    record: list  # what of `after` is ours


def decide(text: str | None, original: str | None, record: list, config: dict, defaults: dict) -> Outcome:
    """Merge config and defaults into the file, in place of what the record says was merged before.

    Without config and defaults that is: take everything out. `original` counts with a record only.
    """
    before = parse(text or "")
    operators = unmerge(before, record)
    if not record:
        original = text
    if not same(parse(original or ""), operators):
        original = render(operators)  # edited meanwhile: their layout is gone, their settings are not
    after, new_record = merge(operators, wanted_settings(operators, config, defaults))
    if not new_record and record:
        text = original
    elif not same(before, after):
        text = render(after)
    return Outcome(before, after, text, original, new_record)


def changed_keys(before: dict, after: dict) -> tuple[list, list]:
    """Top-level keys that differ: (those that a reload brings into effect, those that need a restart)."""
    reload_keys, restart_keys = [], []
    for key in sorted({*before, *after}):
        if key in before and key in after and same(before[key], after[key]):
            continue
        takes = key in RELOADABLE if key in after else key in RESETTABLE
        if key == "features":
            takes = takes and _changed_entries(before.get(key), after.get(key)) <= LIVE_FEATURES
        (reload_keys if takes else restart_keys).append(key)
    return reload_keys, restart_keys


def _changed_entries(before, after) -> set:
    """Names that differ between two objects; a value that is none counts as empty."""
    before, after = (value if isinstance(value, dict) else {} for value in (before, after))
    return {name for name in {*before, *after} if name not in before or name not in after or not same(before[name], after[name])}


def redact(value, key: str = ""):
    """The document fit to be shown: without passwords in URLs and values of keys that name a secret."""
    if isinstance(value, dict):
        return {name: redact(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [redact(item, key) for item in value]
    if isinstance(value, str):
        return "********" if _SECRET_KEY.search(key) else _URL_CREDENTIALS.sub("********", value)
    return value
