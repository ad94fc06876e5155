# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What holds for every engine of the collection: releases are built from the profiles as they are."""
from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import PurePosixPath

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.lookup.engine_profiles import BUILT_IN, read_profiles
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.engine_probe import make_target
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.extra_args import extra_args_faults
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.release import build_release, command_line, engine_interfaces

PROFILES, _FAULTS = read_profiles([BUILT_IN])
IMAGE = "registry.example/engine@sha256:" + "e" * 64
# Files as the lockfile has them, by format.
FILES = {
    "gguf": ["tiny.gguf"],
    "ollama": ["blobs/sha256-" + "a" * 64, "manifests/registry.ollama.ai/library/tiny/latest"],
    "safetensors": ["config.json", "model.safetensors", "tokenizer.json"],
}
# What clients must never reach: it stops the engine, changes the model, shows what others ask, or needs no key.
CLOSED = {
    "llamacpp": ["/slots", "/props", "/lora-adapters", "/models/load", "/tools", "/cors-proxy", "/apply-template"],
    "ollama": ["/api/pull", "/api/delete", "/api/create", "/api/show", "/api/ps", "/api/generate", "/api/chat"],
    "tgi": ["/info", "/docs", "/invocations", "/vertex", "/chat_tokenize", "/generate"],
    "vllm": [
        *["/invocations", "/pooling", "/classify", "/score", "/rerank", "/tokenize", "/pause", "/resume", "/sleep", "/load", "/version"],
        *["/update_weights", "/collective_rpc", "/start_profile", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"],
    ],
    "sglang": [
        *["/flush_cache", "/update_weights_from_disk", "/abort_request", "/release_memory_occupation", "/start_profile"],
        *["/generate", "/get_model_info", "/server_info", "/load_lora_adapter"],
    ],
}

every_engine = pytest.mark.parametrize("engine", sorted(PROFILES))
python_engines = pytest.mark.parametrize("engine", ["sglang", "tgi", "vllm"])


def release(engine, **changes):
    model = {"name": "tiny", "context": 512, "parallel": 2, "gpus": 2, **changes}
    form = PROFILES[engine]["formats"][0]
    files = [{"path": path, "size": 4, "sha256": "a" * 64} for path in FILES[form]]
    locked = {"source": "file:///tiny", "format": form, "size": sum(file["size"] for file in files), "files": files}
    return build_release(PROFILES[engine], model, "1.0.0", locked, IMAGE)


def value_of(record, flag):
    words = command_line(record)
    return words[words.index(flag) + 1]


@every_engine
def test_clients_reach_nothing_that_is_no_business_of_theirs(engine):
    public = {route.split()[1] for route in PROFILES[engine]["http"]["public"]}
    assert not public & {*CLOSED[engine], "/metrics", "/health", "/"}
    assert all(path.startswith("/v1/") for path in public)


@every_engine
def test_the_engine_hears_the_model_the_port_and_the_limits(engine):
    container = release(engine)["container"]
    said = json.dumps([container.get("entrypoint"), container["command"], container["environment"]])
    assert "tiny" in said
    assert str(container["port"]) in said
    assert "512" in said or str(512 * 2) in said


@every_engine
def test_an_engine_writes_where_it_may_and_nowhere_else(engine):
    container = release(engine)["container"]
    roots = [PurePosixPath(path) for path in [*container["tmpfs"], *container["writable"], "/models"]]
    assert container["read_only"]
    for name, value in container["environment"].items():
        if value.startswith("/"):
            assert any(root in [PurePosixPath(value), *PurePosixPath(value).parents] for root in roots), name


@every_engine
def test_no_key_is_on_a_command_line_or_in_a_release(engine):
    record = release(engine)
    assert record["container"]["api_key_environment"] not in record["container"]["environment"]
    assert not [word for word in command_line(record) if word.startswith("--api-key")]


@every_engine
def test_the_docker_stop_timeout_leaves_time_for_what_the_engine_promises(engine):
    record = release(engine)
    for flag in ("--shutdown-timeout", "--graceful-termination-timeout"):
        if flag in command_line(record):
            assert int(value_of(record, flag)) < record["container"]["stop_timeout"]


@every_engine
def test_the_model_is_proven_before_it_serves(engine):
    instance = {"id": "tiny-0-a", "model": "tiny", "port": 20000, "record": release(engine)}
    checks = make_target(instance, engine_interfaces(PROFILES, [engine]), {"tiny": "k"}, "10.0.0.1").checks
    assert any("tiny" in check.get("contains", "") for check in checks)


@every_engine
def test_what_a_setting_says_comes_last_and_once(engine):
    profile, record = PROFILES[engine], release(engine)
    flags = [word for word in record["container"]["command"] if word.startswith("-")]
    assert len(flags) == len(set(flags))
    for name, spec in profile["settings"].items():
        if spec.get("choices"):
            chosen = release(engine, settings={name: spec["choices"][0]})
            assert chosen["container"] != record["container"] or spec.get("default") == spec["choices"][0]


@pytest.mark.parametrize("engine", sorted(name for name, profile in PROFILES.items() if profile.get("extra_args")))
@pytest.mark.parametrize("flag", ["--host", "--port", "--api-key", "--model", "--hostname", "--model-id", "--served-model-name"])
def test_an_operator_cannot_move_the_engine_away_from_its_gateway(engine, flag):
    known = {words[0] for words in PROFILES[engine]["container"]["command"]} | set(PROFILES[engine]["extra_args"]["deny"])
    refused = list(extra_args_faults(PROFILES[engine], [f"{flag}=x"], "args"))
    assert bool(refused) == (flag in known)
    assert "--api-key" in known


@python_engines
def test_code_that_came_with_a_model_never_runs(engine):
    assert list(extra_args_faults(PROFILES[engine], ["--trust-remote-code"], "args"))
    assert "--trust-remote-code" not in command_line(release(engine))
    assert "--trust-remote-code" not in {spec.get("flag") for spec in PROFILES[engine]["settings"].values()}


@python_engines
def test_an_engine_that_divides_models_gets_all_its_gpus_and_starts_without_any(engine):
    flag = "--num-shard" if engine == "tgi" else "--tensor-parallel-size"
    assert value_of(release(engine, gpus=4), flag) == "4"
    assert value_of(release(engine, gpus=0), flag) == "1"


@python_engines
def test_nothing_is_fetched_and_nothing_reported(engine):
    environment = release(engine)["container"]["environment"]
    assert {environment[name] for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "DO_NOT_TRACK")} == {"1"}


