# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The shape of a version when it is locked: read where the files are, and never a reason to fail."""

from __future__ import annotations

import json

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import ollama_store
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lock_shape import NEAR, WebReader
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile import parse_lockfile
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile_text import render_lockfile
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.web import Request, Web
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gguf_builder import gguf, safetensors
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gguf_builder import model as header
from ansible_collections.localfirst.llm_fleet.tests.unit.support.known_models import CONFIGS
from ansible_collections.localfirst.llm_fleet.tests.unit.support.lock_builders import PROFILES, lock, locked, model
from ansible_collections.localfirst.llm_fleet.tests.unit.support.range_server import RangeServer
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import digest

WEIGHTS = 5_000_000
GGUF = gguf(header(), data=bytes(WEIGHTS))
EATS_ALL = {**PROFILES, "llamacpp": {**PROFILES["llamacpp"], "formats": ["gguf", "safetensors", "files"]}}


@pytest.fixture
def server():
    with RangeServer() as running:
        yield running


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def shape(found, key=("tiny", "1.0.0")) -> dict | None:
    assert found.faults == []
    return locked(found.text)[key].get("shape")


def without_shape(text: str) -> str:
    """The same lockfile as an earlier release wrote it."""
    return "".join(line for line in text.splitlines(True) if not line.lstrip().startswith("shape:"))


def test_a_file_of_the_controller_is_read_where_it_lies(tmp_path, store):
    (tmp_path / "tiny.gguf").write_bytes(GGUF)
    found = lock([model("tiny", {"1.0.0": f"file://{tmp_path}/tiny.gguf"})], store=store)
    assert shape(found)["weights"] == WEIGHTS and shape(found)["cache"] == [{"layers": 4, "heads": 2, "key": 64, "value": 64}]
    assert found.shapeless == []


def test_what_was_downloaded_is_not_asked_for_again(server, store):
    server.add("/tiny.gguf", GGUF)
    found = lock([model("tiny", {"1.0.0": f"{server.url}/tiny.gguf"})], store=store)
    assert shape(found)["weights"] == WEIGHTS and server.sent < len(GGUF) + 1000


def test_of_a_file_whose_digest_is_told_only_the_header_is_fetched(server):
    large = gguf(header(), data=bytes(20 * 2**20))
    server.add("/m/tiny.gguf", large)
    server.add("/m/SHA256SUMS", f"{digest(large)}  tiny.gguf\n".encode())
    found = lock([model("tiny", {"1.0.0": f"{server.url}/m/"})], store=None)
    assert shape(found)["weights"] == 20 * 2**20 and found.downloaded == 0
    assert server.sent < 16 * 2**20  # what sockets buffer before the reader hangs up


def test_the_parts_of_a_model_are_one(tmp_path, store):
    first, second = GGUF, gguf({"split.no": 1}, data=bytes(1000))
    for number, body in enumerate((first, second), start=1):
        (tmp_path / f"big-0000{number}-of-00002.gguf").write_bytes(body)
    (tmp_path / "mmproj-big.gguf").write_bytes(bytes(500))
    (tmp_path / "other.gguf").write_bytes(b"something else")
    source = f"file://{tmp_path}"
    assert shape(lock([model("tiny", {"1.0.0": source})], store=store))["weights"] == WEIGHTS + len(second) + 500


def test_a_store_of_ollama_has_the_weights_among_its_blobs(server, store):
    config = b'{"model_format":"gguf"}'
    layers = [
        {"mediaType": ollama_store.MODEL_TYPE, "digest": f"sha256:{digest(GGUF)}", "size": len(GGUF)},
        {"mediaType": "application/vnd.ollama.image.license", "digest": f"sha256:{digest(b'MIT License')}", "size": 11},
    ]
    manifest = json.dumps({
        "schemaVersion": 2,
        "config": {"mediaType": ollama_store.CONFIG_TYPE, "digest": f"sha256:{digest(config)}", "size": len(config)},
        "layers": layers,
    }).encode()
    server.add("/v2/library/qwen/manifests/0.6b", manifest)
    server.add(f"/v2/library/qwen/blobs/sha256:{digest(GGUF)}", GGUF)
    server.add(f"/v2/library/qwen/blobs/sha256:{digest(b'MIT License')}", b"MIT License")
    settings = {"ollama://": {"endpoint": server.url}}
    found = lock([model("tiny", {"1.0.0": "ollama://qwen:0.6b"}, engine="ollama")], store=store, settings=settings)
    assert shape(found)["weights"] == WEIGHTS and found.downloaded == 0


def test_a_store_around_a_gguf_file_has_its_shape(tmp_path, store):
    (tmp_path / "tiny.gguf").write_bytes(GGUF)
    found = lock([model("tiny", {"1.0.0": f"file://{tmp_path}/tiny.gguf"}, engine="ollama")], store=store)
    assert shape(found)["weights"] == WEIGHTS


