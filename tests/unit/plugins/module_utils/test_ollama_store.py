# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.ollama_store import (
    from_gguf,
    from_manifest,
    name_problem,
)

GGUF = {"path": "weights/tiny.gguf", "size": 10, "sha256": "a" * 64}
PROJECTOR = {"path": "mmproj-model-f16.gguf", "size": 3, "sha256": "b" * 64}
MANIFEST = "manifests/registry.ollama.ai/library/tiny/latest"


def by_path(entries):
    return {entry["path"]: entry for entry in entries}


def layer(kind, digit, size):
    return {"mediaType": f"application/vnd.{kind}", "digest": f"sha256:{digit * 64}", "size": size}


def manifest(*layers, **changes):
    config = layer("docker.container.image.v1+json", "c", 5)
    data = {"schemaVersion": 2, "mediaType": "x", "config": config, "layers": list(layers), **changes}
    return json.dumps(data, indent=1).encode()


def test_a_store_is_complete_and_every_digest_is_that_of_its_bytes():
    entries = by_path(from_gguf("tiny", [GGUF, PROJECTOR]))
    data = json.loads(entries[MANIFEST]["content"])
    named = {f"blobs/{one['digest'].replace(':', '-')}": one["size"] for one in [data["config"], *data["layers"]]}
    assert named == {path: entry["size"] for path, entry in entries.items() if path != MANIFEST}
    for entry in entries.values():
        if "content" in entry:
            body = entry["content"].encode()
            assert (hashlib.sha256(body).hexdigest(), len(body)) == (entry["sha256"], entry["size"])
    assert entries[f"blobs/sha256-{'a' * 64}"]["from"] == GGUF["path"]


def test_the_same_file_is_the_same_model_whatever_its_name_and_company():
    @dataclass
    class Remote:
        path: str
        size: int
        sha256: str

    one = by_path(from_gguf("tiny", [GGUF]))
    other = by_path(from_gguf("other", [Remote("x.gguf", 10, "a" * 64), Remote("LICENSE", 1, "d" * 64)]))
    assert other[MANIFEST.replace("tiny", "other")]["sha256"] == one[MANIFEST]["sha256"]
    assert list(one) == sorted(one) and len(other) == len(one)


def test_weights_and_projector_are_told_apart():
    data = json.loads(by_path(from_gguf("tiny", [PROJECTOR, GGUF]))[MANIFEST]["content"])
    kinds = {one["digest"]: one["mediaType"].rpartition(".")[2] for one in data["layers"]}
    assert kinds == {f"sha256:{'a' * 64}": "model", f"sha256:{'b' * 64}": "projector"}


@pytest.mark.parametrize(
    ("paths", "what", "fix"),
    [
        (["big-00001-of-00003.gguf", "big-00002-of-00003.gguf", "big-00003-of-00003.gguf"], "parts", "llamacpp"),
        (["a-Q4.gguf", "a-Q8.gguf"], "2 models", "?files="),
        (["model.safetensors"], "no GGUF", "source"),
        (["mmproj.gguf"], "no GGUF", "source"),
    ],
)
def test_what_ollama_cannot_serve_is_refused_with_what_to_do(paths, what, fix):
    files = [{"path": path, "size": 1, "sha256": f"{number:x}" * 64} for number, path in enumerate(paths, 1)]
    with pytest.raises(ArtifactError) as error:
        from_gguf("tiny", files)
    assert what in error.value.fault.what and fix in error.value.fault.fix and "tiny" in error.value.fault.where


def test_one_part_of_one_is_a_whole_model():
    assert len(from_gguf("tiny", [{**GGUF, "path": "tiny-00001-of-00001.gguf"}])) == 3


def test_a_manifest_is_kept_byte_for_byte_under_the_catalogs_name():
    body = manifest(layer("ollama.image.model", "a", 9), layer("ollama.image.license", "d", 4))
    entries = by_path(from_manifest("tiny", body))
    assert entries[MANIFEST]["content"].encode() == body
    assert entries[MANIFEST]["sha256"] == hashlib.sha256(body).hexdigest()
    assert {path: entry["size"] for path, entry in entries.items() if path != MANIFEST} == {
        f"blobs/sha256-{digit * 64}": size for digit, size in (("a", 9), ("c", 5), ("d", 4))
    }


def test_a_blob_that_is_named_twice_is_one_file():
    body = manifest(layer("ollama.image.model", "a", 9), layer("ollama.image.license", "a", 9))
    assert len(from_manifest("tiny", body)) == 3


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"\xff", "JSON"),
        (b"[]", "no layers"),
        (manifest(schemaVersion=1), "version"),
        (manifest(), "weights"),
        (manifest(layer("ollama.image.tensor", "a", 1)), "weights"),
        (manifest(config=None), "without"),
        (manifest({**layer("ollama.image.model", "a", 1), "digest": "sha256:../../x"}), "without"),
        (manifest({**layer("ollama.image.model", "a", 1), "size": -1}), "without"),
        (manifest({**layer("ollama.image.model", "a", 1), "size": True}), "without"),
        (manifest(layer("ollama.image.model", "a", 1), layer("ollama.image.model", "a", 2)), "two sizes"),
    ],
)
def test_a_manifest_that_cannot_be_served_is_refused(body, what):
    with pytest.raises(ArtifactError) as error:
        from_manifest("tiny", body)
    assert what in error.value.fault.what


@pytest.mark.parametrize("name", ["tiny", "Qwen3.5-0.8B", "a" * 63, "7b", "x-cloud", "x."])
def test_names_of_the_catalog_are_names_for_ollama(name):
    assert name_problem(name) is None


@pytest.mark.parametrize("name", ["", "a/b", "tiny:1", "tiny@1.0.0", ".x", "-x", "a" * 81, "ä", "a\n"])
def test_other_names_are_a_fault_with_a_fix(name):
    assert name_problem(name).fix
    with pytest.raises(ArtifactError):
        from_gguf(name, [GGUF])
