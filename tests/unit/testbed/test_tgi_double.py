# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The double of TGI answers, refuses and ends as the original does."""

from __future__ import annotations

import http.client
import json
import os
import threading

import pytest

from ansible_collections.localfirst.llm_fleet.tests.unit.support.engine_double import DOUBLES, Double, damage, wait_until
from ansible_collections.localfirst.llm_fleet.tests.unit.support.ollama_bench import alive

CHAT = {"messages": [{"role": "user", "content": "hello there"}]}
OPTIONS = ["--model-id", "{model}", "--hostname", "127.0.0.1", "--port", "{port}", "--max-total-tokens", "64"]


@pytest.fixture
def tgi(tmp_path):
    made = Double(tmp_path, [str(DOUBLES / "tgi" / "launcher.py")], OPTIONS)
    yield made
    made.stop()


def data(line: str) -> dict:
    # The original writes no space here.
    assert line.startswith("data:{")
    return json.loads(line[len("data:") :])


def test_its_port_opens_when_the_model_is_loaded(tgi):
    loading = tgi.control / "loading"
    loading.touch()
    tgi.launch()
    wait_until((tgi.control / "pid").exists)
    assert tgi.status("/health") is None
    loading.unlink()
    wait_until(lambda: tgi.status("/health") == 200)


def test_told_to_stop_while_it_loads_it_ends_well(tgi):
    (tgi.control / "loading").touch()
    tgi.launch()
    wait_until((tgi.control / "pid").exists)
    tgi.process.terminate()
    assert tgi.process.wait(10) == 0 and not alive(tgi.runner_pid())


def test_the_weights_of_the_directory_are_served(tgi):
    tgi.start("--max-batch-size", "2")
    arguments = tgi.runner_arguments()
    assert arguments[arguments.index("--ctx-size") + 1] == "128" and arguments[arguments.index("--parallel") + 1] == "2"
    assert tgi.get("/v1/models")["data"][0]["id"] == tgi.get("/info")["model_id"] == str(tgi.model)
    assert tgi.get("/info")["max_total_tokens"] == 64


def test_chat(tgi):
    answer = json.loads(tgi.start().ask("POST", "/v1/chat/completions", CHAT)[1])
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "one two three"}
    assert answer["choices"][0]["finish_reason"] == "stop" and answer["usage"]["total_tokens"] == 5


@pytest.mark.parametrize(("asked", "told"), [("other", "other"), ("tgi", None), (None, None)])
def test_any_name_is_taken_for_its_model(tgi, asked, told):
    answer = json.loads(tgi.start().ask("POST", "/v1/chat/completions", {**CHAT, "model": asked})[1])
    assert answer["model"] == (told or str(tgi.model))


def test_a_chat_that_streams(tgi):
    *chunks, last = tgi.start().events("/v1/chat/completions", {**CHAT, "stream_options": {"include_usage": True}})
    *words, usage = map(data, chunks)
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in words) == "one two three"
    assert [chunk["choices"][0]["finish_reason"] for chunk in words] == [None, None, None, "stop"]
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 3
    assert last == "data: [DONE]"


def test_completions(tgi):
    answer = json.loads(tgi.start().ask("POST", "/v1/completions", {"prompt": ["a", "b"]})[1])
    assert [choice["text"] for choice in answer["choices"]] == ["one two three"] * 2 and answer["usage"]["total_tokens"] == 10
    *chunks, last = tgi.events("/v1/completions", {"prompt": "a"})
    assert "".join(data(chunk)["choices"][0]["text"] for chunk in chunks) == "one two three" and last == "data: [DONE]"
    assert data(chunks[-1])["choices"][0]["finish_reason"] == "eos_token"


