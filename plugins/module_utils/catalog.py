# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What an operator may write into the catalog: the models that the fleet serves, and its clients."""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import catalog_rollout, semver, signature_demand, source_url, words
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.engine_profile import settings_check
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.extra_args import extra_args_faults
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault, suggestion
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.schema import (
    Check,
    anything,
    either,
    flag,
    list_of,
    map_of,
    number,
    optional,
    record,
    required,
    show,
    text,
    whole,
    wrong,
)

EVERY_CLIENT = "*"
LEAST_MEMORY = 64 * 2**20


def check_catalog(
    models: Any, clients: Any, profiles: dict[str, Any], host_names: Iterable[str]
) -> tuple[list[dict], list[dict], list[Fault]]:
    """Models and clients with all defaults filled in, and everything that is wrong with them.

    `models` and `clients` may be anything that YAML can hold; `host_names` are the hosts that may take a model.
    Each entry with a name of its own comes back. What else is wrong in it has become its default, or None
    where there is none, so that other checks can go on.
    """
    faults: list[Fault] = []
    clean_clients = _named(clients, "llm_fleet_clients", _CLIENT, faults)
    client_names = [client["name"] for client in clean_clients]
    hosts = list(host_names)
    model_names = [entry.get("name") for entry in models if isinstance(entry, dict)] if isinstance(models, list) else []

    def check_model(value: Any, where: str, faults: list[Fault]) -> dict | None:
        model = _MODEL(value, where, faults)
        if model is not None:
            faults += _version_faults(model, where)
            _choose_engine(model, where, profiles, faults)
            faults += _access_faults(model, where, client_names)
            faults += _placement_faults(model, where, hosts, model_names)
            faults += catalog_rollout.canary_faults(model, where, client_names)
        return model

    return _named(models, "llm_fleet_models", check_model, faults), clean_clients, faults


def _named(entries: Any, variable: str, check: Check, faults: list[Fault]) -> list[dict]:
    """The clean entries of a list, less those without a name of their own."""
    clean: dict[str, dict] = {}
    for index, entry in enumerate(list_of(anything)(entries, variable, faults) or []):
        found = check(entry, f"{variable}[{_label(entry, index)}]", faults)
        if not found or not found["name"]:
            continue
        name = found["name"]
        first = clean.setdefault(name.lower(), found)  # not all files, tools and eyes tell Tiny from tiny
        if first is not found:
            what = f"'{name}' and '{first['name']}' differ in letter case only"
            what = f"the name '{name}' is taken" if name == first["name"] else what
            wrong(faults, what, f"{variable}[{index}].name", "rename one of the two")
    return list(clean.values())


def _label(entry: Any, index: int) -> object:
    """How a message names an entry of a list: by its name if it has a sound one."""
    name = entry.get("name") if isinstance(entry, dict) else None
    return words.MODEL_NAME(name, "", []) or index


def _version_faults(model: dict, where: str) -> Iterator[Fault]:
    """The wanted version must be one that the model has, and a constraint must allow one."""
    wanted, versions = model["version"], model["versions"]
    if wanted is None or versions is None:
        return
    if not semver.is_version(wanted):
        if semver.select(wanted, versions) is None:
            known = ", ".join(sorted(versions, key=semver.order)) or "none yet"
            yield Fault(f"'{wanted}' allows none of the model's versions", f"{where}.version", f"there are: {known}")
    elif wanted not in versions:
        advice = suggestion(wanted, versions, "versions")
        yield Fault(f"version {wanted} is not among the model's versions", f"{where}.version", advice)


def _wanted_version(value: Any, where: str, faults: list[Fault]) -> str | None:
    """A version, or a constraint that becomes one when the fleet is locked."""
    if semver.is_constraint(value) and not semver.is_version(value):
        return str(value)
    mine: list[Fault] = []
    found = words.VERSION(value, where, mine)
    faults += [fault._replace(fix=f"{fault.fix}, or a constraint such as '~1.2' or 'latest'") for fault in mine]
    return found


def _choose_engine(model: dict, where: str, profiles: dict[str, Any], faults: list[Fault]) -> None:
    """Checks the engine, and the settings as its profile describes them."""
    engine, settings = model["engine"], model["settings"]
    model["settings"] = {}
    if engine in profiles:
        clean = settings_check(profiles[engine])(settings, f"{where}.settings", faults) or {}
        model["settings"] = {name: value for name, value in clean.items() if value is not None}
        faults += extra_args_faults(profiles[engine], model["extra_args"], f"{where}.extra_args")
    elif engine is not None:
        advice = suggestion(engine, profiles, "engines")
        wrong(faults, f"unknown engine '{engine}'", f"{where}.engine", advice)
        model["engine"] = None


