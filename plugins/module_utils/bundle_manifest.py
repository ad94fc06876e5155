# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What a bundle holds: its manifest, read as strictly as something has to be that comes from outside. Pure: no I/O.

A bundle is one directory, which carries what a fleet needs across an air gap:

    manifest.json               every file by size and sha256, and what the files are for
    manifest.json.sig           who vouches for it: OpenSSF Model Signing, of this one file
    models.lock.yml             the lockfile that it was made by
    artifacts/blobs/sha256/     files of models, by digest
    images/                     images of engines and exporters, as archives
    packages/<distribution>/    packages for hosts, and the index by which apt reads them
    wheels/, collections/       Ansible for a controller, and what playbooks need

A file of `earlier` is part of what the bundle is for and is not in it: an earlier bundle had it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import whole_files, words
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.schema import (
    Check,
    list_of,
    one_of,
    optional,
    record,
    repeated,
    required,
    show,
    text,
    whole,
    wrong,
)

MANIFEST = "manifest.json"
SIGNATURE = f"{MANIFEST}.sig"
LOCKFILE = "models.lock.yml"
BLOBS = "artifacts/blobs/sha256"
FORMAT = 1
LARGEST = 64 * 2**20  # bytes of a manifest: some hundred thousand files
LONGEST_NAME = 255  # bytes that file systems take
LONGEST_PATH = 1024  # bytes; the system takes 4096, of which the directory that it is in has a part
KINDS = {
    "artifacts": "artifact", "images": "image", "packages": "package", "wheels": "wheel", "collections": "collection",
    LOCKFILE: "lockfile",
}
COPY_AGAIN = "copy the bundle again from where it was written"


class Entry(NamedTuple):
    """One file of a bundle."""

    path: str
    size: int
    sha256: str

    @property
    def kind(self) -> str:
        return KINDS[self.path.partition("/")[0]]

    def as_dict(self) -> dict[str, Any]:
        return {**self._asdict(), "kind": self.kind}


class Manifest(NamedTuple):
    """A manifest that was found sound."""

    created: str
    tool: str
    base: str  # the digest of the manifest that this bundle goes on from; empty where it is whole
    models: list[dict]
    images: list[dict]
    distributions: list[str]
    files: list[Entry]
    earlier: list[Entry]

    def entries(self) -> dict[str, Entry]:
        """All that the bundle is for, by path, whether it is in it or not."""
        return {entry.path: entry for entry in (*self.files, *self.earlier)}


def blob_path(sha256: str) -> str:
    return f"{BLOBS}/{sha256}"


def render_manifest(manifest: Manifest) -> bytes:
    """The file's bytes: the same for the same content."""
    data = {
        "format": FORMAT,
        **manifest._asdict(),
        "files": [entry.as_dict() for entry in sorted(manifest.files)],
        "earlier": [entry.as_dict() for entry in sorted(manifest.earlier)],
    }
    return f"{json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False)}\n".encode()


def parse_manifest(data: bytes, name: str) -> tuple[Manifest | None, list[Fault]]:
    """The manifest, or what is wrong with it; `name` is the file's name for messages."""
    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        return None, [Fault(f"this is no manifest of a bundle: {error}", name, COPY_AGAIN)]
    form = found.get("format") if isinstance(found, dict) else None
    if form is not None and form != FORMAT:
        advice = f"this release of the collection reads format {FORMAT}: use the one that wrote it"
        return None, [Fault(f"the format {str(form)[:20]} is unknown", f"{name}: format", advice)]
    faults: list[Fault] = []
    clean = _MANIFEST(found, f"{name}:", faults)
    if faults:
        return None, [fault if fault.fix == COPY_AGAIN else fault._replace(fix=f"{fault.fix}; or {COPY_AGAIN}") for fault in faults]
    files, earlier = ([Entry(each["path"], each["size"], each["sha256"]) for each in clean[key]] for key in ("files", "earlier"))
    for path in repeated(entry.path for entry in (*files, *earlier)):
        faults.append(Fault(f"{path} is there twice", f"{name}: files", COPY_AGAIN))
    keys = ("created", "tool", "base", "models", "images", "distributions")
    return (None if faults else Manifest(**{key: clean[key] for key in keys}, files=files, earlier=earlier)), faults