def test_its_own_api(tgi):
    asked = {"inputs": "a b", "parameters": {"details": True, "return_full_text": True}}
    answer = json.loads(tgi.start().ask("POST", "/generate", asked)[1])
    assert answer["generated_text"] == "a bone two three" and answer["details"]["generated_tokens"] == 3
    assert json.loads(tgi.ask("POST", "/", asked)[1])[0]["generated_text"] == "a bone two three"
    chunks = [data(line) for line in tgi.events("/generate_stream", asked)]
    assert [chunk["token"]["text"] for chunk in chunks] == ["one ", "two ", "three", ""]
    assert chunks[-1]["generated_text"] == "a bone two three" and chunks[0]["generated_text"] is None
    assert [token["text"] for token in json.loads(tgi.ask("POST", "/tokenize", asked)[1])] == ["a", "b"]


@pytest.mark.parametrize("body", [{"inputs": "a"}, {"messages": CHAT["messages"]}, {"prompt": "a"}])
def test_invocations_take_each_form(tgi, body):
    assert "one two three" in tgi.start().ask("POST", "/invocations", body)[1]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"max_tokens": 0}, "strictly positive"),
        ({"top_p": 1.0}, "top_p"),
        ({"temperature": -1}, "temperature"),
        ({"stop": list("abcde")}, "stop"),
        ({"max_tokens": 63}, "must be <= 64. Given: 2 `inputs` tokens and 63"),
        ({"messages": [{"role": "user", "content": "a " * 64}]}, "inputs"),
    ],
)
def test_what_it_cannot_do_is_told(tgi, change, told):
    status, text = tgi.start().ask("POST", "/v1/chat/completions", {**CHAT, **change})
    error = json.loads(text)
    assert status == 422 and error["error_type"] == "validation" and told in error["error"]
    # A stream has begun by then.
    first, last = tgi.events("/v1/chat/completions", {**CHAT, **change})
    assert told in data(first)["error"]["message"] and last == "data: [DONE]"


def test_messages_that_the_template_cannot_read(tgi):
    status, text = tgi.start().ask("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": 3}]})
    assert status == 422 and json.loads(text)["error_type"] == "template_error"


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        ({}, "application/json", 422),
        ({"messages": "a"}, "application/json", 422),
        (b" " * 200, "application/json", 413),
        ({"messages": []}, "text/plain", 415),
    ],
)
def test_bodies_that_are_none(tgi, body, kind, status):
    tgi.start("--payload-limit", "100")
    assert tgi.ask("POST", "/v1/chat/completions", body, Content_Type=kind)[0] == status


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 200), ("GET", "/ping", 200), ("GET", "/nothing", 404), ("GET", "/generate", 405), ("POST", "/vertex", 501)],
)
def test_paths_and_methods(tgi, method, path, status):
    assert tgi.start().ask(method, path)[0] == status


def test_its_key_closes_what_computes_and_nothing_else(tgi):
    tgi.start("--api-key", "Secret")
    assert [tgi.ask("GET", path)[0] for path in ("/health", "/info", "/metrics", "/v1/models")] == [200] * 4
    assert tgi.ask("POST", "/v1/chat/completions", CHAT)[0] == 401
    assert tgi.ask("POST", "/v1/chat/completions", CHAT, Authorization="Bearer other")[0] == 401
    assert tgi.ask("POST", "/v1/chat/completions", CHAT, Authorization="bearer sEcret")[0] == 200


def metric(tgi: Double, name: str) -> float:
    return next(float(line.split()[1]) for line in tgi.ask("GET", "/metrics")[1].splitlines() if line.startswith(f"{name} "))


def test_beyond_its_limit_it_is_overloaded(tgi):
    hold = tgi.hold()
    tgi.start("--max-concurrent-requests", "2", "--max-batch-size", "1")
    first = tgi.send("POST", "/v1/chat/completions", {**CHAT, "stream": True}).getresponse()
    first.readline()
    answers = []
    thread = threading.Thread(target=lambda: answers.append(tgi.ask("POST", "/v1/chat/completions", CHAT)))
    thread.start()
    wait_until(lambda: (metric(tgi, "tgi_batch_current_size"), metric(tgi, "tgi_queue_size")) == (1, 1))
    status, text = tgi.ask("POST", "/v1/chat/completions", CHAT)
    assert status == 429 and json.loads(text) == {"error": "Model is overloaded", "error_type": "overloaded"}
    assert data(tgi.events("/v1/chat/completions", CHAT)[0])["error"]["message"] == "Model is overloaded"
    hold.unlink()
    thread.join(20)
    assert answers[0][0] == 200 and b"three" in first.read()
    wait_until(lambda: metric(tgi, "tgi_request_success") == 2)
    assert 'tgi_request_failure{err="overloaded"} 2' in tgi.ask("GET", "/metrics")[1]


