# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""vLLM itself, on CPUs: its command line before its own parser, then deployed, asked, watched and rolled out. Takes its time."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest

from ansible_collections.localfirst.llm_fleet.molecule.conftest import REPO, unharmed
from ansible_collections.localfirst.llm_fleet.molecule.engines.tests.test_engines import chat, text
from ansible_collections.localfirst.llm_fleet.molecule.rollout.tests.conftest import everywhere
from ansible_collections.localfirst.llm_fleet.plugins.lookup.engine_profiles import BUILT_IN, read_profiles
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.release import build_release, command_line
from ansible_collections.localfirst.llm_fleet.tests.unit.plugins.module_utils.test_vllm_flags import RECORDED, every_setting

pytestmark = pytest.mark.long
IMAGE = "llm-fleet-testbed/vllm"
MODEL = "on-vllm"
ADMIN = [
    "GET /metrics", "GET /version", "GET /load", "GET /docs", "POST /invocations", "POST /tokenize", "POST /detokenize", "POST /pooling",
    "POST /classify", "POST /pause", "POST /resume", "POST /sleep", "POST /v1/load_lora_adapter", "POST /start_profile",
    "POST /reset_prefix_cache",
]


@pytest.fixture(scope="module")
def image() -> str:
    """Built where it is missing: `make test` has no use for it."""
    subprocess.run([sys.executable, REPO / "testbed" / "images.py", "vllm"], check=True)
    return IMAGE


def parser(image: str, *arguments: str) -> subprocess.CompletedProcess:
    run = ["docker", "run", "--rm", "-i", "--entrypoint", "python3", image, "-", *arguments]
    return subprocess.run(run, input=(REPO / "testbed" / "vllm_flags.py").read_text(), text=True, capture_output=True, check=False)


def test_the_flags_on_record_are_those_of_the_real_parser(image):
    done = parser(image)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == json.loads(RECORDED.read_text())


def test_the_real_parser_takes_every_setting(image):
    profile = read_profiles([BUILT_IN])[0]["vllm"]
    model = {"name": "chat", "context": 2048, "parallel": 8, "gpus": 2, "settings": every_setting(profile)}
    entry = {"source": "file:///m", "format": "safetensors", "size": 9, "files": [{"path": "config.json", "size": 9, "sha256": "0" * 64}]}
    command = command_line(build_release(profile, model, "1.0.0", entry, f"vllm@sha256:{'0' * 64}"))
    assert command[:2] == ["vllm", "serve"]
    done = parser(image, *command[2:])
    assert done.returncode == 0, done.stderr[-2000:]
    parsed = json.loads(done.stdout)
    assert parsed["tensor_parallel_size"] == "2" and parsed["max_model_len"] == "2048" and parsed["max_num_seqs"] == "8"


@pytest.fixture(scope="module")
def entry(catalog) -> dict:
    """A model on vLLM, small enough for a test machine."""
    tgi = next(model for model in catalog if model["name"] == "on-tgi")
    settings = {"dtype": "bfloat16", "cpu_kvcache_space": 1, "enforce_eager": True}
    return {**tgi, "name": MODEL, "engine": "vllm", "settings": settings, "limits": {"memory": "8g"}, "placement": {"hosts": ["gpu1"]}}


@pytest.fixture(scope="module")
def served(fleet, catalog, entry, image, tmp_path_factory):
    """The catalog with vLLM's model beside the others, locked and deployed; and away again."""
    push = [sys.executable, REPO / "testbed" / "fleet.py", "push-image", "-i", fleet.path, image]
    subprocess.run(push, check=True, capture_output=True)
    file = tmp_path_factory.mktemp("catalog") / "variables.json"
    file.write_text(json.dumps({"llm_fleet_models": [*copy.deepcopy(catalog), entry]}))
    fleet.playbook("lock", "-e", f"@{file}")
    fleet.playbook("site", "-e", f"@{file}", timeout=1800)
    yield [*catalog, entry]
    fleet.playbook("site")


def test_it_answers_streams_and_keeps_the_rest_closed(served, gateway, tokens):
    whole = text(chat(gateway, tokens["alice"], MODEL))
    assert text(chat(gateway, tokens["alice"], MODEL, by_path=False)) == whole
    events = [event for _seconds, event in gateway.stream(tokens["alice"], model=MODEL, max_tokens=16, temperature=0)]
    assert events[-1] == "[DONE]"
    assert "".join(c["delta"].get("content") or "" for e in events[:-1] for c in json.loads(e)["choices"]) == whole
    assert chat(gateway, tokens["bob"], MODEL).status in (403, 404)
    # It answers to its names and to no other.
    assert chat(gateway, tokens["alice"], MODEL, named="on-tgi").status == 404
    for method, path in (one.split(" ") for one in ADMIN):
        for prefix in (f"/m/{MODEL}", ""):
            answer = gateway.ask(method, prefix + path, tokens["alice"], {"model": MODEL} if method == "POST" else None)
            assert answer.status in (404, 405), (method, prefix + path, answer.status)


def test_the_node_counts_its_requests_by_the_metric_of_the_profile(served, fleet):
    [instance] = fleet.instances(model=MODEL)
    metrics = fleet.shell("gw1", f"curl -fsS http://{instance['address']}:{instance['port']}/metrics")
    metric = read_profiles([BUILT_IN])[0]["vllm"]["http"]["busy"]["metric"]
    assert any(line.startswith(metric) for line in metrics.splitlines())


def test_a_new_version_goes_unnoticed(served, fleet, rollouts, load):
    rollouts.catalog = served
    with load(MODEL, clients=2) as clients:
        done = rollouts.run(MODEL, version="1.1.0", gates={"timeout": 120})
    assert done.status == 0, done.output[-5000:]
    unharmed(clients.report)
    assert everywhere(fleet, "1.1.0", MODEL)
