# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Models in a registry of Ollama's kind: `ollama://[registry/][namespace/]model[:tag]`.

Its protocol is a part of the registry protocol: a manifest by tag, blobs by digest, and the blobs redirected to a
storage somewhere else. There is no manifest by digest, so nothing pins a model but what is kept of it: the manifest
is taken byte for byte, because its sha256 is what Ollama itself calls the model's digest. The files come out as in
Ollama's own directory (`manifests/<registry>/<namespace>/<model>/<tag>` and `blobs/sha256-<hex>`).
"""

from __future__ import annotations

import re

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.source_url import OLLAMA_REGISTRY, SourceUrl
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.base import RemoteFile, Resolution, Source
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.registry import (
    DOCKER_MANIFEST,
    Manifest,
    Registry,
    entries,
    read_digest,
    read_size,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.settings import Settings
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.web import Request

LAYERS = "application/vnd.ollama.image."
LICENCE = "application/vnd.ollama.image.license"
LICENCE_LIMIT = 256 * 1024
# The lockfile carries the manifest as text.
MANIFEST_LIMIT = 64 * 1024
BLOB = re.compile("blobs/sha256-([0-9a-f]{64})")
# Texts that are found word for word in front of most models, by their names in the SPDX list.
KNOWN_LICENCES = (
    (re.compile(r"\s*Apache License\s+Version 2\.0\b"), "apache-2.0"),
    (re.compile(r"\s*(?:The )?MIT License\b"), "mit"),
)


class OllamaSource(Source):
    """A model of a registry, as files of a directory that Ollama can serve from."""

    def __init__(self, url: SourceUrl, settings: Settings) -> None:
        super().__init__(url, settings)
        base = settings.endpoint or f"{'http' if settings.plain_http else 'https'}://{url.host}"
        named = url.text.startswith(f"ollama://{url.host}/")
        prefix = f"ollama://{url.host}/" if named else "ollama://"
        self._registry = Registry(self.web, base, url.path, settings, where=url.text, prefix=prefix)
        self._asked = False

    def resolve(self) -> Resolution:
        manifest = self._manifest()
        layers = self._layers(manifest)
        files = {file.path: file for file in map(self._blob_file, layers)}
        path = f"manifests/{self.url.host}/{self.url.path}/{self.url.revision}"
        content = RemoteFile(path, len(manifest.body), manifest.digest.partition(":")[2], manifest.body)
        return Resolution(
            self.url.text, (content, *sorted(files.values(), key=lambda file: file.path)), "ollama", self._licence(layers)
        )

    def locate(self, path: str, size: int | None = None, sha256: str | None = None) -> Request:
        found = BLOB.fullmatch(path)
        digest = sha256 or (found[1] if found else "")
        if not digest or path.startswith("manifests/"):
            # The manifest of a tag may be another one by now, so that it travels in the lockfile.
            raise self._registry.error(f"'{path}' is no blob of the model", "lock the model again")
        if not self._asked:
            self._identify()
        return self._registry.blob(f"sha256:{digest}")

    def _identify(self) -> None:
        """Ask for the manifest, so that the registry says what proof it wants before the first blob."""
        self._asked = True
        try:
            self._registry.manifest(self.url.revision, DOCKER_MANIFEST)
        except ArtifactError as error:
            # The tag may be gone: that is what the lockfile is for.
            if error.details.get("status") != 404:
                raise

    def _manifest(self) -> Manifest:
        try:
            manifest = self._registry.manifest(self.url.revision, DOCKER_MANIFEST)
        except ArtifactError as error:
            if error.details.get("status") in (401, 403) and self.url.host == OLLAMA_REGISTRY:
                raise self._registry.error(
                    str(error.fault.what),
                    "a private model is read with the key of its owner's own Ollama, which is not supported: pull it there, "
                    "and push it to a registry of your own",
                    status=error.details["status"],
                ) from error
            raise
        self._asked = True
        if len(manifest.body) > MANIFEST_LIMIT:
            raise self._registry.error(
                f"the manifest has {len(manifest.body)} bytes, more than {MANIFEST_LIMIT}", "check that this is a model of Ollama's kind"
            )
        return manifest

    def _layers(self, manifest: Manifest) -> list[dict]:
        """The configuration and the layers: every blob that Ollama reads."""
        config, layers = manifest.data.get("config"), entries(manifest.data, "layers")
        if not isinstance(config, dict) or not any(str(layer.get("mediaType", "")).startswith(LAYERS) for layer in layers):
            raise self._registry.error(
                "this is no model of Ollama's kind: its manifest has none of Ollama's layers",
                "for files that `oras push` wrote use oci://",
            )
        return [config, *layers]

    def _blob_file(self, layer: dict) -> RemoteFile:
        digest = read_digest(layer, self._registry)
        return RemoteFile(f"blobs/{digest.replace(':', '-')}", read_size(layer, self._registry), digest.partition(":")[2])

    def _licence(self, layers: list[dict]) -> str | None:
        names = []
        for layer in layers:
            if layer.get("mediaType") == LICENCE and read_size(layer, self._registry) <= LICENCE_LIMIT:
                name = licence_name(self._registry.small_blob(read_digest(layer, self._registry), LICENCE_LIMIT))
                if name and name not in names:
                    names.append(name)
        return " AND ".join(names) or None


def licence_name(text: bytes) -> str:
    """What a licence is called: its name in the SPDX list where it is a known one, otherwise the first words of its text."""
    words = text.decode("utf-8", errors="replace")
    for pattern, name in KNOWN_LICENCES:
        if pattern.match(words):
            return name
    first = next((line for line in words.splitlines() if line.strip()), "")
    return re.sub(r"[^\x21-\x7e]+", " ", first).strip()[:80].strip()
