# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""All gates together, over real engines of our own: who is asked what, and what comes of it."""

from __future__ import annotations

import re

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.gates import ENOUGH
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.release_probe import (
    ENDURED,
    ReleaseProbe,
    Settings,
    faults,
)
from ansible_collections.localfirst.llm_fleet.tests.unit.support.openai_engine import OpenAIEngine, Reply, prompt_of

PROMPT = "Tell me of lighthouses"
FRANCE = {"prompt": "The capital of France?", "expect": "Paris"}
DOWN = Reply(status=503, body="down")


@pytest.fixture
def engines():
    running = []

    def start(*replies: Reply, **settings) -> OpenAIEngine:
        running.append(OpenAIEngine(*replies, **settings))
        return running[-1]

    yield start
    for engine in running:
        engine.__exit__()


def target(engine, name="tiny-0-b", release="newer"):
    return {"id": name, "url": engine.url, "release": release}


def settings(new=(), old=(), **changes) -> Settings:
    named = {
        "targets": [target(engine, f"tiny-{number}-b") for number, engine in enumerate(new)],
        "baseline": [target(engine, f"tiny-{number}-a", "older") for number, engine in enumerate(old)],
    }
    small = {"model": "tiny", "prompt": PROMPT, "smoke": [], "limits": {}, "samples": 4, "max_tokens": 3, "timeout": 20}
    return Settings(**{**named, **small, **changes})


def probe(*sides, **changes) -> dict:
    return ReleaseProbe(settings(*sides, **changes)).run()


def answers(**by_word):
    """A choice of replies by the first word of the prompt; samples get what was ordered."""
    return lambda prompt: by_word.get(prompt.split()[0], Reply())


def test_a_release_that_holds_everything_passes(engines):
    new, old = engines(), engines()
    new.choose = answers(The=Reply(words=["Par", "is."]))
    result = probe([new], [old], smoke=[FRANCE], limits={"ttft_p95": 20, "tpot_p95": 20})
    assert result["passed"] and result["failures"] == [] and result["notes"] == []
    assert result["golden"] == [{"target": "tiny-0-b", "index": 0, "passed": True, "why": ""}]
    assert [(sample["side"], sample["target"], sample["release"]) for sample in result["samples"]] == [
        ("new", "tiny-0-b", "newer"), ("old", "tiny-0-a", "older")
    ] * 4  # fmt: skip
    assert all(sample["ok"] and sample["tokens"] == 3 and sample["ttft_s"] for sample in result["samples"])
    assert result["summary"]["new"]["requests"] == result["summary"]["old"]["requests"] == 4
    # One request to see whether it is ready, and none to the old release, which serves already.
    assert len(new.requests) == 1 + 1 + 4 and len(old.requests) == 4


def test_old_and_new_take_turns(engines):
    order = []
    new, old = engines(), engines()
    new.choose = lambda prompt: order.append("new") or Reply()
    old.choose = lambda prompt: order.append("old") or Reply()
    probe([new], [old], concurrency=1)
    assert order == ["new", "new", "old", "old", "new", "new", "old", "old", "new"]


def test_samples_are_spread_and_each_instance_gets_one(engines):
    new, old = [engines() for _ in range(3)], [engines(), engines()]
    result = probe(new, old, samples=2)
    assert result["passed"]
    assert [len(engine.requests) for engine in new] == [2, 2, 2], "ready and one sample"
    assert [len(engine.requests) for engine in old] == [1, 1]


def test_requests_are_what_was_asked_for(engines):
    new = engines(key="geheim")
    assert probe([new], key="geheim", path="/v1/completions", smoke=[{"prompt": "Hello you", "max_tokens": 9}, FRANCE])["failures"]
    asked = [(prompt_of(request), request["max_tokens"], request["path"]) for request in new.requests]
    assert asked[0] == (PROMPT, 3, "/v1/completions")
    assert ("Hello you", 9, "/v1/completions") in asked and ("The capital of France?", 64, "/v1/completions") in asked


def test_one_that_is_not_ready_is_asked_once_and_named(engines):
    new, broken = engines(), engines(DOWN)
    result = probe([new, broken], smoke=[FRANCE])
    assert not result["passed"] and len(broken.requests) == 1
    assert result["failures"][0] == "ready: tiny-1-b (newer) is not: HTTP 503: down"
    assert [one["why"] for one in result["golden"] if one["target"] == "tiny-1-b"] == ["not asked, because the instance is not ready"]
    assert not any("tiny-1-b" in failure for failure in result["failures"][1:])
    assert {sample["target"] for sample in result["samples"]} == {"tiny-0-b"}, "the others are measured all the same"


def test_where_none_is_ready_nothing_is_measured(engines):
    new, old = engines(Reply(model="other")), engines()
    result = probe([new], [old])
    assert not result["passed"] and len(result["failures"]) == 1
    assert "'other'" in result["failures"][0] and result["samples"] == [] and old.requests == []
    assert result["summary"]["new"]["ttft_p95_s"] is None


def test_ready_is_who_answers_and_no_more(engines):
    new = engines(Reply(ending=""), Reply())
    assert probe([new])["passed"]


def test_who_names_another_model_after_the_first_token_is_not_ready(engines):
    late = Reply(lead='data: {"choices": [{"delta": {"content": "x"}}]}\n\n', model="other")
    (failure,) = probe([engines(late, Reply())])["failures"]
    assert failure.startswith("ready: ") and "'other'" in failure


