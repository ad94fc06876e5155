# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Locking with real sources: files of this machine, and a web server."""

from __future__ import annotations

import hashlib
import json
import os
import threading

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import lock_models, ollama_store
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lock_changes import Use
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile import check_locked, parse_lockfile
from ansible_collections.localfirst.llm_fleet.tests.unit.conftest import REPO
from ansible_collections.localfirst.llm_fleet.tests.unit.support.lock_builders import (
    IMAGES,
    PROFILES,
    lock,
    locked,
    model,
)
from ansible_collections.localfirst.llm_fleet.tests.unit.support.range_server import RangeServer
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import BODY, digest

UNREACHABLE = {"http://": {"retries": 0, "timeout": 1}}


@pytest.fixture
def server():
    with RangeServer() as running:
        yield running


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def write(path, body: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return f"file://{path}"


def test_a_file_of_the_controller_is_locked_as_it_is(folder, store):
    source = write(folder / "tiny.gguf", b"weights")
    found = lock([model("tiny", {"1.0.0": source})], store=store)
    assert found.faults == [] and found.drift == []
    assert locked(found.text)["tiny", "1.0.0"]["files"] == [
        {"path": "tiny.gguf", "size": 7, "sha256": digest(b"weights")}
    ]
    assert found.actions == [
        f"tiny 1.0.0: lock {source}",
        f"image of llamacpp: lock registry.example:5000/llamacpp@sha256:{'ab' * 32}",
    ]


def test_what_was_locked_satisfies_the_catalog(folder, store):
    wanted = [model("tiny", {"1.0.0": write(folder / "tiny.gguf", b"1"), "1.2.0": write(folder / "b.gguf", b"2")}, version="^1")]
    found = lock(wanted, store=store)
    data, faults = parse_lockfile(found.text, "models.lock.yml")
    assert faults == [] and check_locked(wanted, data, "models.lock.yml", PROFILES) == []
    assert data["selected"] == {"tiny": {"asked": "^1", "version": "1.2.0"}}


def test_a_constraint_that_nothing_fits_says_what_there_is(folder, store):
    found = lock([model("tiny", {"1.0.0": write(folder / "tiny.gguf", b"1")}, version="~2.0")], store=store)
    assert [fault.where for fault in found.faults] == ["llm_fleet_models[tiny].version"]
    assert "1.0.0" in found.faults[0].fix and found.text == ""


def test_all_faults_of_all_sources_come_at_once(folder, store, server):
    models = [
        model("a", {"1.0.0": f"file://{folder}/missing.gguf"}),
        model("b", {"1.0.0": f"{server.url}/gone.gguf", "1.1.0": write(folder / "b.gguf", b"b")}),
        model("c", {"1.0.0": "http://127.0.0.1:1/refused.gguf"}),
    ]
    found = lock(models, store=store, settings=UNREACHABLE, images={})
    assert sorted(fault.where for fault in found.faults) == [
        "llm_fleet_engine_images.llamacpp",
        "llm_fleet_models[a].versions.1.0.0.source",
        "llm_fleet_models[b].versions.1.0.0.source",
        "llm_fleet_models[c].versions.1.0.0.source",
    ]
    assert found.text == ""


def test_what_moved_is_reported_and_taken_only_when_asked_for(folder, store):
    path = folder / "tiny.gguf"
    wanted = [model("tiny", {"1.0.0": write(path, b"first")}), model("other", {"1.0.0": write(folder / "o.gguf", b"o")})]
    first = lock(wanted, store=store)
    path.write_bytes(b"other")  # as long as before
    told = lock(wanted, first.text, store=store)
    assert told.text == first.text and told.actions == []
    assert [(drift["title"], drift["changes"]) for drift in told.drift] == [("tiny 1.0.0", "1 changed (tiny.gguf)")]
    assert lock(wanted, first.text, store=store, update=["other"]).text == first.text
    taken = lock(wanted, first.text, store=store, update=["tiny"])
    assert taken.drift == []
    assert locked(taken.text)["tiny", "1.0.0"]["files"][0]["sha256"] == digest(b"other")
    assert lock(wanted, first.text, store=store, update=["all"]).text == taken.text


def test_files_that_come_and_go_are_drift(folder, store):
    write(folder / "m/a.gguf", b"a")
    write(folder / "m/b.gguf", b"b")
    wanted = [model("tiny", {"1.0.0": f"file://{folder}/m"})]
    first = lock(wanted, store=store)
    (folder / "m/a.gguf").rename(folder / "m/c.gguf")
    assert [drift["changes"] for drift in lock(wanted, first.text, store=store).drift] == ["1 new (c.gguf), 1 gone (a.gguf)"]


def test_a_source_that_is_silent_does_not_stop_what_is_locked(folder, store):
    path = folder / "tiny.gguf"
    wanted = [model("tiny", {"1.0.0": write(path, b"1")})]
    first = lock(wanted, store=store)
    path.unlink()
    again = lock(wanted, first.text, store=store)
    assert again.faults == [] and again.text == first.text
    assert [silent["title"] for silent in again.unasked] == ["tiny 1.0.0"]
    assert lock(wanted, first.text, store=store, update=["tiny"]).faults


def test_another_source_in_the_catalog_is_taken(folder, store):
    first = lock([model("tiny", {"1.0.0": write(folder / "a.gguf", b"a")})], store=store)
    second = lock([model("tiny", {"1.0.0": write(folder / "b.gguf", b"b")})], first.text, store=store)
    assert locked(second.text)["tiny", "1.0.0"]["files"][0]["path"] == "b.gguf"


def test_a_version_in_use_is_neither_dropped_nor_changed(folder, store):
    path = folder / "tiny.gguf"
    sources = {"1.0.0": write(path, b"first"), "1.1.0": write(folder / "b.gguf", b"b")}
    first = lock([model("tiny", sources)], store=store)
    use = [Use("tiny", "1.0.0", ("gpu1", "gpu2"))]
    dropped = lock([model("tiny", {"1.1.0": sources["1.1.0"]})], first.text, store=store, in_use=use, allow_drop=True)
    assert len(dropped.faults) == 1 and "gpu1, gpu2" in dropped.faults[0].what and dropped.text == ""
    path.write_bytes(b"second")
    changed = lock([model("tiny", sources)], first.text, store=store, in_use=use, update=["all"])
    assert len(changed.faults) == 1 and "version of their own" in changed.faults[0].fix
    assert lock([model("tiny", sources)], first.text, store=store, in_use=use).text == first.text


def test_a_lost_lockfile_does_not_make_a_version_something_else(folder, store):
    path = folder / "tiny.gguf"
    wanted = [model("tiny", {"1.0.0": write(path, b"first")})]
    running = locked(lock(wanted, store=store).text)["tiny", "1.0.0"]["digest"]
    use = [Use("tiny", "1.0.0", ("gpu1",), running)]
    assert lock(wanted, store=store, in_use=use).faults == []
    path.write_bytes(b"other")
    assert "gpu1" in lock(wanted, store=store, in_use=use).faults[0].what


def test_while_a_host_is_silent_nothing_is_dropped_unless_allowed(folder, store):
    sources = {"1.0.0": write(folder / "a.gguf", b"a"), "1.1.0": write(folder / "b.gguf", b"b")}
    first = lock([model("tiny", sources)], store=store)
    fewer = [model("tiny", {"1.1.0": sources["1.1.0"]})]
    refused = lock(fewer, first.text, store=store, complete=False)
    assert [fault.where for fault in refused.faults] == ["models.tiny.1.0.0"] and "allow_drop" in refused.faults[0].fix
    assert list(locked(lock(fewer, first.text, store=store, complete=False, allow_drop=True).text)) == [("tiny", "1.1.0")]
    assert list(locked(lock(fewer, first.text, store=store).text)) == [("tiny", "1.1.0")]


def test_a_version_whose_source_fails_is_not_said_to_be_dropped(folder, store):
    first = lock([model("tiny", {"1.0.0": write(folder / "a.gguf", b"a")})], store=store)
    moved = [model("tiny", {"1.0.0": f"file://{folder}/missing.gguf"})]
    found = lock(moved, first.text, store=store, complete=False, in_use=[Use("tiny", "1.0.0", ("gpu1",))])
    assert [fault.where for fault in found.faults] == ["llm_fleet_models[tiny].versions.1.0.0.source"]


def test_a_depot_takes_no_file_of_the_controller(folder, store):
    found = lock([model("tiny", {"1.0.0": write(folder / "a.gguf", b"a")})], store=store, local_files=False)
    assert len(found.faults) == 1 and "llm_fleet_lock_host" in found.faults[0].fix


def test_files_that_the_engine_does_not_read_are_refused_before_they_are_locked(folder, store):
    found = lock([model("tiny", {"1.0.0": write(folder / "readme.txt", b"a")})], store=store)
    assert len(found.faults) == 1 and "gguf" in found.faults[0].fix


def test_an_unknown_name_to_update_gets_a_hint(folder, store):
    wanted = [model("tiny", {"1.0.0": write(folder / "a.gguf", b"a")})]
    assert "tiny" in lock(wanted, store=store, update=["tinny"]).faults[0].fix


def test_an_engine_that_reads_ollama_stores_gets_one_from_a_gguf_file(folder, store):
    source = write(folder / "tiny.gguf", b"GGUF weights")
    found = lock([model("tiny", {"1.0.0": source}, engine="ollama")], store=store)
    entry = locked(found.text)["tiny", "1.0.0"]
    assert entry["format"] == "ollama" and entry["source"] == source
    blob = f"blobs/sha256-{digest(b'GGUF weights')}"
    weights = next(file for file in entry["files"] if file["path"] == blob)
    assert weights["from"] == "tiny.gguf"
    assert lock([model("tiny", {"1.0.0": source}, engine="ollama")], found.text, store=store).drift == []
    for file in entry["files"]:
        if "content" in file:
            assert hashlib.sha256(file["content"].encode()).hexdigest() == file["sha256"]


def test_a_model_of_an_ollama_registry_keeps_its_manifest_byte_for_byte(store, server):
    weights, config = b"GGUF weights", b'{"model_format":"gguf"}'
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest(weights)}", "size": len(weights)}
    manifest = json.dumps({
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {"mediaType": ollama_store.CONFIG_TYPE, "digest": f"sha256:{digest(config)}", "size": len(config)},
        "layers": [layer],
    }, indent=3).encode()
    server.add("/v2/library/qwen/manifests/0.6b", manifest)
    settings_ = {"ollama://": {"endpoint": server.url}}
    wanted = [model("small", {"1.0.0": "ollama://qwen:0.6b"}, engine="ollama")]
    first = lock(wanted, store=store, settings=settings_)
    assert first.faults == [] and first.downloaded == 0
    files = {file["path"]: file for file in locked(first.text)["small", "1.0.0"]["files"]}
    kept = files["manifests/registry.ollama.ai/library/small/latest"]
    assert kept["content"].encode() == manifest and kept["sha256"] == digest(manifest)
    assert files[f"blobs/sha256-{digest(weights)}"]["size"] == len(weights)
    assert lock(wanted, first.text, store=store, settings=settings_).drift == []
    server.add("/v2/library/qwen/manifests/0.6b", manifest.replace(b"   ", b""))
    told = lock(wanted, first.text, store=store, settings=settings_)
    assert told.text == first.text and "changed" in told.drift[0]["changes"]


