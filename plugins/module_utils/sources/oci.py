# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Model files in an OCI registry: `oci://registry[:port]/repo[:tag|@sha256:...]`.

Two layouts are read, both with one blob a file: what `oras push` writes (the name of a file is its layer's title)
and ModelPack (its own annotation). A layer that is an archive is refused rather than unpacked: the lockfile names
files by the digest of their bytes, and those of an archive's members nobody has vouched for.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.source_url import SourceUrl, parse_source
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.base import (
    RemoteFile,
    Resolution,
    Source,
    guess_format,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.registry import (
    Manifest,
    Registry,
    annotations,
    entries,
    read_digest,
    read_size,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.settings import Settings
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.web import Request

TITLE = "org.opencontainers.image.title"
LICENCES = "org.opencontainers.image.licenses"
UNPACK = "io.deis.oras.content.unpack"
# ModelPack's name for the path, and the one it had before CNCF took it in.
FILE_PATHS = ("org.cncf.model.filepath", "org.cnai.model.filepath")
MODEL_CONFIG = re.compile(r"application/vnd\.(?:cncf|cnai)\.model\.config\.v1\+json")
MODEL_ARCHIVE = re.compile(r"application/vnd\.(?:cncf|cnai)\.model\..*\.tar(?:\+\w+)?")
TAR = re.compile(r"[.+]tar(?:$|\+)")
COMPRESSED_TAR = re.compile(r"\.tar\+(?:gzip|zstd)$|\.tar\.gzip$")
ARCHIVE_NAME = re.compile(r"\.(?:tar|tgz|tar\.(?:gz|zst))$", re.IGNORECASE)
UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]")
CONFIG_LIMIT = 1024 * 1024
PLATFORMS = ("linux/amd64", "linux/arm64")  # of the machines that nodes may be
DOCKER_HUB = "docker.io"
IMAGE_CONFIGS = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")


class Image(NamedTuple):
    """An image for one platform: its manifest, the digest of its configuration, and the size of each of its blobs by digest.

    `listed` is the list for several platforms that led to it, if its name was that of one.
    """

    manifest: Manifest
    config: str
    sizes: dict[str, int]
    listed: Manifest | None


class OciSource(Source):
    """An artifact of a registry, and its files."""

    def __init__(self, url: SourceUrl, settings: Settings) -> None:
        super().__init__(url, settings)
        # Docker Hub's name is not where its registry answers.
        host = "registry-1.docker.io" if url.host == DOCKER_HUB else url.host
        base = settings.endpoint or f"{'http' if settings.plain_http else 'https'}://{host}"
        self._registry = Registry(self.web, base, url.path, settings, where=url.text, prefix=f"oci://{url.host}/")
        self._digests: dict[str, str] | None = None

    def resolve(self) -> Resolution:
        manifest = self._manifest()
        files = self._files(manifest)
        return Resolution(
            self.url.at(manifest.digest), tuple(files), guess_format([file.path for file in files]), self._licence(manifest)
        )

    def locate(self, path: str, size: int | None = None, sha256: str | None = None) -> Request:
        if self._digests is None:
            # Even where the digest is known: it is the manifest for which a registry asks who is there.
            self._files(self._manifest())
        digest = sha256 or self._digests.get(path)
        if digest is None:
            raise self._registry.error(f"the artifact has no file '{path}'", "lock the model again")
        return self._registry.blob(f"sha256:{digest}")

    def read_manifest(self) -> Manifest:
        """What the address points to: a manifest, or a list of them."""
        return self._registry.manifest(self.url.revision)

    def image_ids(self) -> dict[str, str]:
        """The digest of an image's configuration by platform: what Docker calls its id, wherever it came from."""
        manifest = self.read_manifest()
        if not manifest.is_index:
            digest = self._config_digest(manifest)
            config = self._image_config(digest) if digest else {}
            return {_platform({"platform": config}): digest} if _platform({"platform": config}) in PLATFORMS else {}
        found = {}
        for entry in entries(manifest.data, "manifests"):
            if _platform(entry) in PLATFORMS and _is_content(entry):
                digest = self._config_digest(self._registry.manifest(read_digest(entry, self._registry)))
                if digest:
                    found.setdefault(_platform(entry), digest)
        return found

    def image(self, platform: str) -> Image:
        """The image for a platform."""
        manifest, listed = self.read_manifest(), None
        if manifest.is_index:
            listed = manifest
            fitting = [each for each in entries(manifest.data, "manifests") if _platform(each) == platform and _is_content(each)]
            if not fitting:
                raise self._registry.error(f"the image is not to be had for {platform}", "name another platform, or another image")
            manifest = self._registry.manifest(read_digest(fitting[0], self._registry))
        digest = self._config_digest(manifest)
        if not digest:
            raise self._registry.error("this is no image of a container", "name an image by the digest of its manifest")
        if _platform({"platform": self._image_config(digest)}) != platform:
            raise self._registry.error(f"the image is not one for {platform}", "name another platform, or another image")
        blobs = [manifest.data["config"], *entries(manifest.data, "layers")]
        return Image(manifest, digest, {read_digest(each, self._registry): read_size(each, self._registry) for each in blobs}, listed)

    def blob(self, digest: str) -> Request:
        """How to fetch a blob of what was read before."""
        return self._registry.blob(digest)

    def _config_digest(self, manifest: Manifest) -> str:
        """The digest of an image's configuration; empty where a manifest is no image's."""
        config = manifest.data.get("config")
        if not isinstance(config, dict) or config.get("mediaType") not in IMAGE_CONFIGS:
            return ""
        return read_digest(config, self._registry)

    def _image_config(self, digest: str) -> dict:
        try:
            config = json.loads(self._registry.small_blob(digest, CONFIG_LIMIT))
        except (RecursionError, ValueError):
            return {}
        return config if isinstance(config, dict) else {}

    def _files(self, manifest: Manifest) -> list[RemoteFile]:
        files = read_layers(manifest, self._registry)
        self._digests = {file.path: file.sha256 for file in files}
        return files

    def _manifest(self) -> Manifest:
        manifest = self.read_manifest()
        if not manifest.is_index:
            return manifest
        listed = [entry for entry in entries(manifest.data, "manifests") if _is_content(entry)]
        if len(listed) != 1:
            raise self._registry.error(
                f"this is a list of {len(listed)} manifests ({', '.join(map(_platform, listed)) or 'none'}), not one artifact",
                "name the one that is meant by its digest (oci://...@sha256:...), or push the model as a single artifact",
            )
        return self._registry.manifest(read_digest(listed[0], self._registry))

    def _licence(self, manifest: Manifest) -> str | None:
        named = " ".join(annotations(manifest.data).get(LICENCES, "").split())
        if named:
            return named[:200]
        config = manifest.data.get("config")
        if not isinstance(config, dict) or not MODEL_CONFIG.fullmatch(str(config.get("mediaType", ""))):
            return None
        try:
            model = json.loads(self._registry.small_blob(read_digest(config, self._registry), CONFIG_LIMIT))
            names = model.get("descriptor", {}).get("licenses") or []
            return " AND ".join(" ".join(str(name).split()) for name in names)[:200] or None
        except (AttributeError, RecursionError, TypeError, ValueError):
            # A configuration of another kind says nothing; the files are what counts.
            return None


def read_layers(manifest: Manifest, registry: Registry) -> list[RemoteFile]:
    """The files of an artifact. Whatever is no plain file is refused: a model with a part missing is no model."""
    layers = entries(manifest.data, "layers")
    if not layers:
        raise registry.error("the artifact has no files", "push the model's files to it")
    files: dict[str, RemoteFile] = {}
    for number, layer in enumerate(layers, start=1):
        file = _layer_file(layer, number, manifest, registry)
        known = files.setdefault(file.path, file)
        if known != file:
            raise registry.error(f"two files of the artifact are called '{file.path}'", "push it again with one of them")
    return sorted(files.values(), key=lambda file: file.path)


def _layer_file(layer: dict, number: int, manifest: Manifest, registry: Registry) -> RemoteFile:
    notes, kind = annotations(layer), str(layer.get("mediaType", ""))
    packed = next((notes[key] for key in FILE_PATHS if notes.get(key)), "")
    path = packed or notes.get(TITLE, "")
    if not path:
        raise registry.error(*_nameless(number, kind, manifest))
    path = path[2:] if path.startswith("./") else path
    if UNSAFE.search(path) or any(part in ("", ".", "..") for part in path.split("/")):
        raise registry.error(f"the artifact's file name {path!r} is not a plain relative path", "push it again with plain names")
    unpack = notes.get(UNPACK, "").lower() == "true"
    tarball = COMPRESSED_TAR.search(kind) and not ARCHIVE_NAME.search(path)
    if unpack or tarball or MODEL_ARCHIVE.fullmatch(kind) or (packed and TAR.search(kind)):
        raise registry.error(
            f"'{path}' is packed: its layer is an archive ({kind}), and engines read plain files",
            "push the files one by one (`oras push registry/repo:tag model/*`) or raw (`modctl build --raw`)",
        )
    return RemoteFile(path, read_size(layer, registry), read_digest(layer, registry).partition(":")[2])


def _nameless(number: int, kind: str, manifest: Manifest) -> tuple[str, str]:
    """What an artifact is whose layers have no names."""
    config = manifest.data.get("config")
    if kind.startswith("application/vnd.ollama."):
        return "this is a model of Ollama's kind", "write the source with ollama:// in place of oci://"
    if isinstance(config, dict) and config.get("mediaType") in IMAGE_CONFIGS:
        return "this is a container image and no model", "name an artifact that holds the model's files, each under its name"
    return (
        f"layer {number} of the artifact ({kind}) has no file name",
        f"push the files with `oras push`, or as ModelPack: each layer needs the annotation {TITLE} or {FILE_PATHS[0]}",
    )


def _is_content(entry: dict) -> bool:
    """Whether an index lists it for what it is, and not as a statement about another of its manifests."""
    return "vnd.docker.reference.type" not in annotations(entry)


def _platform(entry: dict) -> str:
    platform = entry.get("platform")
    known = platform if isinstance(platform, dict) else {}
    return f"{known.get('os', 'any')}/{known.get('architecture', 'any')}"


def image_digest(reference: str, settings: Settings) -> tuple[str, str]:
    """What the reference of an engine's image points to now: (registry/repository, digest).

    Of an image for several platforms it is the digest of the list, because each host picks its own from that.
    `settings` are those that hold for image_address(reference).
    """
    image = parse_image(reference)
    # Messages name what the operator wrote, and that is no source.
    digest = OciSource(image._replace(text=reference), settings).read_manifest().digest
    return f"{image.host}/{image.path}", digest


def image_ids(reference: str, digest: str, settings: Settings) -> dict[str, str]:
    """{platform: Docker's id} of the image with that digest in the reference's repository."""
    return OciSource(parse_image(reference)._replace(revision=digest, text=reference), settings).image_ids()


def image_address(reference: str) -> str:
    """An image's reference as an oci:// address, by which `llm_fleet_sources` has settings for its registry."""
    return parse_image(reference).text


def parse_image(reference: str) -> SourceUrl:
    """An image as Docker reads it: without a registry it is Docker Hub's, and a digest outweighs a tag."""
    first, slash, rest = reference.partition("/")
    if not slash or not (re.search("[.:]", first) or first == "localhost"):
        first, rest = DOCKER_HUB, reference if slash else f"library/{reference}"
    name, at, digest = rest.partition("@")
    if at:
        name = re.sub(":[^/]*$", "", name)
    try:
        return parse_source(f"oci://{first}/{name}{at}{digest}")
    except ValueError as error:
        raise ArtifactError(
            f"this is no reference of an image: {error.args[0]}", str(reference), "write registry:port/repository:tag"
        ) from None
