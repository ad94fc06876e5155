# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The lockfile: every kind of source in one run, what moved upstream, and everything that is refused."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path

import pytest
import yaml

from ansible_collections.localfirst.llm_fleet.molecule.models.tests.conftest import CONTROLLER, changed, model, said
from ansible_collections.localfirst.llm_fleet.molecule.models.tests.outside import HUB_TOKEN, REPO, WEB_PASSWORD, digest

# An engine for safetensors. It is only locked for here, never started.
PROFILE = REPO / "plugins" / "module_utils" / "engine_profiles" / "llamacpp.yml"


class Watch:
    """Reads every command line on this machine, as anybody with `ps` can, while a block runs."""

    def __init__(self, words: list[str]) -> None:
        self.words = [word.encode() for word in words]
        self.seen: set[bytes] = set()
        self.looks = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._end.wait(0.05):
            self.looks += 1
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = path.read_bytes()
                except OSError:
                    continue
                self.seen |= {line for word in self.words if word in line}

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_error) -> None:
        self._end.set()
        self._thread.join()


@pytest.fixture(scope="module")
def models(outside, operator) -> list[dict]:
    """A model of each kind of source, and the sources that they name."""
    hub = outside.made / "hub-v1"
    hub.mkdir(exist_ok=True)
    (hub / "chat.gguf").write_bytes(outside.gguf(101).read_bytes())
    (hub / "README.md").write_text("# chat\n")
    outside.hub_revision("fleet/chat", "v1", hub)
    outside.hub_revision("fleet/gated", "v1", hub)
    outside.hub_revision("fleet/tensors", "v1", outside.safetensors("tensors-v1", 1))
    outside.hub_rules(gated={"gated": "manual", "license": "apache-2.0"}, chat={"license": "mit"})
    outside.oras("models/chat:1.0", outside.gguf(102))
    outside.image("ollama")
    outside.ollama_put("library/chat:latest", outside.gguf(103))
    operator.champion = outside.mlflow_version("chat", [outside.gguf(104)], "champion")
    outside.bucket("models", "chat/", outside.gguf(105), *outside.shards(106))
    outside.web(outside.gguf(107), "lock/chat.gguf")
    private = outside.private_web(outside.gguf(108))
    operator.sources["hf://fleet/gated"] = {"endpoint": outside.hub, "token": HUB_TOKEN}
    operator.sources["http://" + private.split("/")[2]] = {"username": "fleet", "password": WEB_PASSWORD}
    engines = operator.folder / "engines"
    engines.mkdir()
    profile = {**yaml.safe_load(PROFILE.read_text()), "name": "tensors", "formats": ["safetensors"]}
    (engines / "tensors.yml").write_text(yaml.safe_dump({**profile, "image": operator.images["llamacpp"]}))
    operator.more["llm_fleet_engine_profile_dirs"] = [str(engines)]
    return [
        model("hub", "hf://fleet/chat@main"),
        model("gated", "hf://fleet/gated"),
        model("tensors", "hf://fleet/tensors", engine="tensors"),
        model("oci", f"oci://{outside.registry}/models/chat:1.0"),
        model("ollama", "ollama://chat", engine="ollama"),
        model("converted", f"file://{outside.gguf(109)}", engine="ollama"),
        model("mlflow", "mlflow://chat@champion"),
        model("s3", "s3://models/chat/?files=small-105.gguf"),
        model("sharded", "s3://models/chat/?files=sharded-*.gguf"),
        model("web", f"http://{outside.address}/lock/chat.gguf"),
        model("private-web", private),
        model("local", f"file://{outside.gguf(110)}"),
    ]


@pytest.fixture(scope="module")
def locked(operator, models, secrets):
    """The first lock of all of it."""
    with Watch([*secrets, WEB_PASSWORD]) as watch:
        done = operator.lock(models, "-v", "--diff")
    done.watch = watch
    return done


@pytest.fixture
def kept(operator):
    """Whatever a test locks is forgotten after it."""
    text = operator.lockfile.read_text()
    yield text
    operator.lockfile.write_text(text)