def test_the_tool_names_the_release_of_this_collection():
    galaxy = yaml.safe_load((REPO / "galaxy.yml").read_text())
    assert f"{galaxy['namespace']}.{galaxy['name']} {galaxy['version']}" == lock_models.TOOL


def test_locking_again_does_not_rename_the_tool(folder, store):
    wanted = [model("tiny", {"1.0.0": write(folder / "a.gguf", b"a")})]
    older = lock(wanted, store=store).text.replace(lock_models.TOOL, "localfirst.llm_fleet 0.0.1")
    assert lock(wanted, older, store=store).text == older


def test_sources_are_asked_at_the_same_time(store, server):
    gate = threading.Event()
    for name in "ab":
        server.add(f"/{name}.gguf", BODY, hold=gate)
    wanted = [model(name, {"1.0.0": f"{server.url}/{name}.gguf"}) for name in "ab"]
    running = threading.Thread(target=lambda: results.append(lock(wanted, store=store)))
    results: list = []
    running.start()
    started = {path for path, _headers in server.requests}
    for _attempt in range(200):
        started = {path for path, headers in server.requests if "range" not in headers}
        if started == {"/a.gguf", "/b.gguf"}:
            break
        server.started.wait(0.05)
        threading.Event().wait(0.02)
    gate.set()
    running.join(30)
    assert started == {"/a.gguf", "/b.gguf"} and results[0].faults == []


