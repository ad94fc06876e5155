# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
from __future__ import annotations

import copy
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.engine_profile import PLACEHOLDERS
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.release import (
    build_release,
    command_line,
    engine_interfaces,
    placeholder_values,
    release_hash,
    wanted_releases,
)

PROFILE = {
    "name": "echo",
    "formats": ["gguf"],
    "container": {
        "port": 8080,
        "command": [["--port", "{port}"], ["-m", "{model_path}"], ["--ctx", "{total_context}"], ["--quiet"]],
        "environment": {"NAME": "{model}@{version}"},
        "read_only": True,
        "tmpfs": ["/tmp"],
        "writable": ["/cache"],
        "user": "fleet",
        "stop_signal": "SIGTERM",
        "stop_timeout": 30,
        "healthcheck": ["CMD", "curl", "http://127.0.0.1:{port}/"],
        "memory": {"base_mb": 2, "per_artifact_byte": 1.5},
        "pids": 64,
        "shm_mb": 1,
    },
    "settings": {
        "threads": {"type": "int", "flag": "--threads"},
        "scale": {"type": "float", "flag": "--scale"},
        "warm": {"type": "bool", "flag": "--warm"},
        "eager": {"type": "bool", "env": "EAGER"},
        "split": {"type": "list", "flag": "--split"},
        "mode": {"type": "str", "flag": "--mode", "default": "auto"},
    },
    "api_key": {"environment": "API_KEY"},
    "http": {"public": ["POST /v1/completions"], "ready": [{"path": "/health", "status": 200}], "metrics": "/metrics"},
}
MODEL = {"name": "tiny", "version": "1.0.0", "engine": "echo", "context": 512, "parallel": 2, "settings": {}}
LOCKED = {
    "source": "https://models.example/tiny",
    "format": "gguf",
    "size": 11,
    "files": [
        {"path": "b.gguf", "size": 1, "sha256": "b" * 64},
        {"path": "a.gguf", "size": 10, "sha256": "a" * 64},
    ],
}
IMAGE = "registry.example/echo@sha256:" + "e" * 64


def build(model=MODEL, version="1.0.0", locked=LOCKED, image=IMAGE, profile=PROFILE):
    return build_release(profile, model, version, locked, image)


def with_settings(**settings):
    return build({**MODEL, "settings": settings})


def test_the_record_holds_all_that_a_node_needs():
    record = build()
    assert re.fullmatch("[0-9a-f]{12}", record["release"])
    assert record["container"] == {
        "command": ["--port", "8080", "-m", "/models/a.gguf", "--ctx", "1024", "--quiet", "--mode", "auto"],
        "environment": {"NAME": "tiny@1.0.0"},
        "port": 8080,
        "read_only": True,
        "tmpfs": ["/tmp"],
        "stop_signal": "SIGTERM",
        "stop_timeout": 30,
        "healthcheck": ["CMD", "curl", "http://127.0.0.1:8080/"],
        "memory_bytes": 2 * 2**20 + 16,
        "cpus": None,
        "pids": 64,
        "shm_bytes": 2**20,
        "writable": ["/cache"],
        "api_key_environment": "API_KEY",
    }
    assert [file["path"] for file in record["files"]] == ["a.gguf", "b.gguf"]
    assert json.loads(json.dumps(record)) == record


def test_a_file_keeps_what_the_lockfile_says_of_where_it_comes_from():
    files = [
        {"path": "a", "size": 1, "sha256": "a" * 64, "from": "there/a.gguf"},
        {"path": "b", "size": 1, "sha256": "b" * 64, "content": "x", "from": None},
    ]
    record = build(locked={**LOCKED, "files": files})
    assert record["files"] == [files[0], {"path": "b", "size": 1, "sha256": "b" * 64, "content": "x"}]
    plain = [{key: file[key] for key in ("path", "size", "sha256")} for file in files]
    assert record["release"] == build(locked={**LOCKED, "files": plain})["release"]


def test_the_manifest_of_an_ollama_store_is_named_by_its_digest():
    manifest = {"path": "manifests/registry.ollama.ai/library/tiny/latest", "size": 1, "sha256": "c" * 64}
    record = build(locked={**LOCKED, "files": [*LOCKED["files"], manifest]})
    assert placeholder_values(record, 1)["manifest_digest"] == "c" * 64
    assert placeholder_values(build(), 1)["manifest_digest"] == ""


def test_every_placeholder_of_a_profile_has_a_value():
    assert set(placeholder_values(build(), 8080)) == set(PLACEHOLDERS)


def test_building_changes_no_argument():
    before = copy.deepcopy((PROFILE, MODEL, LOCKED))
    record = build()
    record["container"]["tmpfs"].append("/x")
    record["files"][0]["size"] = 0
    assert before == (PROFILE, MODEL, LOCKED)


