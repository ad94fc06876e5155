# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""To clients all engines are the same thing, and what an engine has besides is closed to them."""

from __future__ import annotations

import json

import pytest

from ansible_collections.localfirst.llm_fleet.molecule.conftest import unharmed, until
from ansible_collections.localfirst.llm_fleet.molecule.rollout.tests.conftest import everywhere

ENGINES = ("llamacpp", "ollama", "tgi", "sglang")
# What would show other people's prompts, change the model, or stop the engine. The gateway passes what the profile lists, none of these.
ADMIN = {
    "llamacpp": [
        "GET /slots", "GET /props", "POST /props", "GET /metrics", "GET /lora-adapters", "POST /lora-adapters", "POST /apply-template",
        "POST /tokenize", "GET /models", "POST /models/load", "POST /models/unload", "POST /completion", "GET /tools",
    ],
    "ollama": [
        "POST /api/generate", "POST /api/chat", "POST /api/pull", "POST /api/push", "POST /api/create", "POST /api/copy",
        "DELETE /api/delete", "GET /api/ps", "GET /api/tags", "POST /api/show", "POST /api/embed",
    ],
    "tgi": [
        "GET /info", "GET /metrics", "GET /docs", "POST /invocations", "POST /generate", "POST /generate_stream", "POST /chat_tokenize",
        "POST /tokenize", "POST /",
    ],
    "sglang": [
        "POST /flush_cache", "POST /update_weights_from_disk", "POST /update_weights_from_tensor", "POST /release_memory_occupation",
        "POST /pause_generation", "POST /abort_request", "POST /start_profile", "POST /generate", "GET /get_server_info",
        "GET /get_model_info", "GET /server_info", "GET /metrics", "POST /load_lora_adapter",
    ],
}


def chat(gateway, token: str, model: str, by_path: bool = True, named: str = ""):
    """Ask for a few words that are always the same; `named` is the model in the body, if it is another than the path's."""
    body = {"model": named or model, "messages": [{"role": "user", "content": "What is a fleet?"}], "max_tokens": 16, "temperature": 0}
    return gateway.ask("POST", f"/m/{model}/v1/chat/completions" if by_path else "/v1/chat/completions", token, body)


def text(answer) -> str:
    assert answer.status == 200, answer.body
    assert answer.json["usage"]["completion_tokens"] > 0
    return answer.json["choices"][0]["message"]["content"]


@pytest.mark.parametrize("engine", ENGINES)
def test_it_answers_whole_and_as_a_stream(gateway, tokens, engine):
    model = f"on-{engine}"
    whole = text(chat(gateway, tokens["alice"], model))
    assert whole and text(chat(gateway, tokens["alice"], model, by_path=False)) == whole
    events = [event for _seconds, event in gateway.stream(tokens["alice"], model=model, max_tokens=16, temperature=0)]
    assert events[-1] == "[DONE]" and len(events) > 8
    choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == whole
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] in (["length"], ["stop"])


@pytest.mark.parametrize("engine", ["llamacpp", "sglang"])
def test_texts_become_vectors(gateway, tokens, engine):
    def vectors(*texts: str) -> list:
        body = {"model": f"vectors-{engine}", "input": list(texts)}
        answer = gateway.ask("POST", "/v1/embeddings", tokens["alice"], body)
        assert answer.status == 200, answer.body
        return [row["embedding"] for row in answer.json["data"]]

    one, other, same = vectors("a fleet", "something else", "a fleet")
    assert len(one) == len(other) > 8 and one == same != other


@pytest.mark.parametrize("engine", ENGINES)
def test_nobody_gets_another_model_than_the_one_they_may_ask(gateway, tokens, engine):
    model = f"on-{engine}"
    for by_path in (True, False):
        assert chat(gateway, tokens["bob"], model, by_path).status in (403, 404)
        assert chat(gateway, tokens["alice"], f"{model}-no", by_path).status in (403, 404)
    # Whatever the body says, the path decides: either this model answers, or nobody.
    other = next(f"on-{name}" for name in ENGINES if name != engine)
    answer = chat(gateway, tokens["alice"], model, named=other)
    assert answer.status in (400, 404) or text(answer) == text(chat(gateway, tokens["alice"], model))


