# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The shape of a locked version (model_shape.py), out of the headers of its files: what the plan's estimate of memory needs.

What is on this host is read there. Of anything else only the header is asked for, once and without patience: a version
without a shape is as good as any other, only nobody can say beforehand whether it fits. Headers that come over the network
are not verified, because their digests are those of whole files; what is run is.
"""

from __future__ import annotations

import json
import re
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.gguf_header import read_gguf
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.header_bytes import BytesReader, FileReader, HeaderError, Reader
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lock_bytes import Digests
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.ollama_store import MODEL_TYPE, PROJECTOR_TYPE
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.safetensors_header import parse_json, read_safetensors
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.shape_config import shape_of_config
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.shape_gguf import shape_of_gguf
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.source_url import parse_source
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources import open_source
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.web import Interrupted, Request, Response, Web

CONFIG = "config.json"
CONFIG_LIMIT = 4 * 2**20
SHARD = re.compile(r"(.*)-\d{5}-of-\d{5}\.gguf", re.IGNORECASE)
PATIENCE = 10  # seconds that a server may stay silent
NEAR = 2 * 2**20  # bytes that are rather read than asked for anew


def shape_of_version(entry: dict[str, Any], digests: Digests, settings: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """(shape, "") of a version as the lockfile has it, or (None, why there is none)."""
    find = {"gguf": _of_gguf, "ollama": _of_ollama, "safetensors": _of_safetensors}.get(entry["format"])
    if find is None:
        return None, f"files in the format '{entry['format']}' do not say it"
    try:
        return find(entry, _Files(entry, digests, settings)), ""
    except HeaderError as error:
        return None, str(error)
    except Interrupted as interruption:
        return None, interruption.error.fault.text()
    except ArtifactError as error:
        return None, error.fault.text()
    except OSError as error:
        return None, (error.strerror or str(error)).lower()


def _of_gguf(entry: dict[str, Any], files: _Files) -> dict[str, Any]:
    """The engine is given the first file; parts of one model share the beginning of their names."""
    models = [file for file in entry["files"] if file["path"].lower().endswith(".gguf")]
    projectors = [file for file in models if "mmproj" in file["path"].lower()]
    weights = [file for file in models if file not in projectors]
    if not weights:
        raise HeaderError("there is no GGUF file")
    part = SHARD.fullmatch(weights[0]["path"])
    parts = [file for file in weights if part and (other := SHARD.fullmatch(file["path"])) and other[1] == part[1]] or weights[:1]
    return _gguf(parts, projectors, files)


def _of_ollama(entry: dict[str, Any], files: _Files) -> dict[str, Any]:
    """The manifest names the blobs, and travels in the lockfile."""
    manifest = next((file["content"] for file in entry["files"] if file["path"].startswith("manifests/") and "content" in file), "{}")
    kinds: dict[str, list] = {MODEL_TYPE: [], PROJECTOR_TYPE: []}
    blobs = {file["sha256"]: file for file in entry["files"]}
    for layer in json.loads(manifest).get("layers", []):
        blob = blobs.get(layer["digest"][len("sha256:") :])
        if blob is not None and layer["mediaType"] in kinds:
            kinds[layer["mediaType"]].append(blob)
    if not kinds[MODEL_TYPE]:
        raise HeaderError("the manifest names no weights")
    return _gguf(kinds[MODEL_TYPE], kinds[PROJECTOR_TYPE], files)


def _gguf(parts: list[dict], others: list[dict], files: _Files) -> dict[str, Any]:
    header = read_gguf(files.reader(parts[0]))
    size = sum(file["size"] for file in [*parts, *others])
    return shape_of_gguf(header, size - min(header.data_start, parts[0]["size"]))


def _of_safetensors(entry: dict[str, Any], files: _Files) -> dict[str, Any]:
    """config.json says what the model is, and the files beside it are its weights."""
    configs = [file for file in entry["files"] if file["path"].rpartition("/")[2] == CONFIG]
    if not configs:
        raise HeaderError(f"there is no {CONFIG}")
    config = min(configs, key=lambda file: (file["path"].count("/"), file["path"]))
    folder = config["path"][: -len(CONFIG)]
    beside = [file for file in entry["files"] if file["path"].startswith(folder) and "/" not in file["path"][len(folder) :]]
    weights = [file for file in beside if file["path"].endswith(".safetensors")]
    # Some repositories hold the weights once more, in one file.
    weights = [file for file in weights if not file["path"][len(folder) :].startswith("consolidated")] or weights
    if not weights:
        raise HeaderError(f"there are no weights beside {config['path']}")
    if config["size"] > CONFIG_LIMIT:
        raise HeaderError(f"{config['path']} has {config['size']} bytes")
    data = parse_json(files.reader(config).read(0, config["size"]))
    formats = read_safetensors(files.reader(weights[0]))
    size = sum(file["size"] for file in weights)
    if formats.get("F32", 0) * 2 > sum(formats.values()):
        size = -(-size // 2)  # engines load what was kept in 32 bits in 16
    return shape_of_config(data, size)


class _Files:
    """Where the files of one version can be read."""

    def __init__(self, entry: dict[str, Any], digests: Digests, settings: dict[str, Any]) -> None:
        self.source = entry["source"]
        self.digests = digests
        self.settings = settings
        self.opened: Any = None

    def reader(self, file: dict[str, Any]) -> Reader:
        if "content" in file:
            return BytesReader(file["content"].encode())
        here = self.digests.here(file)
        if here is not None:
            return FileReader(here)
        if self.opened is None:
            self.opened = open_source(self.source, self.settings)
            self.opened.web.retries = 0
            self.opened.web.timeout = min(PATIENCE, self.opened.web.timeout)
        request = self.opened.locate(file.get("from", file["path"]), file["size"], file["sha256"])
        if parse_source(self.source).scheme == "file":
            return FileReader(request.url[len("file://") :])
        return WebReader(self.opened.web, request)


class WebReader:
    """Ranges of a file on a web server: one answer is read on and on as long as what is asked for is near."""

    def __init__(self, web: Web, request: Request) -> None:
        self.web = web
        self.request = request
        self.answer: Response | None = None
        self.position = 0

    def read(self, offset: int, length: int) -> bytes:
        if self.answer is None or not 0 <= offset - self.position <= NEAR:
            self._open(offset)
        self._pass(offset - self.position)
        return self._take(length)

    def _open(self, offset: int) -> None:
        if self.answer is not None:
            self.answer.raw.close()
        # From there to the end, as far as it is read: servers that know no ranges send all of it anyway.
        self.answer = self.web.open(self.request, {"Range": f"bytes={offset}-"} if offset else {})
        self.position = offset if self.answer.status == 206 else 0
        if offset - self.position > NEAR:
            raise HeaderError("the server does not send parts of a file")

    def _pass(self, count: int) -> None:
        while count and (piece := self._take(min(count, NEAR))):
            count -= len(piece)

    def _take(self, length: int) -> bytes:
        found = bytearray()
        while len(found) < length and (piece := self.answer.read(min(length - len(found), NEAR))):
            found += piece
        self.position += len(found)
        return bytes(found)