def test_settings_reach_the_engine_as_their_profile_says():
    record = with_settings(threads=2, scale=1, warm=True, eager=False, split=[3, 0.5, "x"], mode="fast")
    command = record["container"]["command"]
    assert command[command.index("--quiet") + 1 :] == (
        ["--mode", "fast", "--scale", "1.0", "--split", "3,0.5,x", "--threads", "2", "--warm"]
    )
    assert record["container"]["environment"]["EAGER"] == "0"
    assert "--warm" not in with_settings(warm=False)["container"]["command"]


def test_limits_of_the_catalog_go_before_those_of_the_profile():
    container = build({**MODEL, "limits": {"memory": "2g", "cpus": 2, "pids": 99}})["container"]
    assert (container["memory_bytes"], container["cpus"], container["pids"]) == (2**31, 2.0, 99)
    assert isinstance(container["cpus"], float)


def test_limits_left_out_are_those_of_the_profile():
    assert build({**MODEL, "limits": {"memory": None, "cpus": None, "pids": None}}) == build()


def test_an_engine_without_api_key_has_none():
    assert build(profile={**PROFILE, "api_key": None})["container"]["api_key_environment"] is None


def sharded(**changes):
    command = [*PROFILE["container"]["command"], ["--shards", "{tensor_parallel}"]]
    return build({**MODEL, **changes}, profile={**PROFILE, "container": {**PROFILE["container"], "command": command}})


def test_an_engine_that_divides_a_model_gets_all_gpus_and_one_part_on_cpus():
    def shards(record):
        command = record["container"]["command"]
        return command[command.index("--shards") + 1]

    assert [shards(sharded(gpus=gpus)) for gpus in (0, 1, 4)] == ["1", "1", "4"]
    assert sharded(gpus=4)["release"] != sharded(gpus=2)["release"]
    assert placeholder_values(sharded(gpus=4), 1)["tensor_parallel"] == 4


def test_for_other_engines_the_number_of_gpus_is_no_part_of_a_release():
    assert build({**MODEL, "gpus": 4}) == {**build(), "gpus": 4}


def test_the_configuration_of_a_model_is_the_topmost():
    def directory(*paths):
        files = [{"path": path, "size": 1, "sha256": "a" * 64} for path in paths]
        return placeholder_values(build(locked={**LOCKED, "files": files}), 1)["config_dir"]

    assert directory("1_Pooling/config.json", "config.json", "model.safetensors") == "/models"
    assert directory("a/b/config.json", "c/config.json") == "/models/c"
    assert directory("a/tiny.gguf") == "/models"


def test_extra_arguments_come_last_as_the_engine_reads_them():
    model = {**MODEL, "extra_args": ["--fast", "--depth=3"]}
    joined = build(model, profile={**PROFILE, "extra_args": {"deny": ["--x"]}})
    separate = build(model, profile={**PROFILE, "extra_args": {"deny": ["--x"], "values": "separate"}})
    assert joined["container"]["command"] == [*build()["container"]["command"], "--fast", "--depth=3"]
    assert separate["container"]["command"] == [*build()["container"]["command"], "--fast", "--depth", "3"]
    assert joined["release"] != build()["release"]
    assert build({**MODEL, "extra_args": []}) == build()


def test_a_user_other_than_the_fleets_is_named():
    bare = build(profile={**PROFILE, "container": {**PROFILE["container"], "user": "bare-root"}})
    assert bare["container"]["user"] == "bare-root"
    assert "user" not in build()["container"]


def test_the_command_line_begins_with_the_entrypoint():
    container = {**PROFILE["container"], "entrypoint": ["/bin/engine", "{model}"]}
    record = build(profile={**PROFILE, "container": container})
    assert command_line(record) == ["/bin/engine", "tiny", *record["container"]["command"]]
    assert command_line(build()) == build()["container"]["command"]


