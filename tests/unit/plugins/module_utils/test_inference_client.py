# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Single answers, from a real server that can do all the wrong things that engines do."""

from __future__ import annotations

import json
import socket
import threading

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.inference_client import (
    CHAT,
    COMPLETIONS,
    Inference,
    Stream,
    ask,
    engine_address,
    events,
    sendable,
)
from ansible_collections.localfirst.llm_fleet.tests.unit.support.openai_engine import DONE, OpenAIEngine, Reply

PROMPT = 'Zähle bis "drei",\nlangsam'
TROUBLE = {"message": "CUDA out of memory", "code": 500}


def answer_to(reply: Reply, **changes):
    with OpenAIEngine(reply) as engine:
        return ask(Inference(**{"url": engine.url, "model": "tiny", "prompt": PROMPT, "max_tokens": 4, **changes}))


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_whole_answer(path):
    answer = answer_to(Reply(), path=path)
    assert answer.ok and answer.error == ""
    assert answer.text == "w0 w1 w2 w3 " and answer.tokens == 4 and answer.model == "tiny"
    assert 0 < answer.ttft_s < answer.seconds


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_what_is_sent(path):
    with OpenAIEngine(key="geheim") as engine:
        assert ask(Inference(engine.url, "tiny", PROMPT, "geheim", path, 7)).ok
        assert not ask(Inference(engine.url, "tiny", PROMPT, "", path, 7)).ok
    sent = engine.requests[0]
    assert sent["path"] == path and sent["model"] == "tiny" and sent["max_tokens"] == 7
    assert (sent["temperature"], sent["seed"], sent["stream"]) == (0, 0, True)
    assert sent["stream_options"] == {"include_usage": True}
    assert PROMPT in (sent.get("prompt"), sent.get("messages", [{}])[0].get("content"))
    assert ("messages" in sent) is (path == CHAT)
    assert "authorization" not in engine.headers[1]


def test_an_answer_that_the_model_ends_may_be_short():
    assert answer_to(Reply(words=["one ", "two"])).ok


def test_times_are_those_of_the_tokens():
    answer = answer_to(Reply(first_after=0.15, pause=0.05))
    assert answer.ttft_s >= 0.15
    assert 0 < answer.tpot_s * 3 <= answer.seconds - answer.ttft_s


def test_the_first_token_has_a_time_of_its_own():
    stream = Stream(Inference("http://a:1", "tiny", PROMPT))
    stream.first, stream.last, stream.deltas = 1.0, 4.0, 7
    answer = stream.answer("")
    assert (answer.ttft_s, answer.tpot_s) == (1.0, 0.5)


def test_tokens_are_counted_as_the_engine_counts_them():
    answer = answer_to(Reply(words=["one two ", "three four"], finish="length", usage=4, pause=0.06))
    assert answer.ok and answer.tokens == 4
    assert answer.tpot_s < answer.seconds / 2, "spread over four tokens, not over two pieces"


def test_one_piece_shows_no_time_for_each_token():
    answer = answer_to(Reply(words=["one two three four"], usage=4))
    assert answer.ok and answer.ttft_s is not None and answer.tpot_s is None


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thoughts_are_tokens_and_no_part_of_the_answer(name):
    answer = answer_to(Reply(delta=name))
    assert answer.ok and answer.tokens == 4 and answer.ttft_s is not None and answer.text == ""