@pytest.mark.parametrize("engine", ENGINES)
def test_what_an_engine_has_besides_is_closed(gateway, tokens, engine):
    model = f"on-{engine}"
    before = text(chat(gateway, tokens["alice"], model))
    for entry in ADMIN[engine]:
        method, path = entry.split(" ")
        for prefix in (f"/m/{model}", ""):
            answer = gateway.ask(method, prefix + path, tokens["alice"], {"model": model} if method != "GET" else None)
            assert answer.status in (404, 405), (method, prefix + path, answer.status)
    assert text(chat(gateway, tokens["alice"], model)) == before


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "ollama"])
def test_an_instance_wants_its_own_models_key(fleet, engine):
    """The second wall: whoever reaches the port past a gateway gets nothing without the key."""
    [instance] = fleet.instances(model=f"on-{engine}")
    body = json.dumps({"model": instance["model"], "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4})
    ask = "import sys, urllib.request as r\ntry: print(r.urlopen(r.Request(sys.argv[1], sys.argv[2].encode(), " \
          "{'Content-Type': 'application/json'}), timeout=10).status)\nexcept r.HTTPError as e: print(e.code)"
    url = f"http://{instance['address']}:{instance['port']}/v1/chat/completions"
    assert fleet.shell("gw1", f"python3 -c \"{ask}\" {url} '{body}'") == "401"


@pytest.mark.parametrize("engine", [
    "sglang", *(pytest.param(name, marks=pytest.mark.long) for name in ENGINES if name != "sglang"),
])
def test_one_that_is_killed_comes_back(gateway, fleet, tokens, engine):
    model = f"on-{engine}"
    [instance] = fleet.instances(model=model)
    inspect = f"docker inspect -f '{{{{.State.Pid}}}}' {instance['id']}"
    pid = fleet.shell(instance["host"], inspect)
    fleet.shell(instance["host"], f"kill -9 {pid}")
    until(lambda: fleet.shell(instance["host"], inspect) not in (pid, "0"), 60)
    until(lambda: chat(gateway, tokens["alice"], model).status == 200, 90)


# In short form, the rollout from one engine to another, below, stands for these.
@pytest.mark.long
@pytest.mark.parametrize("engine", ENGINES)
def test_a_new_version_goes_unnoticed(fleet, rollouts, load, engine):
    model = f"on-{engine}"
    old = fleet.plan()["models"][model]["version"]
    new = "1.1.0" if old == "1.0.0" else "1.0.0"
    with load(model) as clients:
        done = rollouts.run(model, version=new)
    assert done.status == 0, done.output[-5000:]
    assert done.report["outcome"] == "rolled out"
    unharmed(clients.report)
    assert everywhere(fleet, new, model)
    assert sum(seen["streams"] for name, seen in clients.report.by_version.items() if name != "old") > 0


def test_another_engine_for_the_same_name_goes_unnoticed(fleet, rollouts, load, gateway, tokens):
    """Both read the same files, so the new one says what the old one said."""
    entry = fleet.plan()["models"]["on-sglang"]
    other = "tgi" if entry["engine"] == "sglang" else "sglang"
    before = text(chat(gateway, tokens["alice"], "on-sglang"))
    with load("on-sglang") as clients:
        done = rollouts.run("on-sglang", engine=other, version=entry["version"])
    assert done.status == 0, done.output[-5000:]
    unharmed(clients.report)
    assert fleet.plan()["models"]["on-sglang"]["engine"] == other
    assert text(chat(gateway, tokens["alice"], "on-sglang")) == before
    assert everywhere(fleet, entry["version"], "on-sglang")