CHANGES = {
    "model": {"model": {**MODEL, "name": "other"}},
    "version": {"version": "1.0.1"},
    "image": {"image": IMAGE.replace("e" * 64, "f" * 64)},
    "engine": {"profile": {**PROFILE, "name": "echo2"}},
    "context": {"model": {**MODEL, "context": 513}},
    "parallel": {"model": {**MODEL, "parallel": 4}},
    "context against parallel": {"model": {**MODEL, "context": 1024, "parallel": 1}},
    "setting": {"model": {**MODEL, "settings": {"threads": 3}}},
    "environment setting": {"model": {**MODEL, "settings": {"eager": True}}},
    "memory": {"model": {**MODEL, "limits": {"memory": "3g"}}},
    "cpus": {"model": {**MODEL, "limits": {"cpus": 1.5}}},
    "pids": {"model": {**MODEL, "limits": {"pids": 100}}},
    "file digest": {"locked": {**LOCKED, "files": [{**LOCKED["files"][0], "sha256": "c" * 64}, LOCKED["files"][1]]}},
    "file path": {"locked": {**LOCKED, "files": [{**LOCKED["files"][0], "path": "c.gguf"}, LOCKED["files"][1]]}},
    "file less": {"locked": {**LOCKED, "files": LOCKED["files"][1:]}},
    "command": {"profile": {**PROFILE, "container": {**PROFILE["container"], "command": [["-x"]]}}},
    "entrypoint": {"profile": {**PROFILE, "container": {**PROFILE["container"], "entrypoint": ["/bin/x", "{model}"]}}},
    "hardening": {"profile": {**PROFILE, "container": {**PROFILE["container"], "read_only": False}}},
}


def test_whatever_makes_an_engine_behave_differently_is_another_release():
    releases = {name: build(**change)["release"] for name, change in CHANGES.items()}
    assert len({build()["release"], *releases.values()}) == 1 + len(CHANGES), releases


@pytest.mark.parametrize(
    "change",
    [
        {"replicas": 7},
        {"replicas": "all"},
        {"gpus": 4},
        {"placement": {"hosts": ["gpu9"]}},
        {"access": ["*"]},
        {"queue": 99},
        {"settings": {"mode": "auto"}},
        {"settings": {"threads": None}},
    ],
)
def test_where_a_model_runs_and_whom_it_serves_is_no_part_of_its_release(change):
    assert build({**MODEL, **change})["release"] == build()["release"]


def test_where_the_files_came_from_is_no_part_of_the_release():
    assert build(locked={**LOCKED, "source": "file:///elsewhere"})["release"] == build()["release"]


def test_whole_and_fractional_writing_of_one_number_is_one_release():
    assert with_settings(scale=2) == with_settings(scale=2.0)
    assert build({**MODEL, "limits": {"cpus": 2}}) == build({**MODEL, "limits": {"cpus": 2.0}})


def shuffled(data, value):
    """The same data with the keys of all its mappings in another order."""
    if isinstance(value, dict):
        keys = data.draw(st.permutations(list(value)))
        return {key: shuffled(data, value[key]) for key in keys}
    return [shuffled(data, item) for item in value] if isinstance(value, list) else value


@given(st.data())
def test_the_order_in_which_something_is_written_never_matters(data):
    model = {**MODEL, "settings": {"threads": 2, "warm": True, "split": [1, 2], "eager": True}}
    locked = {**LOCKED, "files": data.draw(st.permutations(LOCKED["files"]))}
    shuffle = {"model": model, "locked": locked, "profile": PROFILE}
    record = build(**{name: shuffled(data, value) for name, value in shuffle.items()})
    assert record == build(model)
    assert release_hash(shuffled(data, record)) == record["release"]


def test_the_hash_stays_what_it_is():
    # Written down once: a change of the canonical form would make a rollout of every model in every fleet.
    assert build()["release"] == "696f24ff95a8"


def test_wanted_releases_takes_image_and_files_from_the_lockfile():
    lock = {
        "images": {"echo": dict(zip(("image", "digest"), IMAGE.split("@"), strict=True))},
        "models": {"tiny": {"0.9.0": {**LOCKED, "size": 1}, "1.0.0": LOCKED}},
    }
    assert wanted_releases([MODEL], lock, {"echo": PROFILE}) == {"tiny": build()}


def test_what_docker_calls_an_image_is_known_and_makes_no_other_release():
    ids = {"linux/amd64": "sha256:" + "c" * 64}
    lock = {
        "images": {"echo": {**dict(zip(("image", "digest"), IMAGE.split("@"), strict=True)), "ids": ids}},
        "models": {"tiny": {"1.0.0": LOCKED}},
    }
    record = wanted_releases([MODEL], lock, {"echo": PROFILE})["tiny"]
    assert record == {**build(), "image_ids": ids}


def test_interfaces_are_of_the_engines_in_use_only():
    profiles = {"echo": PROFILE, "idle": PROFILE, "open": {**PROFILE, "api_key": None}}
    interfaces = engine_interfaces(profiles, ["open", "echo", "echo"])
    assert list(interfaces) == ["echo", "open"]
    assert interfaces["echo"] == {
        "public": ["POST /v1/completions"],
        "ready": [{"path": "/health", "status": 200}],
        "api_key": True,
        "busy": None,
        "metrics": "/metrics",
        "preload": None,
    }
    assert interfaces["open"]["api_key"] is False
