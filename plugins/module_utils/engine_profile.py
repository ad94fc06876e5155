# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What an engine profile may say: the one file that teaches the fleet an engine.

Strings that reach the engine may hold placeholders such as {port} or {model}; {{ and }} stand for braces.
"""
from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import schema, words
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault, suggestion
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.memory import CACHE_TYPES
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.schema import (
    list_of,
    map_of,
    number,
    one_of,
    optional,
    record,
    required,
    text,
    whole,
)

PLACEHOLDERS = {
    "port": "the port that the engine listens on inside its container",
    "model": "the name of the model in the catalog",
    "version": "the version of the model",
    "model_path": "the model's first file inside the container",
    "model_dir": "the directory of the model's files inside the container",
    "config_dir": "the directory of the model's config.json inside the container; model_dir for formats without one",
    "context": "tokens per request",
    "parallel": "requests at once",
    "total_context": "context times parallel",
    "tensor_parallel": "GPUs of each replica, 1 on CPUs",
    "manifest_digest": "sha256 of the manifest in an Ollama store, 64 digits; empty for other formats",
}

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def fill(template: str, values: dict[str, Any]) -> str:
    """The template with its placeholders replaced by values."""
    return _TOKEN.sub(lambda token: token[0][0] if token[1] is None else str(values[token[1]]), template)


def setting_check(spec: dict[str, Any]) -> schema.Check:
    """The check of one engine setting, made from what the profile says about it."""
    least, most = spec.get("min"), spec.get("max")
    if spec.get("choices"):
        return one_of(*spec["choices"])
    return {
        "int": whole(least, most),
        "float": number(least, most),
        "str": text(),
        "bool": schema.flag,
        "list": list_of(_list_item, least=1),
    }[spec["type"]]


def settings_check(profile: dict[str, Any]) -> schema.Check:
    """The check of a model's `settings` under this profile."""
    fields = {name: optional(setting_check(spec)) for name, spec in profile["settings"].items()}
    return record(fields, "settings")


def legacy_warnings(models: Iterable[dict[str, Any]], profiles: dict[str, Any]) -> list[str]:
    """One line for each engine in use that is on its way out, with the way to another."""
    users: dict[str, list[str]] = {}
    for model in models:
        if model["engine"] is not None and profiles[model["engine"]]["status"] == "legacy":
            users.setdefault(model["engine"], []).append(model["name"])
    return [
        f"{', '.join(sorted(names))}: the engine '{engine}' is legacy, its makers only maintain it."
        f" Move to {' or '.join(profiles[engine]['successors'])}, which read the same files:"
        f" change 'engine' and 'settings', then roll out (docs/engines.md)."
        for engine, names in sorted(users.items())
    ]


def check_profile(profile: Any, where: str) -> list[Fault]:
    """Everything that is wrong with an engine profile; `where` is the name of its file."""
    faults: list[Fault] = []
    _PROFILE(profile, f"{where}:", faults)
    if not faults:  # the rest compares the parts with each other, so each must be sound first
        for name, spec in profile["settings"].items():
            faults += _setting_faults(spec, f"{where}: settings.{name}")
        faults += _clashes(profile, where)
        faults += _memory_faults(profile, f"{where}: gpu_memory")
        faults += _http_faults(profile["http"], f"{where}: http")
        faults += _status_faults(profile, where)
    return faults


def _list_item(value: Any, where: str, faults: list[Fault]) -> Any:
    """An item of a list setting. Items are joined by commas, so none may hold one."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return number()(value, where, faults)
    return text(r"[^\x00-\x1f\x7f,]+", "an item", "text without commas, or a number")(value, where, faults)


def _template(value: Any, where: str, faults: list[Fault]) -> str | None:
    """One line of text in which every placeholder is a known one."""
    found = text()(value, where, faults)
    for token in _TOKEN.finditer(found or ""):
        if token[1] is not None and token[1] not in PLACEHOLDERS:
            advice = suggestion(token[1], PLACEHOLDERS, "placeholders")
            schema.wrong(faults, f"unknown placeholder {token[0]}", where, advice)
        elif token[0] in ("{", "}"):
            schema.wrong(faults, f"a lone '{token[0]}'", where, "write it twice for the character itself")
    return found


def _setting_faults(spec: dict[str, Any], where: str) -> Iterator[Fault]:
    """What makes no sense in the description of one setting."""
    if (spec.get("flag") is None) == (spec.get("env") is None):
        yield Fault("a setting has one way to its engine", where, "give it either 'flag' or 'env'")
    if spec["type"] not in ("int", "float") and not (spec.get("min") is None and spec.get("max") is None):
        yield Fault(f"min and max mean nothing for the type {spec['type']}", where, "take them out")
    elif spec.get("min") is not None and spec.get("max") is not None and spec["min"] > spec["max"]:
        yield Fault("no value can satisfy min and max", where, "make min the smaller one")
        return
    faults: list[Fault] = []
    for index, choice in enumerate(spec.get("choices") or []):
        setting_check({**spec, "choices": None})(choice, f"{where}.choices[{index}]", faults)
    if spec.get("default") is not None:
        setting_check(spec)(spec["default"], f"{where}.default", faults)
    yield from faults


def _clashes(profile: dict[str, Any], where: str) -> Iterator[Fault]:
    """Flags and environment variables that are set from two sides: which one wins is the engine's secret."""
    settings, container = profile["settings"].values(), profile["container"]
    api_key = profile.get("api_key") or {}
    flags = [words[0] for words in container["command"]] + [spec.get("flag") for spec in settings]
    variables = [*container["environment"], api_key.get("environment")]
    variables += [spec.get("env") for spec in settings]
    for name in schema.repeated(flags + variables):
        yield Fault(f"{name} is set from two sides", where, "keep one of them")


