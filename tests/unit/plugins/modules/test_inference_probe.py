# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The module as Ansible runs it, against real HTTP servers."""

from __future__ import annotations

import inspect
import json

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.modules import inference_probe
from ansible_collections.localfirst.llm_fleet.tests.unit.support.openai_engine import OpenAIEngine, Reply, prompt_of

KEY = "engine-geheimnis"
SECRET_PROMPT = "Wer hat den Leuchtturm\nvon Alexandria gebaut?"


@pytest.fixture
def engine():
    with OpenAIEngine(key=KEY) as running:
        yield running


@pytest.fixture
def old():
    with OpenAIEngine(key=KEY) as running:
        yield running


@pytest.fixture
def probe(run_module, engine):
    def run(**changes) -> dict:
        arguments = {
            "targets": [{"id": "tiny-0-b", "url": engine.url, "release": "newer"}],
            "model": "tiny",
            "key": KEY,
            "samples": 3,
            "max_tokens": 4,
            "prompt": SECRET_PROMPT,
        }
        result = run_module("inference_probe", **{**arguments, **changes})
        shown = json.dumps(result, ensure_ascii=False)
        assert KEY not in shown and "Alexandria" not in shown
        return result

    return run


def test_what_a_playbook_gets(probe, engine, old):
    baseline = [{"id": "tiny-0-a", "url": old.url, "release": "older"}]
    result = probe(baseline=baseline, limits={"ttft_p95": 30, "slowdown": 2}, smoke=[{"prompt": SECRET_PROMPT, "expect": "w3"}])
    assert result["passed"] is True and result["changed"] is False and result["skipped_probe"] is False
    assert result["failures"] == [] and len(result["notes"]) == 2
    assert result["golden"] == [{"target": "tiny-0-b", "index": 0, "passed": True, "why": ""}]
    assert [sample["side"] for sample in result["samples"]] == ["new", "old"] * 3
    assert set(result["samples"][0]) == {"target", "release", "side", "ok", "error", "ttft_s", "tpot_s", "tokens", "seconds"}
    assert result["summary"]["new"]["requests"] == 3 and result["summary"]["old"]["error_rate"] == 0
    assert prompt_of(engine.requests[0]) == SECRET_PROMPT


def test_a_gate_that_fails_does_not_fail_the_module(probe, engine):
    engine.replies = [Reply(), Reply(words=["Sostratos"]), Reply(status=500, body="%s " + KEY)]
    result = probe(smoke=[{"prompt": SECRET_PROMPT, "exact": "Philon"}])
    assert "failed" not in result and result["passed"] is False
    golden, errors = result["failures"]
    assert '"Philon"' in golden and '"Sostratos"' in golden and "HTTP 500" in errors


def test_a_wrong_key_is_a_gate_that_fails(probe):
    result = probe(key="another-key")
    assert result["failures"] == ["ready: tiny-0-b (newer) is not: HTTP 401: no such key"]


def test_a_short_prompt_spoils_no_result(probe):
    result = probe(prompt="new", smoke=[{"prompt": "1"}, {"prompt": "e", "exact": "b"}])
    assert [sample["side"] for sample in result["samples"]] == ["new"] * 3
    assert result["summary"]["new"]["requests"] == 3 and result["golden"][1]["target"] == "tiny-0-b"
    arguments = result["invocation"]["module_args"]
    assert arguments["prompt"] != "new" and [one["prompt"] for one in arguments["smoke"]] == [arguments["prompt"]] * 2


def test_a_prompt_that_is_the_key_shows_neither(probe):
    assert probe(prompt=KEY)["passed"]


def test_check_mode_asks_nothing(probe, engine):
    result = probe(check_mode=True, smoke=[{"prompt": SECRET_PROMPT}])
    assert result["passed"] is True and result["skipped_probe"] is True and result["changed"] is False
    assert result["failures"] == result["golden"] == result["samples"] == [] and result["summary"]["new"]["requests"] == 0
    assert engine.requests == []


@pytest.mark.parametrize("check_mode", [False, True])
def test_wrong_arguments_are_all_named_and_nothing_is_asked(probe, engine, check_mode):
    smoke = [{"prompt": SECRET_PROMPT, "schema": {"anyOf": []}, "regex": "("}]
    result = probe(check_mode=check_mode, samples=0, smoke=smoke, limits={"error_rate": 7})
    assert result["failed"]
    for words in ("samples: must be", "smoke[0]: has regex and schema", "smoke[0].schema: anyOf", "smoke[0].regex", "limits.error_rate"):
        assert words in result["msg"]
    assert engine.requests == []


def test_arguments_of_the_wrong_type(probe):
    assert "limits" in probe(limits={"ttft_p99": 1})["msg"]
    assert "url" in probe(targets=[{"id": "a", "release": "b"}])["msg"]
    assert "samples" in probe(samples="many")["msg"]


def test_prompts_are_kept_from_the_log_of_the_host():
    """Ansible writes arguments to the journal, apart from those that are marked."""
    specification = inference_probe.arguments()
    assert specification["prompt"]["no_log"] and specification["key"]["no_log"]
    assert specification["smoke"]["options"]["prompt"]["no_log"]


def test_the_default_prompt_is_the_documented_one():
    assert f"default: {inference_probe.PROMPT}\n" in inspect.cleandoc(inference_probe.DOCUMENTATION)
