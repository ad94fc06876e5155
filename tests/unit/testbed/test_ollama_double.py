# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The double of Ollama does what the profile relies on, on a store as the fleet writes it."""

from __future__ import annotations

import http.client
import json
import os
import threading
import time

import pytest

from ansible_collections.localfirst.llm_fleet.tests.unit.support.ollama_bench import (
    PROFILE,
    Ollama,
    alive,
    wait_until,
)

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def ollama(tmp_path):
    made = Ollama(tmp_path)
    yield made
    made.stop()


def test_the_profiles_checks_and_preload_bring_it_to_ready(ollama):
    ollama.start(OLLAMA_CONTEXT_LENGTH="512", OLLAMA_NUM_PARALLEL="2")
    assert ollama.loaded() == []
    assert ollama.wait_ready() == {}
    assert ollama.loaded() == ["tiny:latest"]
    arguments = ollama.runner_arguments()
    assert arguments[arguments.index("--model") + 1] == str(ollama.weights)
    assert arguments[arguments.index("--ctx-size") + 1] == "1024"
    assert arguments[arguments.index("--parallel") + 1] == "2"


def test_the_digest_is_that_of_the_manifest_that_was_locked(ollama):
    [model] = json.loads(ollama.start().ask("GET", "/api/tags")[1])["models"]
    assert (model["name"], model["digest"]) == ("tiny:latest", ollama.manifest["sha256"])


def test_another_manifest_than_the_locked_one_is_no_reason_to_wait(ollama):
    path = ollama.models / ollama.manifest["path"]
    path.write_text(path.read_text() + " ")
    why = ollama.start().wait_ready(600)["tiny-0-a"]
    [model] = json.loads(ollama.ask("GET", "/api/tags")[1])["models"]
    assert model["digest"] in why and ollama.manifest["sha256"] in why


def test_a_blob_with_one_wrong_byte_is_not_loaded(ollama):
    ollama.weights.write_bytes(b"GGUF tinz")
    why = ollama.start().wait_ready(600)["tiny-0-a"]
    assert "does not load" in why and "digest mismatch" in why
    assert ollama.loaded() == []


def test_a_runner_that_ends_is_told_of(ollama):
    (ollama.control / "broken").touch()
    status, text = ollama.start().ask("POST", "/api/generate", {"model": "tiny"})
    assert status == 500 and "terminated" in text


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat", "/api/embed"])
def test_an_empty_request_loads_and_keep_alive_unloads(ollama, path):
    status, _text = ollama.start().ask("POST", path, {"model": "tiny"})
    assert status == 200 and ollama.loaded() == ["tiny:latest"]
    pid = ollama.runner_pid()
    ollama.ask("POST", "/api/generate", {"model": "tiny", "keep_alive": 0})
    wait_until(lambda: not ollama.loaded() and not alive(pid))


def test_a_model_goes_when_its_time_is_up(ollama):
    ollama.start(OLLAMA_KEEP_ALIVE="300ms").ask("POST", "/api/generate", {"model": "tiny"})
    wait_until(lambda: ollama.loaded() == [])


def test_another_context_in_a_body_loads_it_anew(ollama):
    ollama.start(OLLAMA_CONTEXT_LENGTH="512").ask("POST", "/api/generate", {"model": "tiny"})
    first = ollama.runner_pid()
    ollama.ask("POST", "/api/generate", {"model": "tiny", "options": {"num_ctx": 64}})
    assert not alive(first) and "64" in ollama.runner_arguments()


def test_answers_come_from_behind_it(ollama):
    ollama.start()
    assert json.loads(ollama.ask("POST", "/v1/chat/completions", CHAT)[1])["choices"][0]["message"]["content"] == "one two three"
    status, text = ollama.ask("POST", "/api/generate", {"model": "tiny", "prompt": "hello", "stream": False})
    assert status == 200 and json.loads(text)["response"] == "one two three"
    lines = [json.loads(line) for line in ollama.ask("POST", "/api/chat", CHAT)[1].splitlines()]
    assert "".join(line["message"]["content"] for line in lines) == "one two three" and lines[-1]["done"]


def read_word(answer: http.client.HTTPResponse) -> str:
    return json.loads(answer.readline()[len(b"data: ") :])["choices"][0]["delta"]["content"]


def test_a_stream_comes_piece_by_piece_and_is_cut_by_sigterm(ollama):
    (ollama.control / "hold").touch()
    connection = ollama.start().send("POST", "/v1/chat/completions", {**CHAT, "stream": True})
    answer = connection.getresponse()
    assert read_word(answer) == "one "
    pid = ollama.runner_pid()
    ollama.process.terminate()
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        answer.read()
    assert ollama.process.wait(10) == 0
    wait_until(lambda: not alive(pid))


