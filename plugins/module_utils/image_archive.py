# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What images a tar archive holds: what `docker save` writes, and `skopeo copy` to docker-archive: or oci-archive:.

Names inside are not believed. An image is known by the digest of its configuration, which names each layer by its
own digest; that is made of the bytes in the archive here, and Docker makes those of the layers when it loads them.

A manifest names the configuration, and a list for several platforms names manifests, each by digest. So an image may also be
asked for by the digest of either, as registries have it: where the archive holds those bytes, they prove what they lead to.
"""
from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import regular_files
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault

JSON_LIMIT = 16 * 2**20
DEPTH = 3  # a list of lists of manifests
_DIGEST = re.compile("sha256:([0-9a-f]{64})")
# Where an archive of this collection says which list for several platforms its image was named by; the list is in it, too.
LIST = "localfirst.llm_fleet.list"
MAKE_ANEW = "make it anew with `docker save`, or with `skopeo copy docker://… docker-archive:…`"


class ArchivedImage(NamedTuple):
    """An image in an archive: Docker's id, and the digest by which Docker knows it where containerd keeps its images.

    `digests` are those of all manifests and lists in the archive that lead to it. The platform is the configuration's word.
    """

    id: str
    manifest: str
    platform: str
    digests: tuple[str, ...]

    def proves(self, digest: str, platform: str) -> bool:
        """Whether this is what a registry has under a digest, for a platform."""
        return digest in self.digests and self.platform == platform


class BadArchive(Exception):
    """An archive that cannot be used, as a fault."""

    def __init__(self, what: str, path: Path) -> None:
        super().__init__(what)
        self.fault = Fault(what, str(path), MAKE_ANEW)


def read_archives(folders: Iterable[Path]) -> tuple[list[dict[str, Any]], list[Fault]]:
    """The archives in some folders, each with its images, and what is wrong with them."""
    archives, faults, paths = [], [], []
    for folder in folders:
        try:
            paths += sorted(path for path in folder.iterdir() if path.suffix == ".tar")
        except OSError as error:
            what = f"it cannot be read: {(error.strerror or str(error)).lower()}"
            faults.append(Fault(what, str(folder), "let the user who runs this read it, or take it out of llm_fleet_image_archives"))
    for path in paths:
        try:
            images = read_archive(path)
        except BadArchive as error:
            faults.append(error.fault)
        else:
            archives.append({"path": str(path), "images": [{**image._asdict(), "digests": list(image.digests)} for image in images]})
    return archives, faults


def read_archive(path: Path) -> list[ArchivedImage]:
    """The images of one archive."""
    try:
        with regular_files.open_file(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            found = _images(_Content(archive, path))
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:  # the last two for sizes that make no sense
        raise BadArchive(f"this is no tar archive, or only the beginning of one ({error})", path) from error
    except OSError as error:
        raise BadArchive(f"it cannot be read: {error.strerror or error}", path) from error
    if not found:
        raise BadArchive("there is no image in this archive", path)
    return found


class _Content:
    """Small files of an archive by their names."""

    def __init__(self, archive: tarfile.TarFile, path: Path) -> None:
        self.archive = archive
        self.path = path
        self.sound: set[str] = set()  # digests of contents that were found to be what their names say
        self.led: dict[tuple[Any, int], dict[str, dict[str, None]]] = {}  # what `_configs` has found
        self.members = {member.name[2:] if member.name.startswith("./") else member.name: member for member in archive.getmembers()}

    def bytes(self, name: str) -> bytes:
        member = self.members.get(name)
        if member is None or not member.isfile() or member.size > JSON_LIMIT:
            raise BadArchive(f"it lacks {name[:100]!r}, or has something else of that name", self.path)
        return self.archive.extractfile(member).read()

    def json(self, name: str, kind: type) -> Any:
        return self.parsed(self.bytes(name), name, kind)

    def blob(self, digest: Any) -> bytes:
        """The content with that digest."""
        found = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
        if found is None:
            raise BadArchive(f"it names a content by {str(digest)[:80]!r}, which is no sha256", self.path)
        body = self.bytes(f"blobs/sha256/{found[1]}")
        if _digest(body) != digest:
            raise BadArchive(f"the content {digest} is another one than its name says", self.path)
        self.sound.add(digest)
        return body

    def parsed(self, body: bytes, name: str, kind: type) -> Any:
        try:
            data = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise BadArchive(f"{name[:100]!r} is no JSON", self.path) from error
        if not isinstance(data, kind):
            raise BadArchive(f"{name[:100]!r} is not what such archives have there", self.path)
        return data


def _digest(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def _images(content: _Content) -> list[ArchivedImage]:
    """By either of the two tables of contents; newer archives have both."""
    found: dict[str, str] = {}
    proofs: dict[str, dict[str, None]] = {}
    configs: dict[str, bytes] = {}
    if "index.json" in content.members:
        entries = _entries(content.json("index.json", dict), "manifests")
        notes = [entry.get("annotations") for entry in entries]
        for digest in _once(entry.get("digest") for entry in entries):
            for identity, path in _configs(content, digest, DEPTH).items():
                found.setdefault(identity, digest)
                proofs.setdefault(identity, {}).update(path)
        for digest in _once(note[LIST] for note in notes if isinstance(note, dict) and LIST in note):
            for identity, path in _configs(content, digest, DEPTH).items():
                proofs.setdefault(identity, {}).update(path)
        configs = {identity: content.blob(identity) for identity in found}
    if "manifest.json" in content.members:
        names = [entry.get("Config") if isinstance(entry, dict) else None for entry in content.json("manifest.json", list)]
        if not all(isinstance(name, str) for name in names):
            raise BadArchive("'manifest.json' is not what such archives have there", content.path)
        for name in _once(names):
            body = content.bytes(name)
            configs[_digest(body)] = body
            found.setdefault(_digest(body), "")
    return [
        ArchivedImage(identity, manifest, _platform(configs[identity]), tuple(proofs.get(identity, ())))
        for identity, manifest in sorted(found.items())
    ]


def _platform(config: bytes) -> str:
    """What a configuration says that it is for; empty where it does not say so."""
    try:
        data = json.loads(config)
    except (ValueError, RecursionError):
        return ""
    words = [data.get("os"), data.get("architecture")] if isinstance(data, dict) else []
    return "/".join(words) if words and all(isinstance(word, str) and word for word in words) else ""


def _configs(content: _Content, digest: Any, depth: int) -> dict[str, dict[str, None]]:
    """The digests of the configurations that a manifest, or a list of manifests, leads to, each with the digests on the way.

    Each is looked at once, however often lists name it: otherwise a small archive could keep its reader busy for hours.
    """
    known = content.led.get((digest, depth)) if isinstance(digest, str) else None
    if known is None:
        known = content.led[digest, depth] = _look(content, digest, depth)
    return known


def _look(content: _Content, digest: Any, depth: int) -> dict[str, dict[str, None]]:
    manifest = content.parsed(content.blob(digest), str(digest), dict)
    found: dict[str, dict[str, None]] = {}
    if "manifests" in manifest:
        for each in _once(str(entry.get("digest")) for entry in _entries(manifest, "manifests")) if depth else ():
            # Of an image for several platforms an archive may hold one.
            if f"blobs/{each.replace(':', '/')}" in content.members:
                for identity, path in _configs(content, each, depth - 1).items():
                    found.setdefault(identity, {digest: None}).update(path)
        return found
    config = manifest.get("config")
    if isinstance(config, dict) and "image" in str(config.get("mediaType")):
        identity = config.get("digest")
        if not isinstance(identity, str) or identity not in content.sound:
            content.blob(identity)
        found[identity] = {digest: None}
    return found


def _once(values: Iterable[Any]) -> Iterator[Any]:
    """The same, each text once; the first comes first."""
    seen = set()
    for value in values:
        if not isinstance(value, str) or value not in seen:
            yield value
        if isinstance(value, str):
            seen.add(value)


def _entries(data: dict, key: str) -> list[dict]:
    listed = data.get(key)
    return [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