def _memory_faults(profile: dict[str, Any], where: str) -> Iterator[Fault]:
    """Settings that the estimate goes by have to be there."""
    spec = profile.get("gpu_memory") or {}
    types = spec.get("cache_types") or {}
    named = {
        "cache_types.key": types.get("key"),
        "cache_types.value": types.get("value"),
        "share.setting": (spec.get("share") or {}).get("setting"),
        "batch.setting": (spec.get("batch") or {}).get("setting"),
        "flash_attention.setting": (spec.get("flash_attention") or {}).get("setting"),
        "gpu_layers": spec.get("gpu_layers"),
        **{f"unchecked[{index}]": name for index, name in enumerate(spec.get("unchecked") or [])},
    }
    for place, name in named.items():
        if name is not None and name not in profile["settings"]:
            yield Fault(f"there is no setting '{name}'", f"{where}.{place}", suggestion(name, profile["settings"], "settings"))


def _status_faults(profile: dict[str, Any], where: str) -> Iterator[Fault]:
    """Whoever is told that an engine is on its way out has to be told where to go."""
    if (profile["status"] == "legacy") != bool(profile.get("successors")):
        yield Fault("'successors' and the status 'legacy' need each other", where, "name the engines to move to, or change the status")


def _http_faults(http: dict[str, Any], where: str) -> Iterator[Fault]:
    """Interfaces that cannot work, or that clients must not reach."""
    for entry in schema.repeated(http["public"]):
        yield Fault(f"'{entry}' is listed twice", f"{where}.public", "keep one")
    if http.get("metrics") in [entry.split(" ")[1] for entry in http["public"]]:
        yield Fault("metrics are no business of clients", f"{where}.public", f"take out {http['metrics']}")
    if http.get("busy") and not http.get("metrics"):
        yield Fault("'busy' needs 'metrics'", where, "name the path of the metrics, or take 'busy' out")
    for index, probe in enumerate(http["ready"]):
        if probe.get("status") is None and probe.get("contains") is None:
            yield Fault("the probe expects nothing", f"{where}.ready[{index}]", "add 'status' or 'contains'")
        if probe.get("final") and probe.get("contains") is None:
            yield Fault("'final' needs 'contains'", f"{where}.ready[{index}]", "say what the answer has to contain")
    if http.get("preload"):
        yield from _preload_faults(http["preload"], f"{where}.preload.body")


def _preload_faults(preload: dict[str, Any], where: str) -> Iterator[Fault]:
    """The body must be JSON once its placeholders are filled in."""
    try:
        json.loads(fill(preload["body"], dict.fromkeys(PLACEHOLDERS, 1)))
    except ValueError as error:
        yield Fault(f"the body is not JSON: {error}", where, 'write it as in \'{{"model":"{model}"}}\'')


_FLAG = text(r"-{1,2}[A-Za-z0-9][A-Za-z0-9_.-]*", "a flag", "one word that begins with '-'")
# Nothing that a proxy and an engine could read in two ways: no '..', '//', '%', '?' or '#'.
_PLAIN_PATH = "(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)+"
_DIRECTORY = text(_PLAIN_PATH, "an absolute path", "one such as /tmp")
_PATH = text(_PLAIN_PATH, "a plain path", "one such as /v1/models, without '?' or '%'")
_ROUTE = text(f"(?:GET|POST) {_PLAIN_PATH}", "a method and a plain path", "them as in POST /v1/completions")

_NAME = "[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_IMAGE = text(
    f"[A-Za-z0-9][A-Za-z0-9.-]*(?::[0-9]{{1,5}})?/{_NAME}(?:/{_NAME})*:[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}}",
    "an image with its tag",
    "registry/repository:tag; its digest is found when it is locked",
)

