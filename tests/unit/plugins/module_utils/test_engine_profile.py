# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.engine_profile import (
    PLACEHOLDERS,
    check_profile,
    fill,
    legacy_warnings,
    setting_check,
    settings_check,
)

PROFILE = {
    "name": "echo",
    "description": "An engine for tests.",
    "status": "experimental",
    "image": "registry.example:5000/engines/echo:1.0",
    "formats": ["gguf"],
    "container": {
        "port": 8080,
        "entrypoint": ["/bin/echo"],
        "command": [["--port", "{port}"], ["--quiet"]],
        "environment": {"MODEL": "{model}"},
        "read_only": True,
        "tmpfs": ["/tmp"],
        "writable": [],
        "user": "fleet",
        "stop_signal": "SIGTERM",
        "stop_timeout": 30,
        "healthcheck": ["CMD", "curl", "http://127.0.0.1:{port}/health"],
        "memory": {"base_mb": 64, "per_artifact_byte": 1.0},
        "pids": 64,
        "shm_mb": 64,
    },
    "settings": {
        "threads": {"type": "int", "flag": "--threads", "min": 1, "max": 8, "default": 2, "description": "Threads."},
        "mode": {"type": "str", "env": "MODE", "choices": ["fast", "exact"], "description": "How."},
    },
    "api_key": {"environment": "API_KEY"},
    "http": {
        "public": ["POST /v1/completions"],
        "ready": [{"path": "/health", "status": 200}, {"path": "/v1/models", "contains": '{{"id":"{model}"}}'}],
        "metrics": "/metrics",
        "busy": {"metric": "echo:busy"},
        "preload": {"path": "/load", "body": '{{"model":"{model}"}}'},
    },
    "gpu_memory": {
        "overhead_mb": 500,
        "cpu_overhead_mb": 100,
        "tensor_parallel": True,
        "sequences": "one",
        "cache_types": {"key": "mode", "value": "mode", "default": "auto"},
        "share": {"setting": "threads", "default": 0.9},
        "batch": {"setting": "threads", "default": 2048},
        "flash_attention": {"setting": "mode", "off": "exact"},
        "gpu_layers": "threads",
        "unchecked": ["mode"],
    },
}


def changed(*path, to):
    profile = copy.deepcopy(PROFILE)
    part = profile
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = to
    return profile


def test_a_sound_profile_has_no_fault():
    assert check_profile(PROFILE, "echo.yml") == []


@pytest.mark.parametrize(
    "path",
    [("api_key",), ("image",), ("http", "busy"), ("http", "preload"), ("gpu_memory",), ("container", "tmpfs"), ("container", "entrypoint")],
)
def test_an_engine_need_not_have_everything(path):
    assert check_profile(changed(*path, to=[] if path[-1] == "tmpfs" else None), "echo.yml") == []


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        (("name",), None, ""),
        (("nmae",), "x", ""),
        (("status",), "good", "status"),
        (("formats",), [], "formats"),
        (("container",), None, ""),
        (("container", "port"), 80, "container.port"),
        (("container", "command"), ["--port"], "container.command[0]"),
        (("container", "command"), [["{prot}"]], "container.command[0][0]"),
        (("container", "command"), [["{"]], "container.command[0][0]"),
        (("container", "command"), [["--threads", "4"]], ""),
        (("container", "environment"), {"A": "{host}"}, "container.environment.A"),
        (("container", "environment"), {"MODE": "x"}, ""),
        (("container", "environment"), {"API_KEY": "x"}, ""),
        (("container", "environment"), {"A": 1}, "container.environment.A"),
        (("container", "user"), "root", "container.user"),
        (("status",), "legacy", ""),
        (("successors",), ["other"], ""),
        (("extra_args",), {"deny": []}, "extra_args.deny"),
        (("extra_args",), {"deny": ["-p"]}, "extra_args.deny[0]"),
        (("extra_args",), {"deny": ["--port"], "values": "both"}, "extra_args.values"),
        (("container", "tmpfs"), ["tmp"], "container.tmpfs[0]"),
        (("container", "stop_signal"), "TERM", "container.stop_signal"),
        (("container", "memory", "base_mb"), "1g", "container.memory.base_mb"),
        (("settings", "threads", "type"), "integer", "settings.threads.type"),
        (("settings", "threads", "flag"), "threads", "settings.threads.flag"),
        (("settings", "threads", "flag"), None, "settings.threads"),
        (("settings", "threads", "env"), "THREADS", "settings.threads"),
        (("settings", "threads", "default"), 9, "settings.threads.default"),
        (("settings", "threads", "min"), 9, "settings.threads"),
        (("settings", "mode", "min"), 1, "settings.mode"),
        (("settings", "mode", "choices"), ["fast", True], "settings.mode.choices[1]"),
        (("settings", "mode", "env"), "API_KEY", ""),
        (("settings", "mode", "description"), None, "settings.mode"),
        (("http", "public"), [], "http.public"),
        (("http", "public"), ["POST /v1/a", "POST /v1/a"], "http.public"),
        (("http", "public"), ["GET /metrics"], "http.public"),
        (("http", "ready"), [], "http.ready"),
        (("http", "ready"), [{"path": "/health"}], "http.ready[0]"),
        (("http", "ready"), [{"path": "/health", "contains": "{x}"}], "http.ready[0].contains"),
        (("http", "ready"), [{"path": "/health", "status": 200, "final": True}], "http.ready[0]"),
        (("http", "metrics"), None, "http"),
        (("http", "preload"), {"path": "/load"}, "http.preload"),
        (("http", "preload"), {"path": "/load?x", "body": "{{}}"}, "http.preload.path"),
        (("http", "preload"), {"path": "/load", "body": '{{"model":{model}}'}, "http.preload.body"),
        (("http", "preload"), {"path": "/load", "body": "model={model}"}, "http.preload.body"),
        (("image",), "registry.example/echo", "image"),
        (("image",), "echo:1.0", "image"),
        (("container", "entrypoint"), ["{prot}"], "container.entrypoint[0]"),
        (("gpu_memory", "overhead_mb"), None, "gpu_memory"),
        (("gpu_memory", "sequences"), "all", "gpu_memory.sequences"),
        (("gpu_memory", "batch"), {}, "gpu_memory.batch"),
        (("gpu_memory", "cache_types"), {"default": "f17"}, "gpu_memory.cache_types.default"),
        (("gpu_memory", "share", "default"), 90, "gpu_memory.share.default"),
        (("gpu_memory", "share", "setting"), "treads", "gpu_memory.share.setting"),
        (("gpu_memory", "cache_types", "key"), "mood", "gpu_memory.cache_types.key"),
        (("gpu_memory", "unchecked"), ["mode", "mood"], "gpu_memory.unchecked[1]"),
    ],
)
def test_one_slip_is_one_fault_in_its_place(path, value, where):
    faults = check_profile(changed(*path, to=value), "echo.yml")
    assert [fault.where for fault in faults] == [f"echo.yml: {where}" if where else "echo.yml"]