def test_a_golden_prompt_that_fails_is_named_by_its_place(engines):
    new = engines()
    new.choose = answers(The=Reply(words=["Lon", "don. ", "x" * 500, " The capital of France?"]), Say=Reply(cut=True))
    smoke = [{"prompt": "Hello there"}, FRANCE, {"prompt": "Say it loud", "regex": "it"}]
    result = probe([new], smoke=smoke)
    assert [one["passed"] for one in result["golden"]] == [True, False, False]
    first, second = result["failures"]
    assert first.startswith('golden: tiny-0-b (newer), smoke[1]: the answer does not contain "Paris"; it is "London. xxx')
    assert len(first) < 350 and "after 64 pieces" in second and "smoke[2]" in second
    assert not re.search("capital|loud|lighthouses", str(result))


def test_an_answer_that_repeats_the_prompt_is_shown_without_it(engines):
    new = engines()
    new.choose = answers(The=Reply(words=["The capital of France? ", "None."]))
    (failure,) = probe([new], smoke=[FRANCE])["failures"]
    assert "None." in failure and "capital" not in failure


def test_thoughts_alone_are_no_answer(engines):
    new = engines(Reply(delta="reasoning_content"))
    result = probe([new], smoke=[{"prompt": "Hello"}])
    assert result["failures"] == ["golden: tiny-0-b (newer), smoke[0]: the answer is empty"]
    assert result["summary"]["new"]["errors"] == 0


def test_errors_count_and_are_told(engines):
    new = engines(Reply(), Reply(), Reply(words=["one"], finish="length"), Reply())
    result = probe([new], concurrency=1)
    (failure,) = result["failures"]
    assert failure.startswith("error_rate: 1 of 4 requests failed (25.0%)") and "1 of 3 tokens" in failure
    assert [sample["ok"] for sample in result["samples"]] == [True, False, True, True]
    assert probe([engines(Reply(), Reply(), DOWN, Reply())], limits={"error_rate": 0.25})["passed"]


def test_a_side_that_cannot_pass_any_more_is_left_alone(engines):
    new, old = engines(Reply(), DOWN), engines(DOWN)
    result = probe([new], [old], samples=20, concurrency=1, limits={"slowdown": 2})
    assert result["summary"]["new"]["requests"] == result["summary"]["old"]["requests"] == ENDURED
    assert len(result["failures"]) == 1 and "not one of 3" in result["failures"][0]
    patient = probe([engines(Reply(), DOWN)], samples=10, concurrency=1, limits={"error_rate": 0.5})
    assert patient["summary"]["new"]["requests"] == 6


def test_an_old_release_that_fails_holds_up_nobody_and_is_noted(engines):
    result = probe([engines()], [engines(DOWN)], limits={"slowdown": 2}, concurrency=1)
    assert result["passed"] and len(result["notes"]) == 2
    assert result["summary"]["old"]["errors"] == ENDURED


def test_times_are_judged(engines):
    slow = engines(Reply(first_after=0.05))
    (failure,) = probe([slow], limits={"ttft_p95": 0.04})["failures"]
    assert failure.startswith("ttft_p95: ") and "tiny-0-b" in failure
    # No engine is a hundred times as fast as its like.
    result = probe([engines()], [engines()], samples=ENOUGH, limits={"slowdown": 0.001})
    assert [failure.split(":")[0] for failure in result["failures"]] == ["slowdown", "slowdown"] and result["notes"] == []


def test_good_settings_have_no_faults(engines):
    new = engines()
    smoke = [FRANCE, {"prompt": "x", "regex": "^a"}, {"prompt": "x", "schema": {"type": "object"}}, {"prompt": "x"}]
    assert faults(settings([new], [new], smoke=smoke, limits={"ttft_p95": 1.5, "slowdown": None, "error_rate": 1})) == []
    assert new.requests == []


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"targets": []}, "targets: there is none"),
        ({"targets": [{"id": "a", "url": "https://a:1", "release": "r"}]}, "targets[0].url: it is no http://address:port"),
        ({"baseline": [{"id": "a", "url": "http://a:x", "release": "r"}]}, "baseline[0].url"),
        ({"targets": [{"id": "a", "url": "http://a:1", "release": "r"}] * 2}, "targets[1].id: a is there twice"),
        ({"model": ""}, "model: is empty"),
        ({"key": "geheim\nX: 1"}, "key: cannot be sent"),
        ({"prompt": " "}, "prompt: is empty"),
        ({"samples": 0}, "samples: must be at least 1"),
        ({"concurrency": 0}, "concurrency: must be at least 1"),
        ({"max_tokens": 0}, "max_tokens: must be at least 1"),
        ({"timeout": 0}, "timeout: must be at least 1"),
        ({"smoke": [{"prompt": ""}]}, "smoke[0].prompt: is empty"),
        ({"smoke": [{"prompt": "x", "expect": "a", "regex": "b"}]}, "smoke[0]: has expect and regex"),
        ({"smoke": [{"prompt": "x", "expect": " "}]}, "smoke[0].expect: is empty"),
        ({"smoke": [{"prompt": "x", "regex": "("}]}, "smoke[0].regex: is no regular expression"),
        ({"smoke": [{"prompt": "x", "schema": {"oneOf": []}}]}, "smoke[0].schema: oneOf: not supported"),
        ({"smoke": [{"prompt": "x", "max_tokens": -1}]}, "smoke[0].max_tokens: must be at least 1"),
        ({"limits": {"ttft_p95": -1.0}}, "limits.ttft_p95: must be 0 or more"),
        ({"limits": {"slowdown": float("nan")}}, "limits.slowdown: must be 0 or more"),
        ({"limits": {"error_rate": 1.5}}, "limits.error_rate: must be from 0 to 1"),
    ],
)
def test_faults_say_what_is_wrong_and_where(engines, changes, words):
    (fault,) = faults(settings([engines()], **changes))
    assert fault.startswith(words) and "geheim" not in fault