@pytest.mark.parametrize(("form", "bytes_each"), [("BF16", 1), ("F32", 2)])
def test_safetensors_have_a_config_beside_them(tmp_path, store, form, bytes_each):
    """What was kept in 32 bits is loaded in 16."""
    body = safetensors({"a": (form, WEIGHTS)})
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["Llama-3.1-8B"]))
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "consolidated.safetensors"):
        (tmp_path / name).write_bytes(body)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text("{}")
    found = lock([model("tiny", {"1.0.0": f"file://{tmp_path}"})], store=store, profiles=EATS_ALL)
    assert shape(found)["weights"] * bytes_each == pytest.approx(2 * len(body), abs=1)
    assert shape(found)["architecture"] == "llama"


@pytest.mark.parametrize(
    ("name", "body"),
    [("tiny.gguf", b"weights"), ("tiny.gguf", gguf(header("odd", block_count=None))), ("tiny.bin", b"weights")],
)
def test_a_file_that_says_nothing_is_locked_all_the_same(tmp_path, store, name, body):
    (tmp_path / name).write_bytes(body)
    found = lock([model("tiny", {"1.0.0": f"file://{tmp_path}/{name}"})], store=store, profiles=EATS_ALL)
    assert shape(found) is None
    assert [told["title"] for told in found.shapeless] == ["tiny 1.0.0"] and found.shapeless[0]["why"]


def test_a_server_that_breaks_off_is_no_reason_to_fail(server):
    server.add("/m/tiny.gguf", GGUF, cuts=[40, 40, 40])
    server.add("/m/SHA256SUMS", f"{digest(GGUF)}  tiny.gguf\n".encode())
    found = lock([model("tiny", {"1.0.0": f"{server.url}/m/"})], store=None)
    assert found.faults == [] and shape(found) is None and "broke off" in found.shapeless[0]["why"]


def test_what_an_earlier_release_locked_gets_its_shape_and_nothing_else(tmp_path, store):
    (tmp_path / "tiny.gguf").write_bytes(GGUF)
    wanted = [model("tiny", {"1.0.0": f"file://{tmp_path}/tiny.gguf"})]
    first = lock(wanted, store=store)
    older = without_shape(first.text)
    assert older != first.text and shape(lock(wanted, older, store=store)) == shape(first)
    again = lock(wanted, older, store=store)
    assert again.text == first.text and again.actions == ["tiny 1.0.0: note what its memory depends on"]
    assert lock(wanted, again.text, store=store).actions == []


def test_a_source_that_is_gone_leaves_an_older_lockfile_as_it_is(tmp_path, store):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(GGUF)
    wanted = [model("tiny", {"1.0.0": f"file://{path}"})]
    older = without_shape(lock(wanted, store=store).text)
    path.unlink()
    assert lock(wanted, older, store=store).text == older


def test_a_shape_is_read_back_as_it_was_written(tmp_path, store):
    (tmp_path / "tiny.gguf").write_bytes(gguf(header("gemma3", attention__sliding_window=512), data=bytes(100)))
    text = lock([model("tiny", {"1.0.0": f"file://{tmp_path}/tiny.gguf"})], store=store).text
    data, faults = parse_lockfile(text, "models.lock.yml")
    assert faults == [] and render_lockfile(data) == text
    assert {group.get("window") for group in data["models"]["tiny"]["1.0.0"]["shape"]["cache"]} == {512}  # four layers: none is the sixth


def test_a_shape_that_somebody_changed_is_named_by_its_line(tmp_path, store):
    (tmp_path / "tiny.gguf").write_bytes(GGUF)
    text = lock([model("tiny", {"1.0.0": f"file://{tmp_path}/tiny.gguf"})], store=store).text
    line = next(number for number, said in enumerate(text.splitlines(), start=1) if "shape:" in said)
    _data, faults = parse_lockfile(text.replace("layers: 4", "layers: -4"), "models.lock.yml")
    assert faults and all(f"line {line}" in fault.where for fault in faults)


# Ranges


@pytest.mark.parametrize("ranges", [True, False])
def test_pieces_of_a_file_are_what_the_file_has_there(server, ranges):
    body = bytes(range(256)) * 4000
    server.add("/f", body, ranges=ranges)
    reader = WebReader(Web(retries=0), Request(f"{server.url}/f"))
    for offset, length in ((0, 10), (5, 20), (1000, 1), (900_000, 300), (len(body) - 5, 100), (3, 3)):
        assert reader.read(offset, length) == body[offset : offset + length]


def test_near_pieces_are_one_request(server):
    server.add("/f", bytes(100_000))
    reader = WebReader(Web(retries=0), Request(f"{server.url}/f"))
    for offset in range(0, 100_000, 1000):
        reader.read(offset, 10)
    assert len(server.requests) == 1 and NEAR > 1000
