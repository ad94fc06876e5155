# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The double of SGLang answers, refuses and ends as the original does."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading

import pytest

from ansible_collections.localfirst.llm_fleet.tests.unit.support.engine_double import Double, damage, make_model, wait_until
from ansible_collections.localfirst.llm_fleet.tests.unit.support.ollama_bench import alive

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello there"}]}
OPTIONS = ["--model-path", "{model}", "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", "{port}"]


@pytest.fixture
def sglang(tmp_path):
    made = Double(tmp_path, ["-m", "sglang.launch_server"], OPTIONS)
    yield made
    made.stop()


def data(line: str) -> dict:
    assert line.startswith("data: {")
    return json.loads(line[len("data: ") :])


def begin(sglang: Double) -> http.client.HTTPResponse:
    """A stream of which the first word is there."""
    answer = sglang.send("POST", "/v1/chat/completions", {**CHAT, "stream": True}).getresponse()
    while b"one" not in answer.readline():
        pass
    return answer


def test_its_port_opens_when_the_model_is_loaded(sglang):
    loading = sglang.control / "loading"
    loading.touch()
    sglang.launch()
    wait_until((sglang.control / "pid").exists)
    assert sglang.status("/ping") is None
    loading.unlink()
    wait_until(lambda: sglang.status("/health") == 200)


@pytest.mark.parametrize("path", ["/health", "/health_generate"])
def test_a_health_check_computes(sglang, path):
    sglang.start()
    wait_until(lambda: sglang.ask("GET", path)[0] == 200)
    sglang.ask("POST", "/release_memory_occupation", {})
    assert sglang.ask("GET", path)[0] == 503


def test_the_weights_of_the_directory_are_served(sglang):
    sglang.start("--max-running-requests", "2", "--context-length", "32")
    arguments = sglang.runner_arguments()
    assert arguments[arguments.index("--ctx-size") + 1] == "64" and arguments[arguments.index("--parallel") + 1] == "2"
    [model] = sglang.get("/v1/models")["data"]
    assert (model["id"], model["max_model_len"]) == ("tiny", 32)
    assert sglang.get("/get_model_info")["model_path"] == str(sglang.model)
    assert sglang.ask("GET", "/v1/models/tiny")[0] == 200
    status, text = sglang.ask("GET", "/v1/models/other")
    assert status == 404 and json.loads(text)["error"]["code"] == "model_not_found"


def test_chat(sglang):
    answer = json.loads(sglang.start().ask("POST", "/v1/chat/completions", CHAT)[1])
    assert answer["choices"][0]["message"]["content"] == "one two three" and answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["total_tokens"] == 5 and answer["metadata"]["weight_version"]


def test_any_name_is_taken_for_its_model(sglang):
    status, text = sglang.start().ask("POST", "/v1/chat/completions", {**CHAT, "model": "other"})
    assert status == 200 and json.loads(text)["model"] == "other"


def test_a_chat_that_streams(sglang):
    *chunks, last = sglang.start().events("/v1/chat/completions", {**CHAT, "stream_options": {"include_usage": True}})
    first, *words, end, usage = map(data, chunks)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in words) == "one two three"
    assert end["choices"][0]["finish_reason"] == "stop"
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 3
    assert last == "data: [DONE]"


def test_completions_and_its_own_api(sglang):
    asked = {"model": "tiny", "prompt": "a b"}
    answer = json.loads(sglang.start().ask("POST", "/v1/completions", asked)[1])
    assert answer["choices"][0]["text"] == "one two three"
    *chunks, last = sglang.events("/v1/completions", asked)
    assert "".join(data(chunk)["choices"][0]["text"] for chunk in chunks) == "one two three" and last == "data: [DONE]"
    answer = json.loads(sglang.ask("POST", "/generate", {"text": "a", "sampling_params": {"max_new_tokens": 4}})[1])
    assert answer["text"] == "one two three" and answer["meta_info"]["finish_reason"] == {"type": "stop"}
    *chunks, last = sglang.events("/generate", {"text": "a", "sampling_params": {"max_new_tokens": 4}})
    assert [data(chunk)["text"] for chunk in chunks][:2] == ["one ", "one two "] and last == "data: [DONE]"


