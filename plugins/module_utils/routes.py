# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Which share of a model's requests goes to its new release while a rollout of it is open.

A route is {"backend", "share", "clients", "progress"}: the backend of the new release, the whole per cent of the requests that it gets, the
clients that always get it, and what the rollout wants to find again when somebody else goes on with it. A gateway keeps all of its
routes in one file, {"format": 1, "routes": {model: route}}. HAProxy's map follows from it, and is never read for what it says.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import whole_files, words
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.schema import (
    list_of,
    map_of,
    one_of,
    optional,
    record,
    required,
    show,
    text,
    whole,
    wrong,
)

FORMAT = 1


def _mapping(value: Any, where: str, faults: list[Fault]) -> dict | None:
    """A mapping that nobody here looks into."""
    return value if isinstance(value, dict) else wrong(faults, f"{show(value)} is not a mapping", where, "write a mapping")


BACKEND = text("[A-Za-z0-9][A-Za-z0-9_.-]{0,199}", "a backend", "the name that HAProxy has for it, as in be_tiny_0f3a5c7e9b1d")
_ROUTE = record(
    {
        "backend": required(BACKEND),
        "share": required(whole(0, 100)),
        "clients": optional(list_of(words.CLIENT_NAME), default=[]),
        "progress": optional(_mapping, default={}),
    }
)
_FILE = record({"format": required(one_of(FORMAT)), "routes": required(map_of(words.MODEL_NAME, _ROUTE))})


def route(model: str, backend: str, share: int, clients: list, progress: dict) -> dict:
    """{model: route} as the state file has it. Raises ValueError for names and shares that are none."""
    given = {"backend": backend, "share": share, "clients": sorted(set(clients)), "progress": progress}
    return _clean(map_of(words.MODEL_NAME, _ROUTE), {model: given}, "routes")


def check_models(models: list) -> None:
    """Raises ValueError for names that no model can have."""
    _clean(list_of(words.MODEL_NAME), models, "keep")


def read_routes(path: str | Path) -> dict:
    """{model: route} of the state file, nothing where there is no file. Raises ValueError for a damaged one, and says why."""
    if not Path(path).exists():
        return {}
    try:
        data = json.loads(whole_files.read(path))
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from error
    return _clean(_FILE, data, f"{Path(path).name}:")["routes"]


def write_routes(path: str | Path, routes: dict) -> None:
    """Replace the state file."""
    whole_files.write(path, json.dumps({"format": FORMAT, "routes": routes}, indent=1, sort_keys=True) + "\n", 0o640)


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Nobody else changes the state file meanwhile: rollouts of two models may be open at once."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.lock", "a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def map_entries(routes: dict) -> dict[str, str]:
    """HAProxy's map: model -> backend|share, and client|model -> backend."""
    entries = {}
    for model, one in sorted(routes.items()):
        entries[model] = f"{one['backend']}|{one['share']}"
        entries |= {f"{client}|{model}": one["backend"] for client in one["clients"]}
    return entries


def model_of(key: str) -> str:
    """The model that a key of the map is about."""
    return key.rpartition("|")[2]


def shown(routes: dict) -> str:
    """The routes as a diff shows them."""
    return "".join(
        f"{model}: {one['share']} % to {one['backend']}{', always for ' if one['clients'] else ''}{', '.join(one['clients'])}\n"
        for model, one in sorted(routes.items())
    )


def _clean(check: Any, value: Any, where: str) -> Any:
    faults: list[Fault] = []
    found = check(value, where, faults)
    if faults:
        raise ValueError("; ".join(fault.text() for fault in faults))
    return found