def test_vllm_answers_to_the_version_too():
    words = command_line(release("vllm"))
    start = words.index("--served-model-name")
    assert words[start + 1 : start + 3] == ["tiny", "tiny@1.0.0"]


def run_entrypoint(engine, tmp_path, program, **environment):
    """What the engine's shell starts in place of the engine: its arguments, and what it left behind."""
    shell, option, script, *rest = release(engine)["container"]["entrypoint"]
    for path in ("/tmp", "/cache"):
        (tmp_path / path[1:]).mkdir(exist_ok=True)
        script = script.replace(path, str(tmp_path / path[1:]))
    fake = tmp_path / "bin" / program
    fake.parent.mkdir(exist_ok=True)
    fake.write_text('#!/bin/sh\npwd\nenv | grep -c LLM_FLEET\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    done = subprocess.run(
        [shell, option, script, *rest, *release(engine)["container"]["command"]],
        env={"PATH": f"{fake.parent}:/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_sglang_reads_its_key_from_a_file_that_nobody_else_can_read(tmp_path):
    folder, keys, *words = run_entrypoint("sglang", tmp_path, "python3", LLM_FLEET_API_KEY="0123456789")
    key = tmp_path / "tmp" / "key.yaml"
    assert (folder, keys) == (str(tmp_path / "cache"), "0")
    assert key.read_text() == 'api-key: "0123456789"\n'
    assert key.stat().st_mode & 0o077 == 0
    assert words[words.index("--config") + 1] == str(key)
    assert words[-len(release("sglang")["container"]["command"]) :] == release("sglang")["container"]["command"]


def test_tgi_starts_beside_a_directory_with_the_models_name(tmp_path):
    for _start in range(2):  # a container that is started again still has its files
        folder, _keys, *words = run_entrypoint("tgi", tmp_path, "text-generation-launcher")
        assert words == release("tgi")["container"]["command"]
        assert (tmp_path / "tmp" / "served" / "tiny").readlink() == PurePosixPath("/models")
        assert folder == str(tmp_path / "tmp" / "served")


def test_shell_entrypoints_are_sound_shell():
    for engine in PROFILES:
        shell, *rest = release(engine)["container"].get("entrypoint") or ["vllm"]
        if shell == "/bin/sh":
            subprocess.run([shell, "-n", "-c", rest[1]], check=True)
            assert shlex.split(rest[1])