def test_requests_wait_for_a_slot_and_beyond_the_queue_they_are_refused(ollama):
    (ollama.control / "hold").touch()
    ollama.start(OLLAMA_NUM_PARALLEL="1", OLLAMA_MAX_QUEUE="1")
    first = ollama.send("POST", "/v1/chat/completions", {**CHAT, "stream": True})
    assert read_word(first.getresponse()) == "one "
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(ollama.ask("POST", "/v1/chat/completions", CHAT))) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: answers)
    assert answers[0][0] == 503 and "server busy" in answers[0][1]
    (ollama.control / "hold").unlink()
    for thread in threads:
        thread.join(20)
    assert answers[1][0] == 200


def test_who_leaves_while_it_loads_ends_the_loading(ollama):
    (ollama.control / "loading").touch()
    connection = ollama.start().send("POST", "/api/generate", {"model": "tiny"})
    wait_until((ollama.control / "pid").exists)
    connection.close()
    wait_until(lambda: not alive(ollama.runner_pid()))
    assert ollama.loaded() == []


@pytest.mark.parametrize(
    ("name", "status"),
    [("tiny", 200), ("TINY:Latest", 200), ("library/tiny", 200), ("other", 404), ("tiny@1.0.0", 404), ("tiny:2", 404), ("", 400)],
)
def test_only_the_models_own_name_is_answered(ollama, name, status):
    found, text = ollama.start().ask("POST", "/v1/chat/completions", {**CHAT, "model": name})
    assert found == status and (status == 200 or json.loads(text)["error"]["message"])


@pytest.mark.parametrize("name", ["gpt:cloud", "gpt:120b-cloud"])
def test_nothing_goes_to_a_cloud(ollama, name):
    assert ollama.start(OLLAMA_NO_CLOUD="1").ask("POST", "/v1/chat/completions", {**CHAT, "model": name})[0] == 403


def test_pages_of_other_origins_are_let_in_as_the_profile_says(ollama):
    origins = PROFILE["container"]["environment"]["OLLAMA_ORIGINS"]
    assert ollama.start(OLLAMA_ORIGINS=origins).ask("GET", "/v1/models", Origin="https://chat.example")[0] == 200
    ollama.process.terminate()
    ollama.process.wait(10)
    assert ollama.start().ask("GET", "/v1/models", Origin="https://chat.example")[0] == 403


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 200), ("HEAD", "/", 200), ("GET", "/api/version", 200), ("GET", "/nothing", 404), ("GET", "/api/chat", 405),
     ("POST", "/api/pull", 501), ("GET", "/v1/models/tiny", 200)],
)
def test_paths_and_methods(ollama, method, path, status):
    assert ollama.start().ask(method, path)[0] == status


@pytest.mark.parametrize(("noprune", "stays"), [("1", True), ("", False)])
def test_old_blobs_that_no_manifest_names_go_at_the_start(ollama, noprune, stays):
    old, young = ollama.models / "blobs" / f"sha256-{'0' * 64}", ollama.models / "blobs" / f"sha256-{'1' * 64}"
    for path in (old, young, ollama.weights):
        path.write_bytes(b"GGUF tiny")
    long_ago = time.time() - 7200
    os.utime(old, (long_ago, long_ago))
    os.utime(ollama.weights, (long_ago, long_ago))
    ollama.start(OLLAMA_NOPRUNE=noprune)
    assert old.exists() == stays and young.exists() and ollama.weights.exists()


def test_without_a_home_to_write_to_it_does_not_start(ollama):
    done = ollama.command("serve", HOME="/dev/null/home")
    assert done.returncode == 1 and "could not create directory" in done.stderr
    ollama.start()
    assert (ollama.home / ".ollama" / "id_ed25519").stat().st_mode & 0o777 == 0o600


def test_its_commands(ollama):
    assert "could not connect" in ollama.command("ps").stderr
    ollama.start()
    assert ollama.command("run", "tiny", "").returncode == 0
    assert ollama.command("run", "tiny", "hello").stdout.strip() == "one two three"
    assert ollama.command("ps").stdout.splitlines()[1].startswith("tiny:latest")
    assert ollama.manifest["sha256"][:12] in ollama.command("list").stdout
    assert ollama.command("run", "other", "").returncode == 1


def test_a_container_that_starts_again_loads_its_model_by_itself(ollama):
    words = [word.replace("{model}", "tiny") for word in PROFILE["container"]["entrypoint"]]
    words += [word.replace("{model}", "tiny") for line in PROFILE["container"]["command"] for word in line]
    ollama.start(*words)
    wait_until(lambda: ollama.loaded() == ["tiny:latest"])
    check = PROFILE["container"]["healthcheck"][1].replace("{model}", "tiny")
    healthy = os.spawnve(os.P_WAIT, "/bin/sh", ["sh", "-c", check], ollama.environment())
    other = os.spawnve(os.P_WAIT, "/bin/sh", ["sh", "-c", check.replace("tiny", "other")], ollama.environment())
    assert (healthy, other) == (0, 1)
    pid = ollama.runner_pid()
    ollama.process.terminate()
    assert ollama.process.wait(10) == 0 and not alive(pid)