@pytest.mark.parametrize(
    "reply, words",
    [
        (Reply(words=["one ", "two "], finish="length"), ["short", "2 of 4"]),
        (Reply(finish="length", usage=3), ["short", "3 of 4"]),
        (Reply(words=["one"], finish="abort"), ["short", "abort"]),
        (Reply(finish=""), ["no finish_reason"]),
        (Reply(words=[]), ["empty"]),
        (Reply(ending=""), ["without [DONE]", "4 pieces"]),
        (Reply(cut=True), ["after 4 pieces"]),
        (Reply(hang_up=True), ["closed connection"]),
        (Reply(model="other"), ["'other'", "'tiny'"]),
        (Reply(status=503, body='{"error": {"message": "Loading model", "code": 503}}'), ["HTTP 503: Loading model"]),
        (Reply(status=404, body='{"object": "error", "message": "no such model"}'), ["HTTP 404: no such model"]),
        (Reply(status=502, body="<h1>Bad\n gateway</h1>"), ["HTTP 502: <h1>Bad gateway</h1>"]),
        (Reply(status=500), ["HTTP 500: nothing"]),
        (Reply(status=400, body="x" * 9999), ["HTTP 400", "x..."]),
        # vllm: the stream goes on to its [DONE] as if nothing was.
        (Reply(finish="", ending=f"data: {json.dumps({'error': TROUBLE})}\n\n{DONE}"), ["CUDA out of memory", "4 pieces"]),
        (Reply(finish="", ending=f"data: {json.dumps({'object': 'error', **TROUBLE})}\n\n{DONE}"), ["CUDA out of memory"]),
        (Reply(finish="", ending=f"error: {json.dumps(TROUBLE)}\n\n{DONE}"), ["CUDA out of memory"]),
        (Reply(finish="", ending=f"event: error\ndata: gone\n\n{DONE}"), ["reports an error", "gone"]),
        (Reply(finish="", ending=f"data: oops\n\n{DONE}"), ["no JSON", "oops"]),
        (Reply(finish="", ending=f"data: {'[' * 5000}\n\n{DONE}"), ["no JSON"]),
    ],
)
def test_an_answer_that_is_not_whole_says_why(reply, words):
    answer = answer_to(reply)
    assert not answer.ok
    for word in words:
        assert word in answer.error
    assert len(answer.error) < 250 and "\n" not in answer.error


def test_comments_and_other_fields_are_no_events():
    assert answer_to(Reply(lead=": ping\n\nid: 1\nretry: 5\n\n", model="")).ok


def test_an_event_may_have_several_lines():
    lines = ["event: x", 'data: {"a":', "data:1}", "", "data: last", "", "data: without an end"]
    assert list(events(iter(lines))) == [("x", '{"a":\n1}'), ("", "last")]


@pytest.mark.parametrize(
    "body", ["%s", '{"error": {"message": "cannot read %s"}}', "Überlast: " + repr(PROMPT), json.dumps(PROMPT, ensure_ascii=False)]
)
def test_neither_prompt_nor_key_is_in_an_error(body):
    answer = answer_to(Reply(status=400, body=body), key="geheimer-schluessel")
    assert "HTTP 400" in answer.error and "drei" not in answer.error
    answer = answer_to(Reply(status=400, body="no such key: geheimer-schluessel"), key="geheimer-schluessel")
    assert "no such key" in answer.error and "geheimer" not in answer.error


def test_nobody_answers():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        answer = ask(Inference(f"http://127.0.0.1:{taken.getsockname()[1]}", "tiny", PROMPT))
    assert answer.error == "Connection refused" and answer.ttft_s is None


def test_somebody_takes_the_request_and_says_nothing():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        answer = ask(Inference(f"http://127.0.0.1:{mute.getsockname()[1]}", "tiny", PROMPT, timeout=0.2))
    assert answer.error == "nothing within 0.2 seconds"


def test_a_silent_engine_is_left_when_the_time_is_over():
    held = threading.Event()
    answer = answer_to(Reply(hold=held), timeout=1)
    assert "no more than 1 piece of the answer within 1 seconds" in answer.error and answer.ttft_s is not None
    answer = answer_to(Reply(first_after=3), timeout=1)
    assert "no more than its beginning within 1 seconds" in answer.error and answer.ttft_s is None
    held.set()


def test_the_time_is_that_of_the_whole_answer_and_not_of_a_pause():
    answer = answer_to(Reply(pause=0.2), timeout=1, max_tokens=40)
    assert "within 1 seconds" in answer.error and answer.tokens < 40


def test_an_address_is_a_host_and_a_port():
    assert engine_address("http://10.0.0.5:20000") == ("10.0.0.5", 20000)
    assert engine_address("http://[fd00::5]:20000/") == ("fd00::5", 20000)
    assert engine_address("http://gpu-1.lan:80") == ("gpu-1.lan", 80)


@pytest.mark.parametrize(
    "url",
    ["", "10.0.0.5:1", "https://a:1", "http://:80", "http://a:b", "http://a:99999", "http://a/v1", "http://u@a:1", "http://a b:1",
     "http://a..b:1", f"http://{'a' * 64}:1", "http://a:1?x", "http://[a:1"],
)
def test_anything_else_is_no_address(url):
    with pytest.raises(ValueError):
        engine_address(url)


def test_a_key_fits_into_a_header():
    assert sendable("") and sendable("aB3-_~+/=")
    assert not sendable("a\nX: y") and not sendable("ä") and not sendable("a b") and not sendable("a\n")