def test_a_client_that_leaves_makes_room(tgi):
    hold = tgi.hold()
    tgi.start("--max-concurrent-requests", "1")
    connection = tgi.send("POST", "/v1/chat/completions", {**CHAT, "stream": True})
    connection.getresponse().readline()
    connection.close()
    hold.unlink()
    wait_until(lambda: tgi.ask("POST", "/v1/chat/completions", CHAT)[0] == 200)


def test_sigterm_lets_a_stream_end_and_nobody_in(tgi):
    hold = tgi.hold()
    tgi.start()
    idle = tgi.send("GET", "/health")
    idle.getresponse().read()
    answer = tgi.send("POST", "/v1/chat/completions", {**CHAT, "stream": True}).getresponse()
    answer.readline()
    tgi.process.terminate()
    wait_until(lambda: tgi.status("/health") is None)
    assert idle.sock.recv(1) == b""
    hold.unlink()
    assert answer.read().rstrip().endswith(b"data: [DONE]")
    assert tgi.process.wait(10) == 0 and not alive(tgi.runner_pid())


def test_its_patience_has_an_end(tgi):
    tgi.hold()
    tgi.start(GRACEFUL_TERMINATION_TIMEOUT="1")
    answer = tgi.send("POST", "/v1/chat/completions", {**CHAT, "stream": True}).getresponse()
    answer.readline()
    tgi.process.terminate()
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        answer.read()
    assert tgi.process.wait(10) == 0


def test_a_model_that_breaks_off_ends_it(tgi):
    tgi.start()
    os.kill(tgi.runner_pid(), 9)
    assert tgi.process.wait(10) == 1 and "ShardFailed" in tgi.log()


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--no-such"], 2, "unexpected argument '--no-such'"),
        (["--dtype", "float64"], 2, "possible values: float16, bfloat16"),
        (["--max-input-tokens", "-1"], 2, "invalid value '-1'"),
        (["--port", "1"], 2, "cannot be used multiple times"),
        (["--max-input-tokens"], 2, "a value is required"),
        (["--disable-custom-kernels=1"], 2, "unexpected argument"),
        (["--max-input-tokens", "64"], 1, "must be < `max_total_tokens`(64)"),
        (["--num-shard", "0"], 1, "cannot be < 1"),
        (["--num-shard", "3"], 1, "ShardCannotStart"),
    ],
)
def test_a_wrong_command_line(tgi, options, code, told):
    found, text = tgi.fails(*options)
    assert found == code and told in text


def test_options_are_variables_too_and_flags_go_before_them(tgi):
    tgi.start(MAX_CONCURRENT_REQUESTS="7", MAX_TOTAL_TOKENS="32", DISABLE_CUSTOM_KERNELS="true")
    assert (tgi.get("/info")["max_concurrent_requests"], tgi.get("/info")["max_total_tokens"]) == (7, 64)
    assert tgi.fails(QUANTIZE="none")[0] == 2


def test_a_containers_name_is_no_address(tgi):
    tgi.options = [word for word in OPTIONS if word not in ("--hostname", "127.0.0.1")]
    assert tgi.start(HOSTNAME="0123456789ab").status("/health") == 200


@pytest.mark.parametrize(
    ("how", "told"),
    [("no config", "ShardCannotStart"), ("no weights", "DownloadError"), ("no header", "HeaderTooLarge"), ("cut", "MetadataIncomplete")],
)
def test_a_directory_that_is_no_model(tgi, how, told):
    damage(tgi.model, how)
    code, text = tgi.fails()
    assert code == 1 and told in text


def test_a_model_that_does_not_load(tgi):
    (tgi.control / "broken").touch()
    code, text = tgi.fails()
    assert code == 1 and "ShardCannotStart" in text
