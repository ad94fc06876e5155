# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The directory that Ollama serves from (OLLAMA_MODELS), as files of the lockfile: one manifest and its blobs.

    manifests/registry.ollama.ai/library/<name in the catalog>/latest
    blobs/sha256-<64 digits>

Pure. A manifest is small and travels in the lockfile itself (`content`); so does the configuration that a GGUF file
lacks and Ollama wants. The manifest's sha256 is what Ollama calls the digest of the model: whatever says so here, and
whatever the running engine says, must be the same.
"""
from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault

# What Ollama makes of a name without registry, namespace and tag. Clients write the catalog's name and nothing else.
MANIFEST_PATH = "manifests/registry.ollama.ai/library/{model}/latest"

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
MODEL_TYPE = "application/vnd.ollama.image.model"
PROJECTOR_TYPE = "application/vnd.ollama.image.projector"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_SHARD = re.compile(r".*-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
_PROJECTOR = re.compile(r"(?:.*[^a-z])?mmproj(?:[^a-z].*)?\.gguf")
_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")
_MERGE = "merge it (llama-gguf-split --merge <first part> <one file>) and give that file as the source, or use the engine llamacpp"


def is_made_of(path: str) -> bool:
    """Whether a store is made of this file, as far as its name tells."""
    return path.lower().endswith(".gguf")


def name_problem(model: str) -> Fault | None:
    """What is wrong with a model's name in the catalog for Ollama; None if it takes it."""
    if _NAME.fullmatch(model):
        return None
    fix = "use letters, digits, '.', '_' and '-', 80 characters at most, the first one a letter, a digit or '_'"
    return Fault(f"Ollama cannot serve a model named '{model}'", f"llm_fleet_models[{model}].name", fix)


def from_gguf(model: str, files: Iterable[Any], family: str = "") -> list[dict[str, Any]]:
    """A store for GGUF files, as Ollama itself would write it: the same files always give the same bytes.

    files: dicts or objects with path, size and sha256; those that are no GGUF files are left out.
    family: the model's architecture (general.architecture in the file), where it is known.
    """
    _check_name(model)
    found = [_plain(file) for file in files]
    ggufs = sorted((file for file in found if is_made_of(file["path"])), key=lambda file: file["path"])
    projectors = [file for file in ggufs if _PROJECTOR.fullmatch(_base(file))]
    weights = [file for file in ggufs if file not in projectors]
    _check_weights(model, weights)
    config = _compact({
        "model_format": "gguf",
        "model_family": family,
        "model_families": [family] if family else [],
        "model_type": "",
        "file_type": "",
        "architecture": "amd64",
        "os": "linux",
    })
    layers = [(MODEL_TYPE, weights[0]), *((PROJECTOR_TYPE, file) for file in projectors)]
    # No newline at the end: Ollama's digest may or may not have it in, depending on where its buffer ends.
    manifest = _compact({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": f"sha256:{_sha256(config)}", "size": len(config)},
        "layers": [
            {"mediaType": kind, "digest": f"sha256:{file['sha256']}", "size": file["size"]} for kind, file in layers
        ],
    })
    blobs = {
        f"blobs/sha256-{file['sha256']}": {"size": file["size"], "sha256": file["sha256"], "from": file["path"]}
        for _kind, file in layers
    }
    blobs[f"blobs/sha256-{_sha256(config)}"] = _inline(config)
    return _entries({**blobs, MANIFEST_PATH.format(model=model): _inline(manifest)})


def from_manifest(model: str, manifest: bytes) -> list[dict[str, Any]]:
    """A store for a manifest of Ollama's registry, which is kept byte for byte. Blobs are named as at the source."""
    _check_name(model)
    data = _parse(model, manifest)
    layers = [data["config"], *data["layers"]]
    if not any(layer["mediaType"] == MODEL_TYPE for layer in data["layers"]):
        raise _error(
            model,
            "the manifest names no file with the model's weights",
            "choose another tag: models of ollama.com's cloud and those for Apple's MLX cannot be served here",
        )
    blobs: dict[str, dict[str, Any]] = {}
    for layer in layers:
        digest = _DIGEST.fullmatch(layer["digest"])[1].lower()
        entry = blobs.setdefault(f"blobs/sha256-{digest}", {"size": layer["size"], "sha256": digest})
        if entry["size"] != layer["size"]:
            raise _error(model, f"the manifest gives {layer['digest']} two sizes", "ask whoever made the model")
    return _entries({**blobs, MANIFEST_PATH.format(model=model): _inline(manifest)})


def _check_name(model: str) -> None:
    fault = name_problem(model)
    if fault:
        raise ArtifactError(*fault)


def _check_weights(model: str, weights: list[dict[str, Any]]) -> None:
    """Ollama wants the weights in one file. What it does to parts itself (merge them) makes other bytes."""
    parts = [file for file in weights if _SHARD.fullmatch(file["path"]) and int(_SHARD.fullmatch(file["path"])[2]) > 1]
    if parts:
        raise _error(model, f"Ollama does not serve a model in {len(parts)} parts ({_base(parts[0])})", _MERGE)
    if not weights:
        raise _error(model, "there is no GGUF file to serve", "choose a source that has one")
    if len(weights) > 1:
        names = ", ".join(_base(file) for file in weights[:6]) + (", …" if len(weights) > 6 else "")
        raise _error(model, f"there are {len(weights)} models: {names}", "choose one, as in ?files=*Q4_K_M.gguf, or in the source's path")


def _parse(model: str, manifest: bytes) -> dict[str, Any]:
    """A manifest as data, in which the rest may trust the parts that it reads."""
    fix = "check that the source is a model of Ollama's kind"
    try:
        data = json.loads(manifest.decode("utf-8"))
    except ValueError as error:
        raise _error(model, f"the manifest is not JSON: {error}", fix) from error
    layers = data.get("layers") if isinstance(data, dict) else None
    if not isinstance(layers, list) or data.get("schemaVersion") != 2:
        raise _error(model, "the manifest has no layers, or is of another version", fix)
    for layer in [data.get("config"), *layers]:
        if not (
            isinstance(layer, dict)
            and isinstance(layer.get("mediaType"), str)
            and isinstance(layer.get("digest"), str)
            and _DIGEST.fullmatch(layer["digest"])
            and isinstance(layer.get("size"), int)
            and not isinstance(layer["size"], bool)
            and layer["size"] >= 0
        ):
            raise _error(model, "the manifest has a layer without type, size or sha256 digest", fix)
    return data


def _plain(file: Any) -> dict[str, Any]:
    keys = ("path", "size", "sha256")
    return {key: file[key] if isinstance(file, dict) else getattr(file, key) for key in keys}


def _base(file: dict[str, Any]) -> str:
    return file["path"].rpartition("/")[2]


def _compact(data: dict[str, Any]) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _inline(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": _sha256(data), "content": data.decode("utf-8")}


def _entries(files: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"path": path, **files[path]} for path in sorted(files)]


def _error(model: str, what: str, fix: str) -> ArtifactError:
    return ArtifactError(what, f"llm_fleet_models[{model}]", fix)
