# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What the operator has after the first `site.yml`: a fleet that answers, and knows what it runs."""

from __future__ import annotations

import json

import pytest


def test_an_answer_streams_chunk_by_chunk_over_tls(gateway, tokens):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Go on."}], "max_tokens": 900, "stream": True}
    response = gateway.open("POST", "/v1/chat/completions", tokens["alice"], body)
    pieces = []
    while piece := response.read1(65536):
        pieces.append(piece)
    events = [line[6:] for line in b"".join(pieces).splitlines() if line.startswith(b"data: ")]
    assert events[-1] == b"[DONE]"
    choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
    words = [choice["delta"]["content"] for choice in choices if choice["delta"].get("content")]
    assert len(words) == 900 and choices[-1]["finish_reason"] == "length"
    # Held back anywhere, some 200 KB would have come in a few full buffers and not word by word.
    assert len(pieces) > 300


def test_a_model_is_reached_by_body_and_by_path(gateway, tokens):
    for by_path in (False, True):
        answer = gateway.chat(tokens["alice"], by_path=by_path)
        assert answer.status == 200, answer.body
        assert answer.json["usage"]["completion_tokens"] == 8


def test_every_gateway_answers_with_the_same_token(fleet, tokens):
    for name in fleet.hosts("gateways"):
        assert fleet.gateway(name).chat(tokens["alice"]).status == 200


def test_http2_is_spoken(gateway):
    with gateway.connect(alpn=("h2", "http/1.1")) as connection:
        assert connection.selected_alpn_protocol() == "h2"
        assert connection.version() in ("TLSv1.2", "TLSv1.3")


def test_replicas_stand_on_different_nodes(fleet):
    assert {instance["host"] for instance in fleet.instances(model="tiny")} == set(fleet.hosts("gpu_nodes"))


def test_all_hosts_know_the_same_plan(fleet):
    plans = [fleet.plan(host) for group in ("gateways", "gpu_nodes") for host in fleet.hosts(group)]
    assert all(plan == plans[0] for plan in plans)


@pytest.fixture(scope="module")
def container(fleet):
    """What Docker says of the first instance of `tiny`."""
    instance = fleet.instances(model="tiny")[0]
    return json.loads(fleet.shell(instance["host"], f"docker inspect {instance['id']}"))[0]


def test_an_engine_runs_with_as_little_as_it_can(container):
    host = container["HostConfig"]
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"] and not host["CapAdd"]
    assert any(option.startswith("no-new-privileges") for option in host["SecurityOpt"])
    assert host["Memory"] > 0 and host["PidsLimit"] > 0
    assert container["Config"]["User"].split(":")[0] not in ("", "0", "root")
    assert all(mount["RW"] is False for mount in container["Mounts"] if mount["Destination"] == "/models")
    assert host["LogConfig"]["Config"]["max-size"]


def test_an_engine_says_what_it_is(container, fleet):
    labels = container["Config"]["Labels"]
    instance = fleet.instances(model="tiny")[0]
    assert labels["llm_fleet.instance"] == instance["id"]
    assert labels["llm_fleet.model"] == "tiny"
    assert labels["llm_fleet.version"] == "1.0.0"
    assert labels["llm_fleet.release"] == instance["release"]


def test_models_are_kept_by_digest_and_shared(fleet):
    """`tiny` and `private` are the same file: one blob, linked into two trees."""
    digest = fleet.plan()["releases"][fleet.instances(model="tiny")[0]["release"]]["files"][0]["sha256"]
    host = fleet.instances(model="private")[0]["host"]
    store = "/var/lib/llm_fleet/store"
    assert fleet.shell(host, f"stat -c %h {store}/blobs/sha256/{digest}") == "3"
    assert fleet.shell(host, f"sha256sum < {store}/models/private/2.0.0/tiny.gguf").split()[0] == digest


def test_status_agrees_with_the_fleet(fleet, tmp_path):
    file = tmp_path / "status.json"
    fleet.playbook("status", "-e", f"status_file={file}")
    status = json.loads(file.read_text())
    assert status["faults"] == [] and status["pending"] == []
    assert {row["state"] for row in status["instances"]} == {"running"}
    assert len(status["instances"]) == len(fleet.plan()["instances"])


def test_plan_shows_a_table_and_writes_json(fleet, tmp_path):
    file = tmp_path / "plan.json"
    done = fleet.playbook("plan", "-e", f"plan_file={file}")
    assert json.loads(file.read_text()) == fleet.plan()
    assert "tiny-0-a" in done.stdout and "HOST" in done.stdout


def test_secrets_stay_where_they_belong(on, fleet):
    for name in fleet.hosts("gateways"):
        registry = on(name).file("/var/lib/llm_fleet/clients.json")
        if registry.exists:
            assert registry.mode == 0o640
            assert "llmf_" not in registry.content_string