def _access_faults(model: dict, where: str, clients: list[str]) -> Iterator[Fault]:
    """Access is for clients that exist, or for all of them."""
    names = model["access"]
    if EVERY_CLIENT in names and len(names) > 1:
        yield Fault("'*' is every client already", f"{where}.access", "keep '*', or the names")
    for name in names:
        if name != EVERY_CLIENT and name not in clients:
            yield Fault(f"unknown client {show(name)}", f"{where}.access", suggestion(name, clients, "clients"))


def _placement_faults(model: dict, where: str, hosts: list[str], models: list[Any]) -> Iterator[Fault]:
    """A pattern without a host is a slip. Without any host at all, that is the fault, and found elsewhere."""
    if (model["per_host"] or 1) > 1 and model["replicas"] != "all":
        yield Fault("per_host is for models on every host", f"{where}.per_host", "write replicas: all beside it, or leave it out")
    for name in model["placement"]["apart"]:
        if name not in models:
            yield Fault(f"there is no model {show(name)}", f"{where}.placement.apart", suggestion(name, models, "models"))
    for pattern in model["placement"]["hosts"]:
        if hosts and not any(fnmatchcase(host, pattern) for host in hosts):
            advice = suggestion(pattern, hosts, "hosts")
            yield Fault(f"{show(pattern)} matches no host", f"{where}.placement.hosts", advice)


def _memory(value: Any, where: str, faults: list[Fault]) -> str | None:
    """A size in which an engine can start at all."""
    size = words.SIZE(value, where, faults)
    if size is not None and words.size_bytes(size) < LEAST_MEMORY:
        return wrong(faults, f"no engine starts in {size}", where, "give it at least 64m")
    return size


def _prose_or_none(value: Any, where: str, faults: list[Fault]) -> str | None:
    return "" if value == "" else words.PROSE(value, where, faults)


def _any_of(value: Any, where: str, faults: list[Fault]) -> list[str] | None:
    """A pattern, or a list of them."""
    return list_of(text())([value] if isinstance(value, str) else value, where, faults)


_MODEL = record({
    "name": required(words.MODEL_NAME),
    "version": required(_wanted_version),
    "versions": required(map_of(words.VERSION, record({
        "source": required(source_url.check),
        "signature": optional(signature_demand.check_version),
    }))),
    "signature": optional(signature_demand.check_model),
    "engine": required(words.WORD),
    "settings": optional(anything, default={}),  # the engine's profile checks them
    "extra_args": optional(list_of(text()), default=[]),  # likewise
    "context": optional(whole(1, 2**24), default=4096),
    "parallel": optional(whole(1, 1024), default=4),
    "replicas": optional(either("all", whole(0, 1000)), default=1),
    "per_host": optional(whole(1, 64), default=1),
    "gpus": optional(either("auto", whole(0, 64)), default=0),
    "share": optional(flag, default=False),
    "placement": optional(
        record({
            "hosts": optional(list_of(text(), least=1), default=["*"]),
            "labels": optional(map_of(words.WORD, _any_of), default={}),
            "gpu": optional(_any_of, default=[]),
            "spread": optional(words.WORD),
            "apart": optional(list_of(text()), default=[]),
        }),
        default={},
    ),
    "access": optional(list_of(text()), default=[]),
    "queue": optional(whole(0, 100_000), default=16),
    "limits": optional(
        record({
            "memory": optional(_memory),
            "gpu_memory": optional(_memory),
            "cpus": optional(number(0.01, 4096)),
            "pids": optional(whole(16, 2**22)),
        }),
        default={},
    ),
    "smoke": optional(catalog_rollout.SMOKE, default=[]),
    "gates": optional(catalog_rollout.GATES, default={}),
    "rollout": optional(catalog_rollout.ROLLOUT, default={}),
    "intent": optional(_prose_or_none, default=""),
})

_CLIENT = record({
    "name": required(words.CLIENT_NAME),
    "limits": optional(
        record({
            "requests_per_minute": optional(whole(1, 1_000_000), default=600),
            "concurrent": optional(whole(1, 100_000), default=16),
        }),
        default={},
    ),
})