def test_every_kind_of_source_is_locked_in_one_run(locked, operator, outside, models):
    data = yaml.safe_load(operator.lockfile.read_text())
    seeds = {"hub": 101, "gated": 101, "oci": 102, "mlflow": 104, "s3": 105, "web": 107, "private-web": 108, "local": 110}
    for name, seed in seeds.items():
        assert operator.digests(name) == [digest(outside.gguf(seed))], name
    assert set(operator.digests("sharded")) == {digest(path) for path in outside.shards(106)}
    assert digest(outside.gguf(103)) in operator.digests("ollama")
    assert digest(outside.gguf(109)) in operator.digests("converted")
    assert {file["path"] for file in operator.locked("tensors")["files"]} == {"model.safetensors", "config.json", "tokenizer.json"}
    assert set(data["images"]) == {"llamacpp", "ollama", "tensors"}
    # What can name a fixed state does.
    assert operator.locked("hub")["source"].partition("@")[2].isalnum() and "@main" not in operator.locked("hub")["source"]
    assert "@sha256:" in operator.locked("oci")["source"] and operator.locked("mlflow")["source"] == f"mlflow://chat/{operator.champion}"
    assert (operator.locked("hub")["licence"], operator.locked("gated")["licence"]) == ("mit", "apache-2.0")
    for entry in models:
        assert operator.locked(entry["name"])["asked"] == entry["versions"]["1.0.0"]["source"]
    manifests = {file["path"]: file for file in operator.locked("ollama")["files"] if file["path"].startswith("manifests/")}
    (path, manifest), = manifests.items()
    assert path.endswith("/library/ollama/latest")
    assert hashlib.sha256(manifest["content"].encode()).hexdigest() == manifest["sha256"]


def test_no_secret_is_shown_or_written(locked, operator, secrets):
    assert locked.watch.looks > 20 and locked.watch.seen == set()
    for secret in [*secrets, WEB_PASSWORD]:
        assert secret not in locked.stdout + locked.stderr
        assert secret not in operator.lockfile.read_text()


def test_locking_again_changes_nothing(locked, operator, models, outside):
    text, before = operator.lockfile.read_text(), outside.fetched("/lock/chat.gguf", by=CONTROLLER)
    again = operator.lock(models)
    assert operator.lockfile.read_text() == text
    assert set(changed(again).values()) == {0}
    assert "as the catalog has it" in said(again)
    # To see whether it moved, one byte is asked for (206).
    assert outside.fetched("/lock/chat.gguf", by=CONTROLLER).count(200) == before.count(200) == 1


def test_what_moved_upstream_is_reported_and_only_taken_when_asked_for(locked, operator, models, outside, kept):
    hub = outside.made / "hub-v2"
    hub.mkdir(exist_ok=True)
    (hub / "chat.gguf").write_bytes(outside.gguf(111).read_bytes())
    outside.hub_revision("fleet/chat", "v2", hub)
    outside.oras("models/chat:1.0", outside.gguf(112))
    outside.ollama_put("library/chat:latest", outside.gguf(113))
    champion = outside.mlflow_version("chat", [outside.gguf(114)], "champion")
    outside.web(outside.gguf(117), "lock/chat.gguf")
    done = operator.lock(models)
    assert operator.lockfile.read_text() == kept
    lines = {line.split()[1] for line in done.stdout.splitlines() if " 1.0.0 " in line and "://" in line}
    assert {"hub", "oci", "ollama", "mlflow", "web"} == lines, done.stdout

    operator.lock(models, "-e", "update=hub,oci,ollama,mlflow,web")
    moved = {"hub": 111, "oci": 112, "ollama": 113, "mlflow": 114, "web": 117}
    for name, seed in moved.items():
        assert digest(outside.gguf(seed)) in operator.digests(name), name
    assert operator.locked("mlflow")["source"] == f"mlflow://chat/{champion}"
    before = yaml.safe_load(kept)["models"]
    for entry in models:
        if entry["name"] not in moved:
            assert operator.locked(entry["name"]) == before[entry["name"]]["1.0.0"]