def left_out(wanted: Iterable[str], here: Iterable[str], base: Manifest | None) -> tuple[list[Entry], list[str]]:
    """Of the paths that a bundle is for, those that only an earlier one has, and those that nobody has."""
    known, there = base.entries() if base else {}, set(here)
    absent = sorted(set(wanted) - there)
    return [known[path] for path in absent if path in known], [path for path in absent if path not in known]


def lacking(manifest: Manifest, known: dict[str, Entry]) -> list[Entry]:
    """What an incremental bundle counts on and no earlier import has brought."""
    return [entry for entry in manifest.earlier if known.get(entry.path, (None, None, None))[1:] != entry[1:]]


def _once(pairs: list[tuple[str, Any]]) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _file(value: Any, where: str, faults: list[Fault]) -> dict | None:
    """One file. Its path leads to a place that a bundle has, and an artifact's name is its digest."""
    mine: list[Fault] = []
    found = _FILE(value, where, mine)
    if not mine:
        top, inside = found["path"].partition("/")[::2]
        if KINDS.get(top) != found["kind"] or bool(inside) != (top != LOCKFILE):
            wrong(mine, f"{found['path']!r} is no place for a file of the kind {found['kind']}", f"{where}.path", COPY_AGAIN)
        elif found["kind"] == "artifact" and found["path"] != blob_path(found["sha256"]):
            wrong(mine, f"{found['path']!r} is not named by its digest", f"{where}.path", COPY_AGAIN)
    faults += mine
    return None if mine else found


_SEGMENT = r"(?!\.{1,2}(?:/|\Z))[^/\\\x00-\x1f\x7f\ud800-\udfff]+"
_PLAIN = text(rf"{_SEGMENT}(?:/{_SEGMENT})*", "a path inside the bundle", "a relative one without '..' and empty parts")


def _path(longest: int) -> Check:
    """A path that has room on a disk: there bytes count, and not letters. `longest` is how many a name may have."""

    def check(value: Any, where: str, faults: list[Fault]) -> str | None:
        found = _PLAIN(value, where, faults)
        if found is not None and (len(found.encode()) > LONGEST_PATH or max(len(part.encode()) for part in found.split("/")) > longest):
            what = f"{show(found)} is too long: a name has at most {longest} bytes, and a path {LONGEST_PATH}"
            return wrong(faults, what, where, "shorten it")
        return found

    return check


_PATH = _path(LONGEST_NAME - len(f"{whole_files.BEFORE}{whole_files.AFTER}"))  # a draft of it has room, too


# A name of a directory: it becomes one on the other side.
DISTRIBUTION = text(r"[a-z][a-z0-9]*-[0-9][0-9.]*-[a-z0-9]+", "a distribution", "its name, version and architecture: debian-12-amd64")

_FILE = record({
    "path": required(_PATH),
    "size": required(whole(0)),
    "sha256": required(words.SHA256),
    "kind": required(one_of(*sorted(set(KINDS.values())))),
})
_CONTENT = record({"path": required(_path(LONGEST_NAME)), "size": required(whole(0)), "sha256": required(words.SHA256)})
_MODEL = record({
    "model": required(words.MODEL_NAME),
    "version": required(words.VERSION),
    "source": required(text()),
    "files": required(list_of(_CONTENT, least=1)),
})
_IMAGE = record({
    "image": required(text()),
    "platform": required(text(r"[a-z0-9]+/[a-z0-9]+", "a platform", "linux/amd64")),
    "id": required(words.IMAGE_DIGEST),
    "path": required(_PATH),
})
_MANIFEST = record({
    "format": required(whole(1)),
    "created": required(text()),
    "tool": required(text()),
    "base": optional(text("(?:sha256:[0-9a-f]{64})?", "the digest of a manifest", "sha256: and 64 digits"), default=""),
    "models": required(list_of(_MODEL)),
    "images": required(list_of(_IMAGE)),
    "distributions": required(list_of(DISTRIBUTION)),
    "files": required(list_of(_file)),
    "earlier": required(list_of(_file)),
})