def test_a_legacy_engine_is_told_of_once_with_the_way_to_others():
    old = {**PROFILE, "name": "old", "status": "legacy", "successors": ["new", "newer"]}
    assert check_profile(old, "old.yml") == []
    models = [{"name": name, "engine": engine} for name, engine in [("b", "old"), ("c", "echo"), ("a", "old"), ("d", None)]]
    [line] = legacy_warnings(models, {"old": old, "echo": PROFILE})
    assert line.startswith("a, b:") and "new or newer" in line


@pytest.mark.parametrize(
    "route",
    [
        "/v1/completions",
        "DELETE /v1/completions",
        "post /v1/completions",
        "POST  /v1/completions",
        "POST v1/completions",
        "POST /",
        "POST /v1/",
        "POST //v1",
        "POST /v1/../slots",
        "POST /v1/.hidden",
        "POST /v1/%2e",
        "POST /v1?x",
        "POST /v1#x",
        "POST /v1/*",
        "POST /v1\n",
    ],
)
def test_public_paths_can_be_read_in_one_way_only(route):
    assert len(check_profile(changed("http", "public", to=[route]), "echo.yml")) == 1


def test_faults_of_all_parts_come_at_once():
    profile = changed("status", to="good")
    profile["container"]["port"] = 80
    profile["http"]["public"] = ["GET /a/../b"]
    assert len(check_profile(profile, "echo.yml")) == 3


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
PLACES = [(key,) for key in PROFILE]
PLACES += [("container", key) for key in PROFILE["container"]] + [("http", key) for key in PROFILE["http"]]
PLACES += [("settings", "threads", key) for key in ("type", "flag", "env", "min", "max", "default", "choices")]


@given(st.sampled_from(PLACES), ANYTHING)
def test_nothing_that_yaml_can_hold_raises(place, value):
    check_profile(value, "echo.yml")
    profile = changed(*place, to=value)
    if not check_profile(profile, "echo.yml"):
        # What passes can be used: every setting is checked by what the profile says of it.
        settings_check(profile)({name: value for name in profile["settings"]}, "settings", [])


def test_placeholders_are_filled_and_doubled_braces_are_braces():
    assert fill("{model}@{version}", {"model": "tiny", "version": "1.0.0"}) == "tiny@1.0.0"
    assert fill('{{"id":"{model}"}}', {"model": "tiny"}) == '{"id":"tiny"}'


def test_a_value_is_never_taken_for_a_template():
    assert fill("{model_path}", {"model_path": "/models/{port}{{.gguf", "port": 1}) == "/models/{port}{{.gguf"


@given(st.text())
def test_braces_that_are_doubled_stand_for_themselves(text):
    assert fill(text.replace("{", "{{").replace("}", "}}"), {}) == text


@given(st.sampled_from(sorted(PLACEHOLDERS)))
def test_every_placeholder_that_is_documented_may_be_used(name):
    assert check_profile(changed("container", "command", to=[["--x", f"{{{name}}}"]]), "echo.yml") == []


@pytest.mark.parametrize(
    ("spec", "good", "bad"),
    [
        ({"type": "int", "min": 1, "max": 3}, 3, 4),
        ({"type": "float", "min": 0}, 0.5, -0.5),
        ({"type": "bool"}, False, "false"),
        ({"type": "str"}, "x", "x\ny"),
        ({"type": "str", "choices": ["on"]}, "on", True),
        ({"type": "int", "choices": [1, 2]}, 2, 3),
        ({"type": "list"}, [1, "a", 0.5], ["a,b"]),
        ({"type": "list"}, ["a"], "a"),
    ],
)
def test_a_setting_takes_what_its_profile_says(spec, good, bad):
    faults = []
    assert setting_check(spec)(good, "x", faults) == good
    assert faults == []
    setting_check(spec)(bad, "x", faults)
    assert len(faults) == 1