def test_embeddings_only_where_they_were_asked_for(sglang):
    asked = {"model": "tiny", "input": ["a", "bc"]}
    status, text = sglang.start().ask("POST", "/v1/embeddings", asked)
    assert status == 400 and "--is-embedding" in json.loads(text)["message"]
    sglang.process.terminate()
    sglang.process.wait(10)
    answer = json.loads(sglang.start("--is-embedding").ask("POST", "/v1/embeddings", asked)[1])
    assert [entry["embedding"][1] for entry in answer["data"]] == [1.0, 2.0] and "--embeddings" in sglang.runner_arguments()
    assert sglang.ask("POST", "/v1/chat/completions", CHAT)[0] == 400


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"max_tokens": -1}, "max_new_tokens"),
        ({"top_p": 2}, "top_p"),
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 63}, "You requested a total of 65 tokens"),
        ({"messages": [{"role": "user", "content": 3}]}, "no text"),
        ({"messages": [{"role": "user", "content": "a " * 64}]}, "longer than the model's context length (64 tokens)"),
    ],
)
def test_what_it_cannot_do_is_told(sglang, change, told):
    status, text = sglang.start().ask("POST", "/v1/chat/completions", {**CHAT, **change})
    error = json.loads(text)
    assert (status, error["code"], error["object"]) == (400, 400, "error") and told in error["message"]


@pytest.mark.parametrize(
    ("body", "kind"), [(b"{", "application/json"), ({}, "application/json"), ({"messages": "a"}, "application/json"), (CHAT, "text/plain")]
)
def test_bodies_that_are_none(sglang, body, kind):
    status, text = sglang.start().ask("POST", "/v1/chat/completions", body, Content_Type=kind)
    assert status == 400 and json.loads(text)["type"] == "BadRequestError"


def test_paths_and_methods(sglang):
    sglang.start()
    for method, path, status in (
        ("GET", "/ping", 200), ("GET", "/nothing", 404), ("GET", "/v1/completions", 405), ("GET", "/metrics", 404),
        ("POST", "/load_lora_adapter", 501), ("GET", "/flush_cache", 200), ("POST", "/start_profile", 200),
    ):  # fmt: skip
        assert (path, sglang.ask(method, path)[0]) == (path, status)


@pytest.mark.parametrize("path", ["/flush_cache", "/get_server_info", "/v1/models", "/start_profile", "/ping"])
def test_its_key_closes_the_rest(sglang, path):
    sglang.start("--api-key", "Secret", "--enable-metrics")
    wait_until(lambda: sglang.ask("GET", "/health")[0] == 200)
    assert sglang.ask("GET", "/metrics")[0] == 200
    status, text = sglang.ask("GET", path)
    assert status == 401 and json.loads(text) == {"error": "Unauthorized"}
    assert sglang.ask("GET", path, Authorization="Bearer secret")[0] == 401
    assert sglang.ask("GET", path, Authorization="bearer Secret")[0] == 200
    assert sglang.ask("GET", path, X_API_Key="Secret")[0] == 200


def test_a_file_may_hold_what_the_command_line_says_and_the_latter_wins(sglang, tmp_path):
    lines = ["# secret", 'api-key: "Se:cret"', "enable-metrics: true", "is-embedding: false", "served-model-name: other"]
    (tmp_path / "key.yaml").write_text("\n".join(lines))
    sglang.start("--config", str(tmp_path / "key.yaml"))
    wait_until(lambda: sglang.ask("GET", "/health")[0] == 200)
    assert sglang.ask("GET", "/v1/models")[0] == 401 and sglang.ask("GET", "/metrics")[0] == 200
    assert '"id": "tiny"' in sglang.ask("GET", "/v1/models", Authorization="Bearer Se:cret")[1].replace('":"', '": "')


def metric(sglang: Double, name: str) -> float:
    return next(float(line.split()[1]) for line in sglang.ask("GET", "/metrics")[1].splitlines() if line.startswith(f"sglang:{name}{{"))


def test_beyond_its_queue_it_refuses(sglang):
    hold = sglang.hold()
    sglang.start("--max-running-requests", "1", "--max-queued-requests", "1", "--enable-metrics")
    first = begin(sglang)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(sglang.ask("POST", "/v1/chat/completions", CHAT)))
    thread.start()
    wait_until(lambda: (metric(sglang, "num_running_reqs"), metric(sglang, "num_queue_reqs")) == (1, 1))
    status, text = sglang.ask("POST", "/v1/chat/completions", CHAT)
    assert status == 503 and "queue is full" in json.loads(text)["message"]
    told, last = sglang.events("/v1/chat/completions", CHAT)
    assert data(told)["error"]["code"] == 503 and last == "data: [DONE]"
    hold.unlink()
    thread.join(20)
    assert answers[0][0] == 200 and b"three" in first.read()
    wait_until(lambda: metric(sglang, "generation_tokens_total") == 6)