def test_all_broken_sources_are_reported_in_one_run(locked, operator, outside, kept):
    broken = {
        "password": (f"http://{outside.address}:8080/small-108.gguf", "401"),
        "gone": (f"http://{outside.address}/lock/gone.gguf", "404"),
        "licence": ("hf://fleet/gated@main", "gated"),
        "missing": ("hf://fleet/nothing-here", "fleet/nothing-here"),
        "nowhere": ("https://models.invalid/chat.gguf", "models.invalid"),
        "bucket": ("s3://no-such-bucket/chat/", "no-such-bucket"),
        "tag": (f"oci://{outside.registry}/models/chat:9.9", "404"),
        "untagged": ("ollama://chat:gone", "chat:gone"),
        "alias": ("mlflow://chat@nobody", "nobody"),
        "file": (f"file://{outside.made}/gone.gguf", "gone.gguf"),
    }
    models = [model(name, source, engine="ollama" if name == "untagged" else "llamacpp") for name, (source, _) in broken.items()]
    settings = operator.sources
    operator.sources = {prefix: each for prefix, each in settings.items() if "fleet" not in json.dumps(each) or prefix == "s3://"}
    operator.sources.pop("hf://fleet/gated")
    try:
        done = operator.lock(models, check=False)
    finally:
        operator.sources = settings
    output = said(done)
    assert done.returncode != 0 and operator.lockfile.read_text() == kept
    for name, (_source, clue) in broken.items():
        where = f"llm_fleet_models[{name}].versions.1.0.0.source"
        assert where in output, name
        assert clue in output, clue
    assert "token" in output and "licen" in output, "a gated model says how to get in"


def test_a_lockfile_that_is_cut_off_or_edited_is_refused_with_its_line(locked, operator, models, kept):
    lines = kept.splitlines(keepends=True)
    number = next(i for i, line in enumerate(lines) if "sha256: " in line and "path:" in line)
    for text in ("".join(lines[: len(lines) // 2]), kept.replace(lines[number], lines[number].replace('sha256: "', 'sha256: "0000', 1), 1)):
        operator.lockfile.write_text(text)
        for playbook in ("lock", "stage"):
            done = operator.run(playbook, models, check=False)
            assert done.returncode != 0
            assert "models.lock.yml: line " in said(done), said(done)[-1500:]
        assert operator.lockfile.read_text() == text


def test_a_version_in_use_is_not_dropped(locked, operator, kept):
    """`tiny` runs: neither leaving the catalog nor another source takes its version out of the lockfile."""
    base = operator.base
    operator.base = [entry for entry in base if entry["name"] != "tiny"]
    try:
        done = operator.lock([], check=False)
    finally:
        operator.base = base
    assert done.returncode != 0 and operator.lockfile.read_text() == kept
    assert "tiny 1.0.0 would be dropped" in said(done) and "gpu1" in said(done) and "gpu2" in said(done)


def test_a_depot_locks_where_only_that_one_reaches_the_sources(locked, operator, outside, kept):
    url = outside.web(outside.gguf(118), "lock/depot.gguf")
    wanted = [model("far", url)]
    done = operator.lock(wanted, "-e", "llm_fleet_lock_host=depot1", check=False)
    assert done.returncode != 0 and "a path on the controller" in said(done), done.stdout[-3000:]

    base = operator.base
    served = f"http://{outside.address}/models/tiny.gguf"  # the same file as the one on the controller
    operator.base = [{**entry, "versions": {entry["version"]: {"source": served}}} for entry in base]
    try:
        operator.lock(wanted, "-e", "llm_fleet_lock_host=depot1")
    finally:
        operator.base = base
    assert operator.digests("far") == [digest(outside.gguf(118))]
    assert 200 in outside.fetched("/lock/depot.gguf", by="depot1")
    assert operator.locked("tiny")["digest"] == yaml.safe_load(kept)["models"]["tiny"]["1.0.0"]["digest"]
