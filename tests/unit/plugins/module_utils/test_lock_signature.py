# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Locking what has to be signed: found beside the files of every kind of source, kept, and verified with every lock."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import ollama_store
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.catalog import check_catalog
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lock_changes import entries
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lock_models import Lock
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lock_signature import LockSignatures
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile import parse_lockfile
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile_text import render_lockfile, version_digest
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_check import check_signatures, read_files
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_demand import demands, named_paths
from ansible_collections.localfirst.llm_fleet.tests.unit.conftest import REPO
from ansible_collections.localfirst.llm_fleet.tests.unit.support import lock_builders
from ansible_collections.localfirst.llm_fleet.tests.unit.support.lock_builders import PROFILES, locked
from ansible_collections.localfirst.llm_fleet.tests.unit.support.range_server import RangeServer
from ansible_collections.localfirst.llm_fleet.tests.unit.support.signature_builders import Authority, key, pem_of

sys.path.insert(0, str(REPO / "testbed" / "doubles" / "hub"))
from hub import Hub

WEIGHTS = {"tiny.gguf": b"weights", "config.json": b"{}"}
READER = {**PROFILES, "reader": {"formats": ["safetensors"], "image": f"registry.example/reader@sha256:{'ab' * 32}"}}


def digests(contents: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(body).hexdigest() for name, body in contents.items()}