_SETTING = record({
    "type": required(one_of("int", "float", "str", "bool", "list")),
    "description": required(words.PROSE),
    "flag": optional(_FLAG),
    "env": optional(words.VARIABLE),
    "min": optional(number()),
    "max": optional(number()),
    "choices": optional(list_of(schema.anything, least=1)),
    "default": optional(schema.anything),
})

_CONTAINER = record({
    "port": required(whole(1024, 65535)),
    # In place of the image's own. Without it, `command` goes to that one.
    "entrypoint": optional(list_of(_template), default=[]),
    "command": required(list_of(list_of(_template, least=1))),
    "environment": required(map_of(words.VARIABLE, _template)),
    "read_only": required(schema.flag),
    "tmpfs": required(list_of(_DIRECTORY)),
    "writable": required(list_of(_DIRECTORY)),
    # fleet: the user of that name. bare-root: uid 0 in that user's group and without any capability, for images in which
    # only root may read its own programs.
    "user": required(one_of("fleet", "bare-root")),
    "stop_signal": required(text("SIG[A-Z0-9]{2,10}", "a signal", "its name, as in SIGTERM")),
    "stop_timeout": required(whole(1, 3600)),
    "healthcheck": required(list_of(_template)),
    "memory": required(record({"base_mb": required(whole(16)), "per_artifact_byte": required(number(0))})),
    "pids": required(whole(16)),
    "shm_mb": required(whole(1)),
})

_HTTP = record({
    "public": required(list_of(_ROUTE, least=1)),
    "ready": required(list_of(record({
        "path": required(_PATH),
        "status": optional(whole(100, 599)),
        "contains": optional(_template),
        # What the engine answers here stays as it is while it runs: without `contains` there is no use in waiting.
        "final": optional(schema.flag),
    }), least=1)),
    # Sent once to an engine that answers and has not loaded its model yet. The answer comes when it has.
    "preload": optional(record({"path": required(_PATH), "body": required(_template)})),
    "metrics": optional(_PATH),
    "busy": optional(record({"metric": required(text("[a-zA-Z_:][a-zA-Z0-9_:]*", "a metric", "its name"))})),
})

# What the estimate of memory goes by (memory.py). Words such as `setting` name a setting of this profile.
_GPU_MEMORY = record({
    # Of the engine's process on each GPU, and in the machine's memory where it has none.
    "overhead_mb": required(whole(0)),
    "cpu_overhead_mb": optional(whole(0)),
    # Whether each GPU has its part of every layer. Otherwise each has some of the layers.
    "tensor_parallel": optional(schema.flag),
    # What has to have room in the context cache: all of the catalog's `parallel` requests, or one and the engine makes do.
    "sequences": required(one_of("parallel", "one")),
    "cache_types": optional(record({
        "key": optional(words.WORD),
        "value": optional(words.WORD),
        "default": required(one_of(*CACHE_TYPES)),
    })),
    # For engines that take a share of each GPU whatever the model needs.
    "share": optional(record({"setting": optional(words.WORD), "default": required(number(0.01, 1))})),
    # Tokens that are computed at once.
    "batch": required(record({"setting": optional(words.WORD), "default": required(whole(1))})),
    "flash_attention": optional(record({"setting": required(words.WORD), "off": required(schema.anything)})),
    # The setting that says how many layers are on GPUs; the others stay in the machine's memory.
    "gpu_layers": optional(words.WORD),
    # Settings under which the estimate does not hold.
    "unchecked": optional(list_of(words.WORD), default=[]),
})

# Flags that `extra_args` of the catalog may not have, besides those of command and settings.
_EXTRA_ARGS = record({
    "deny": required(list_of(text(r"--[A-Za-z0-9][A-Za-z0-9_-]*", "a long flag", "one as in --port"), least=1)),
    # How the engine reads a value: --flag=value (joined), or --flag value.
    "values": optional(one_of("joined", "separate")),
    # Whether it takes the beginning of a flag for the whole, as Python's argparse does.
    "abbreviated": optional(schema.flag),
})

_PROFILE = record({
    "name": required(words.WORD),
    "description": required(words.PROSE),
    "status": required(one_of("supported", "legacy", "experimental")),
    # Engines that read the same files, for models of a legacy engine to move to.
    "successors": optional(list_of(words.WORD, least=1)),
    # What is locked where llm_fleet_engine_images names no other.
    "image": optional(_IMAGE),
    "formats": required(list_of(words.WORD, least=1)),
    "container": required(_CONTAINER),
    "settings": required(map_of(words.WORD, _SETTING)),
    # Without it, the catalog's `extra_args` have to be empty.
    "extra_args": optional(_EXTRA_ARGS),
    "api_key": optional(record({"environment": required(words.VARIABLE)})),
    "gpu_memory": optional(_GPU_MEMORY),
    "http": required(_HTTP),
})
