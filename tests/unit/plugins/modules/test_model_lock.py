# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The module as Ansible runs it: a process with its arguments as JSON, which may be killed at any moment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lock_changes import versions_in_use
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile_text import version_digest
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.masking import MASKED, Mask
from ansible_collections.localfirst.llm_fleet.tests.unit.conftest import REPO
from ansible_collections.localfirst.llm_fleet.tests.unit.support.lock_builders import IMAGES, PROFILES, locked, model
from ansible_collections.localfirst.llm_fleet.tests.unit.support.range_server import RangeServer
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import BODY, digest, entry

SECRETS = {
    "token": "token/geheim+1",
    "header": "header-geheim-2",
    "password": "pass wort&geheim-3",
    "proxy": "proxy-geheim-4",
}


@pytest.fixture
def server():
    with RangeServer() as running:
        yield running


@pytest.fixture
def run(run_module, tmp_path):
    def call(models, sources=None, **arguments):
        arguments = {
            "models": models,
            "profiles": PROFILES,
            "engine_images": IMAGES,
            "sources": sources if isinstance(sources, str) else json.dumps(sources) if sources is not None else "",
            "store": str(tmp_path / "store"),
            **arguments,
        }
        return run_module("model_lock", **arguments)

    return call


def test_it_locks_and_then_changes_nothing(run, server, tmp_path):
    server.add("/tiny.gguf", BODY)
    wanted = [model("tiny", {"1.0.0": f"{server.url}/tiny.gguf"})]
    first = run(wanted)
    assert first["changed"] and first["downloaded_bytes"] == len(BODY)
    assert locked(first["text"])["tiny", "1.0.0"]["files"] == [entry("tiny.gguf", BODY)]
    assert first["diff"]["before"] == "" and first["diff"]["after"] == first["text"]
    again = run(wanted, current=first["text"])
    assert not again["changed"] and again["text"] == first["text"] and again["actions"] == []


def test_who_may_use_a_model_and_where_it_runs_is_no_matter_of_locking(run, server):
    server.add("/tiny.gguf", BODY)
    wanted = {**model("tiny", {"1.0.0": f"{server.url}/tiny.gguf"}), "access": ["somebody"], "placement": {"hosts": ["gpu9"]}}
    assert not run([wanted]).get("failed")


def test_check_mode_keeps_nothing(run, server, tmp_path):
    server.add("/tiny.gguf", b"small")
    found = run([model("tiny", {"1.0.0": f"{server.url}/tiny.gguf"})], check_mode=True)
    assert found["changed"] and locked(found["text"])["tiny", "1.0.0"]["files"] == [entry("tiny.gguf", b"small")]
    assert not (tmp_path / "store").exists()


def test_empty_settings_are_masked_nowhere(run, tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(b"x")
    wanted = [model("tiny", {"1.0.0": f"file://{tmp_path}/tiny.gguf"}, engine="ollama")]
    found = run(wanted, sources={})
    assert MASKED not in found["text"] and found["text"] == run(wanted)["text"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"models": [{"name": "tiny", "verison": "1.0.0"}]},
        {"sources": "no json"},
        {"sources": '{"hf": {"token": "geheim"}}'},
        {"engine_images": {"llamacpp": ["a"]}},
        {"engine_images": {"llamacp": "registry.example/llamacpp:1"}},
        {"store": "relative"},
    ],
)
def test_what_is_written_wrongly_is_a_fault_before_anybody_is_asked(run, server, arguments):
    found = run(**{"models": [model("tiny", {"1.0.0": f"{server.url}/tiny.gguf"})], **arguments})
    assert found["failed"] and found["faults"] and "geheim" not in json.dumps(found)
    assert server.requests == []