class Operator:
    """A catalog with one model, a key that the catalog trusts, and a folder with the model's files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = folder / "tiny"
        self.model.mkdir()
        _private, public = key().write(folder)
        self.signature: dict | None = {"key": str(public)}
        self.options: dict = {}
        self.put(WEIGHTS)

    def put(self, contents: dict[str, bytes], place: Path | None = None) -> None:
        for name, body in contents.items():
            path = (place or self.model) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)

    def sign(self, contents: dict[str, bytes], with_key: str = "mine") -> str:
        return key(with_key).sign(digests(contents))

    def catalog(self, source: str, engine: str) -> list[dict]:
        return [{**lock_builders.model("tiny", {"1.0.0": source}, engine=engine), "signature": self.signature}]

    def lock(self, source: str = "", current: str = "", engine: str = "llamacpp", **options) -> Lock:
        written = self.catalog(source or f"file://{self.model}", engine)
        models, _clients, faults = check_catalog(written, [], READER, [])
        assert faults == [] or engine == "reader"
        settings = options.get("settings") or {}
        signatures = LockSignatures(demands(models), read_files(named_paths(written)), settings)
        return lock_builders.lock(models or written, current, store=self.folder / "store", signatures=signatures, **options)

    def preflight(self, text: str, source: str = "", engine: str = "llamacpp") -> list:
        models, _clients, _faults = check_catalog(self.catalog(source or f"file://{self.model}", engine), [], READER, [])
        data, faults = parse_lockfile(text, "models.lock.yml")
        assert faults == []
        return check_signatures(models, data, "models.lock.yml", read_files(named_paths(models)))


@pytest.fixture
def operator(tmp_path) -> Operator:
    return Operator(tmp_path)


def said(lock: Lock) -> str:
    return "\n".join(fault.text() for fault in lock.faults)


def signature_of(lock: Lock) -> dict:
    assert lock.faults == []
    return locked(lock.text)["tiny", "1.0.0"]["signature"]


def test_a_signed_folder_is_locked_with_its_signature_and_without_the_signature_s_file(operator):
    text = operator.sign(WEIGHTS)
    operator.put({"model.sig": text.encode()})
    first = operator.lock()
    assert signature_of(first) == {
        "signer": key().fingerprint, "sha256": hashlib.sha256(text.encode()).hexdigest(), "content": text,
    }
    assert {file["path"] for file in locked(first.text)["tiny", "1.0.0"]["files"]} == set(WEIGHTS)
    assert f"signed by {key().fingerprint[:20]}" in first.actions[0]
    assert operator.preflight(first.text) == []
    # From here on the source is not asked for the signature any more.
    (operator.model / "model.sig").unlink()
    again = operator.lock(current=first.text)
    assert again.text == first.text and again.actions == []


def test_a_catalog_that_demands_nothing_locks_as_ever(operator):
    operator.put({"model.sig": b"whatever"})
    operator.signature = None
    entry = locked(operator.lock().text)["tiny", "1.0.0"]
    assert "signature" not in entry and {file["path"] for file in entry["files"]} == {*WEIGHTS, "model.sig"}


@pytest.mark.parametrize(
    ("change", "clue"),
    [
        (lambda folder: (folder / "model.sig").unlink(), "there is no signature 'model.sig'"),
        (lambda folder: (folder / "extra.json").write_text("{}"), "not signed: extra.json"),
        (lambda folder: (folder / "config.json").unlink(), "signed, but missing: config.json"),
        (lambda folder: (folder / "config.json").rename(folder / "other.json"), "not signed: other.json"),
        (lambda folder: (folder / "tiny.gguf").write_bytes(b"weightz"), "changed since they were signed: tiny.gguf"),
        (lambda folder: (folder / "model.sig").write_text("{}"), "mediaType"),
        (lambda folder: (folder / "model.sig").write_bytes(b"\xff"), "no text"),
        (lambda folder: (folder / "model.sig").write_bytes(b" " * 300_000), "longer than"),
    ],
)
def test_what_is_not_what_was_signed_is_refused(operator, change, clue):
    operator.put({"model.sig": operator.sign(WEIGHTS).encode()})
    change(operator.model)
    found = operator.lock()
    assert found.text == "" and clue in said(found)
    assert "llm_fleet_models[tiny].versions.1.0.0" in said(found)


def test_somebody_else_s_signature_is_refused(operator):
    operator.put({"model.sig": operator.sign(WEIGHTS, "foreign").encode()})
    assert "another key signed it" in said(operator.lock())


@pytest.mark.parametrize("text", ["", "no key", key().pem.decode()])
def test_a_key_that_is_none_is_a_fault(operator, text):
    operator.put({"model.sig": operator.sign(WEIGHTS).encode()})
    (operator.folder / "models.pub").write_text(text)
    found = said(operator.lock())
    assert "no public key" in found and (not text or text not in found)
    (operator.folder / "models.pub").unlink()
    assert "cannot be read on the controller" in said(operator.lock())


def test_hidden_files_and_git_s_are_no_part_of_the_model(operator):
    operator.put({".gitattributes": b"x", ".cache/x": b"y"})
    operator.put({"model.sig": operator.sign({**WEIGHTS, ".cache/x": b"y"}).encode()})
    assert signature_of(operator.lock())["left_out"] == [".cache/x"]


def test_a_version_that_was_locked_before_signatures_were_demanded_gets_one_and_stays_the_same(operator):
    signed = operator.sign(WEIGHTS).encode()
    operator.put({"model.sig": signed})
    wanted, operator.signature = operator.signature, None
    before = operator.lock()
    operator.signature = wanted
    assert "without the signature" in operator.preflight(before.text)[0].what
    after = operator.lock(current=before.text)
    was, now = (locked(each.text)["tiny", "1.0.0"] for each in (before, after))
    assert {**was, "signature": now["signature"]} == now  # the same digest: no host has to be asked
    assert after.actions == [f"tiny 1.0.0: keep its signature by {key().fingerprint[:23]}"] and after.drift == []
    assert operator.preflight(after.text) == []


def test_a_version_that_lacks_what_was_signed_since_is_refused(operator):
    (operator.model / "config.json").unlink()
    wanted, operator.signature = operator.signature, None
    before = operator.lock()
    operator.signature = wanted
    operator.put({**WEIGHTS, "model.sig": operator.sign(WEIGHTS).encode()})
    assert "signed, but missing: config.json" in said(operator.lock(current=before.text))


def test_a_changed_key_is_found_by_lock_and_by_preflight(operator):
    operator.put({"model.sig": operator.sign(WEIGHTS).encode()})
    text = operator.lock().text
    (operator.folder / "models.pub").write_text(key("new").public)
    assert "another key signed it" in operator.preflight(text)[0].what
    assert "another key signed it" in said(operator.lock(current=text))
    operator.put({"model.sig": operator.sign(WEIGHTS, "new").encode()})
    renewed = operator.lock(current=text)
    assert signature_of(renewed)["signer"] == key("new").fingerprint and operator.preflight(renewed.text) == []


def edited(text: str, change) -> str:
    """The lockfile as somebody leaves it who knows how its digests are made."""
    data, faults = parse_lockfile(text, "models.lock.yml")
    assert faults == []
    entry = entries(data)["tiny", "1.0.0"]
    change(entry)
    entry["digest"], entry["size"] = version_digest(entry["files"]), sum(file["size"] for file in entry["files"])
    entry["signature"]["sha256"] = hashlib.sha256(entry["signature"]["content"].encode()).hexdigest()
    return render_lockfile(data)


@pytest.mark.parametrize(
    ("change", "clue"),
    [
        (lambda entry: entry["files"][0].update(sha256="ab" * 32), "changed since"),
        (lambda entry: entry["files"][0].update(path="other.json"), "not signed"),
        (lambda entry: entry["files"].append({"path": "extra", "size": 1, "sha256": "cd" * 32}), "not signed: extra"),
        (lambda entry: entry["files"].pop(0), "missing: config.json"),
        (lambda entry: entry["signature"].update(left_out=["x"]), "left out"),
        (lambda entry: (entry["files"].pop(0), entry["signature"].update(left_out=["config.json"])), "missing: config.json"),
        (
            lambda entry: (
                entry["files"].pop(0), entry["signature"].update(left_out=["config.json"]),
                entry.update(source=f"{entry['source']}/tiny.gguf", asked=f"{entry['source']}/tiny.gguf"),
            ),
            "missing: config.json",
        ),
        (
            lambda entry: (
                entry["files"].pop(0), entry["signature"].update(left_out=["config.json"]), entry.update(format="ollama"),
            ),
            "missing: config.json",
        ),
        (lambda entry: entry["signature"].update(signer="sha256:" + "ab" * 32), "signer"),
        (lambda entry: entry["signature"].update(content=key("foreign").sign(digests(WEIGHTS))), "another key"),
    ],
)
def test_a_lockfile_edited_with_care_is_found(operator, change, clue):
    operator.put({"model.sig": operator.sign(WEIGHTS).encode()})
    before = operator.lock().text
    text = edited(before, change)
    again = operator.lock(current=text)
    assert clue in said(again) or again.text == before  # found, or put right again from the source
    faults = operator.preflight(text)
    assert len(faults) == 1 and clue in faults[0].what and faults[0].where.startswith("models.lock.yml: models.tiny.1.0.0.signature")


def test_a_certificate_signs_and_its_end_takes_nothing_back(operator, monkeypatch):
    ca = Authority("Models CA", days=(-30, 30))
    (operator.folder / "ca.pem").write_text(ca.pem)
    operator.signature = {"ca": str(operator.folder / "ca.pem"), "identity": "models@example.com"}

    def put(days: tuple[int, int]) -> str:
        certificate = pem_of(ca.issue(key("signer"), email="models@example.com", days=days))
        operator.put({"model.sig": key("signer").sign(digests(WEIGHTS), certificate).encode()})
        return (operator.model / "model.sig").read_text()

    put((-10, -1))
    assert "expired" in said(operator.lock())
    put((-10, 10))
    first = operator.lock()
    assert signature_of(first)["identity"] == "models@example.com"
    # What is kept of a certificate that has ended meanwhile.
    expired = put((-10, -1))
    text = edited(first.text, lambda entry: entry["signature"].update(content=expired))
    assert operator.preflight(text) == [] and operator.lock(current=text).text == text


def test_a_signature_of_another_place_and_name(operator):
    (operator.folder / "elsewhere.sig").write_text(operator.sign(WEIGHTS))
    operator.signature["file"] = str(operator.folder / "elsewhere.sig")
    assert signature_of(operator.lock())["signer"] == key().fingerprint
    operator.put({"sigs/v1.sig": operator.sign(WEIGHTS).encode()})
    operator.signature["file"] = "sigs/v1.sig"
    found = operator.lock()
    assert signature_of(found)["signer"] == key().fingerprint
    assert "sigs/v1.sig" not in {file["path"] for file in locked(found.text)["tiny", "1.0.0"]["files"]}


def test_one_file_of_a_signed_folder(operator):
    operator.put({"model.sig": operator.sign(WEIGHTS).encode()})
    found = operator.lock(f"file://{operator.model}/tiny.gguf")
    assert signature_of(found)["left_out"] == ["config.json"]
    assert operator.preflight(found.text, f"file://{operator.model}/tiny.gguf") == []
    (operator.model / "tiny.gguf").write_bytes(b"other")
    assert "changed since they were signed: tiny.gguf" in said(operator.lock(f"file://{operator.model}/tiny.gguf"))


def test_a_lockfile_cannot_choose_another_of_the_signed_files(operator):
    contents = {**WEIGHTS, "older.gguf": b"with a flaw"}
    operator.put({**contents, "model.sig": operator.sign(contents).encode()})
    source = f"file://{operator.model}/tiny.gguf"
    text = operator.lock(source).text
    assert operator.preflight(text, source) == []
    older = {"path": "older.gguf", "size": 11, "sha256": digests(contents)["older.gguf"]}
    text = edited(text, lambda entry: (entry.update(files=[older]), entry["signature"].update(left_out=["config.json", "tiny.gguf"])))
    assert "missing: config.json, tiny.gguf" in operator.preflight(text, source)[0].what


def test_a_projector_cannot_be_left_out_of_a_store_for_ollama(operator):
    contents = {**WEIGHTS, "mmproj.gguf": b"eyes"}
    operator.put({**contents, "model.sig": operator.sign(contents).encode()})
    text = operator.lock(engine="ollama").text
    weights = {"path": "tiny.gguf", "size": 7, "sha256": digests(WEIGHTS)["tiny.gguf"]}
    blind = edited(text, lambda entry: (
        entry.update(files=ollama_store.from_gguf("tiny", [weights])), entry["signature"].update(left_out=["config.json", "mmproj.gguf"])
    ))
    assert operator.preflight(text, engine="ollama") == []
    assert "missing: mmproj.gguf" in operator.preflight(blind, engine="ollama")[0].what


def test_a_version_that_only_the_lockfile_has_is_held_against_what_the_catalog_says_of_the_model(operator):
    """Bundles have such versions, and `rollout -e version=` goes to them."""
    operator.put({"model.sig": operator.sign(WEIGHTS).encode()})
    text = operator.lock().text

    def preflight(change) -> list:
        def put(versions: dict) -> None:
            versions["0.9.0"] = json.loads(json.dumps(versions["1.0.0"]))
            change(versions["0.9.0"])
            versions["0.9.0"]["digest"] = version_digest(versions["0.9.0"]["files"])
            versions["0.9.0"]["size"] = sum(file["size"] for file in versions["0.9.0"]["files"])

        data, _faults = parse_lockfile(text, "models.lock.yml")
        put(data["models"]["tiny"])
        return operator.preflight(render_lockfile(data))

    assert preflight(lambda entry: None) == []
    for change, clue in (
        (lambda entry: entry["files"][0].update(sha256="ab" * 32), "changed since"),
        (lambda entry: entry.pop("signature"), "without the signature"),
        (lambda entry: entry["signature"].update(left_out=["config.json"]), "the catalog does not have this version"),
    ):
        fault, = preflight(change)
        assert clue in fault.what and "models.tiny.0.9.0.signature" in fault.where


def test_weights_in_a_store_for_ollama(operator):
    operator.put({"model.sig": operator.sign(WEIGHTS).encode()})
    found = operator.lock(engine="ollama")
    assert signature_of(found)["left_out"] == ["config.json"] and operator.preflight(found.text, engine="ollama") == []
    (operator.model / "tiny.gguf").write_bytes(b"other")
    assert "changed since they were signed: tiny.gguf" in said(operator.lock(engine="ollama"))


def test_what_is_to_be_signed_may_be_unsigned_but_not_changed(operator):
    found = operator.lock(sign=["all"])
    assert found.faults == [] and found.unsigned == [{"model": "tiny", "version": "1.0.0"}]
    operator.put({"model.sig": operator.sign(WEIGHTS, "foreign").encode()})
    assert operator.lock(sign=["tiny"]).unsigned
    operator.put({"model.sig": operator.sign(WEIGHTS).encode()})
    assert operator.lock(sign=["tiny"]).unsigned == []
    (operator.model / "tiny.gguf").write_bytes(b"other")
    assert "changed since they were signed" in said(operator.lock(sign=["tiny"]))
    assert "'tinny' is no model" in said(operator.lock(sign=["tinny"]))


@pytest.fixture
def server():
    with RangeServer() as running:
        yield running


def test_a_folder_of_a_web_server_may_be_signed_after_its_sums_were_written(operator, server):
    for name, body in WEIGHTS.items():
        server.add(f"/tiny/{name}", body)
    server.add("/tiny/SHA256SUMS", "".join(f"{digest}  {name}\n" for name, digest in digests(WEIGHTS).items()).encode())
    url = f"{server.url}/tiny/"
    assert "there is no signature" in said(operator.lock(url))
    server.add("/tiny/model.sig", operator.sign(WEIGHTS).encode())
    assert signature_of(operator.lock(url))["signer"] == key().fingerprint
    server.add("/tiny/model.sig", operator.sign({**WEIGHTS, "gone.json": b""}).encode())
    assert "signed, but missing: gone.json" in said(operator.lock(url))


def test_a_file_of_a_web_server_has_its_signature_beside_it(operator, server):
    server.add("/models/tiny.gguf", WEIGHTS["tiny.gguf"])
    url = f"{server.url}/models/tiny.gguf"
    assert "there is no signature" in said(operator.lock(url))
    server.add("/models/model.sig", operator.sign(WEIGHTS).encode())
    found = operator.lock(url)
    assert signature_of(found)["left_out"] == ["config.json"] and operator.preflight(found.text, url) == []
    server.add("/models/model.sig", statuses=[403] * 9)
    assert "403" in said(operator.lock(url))


def test_a_repository_of_the_hub_is_signed_with_its_readme(operator, tmp_path):
    pytest.importorskip("huggingface_hub")
    contents = {"model.safetensors": b"weights", "config.json": b"{}"}
    everything = {**contents, "README.md": b"# tiny"}
    with Hub(tmp_path / "hub") as hub:
        folder = hub.root / "org/tiny"
        operator.put({**everything, "model.sig": operator.sign(everything).encode()}, folder / "v1")
        (folder / "main").symlink_to("v1")
        source = {"source": "hf://org/tiny@main", "engine": "vllm", "settings": {"hf://": {"endpoint": hub.url, "retries": 0}}}
        found = operator.lock(**source)
        assert signature_of(found)["left_out"] == ["README.md"]
        assert operator.preflight(found.text, source["source"], source["engine"]) == []
        assert {file["path"] for file in locked(found.text)["tiny", "1.0.0"]["files"]} == set(contents)

        other = operator.sign({**everything, "tokenizer.json": b"[]"}).encode()
        operator.put({**everything, "model.sig": other}, folder / "v2")
        (folder / "main").unlink()
        (folder / "main").symlink_to("v2")
        assert "signed, but missing: tokenizer.json" in said(operator.lock(**source))


def test_every_version_s_fault_is_told_in_one_run(operator):
    models, _clients, _faults = check_catalog(
        [
            {
                **lock_builders.model("tiny", {"1.0.0": f"file://{operator.model}", "2.0.0": f"file://{operator.model}/tiny.gguf"}),
                "signature": operator.signature,
            }
        ],
        [], PROFILES, [],
    )
    signatures = LockSignatures(demands(models), read_files(named_paths(models)), {})
    found = lock_builders.lock(models, signatures=signatures)
    assert [fault.where.split("versions.")[1] for fault in found.faults] == ["1.0.0.signature", "2.0.0.signature"]


def test_the_signature_is_one_line_of_the_lockfile(operator):
    operator.put({"model.sig": operator.sign(WEIGHTS).encode()})
    lines = operator.lock().text.splitlines()
    line, = (line for line in lines if line.strip().startswith("signature: "))
    assert json.dumps(operator.model.joinpath("model.sig").read_text()) in line