def test_whoever_reaches_it_can_stop_all_answers(sglang):
    sglang.hold()
    answer = begin(sglang.start())
    assert sglang.ask("POST", "/abort_request", {"abort_all": True})[0] == 200
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        answer.read()


def test_whoever_reaches_it_can_pause_it(sglang):
    sglang.start().ask("POST", "/pause_generation")
    answers = []
    thread = threading.Thread(target=lambda: answers.append(sglang.ask("POST", "/v1/chat/completions", CHAT)[0]))
    thread.start()
    thread.join(0.3)
    assert answers == []
    sglang.ask("POST", "/continue_generation")
    thread.join(20)
    assert answers == [200]


def test_whoever_reaches_it_can_swap_its_model(sglang, tmp_path):
    other = make_model(tmp_path / "other", "--seed=2")
    first = sglang.start().runner_pid()
    status, text = sglang.ask("POST", "/update_weights_from_disk", {"model_path": str(other), "weight_version": "2"})
    assert status == 200 and json.loads(text)["success"] and not alive(first)
    assert (sglang.get("/get_model_info")["model_path"], sglang.get("/get_weight_version")["weight_version"]) == (str(other), "2")
    damage(other, "cut")
    assert sglang.ask("POST", "/update_weights_from_disk", {"model_path": str(other)})[0] == 400
    assert sglang.ask("POST", "/v1/chat/completions", CHAT)[0] == 200


def test_whoever_reaches_it_can_take_its_memory(sglang):
    sglang.start().ask("POST", "/release_memory_occupation", {})
    assert sglang.ask("POST", "/v1/chat/completions", CHAT)[0] == 500
    sglang.ask("POST", "/resume_memory_occupation", {})
    assert sglang.ask("POST", "/v1/chat/completions", CHAT)[0] == 200


def test_sigterm_waits_for_streams_and_takes_more(sglang):
    hold = sglang.hold()
    sglang.start(DOUBLE_WATCH="0.5")
    wait_until(lambda: sglang.status("/health") == 200)
    answer = begin(sglang)
    sglang.process.terminate()
    wait_until(lambda: sglang.status("/health") == 503)
    more = begin(sglang)
    with pytest.raises(Exception, match="timed out"):
        sglang.process.wait(1)
    hold.unlink()
    assert [one.read().rstrip()[-6:] for one in (answer, more)] == [b"[DONE]", b"[DONE]"]
    assert sglang.process.wait(10) == -signal.SIGKILL and not alive(sglang.runner_pid())


def test_forced_it_waits_for_nobody(sglang):
    sglang.hold()
    answer = begin(sglang.start(DOUBLE_WATCH="0.1", SGL_FORCE_SHUTDOWN="true"))
    sglang.process.terminate()
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        answer.read()
    assert sglang.process.wait(10) == -signal.SIGKILL


def test_a_model_that_breaks_off_ends_it(sglang):
    sglang.start()
    # It serves before its first answer, and one that breaks off until then fails otherwise.
    wait_until(lambda: "ready to roll" in sglang.log())
    os.kill(sglang.runner_pid(), signal.SIGKILL)
    assert sglang.process.wait(30) == -signal.SIGKILL and "child failed" in sglang.log()


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--no-such"], 2, "unrecognized arguments: --no-such"),
        (["--config", "/no/such.yaml"], 1, "Config file not found"),
        (["--dtype", "int8"], 2, "invalid choice: 'int8'"),
        (["--context-length", "a"], 2, "invalid int value"),
        (["--served-model-name", "a:b"], 1, "colon"),
        (["--context-length", "65"], 1, "greater than the derived context_length (64)"),
        (["--allowed-media-domains", "https://example.com"], 1, "host names"),
        (["--tp", "3"], -signal.SIGKILL, "tp_size 3"),
    ],
)
def test_a_wrong_command_line(sglang, options, code, told):
    found, text = sglang.fails(*options)
    assert found == code and told in text


@pytest.mark.parametrize(
    ("how", "code", "told"),
    [
        ("no config", 1, "config.json"),
        ("no weights", -signal.SIGKILL, "Cannot find any model weights"),
        ("no header", -signal.SIGKILL, "HeaderTooLarge"),
        ("cut", -signal.SIGKILL, "MetadataIncomplete"),
    ],
)
def test_a_directory_that_is_no_model(sglang, how, code, told):
    damage(sglang.model, how)
    found, text = sglang.fails()
    assert found == code and told in text


def test_a_model_that_does_not_load(sglang):
    (sglang.control / "broken").touch()
    assert sglang.fails()[0] == -signal.SIGKILL