def test_a_broken_lockfile_is_refused_with_its_line(run, server):
    server.add("/tiny.gguf", BODY)
    wanted = [model("tiny", {"1.0.0": f"{server.url}/tiny.gguf"})]
    text = run(wanted)["text"]
    cut = run(wanted, current=text[: len(text) // 2])
    assert cut["failed"] and "models.lock.yml" in cut["faults"][0]["where"]
    changed = run(wanted, current=text.replace(digest(BODY), "ab" * 32))
    assert "line " in changed["faults"][0]["where"] and "git" in changed["faults"][0]["fix"]


def test_no_credential_is_ever_shown(run, server, tmp_path):
    sources = {
        server.url + "/": {
            "token": SECRETS["token"],
            "headers": {"X-Team": SECRETS["header"]},
            "retries": 0,
        },
        "http://127.0.0.1:1/": {"username": "fleet", "password": SECRETS["password"], "retries": 0},
        "http://127.0.0.2/": {"proxy": f"http://user:{SECRETS['proxy']}@127.0.0.1:1", "retries": 0, "timeout": 1},
    }
    server.add("/good.gguf", b"good")
    server.add("/denied.gguf", b"denied", statuses=[401] * 9)
    server.add(f"/{SECRETS['header']}.gguf", b"x", statuses=[500] * 9)
    urls = {
        "good": f"{server.url}/good.gguf",
        "denied": f"{server.url}/denied.gguf",
        "missing": f"{server.url}/missing.gguf",
        "named": f"{server.url}/{SECRETS['header']}.gguf",
        "refused": "http://127.0.0.1:1/x.gguf",
        "proxied": "http://127.0.0.2/x.gguf",
    }
    found = run([model(name, {"1.0.0": url}) for name, url in urls.items()], sources)
    assert found["failed"] and len(found["faults"]) == 5
    assert any(headers.get("authorization") == f"Bearer {SECRETS['token']}" for _path, headers in server.requests)
    good = run([model("good", {"1.0.0": urls["good"]})], sources, diff=True)
    assert good["text"]
    # The models are what the operator wrote into git himself; Ansible shows them only to who asks for it (-vvv).
    for result in (found, good):
        shown = json.dumps({key: value for key, value in result.items() if key != "invocation"})
        assert [name for name, secret in SECRETS.items() if secret in shown] == []
        assert SECRETS["token"] not in json.dumps(result["invocation"])


def test_a_secret_in_a_source_never_gets_into_the_lockfile(run, server):
    secret = "geheim-im-pfad"
    server.add(f"/{secret}/tiny.gguf", b"x")
    found = run([model("tiny", {"1.0.0": f"{server.url}/{secret}/tiny.gguf"})], {"http://": {"token": secret}})
    assert found["failed"] and "text" not in found
    assert secret not in json.dumps({key: value for key, value in found.items() if key != "invocation"})


def test_a_killed_lock_is_gone_on_with(run, server, tmp_path):
    """SIGKILL while the file is on its way: nothing of a lockfile anywhere, and the next run asks for the rest."""
    gate = threading.Event()
    server.add("/tiny.gguf", BODY, hold=gate, pause_at=len(BODY) // 2)
    wanted = [model("tiny", {"1.0.0": f"{server.url}/tiny.gguf"})]
    arguments = {
        "models": wanted,
        "profiles": PROFILES,
        "engine_images": IMAGES,
        "store": str(tmp_path / "store"),
        "_ansible_remote_tmp": str(tmp_path),
    }
    process = subprocess.Popen(
        [sys.executable, str(REPO / "plugins/modules/model_lock.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPO / ".venv/collections")},
    )
    process.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode())
    process.stdin.close()
    incoming = tmp_path / "store/incoming"
    for _attempt in range(1000):
        parts = [path.stat().st_size for path in incoming.glob("*.part")] if incoming.is_dir() else []
        if parts and parts[0]:
            break
        threading.Event().wait(0.02)
    process.kill()
    output = process.stdout.read()
    process.stdout.close()
    process.wait()
    gate.set()
    assert output == b"" and not list((tmp_path / "store/blobs/sha256").iterdir())
    found = run(wanted)
    assert locked(found["text"])["tiny", "1.0.0"]["files"] == [entry("tiny.gguf", BODY)]
    assert 0 < found["downloaded_bytes"] < len(BODY)


def test_versions_in_use_come_from_plans_and_containers():
    files = [entry("tiny.gguf", BODY)]
    plan = {"releases": {"abc": {"model": "tiny", "version": "1.0.0", "files": files}}}
    container = {"model": "tiny", "version": "0.9.0"}
    hosts = [
        {"name": "gpu1", "plan": plan, "instances": [container]},
        {"name": "gpu2", "plan": plan, "instances": []},
        {"name": "gpu3", "plan": None, "instances": []},
        {"name": "gpu4", "plan": "damaged", "instances": [{"model": "", "version": ""}]},
    ]
    assert versions_in_use(hosts) == [
        {"model": "tiny", "version": "0.9.0", "hosts": ["gpu1"], "digest": ""},
        {"model": "tiny", "version": "1.0.0", "hosts": ["gpu1", "gpu2"], "digest": version_digest(files)},
    ]


@given(st.lists(st.text(alphabet="abcdef/+&", min_size=4, max_size=9), min_size=1, max_size=4), st.text(max_size=30))
@settings(max_examples=80, deadline=None)
def test_a_mask_leaves_nothing_of_a_secret(secrets, around):
    hidden = Mask(secrets).hide({"msg": [f"{around}{secret}|{quote(secret, safe='')}{around}" for secret in secrets]})
    for text in hidden["msg"]:
        assert not any(secret in part for part in text.split(MASKED) for secret in secrets)
