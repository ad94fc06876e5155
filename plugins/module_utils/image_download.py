# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Images out of their registries into archives, without Docker: each blob verified by its digest, resumed where a line breaks.

An archive has both tables of contents, that of OCI and the one that every `docker load` reads. It holds the manifest as the
registry has it, so Docker calls the image what the lockfile says, wherever it keeps its images. The list for several platforms
that an image was named by is in there as well: it proves that the image is the one that the name means. The same image always
gives the same bytes.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import whole_files
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import Artifact, ArtifactError, File
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_fetch import Fetcher
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_staging import Staging
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_store import Store
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.image_archive import LIST, ArchivedImage, BadArchive, read_archive
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.oci import Image, OciSource, image_address, parse_image
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.registry import OCI_INDEX, OCI_MANIFEST
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.settings import settings_for
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.web import Request, Web


class FromRegistry:
    """The registry that an image is in, as a place for its blobs."""

    def __init__(self, source: OciSource) -> None:
        self.source = source

    def web(self, _artifact: Artifact) -> Web:
        return self.source.web

    def requests(self, _artifact: Artifact, file: File) -> list[Request]:
        return [self.source.blob(f"sha256:{file.sha256}")]


class ImageDownload:
    """One image for one platform. `wanted` has image, digest, platform, and the id that it has to have, if that is known.

    With `by_digest`, hosts know it by the digest and no id: its archive has to prove what that names.
    """

    def __init__(self, wanted: Mapping[str, Any], all_settings: Mapping[str, Any]) -> None:
        self.wanted = wanted
        self.reference = f"{wanted['image']}@{wanted['digest']}"
        self._settings = all_settings
        self._source: OciSource | None = None
        self._found: Image | None = None

    @property
    def identity(self) -> str:
        """What Docker calls it. The registry is asked only where nobody has said so."""
        return self.wanted["id"] or self._look().config

    @property
    def name(self) -> str:
        """What its archive is called: for people by its name, and never two images alike."""
        mark = f"{self.wanted['digest'][7:23]}-{self.wanted['platform'].rpartition('/')[2]}" if self.by_digest else self.identity[7:23]
        return f"{self.wanted['image'].rpartition('/')[2].partition(':')[0]}-{mark}.tar"

    @property
    def by_digest(self) -> bool:
        return self.wanted["by_digest"]

    def is_in(self, images: Iterable[ArchivedImage]) -> str:
        """What Docker calls it where it is one of the images of an archive; empty where it is none of them."""
        for image in images:
            proven = image.proves(self.wanted["digest"], self.wanted["platform"])
            if (proven and self.wanted["id"] in ("", image.id)) if self.by_digest else image.id == self.identity:
                return image.id
        return ""

    def held_by(self, path: Path) -> str:
        """The same, for an archive that may be there."""
        try:
            return self.is_in(read_archive(path)) if path.is_file() else ""
        except BadArchive:
            return ""

    def _look(self) -> Image:
        if self._found is None:
            image = parse_image(self.reference)
            settings = settings_for(self._settings, image_address(self.reference))
            self._source = OciSource(image._replace(text=self.reference), settings)
            self._found = self._source.image(self.wanted["platform"])
            if self.wanted["id"] not in ("", self._found.config):
                what = f"Docker would call it {self._found.config}, and {self.wanted['id']} is locked"
                raise ArtifactError(what, self.reference, "lock the image again (lock -e update=<engine>)")
        return self._found

    def write(self, path: Path, scratch: Path, reserve: int) -> None:
        """Fetch what is missing and pack it. What was fetched lies in `scratch`, and goes on from there after a break."""
        image = self._look()
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_files.draft_of(path) as draft:
            if not self.held_by(path):  # another run may have brought it while this one waited
                self._fetch(image, draft, scratch, reserve)
                os.replace(draft, path)
                shutil.rmtree(scratch)
                with contextlib.suppress(OSError):  # where others are on their way
                    scratch.parent.rmdir()

    def _fetch(self, image: Image, draft: Path, scratch: Path, reserve: int) -> None:
        sizes = sorted(image.sizes.items())
        files = [{"path": f"blobs/sha256/{digest[7:]}", "size": size, "sha256": digest[7:]} for digest, size in sizes]
        store = Store(scratch)
        artifact = Artifact.parse("image", image.config[7:23], "", files)
        Staging(store, [artifact], link=False, reserve=reserve).run(Fetcher([FromRegistry(self._source)]))
        _pack(draft, store, artifact, image)


def _pack(path: Path, store: Store, artifact: Artifact, image: Image) -> None:
    manifest = image.manifest
    layers = [_blob(each["digest"]) for each in manifest.data["layers"]]
    kind = manifest.data.get("mediaType") or OCI_MANIFEST
    entry: dict[str, Any] = {"mediaType": kind, "digest": manifest.digest, "size": len(manifest.body)}
    if image.listed:
        entry["annotations"] = {LIST: image.listed.digest}
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
    small = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _json(index),
        "manifest.json": _json([{"Config": _blob(image.config), "RepoTags": None, "Layers": layers}]),
        **{_blob(each.digest): each.body for each in (manifest, image.listed) if each},
    }
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, body in small.items():
            archive.addfile(_member(name, len(body)), io.BytesIO(body))
        for file in artifact.files:
            with store.blob(file).open("rb") as content:
                archive.addfile(_member(file.path, file.size), content)


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member


def _blob(digest: str) -> str:
    return f"blobs/sha256/{digest.partition(':')[2]}"


def _json(data: Any) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()
