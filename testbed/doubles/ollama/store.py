# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The store on disk, OLLAMA_MODELS: manifests/<registry>/<namespace>/<model>/<tag> and blobs/sha256-<hex>."""
from __future__ import annotations

import hashlib
import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

DEFAULTS = ("registry.ollama.ai", "library", "", "latest")
PARTS = tuple(
    re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_{more}-]{{0,{most}}}") for more, most in ((".:", 349), ("", 79), (".", 79), (".", 79))
)
DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")
MODEL, PROJECTOR, PARAMS = (f"application/vnd.ollama.image.{kind}" for kind in ("model", "projector", "params"))
PRUNED_AFTER = 3600  # a blob that is younger may be one of a model that is just being made


class StoreError(Exception):
    """A model that cannot be served."""

    def __init__(self, message: str, status: int = 500) -> None:
        super().__init__(message)
        self.status = status


class Name(NamedTuple):
    """registry/namespace/model:tag"""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def valid(self) -> bool:
        return all(rule.fullmatch(part) for rule, part in zip(PARTS, self, strict=True))

    @property
    def short(self) -> str:
        """As Ollama shows it: without what goes without saying, but always with the tag."""
        path = (self.host, self.namespace, self.model)
        if self.host.lower() == DEFAULTS[0]:
            path = path[2:] if self.namespace.lower() == DEFAULTS[1] else path[1:]
        return f"{'/'.join(path)}:{self.tag}"


def parse_name(text: str) -> Name:
    """A name as people write it, with the defaults filled in; it may be invalid."""
    path, tag = text.strip(), ""
    if path.rfind(":") > path.rfind("/"):
        path, _, tag = path.rpartition(":")
        tag = tag or "!"
    parts = ["", "", *path.split("/", 2)][-3:] if path.count("/") < 3 else ["!", "!", path]
    return Name(*(part or default for part, default in zip([*parts, tag], DEFAULTS, strict=True)))


def is_cloud(text: str) -> bool:
    """Whether a name asks for a model of ollama.com's cloud."""
    _path, colon, tag = text.strip().rpartition(":")
    return bool(colon) and (tag.lower() == "cloud" or ("/" not in tag and tag.lower().endswith("-cloud")))


class Model(NamedTuple):
    """A manifest, and what it says."""

    name: Name
    digest: str
    manifest: dict
    modified: float

    def layers(self) -> list[dict]:
        return [*self.manifest["layers"], self.manifest["config"]]

    @property
    def size(self) -> int:
        return sum(layer["size"] for layer in self.layers())


class Store:
    """Reads the store anew each time: the original notices a manifest that was put there while it runs."""

    def __init__(self, root: Path) -> None:
        self.manifests, self.blobs = root / "manifests", root / "blobs"
        # As the original: on a read-only file system this works only where they are.
        for path in (self.manifests, self.blobs):
            path.mkdir(parents=True, exist_ok=True)

    def models(self) -> list[Model]:
        found = []
        for path in sorted(self.manifests.glob("*/*/*/*")):
            name = Name(*path.relative_to(self.manifests).parts)
            if not path.is_file() or not name.valid:
                continue
            try:
                found.append(self._read(name, path))
            except (OSError, ValueError, KeyError, TypeError) as error:
                print(f"level=WARN msg=\"bad manifest\" name={name.short} error={error}", flush=True)
        return sorted(found, key=lambda model: -model.modified)

    def find(self, text: str) -> Model:
        """The model of a name, whose letter case does not matter."""
        wanted = parse_name(text)
        if wanted.valid:
            for model in self.models():
                if [part.lower() for part in model.name] == [part.lower() for part in wanted]:
                    return model
        raise StoreError(f"model '{text}' not found", 404)

    def blob(self, digest: str) -> Path:
        if not DIGEST.fullmatch(digest):
            raise StoreError("invalid digest format")
        return self.blobs / digest.replace(":", "-")

    def verify(self, model: Model) -> None:
        """Refuse a model of which one blob is not what its name says."""
        for layer in model.layers():
            digest = hashlib.sha256()
            try:
                with self.blob(layer["digest"]).open("rb") as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
            except OSError as error:
                raise StoreError(f"open {error.filename}: {(error.strerror or '').lower()}") from error
            wanted = layer["digest"].replace("-", ":").lower()
            if f"sha256:{digest.hexdigest()}" != wanted:
                text = f"digest mismatch, file must be downloaded again: want {wanted}, got sha256:{digest.hexdigest()}"
                raise StoreError(text)

    def weights(self, model: Model) -> tuple[Path, list[Path]]:
        """The GGUF file, and those that go with it (projectors)."""
        paths = {kind: [] for kind in (MODEL, PROJECTOR)}
        for layer in model.manifest["layers"]:
            if layer["mediaType"] in paths:
                paths[layer["mediaType"]].append(self.blob(layer["digest"]))
        if not paths[MODEL]:
            raise StoreError(f"{model.name.short} has no weights")
        return paths[MODEL][0], paths[PROJECTOR]

    def options(self, model: Model) -> dict:
        """The parameters that the model brings along: they go before those of the environment."""
        merged: dict = {}
        for layer in model.manifest["layers"]:
            if layer["mediaType"] == PARAMS:
                merged.update(json.loads(self.blob(layer["digest"]).read_bytes()))
        return merged

    def details(self, model: Model) -> dict:
        try:
            config = json.loads(self.blob(model.manifest["config"]["digest"]).read_bytes())
        except (OSError, ValueError):
            config = {}
        return {
            "parent_model": "",
            "format": config.get("model_format", ""),
            "family": config.get("model_family", ""),
            "families": config.get("model_families"),
            "parameter_size": config.get("model_type", ""),
            "quantization_level": config.get("file_type", ""),
        }

    def prune(self) -> int:
        """Remove old blobs that no manifest names, and empty directories, as each start does by default."""
        models = self.models()
        if len(models) < sum(path.is_file() for path in self.manifests.glob("*/*/*/*")):
            print('level=WARN msg="corrupt manifests detected, skipping prune operation"', flush=True)
            return 0
        used = {self.blob(layer["digest"]).name for model in models for layer in model.layers()}
        removed = 0
        for path in list(self.blobs.iterdir()):
            if path.is_file() and path.name not in used and time.time() - path.stat().st_mtime >= PRUNED_AFTER:
                try:
                    path.unlink()
                    removed += 1
                except OSError as error:
                    print(f'level=ERROR msg="couldn\'t remove blob" blob={path.name} error={error}', flush=True)
        for path in sorted((path for path in self.manifests.rglob("*") if path.is_dir()), reverse=True):
            if not any(path.iterdir()):
                path.rmdir()
        return removed

    @staticmethod
    def _read(name: Name, path: Path) -> Model:
        body = path.read_bytes()
        manifest = json.loads(body)
        manifest["layers"] = manifest.get("layers") or []
        for layer in [manifest["config"], *manifest["layers"]]:
            layer["digest"] + layer["mediaType"], int(layer["size"])
        return Model(name, hashlib.sha256(body).hexdigest(), manifest, path.stat().st_mtime)


def timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