names = st.lists(st.sampled_from(["a", "b", "c", "d"]), unique=True, min_size=1)
versions = st.lists(st.sampled_from(["1.0.0", "1.1.0-rc.1", "1.1.0", "2.0.0"]), unique=True, min_size=1)


@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_same_catalog_in_any_order_gives_the_same_lockfile_and_the_second_lock_changes_nothing(folder, store, data):
    catalog = []
    for name in data.draw(names):
        sources = {}
        for version in data.draw(versions):
            body = f"{name} {version}".encode() * data.draw(st.integers(0, 3))
            sources[version] = f"file://{folder}/{name}-{version}.gguf"
            if not os.path.exists(folder / f"{name}-{version}.gguf"):
                write(folder / f"{name}-{version}.gguf", body)
        catalog.append(model(name, sources, version=data.draw(st.sampled_from(["latest", next(iter(sources))]))))
    releases = [entry for entry in catalog if entry["version"] != "latest" or any("-" not in v for v in entry["versions"])]
    first = lock(releases, store=store)
    assert first.faults == []
    shuffled = [
        {**entry, "versions": dict(data.draw(st.permutations(list(entry["versions"].items()))))}
        for entry in data.draw(st.permutations(releases))
    ]
    fresh, again = lock(shuffled, store=store), lock(shuffled, first.text, store=store)
    assert fresh.text == again.text == first.text
    assert again.actions == [] and again.drift == []


def test_images_are_kept_until_their_name_changes(folder, store):
    wanted = [model("tiny", {"1.0.0": write(folder / "a.gguf", b"a")})]
    first = lock(wanted, store=store)
    other = {**IMAGES, "llamacpp": f"registry.example:5000/llamacpp@sha256:{'cd' * 32}"}
    second = lock(wanted, first.text, store=store, images=other)
    assert second.actions == [f"image of llamacpp: lock registry.example:5000/llamacpp@sha256:{'cd' * 32}"]
