# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The files of one model version, as the lockfile names them, and what can be wrong with them.

An artifact says what its files are; where their bytes come from is the business of origins. Everything that
arrives here decides where files are written and read, so nothing is taken on trust: a name that could lead
out of the store is refused before any file is touched.
"""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,62}")
DIGEST = re.compile(r"[0-9a-f]{64}")
LARGEST_CONTENT = 64 * 1024  # bytes of a file that travels inside the lockfile
FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\]")
LOCKFILE_FIX = "correct the entry in models.lock.yml"
CHANGED_FIX = (
    "find out who changed the file; if the change is meant, lock it as a new version. Nothing of the file was kept"
)

OS_ERROR_FIXES = {
    errno.ENOSPC: "free some space on that file system, then run again",
    errno.EDQUOT: "raise the quota or free some space, then run again",
    errno.EACCES: "run as root (become: true)",
    errno.EPERM: "run as root (become: true)",
    errno.EROFS: "mount that file system writable",
    errno.EXDEV: "keep the whole store on one file system: its trees are hard links",
}


class ArtifactError(Exception):
    """A fault that ends the work, with what a module returns beside the message."""

    def __init__(self, what: str, where: str, fix: str, **details) -> None:
        self.fault = Fault(what, where, fix)
        self.details = details
        super().__init__(self.fault.text())

    @classmethod
    def from_os_error(cls, error: OSError, where: object) -> ArtifactError:
        """The same error, with what to do about it."""
        fix = OS_ERROR_FIXES.get(error.errno or 0, "look at that path on the host")
        return HostError((error.strerror or str(error)).lower(), str(error.filename or where), fix)


class HostError(ArtifactError):
    """A fault of this host, a full disk for example: trying another place or another file would not help."""


@dataclass(frozen=True)
class File:
    """One file of an artifact: its path in the tree, its size in bytes and its digest.

    `origin` is its path at the source, where that differs; `content` is all of it, where the lockfile has that.
    """

    path: str
    size: int
    sha256: str
    origin: str = ""
    content: str | None = None

    def __post_init__(self) -> None:
        if not self.origin:
            object.__setattr__(self, "origin", self.path)

    def as_dict(self) -> dict:
        return {"path": self.path, "size": self.size, "sha256": self.sha256}

    def wrong_digest(self, actual: str, where: object) -> ArtifactError:
        return ArtifactError(
            f"{self.path} has the wrong digest: expected sha256:{self.sha256}, actual sha256:{actual}",
            str(where),
            CHANGED_FIX,
            file=self.path,
            expected=self.sha256,
            actual=actual,
        )

    def wrong_size(self, actual: object, where: object) -> ArtifactError:
        return ArtifactError(
            f"{self.path} has the wrong size: expected {self.size} bytes, actual {actual} bytes",
            str(where),
            CHANGED_FIX,
            file=self.path,
            expected=self.sha256,
        )


@dataclass(frozen=True)
class Artifact:
    """One model version: which files it has, and the source that the lockfile names for them."""

    model: str
    version: str
    source: str = ""
    files: tuple[File, ...] = ()

    @classmethod
    def parse(cls, model: str, version: str, source: str = "", files: Iterable[dict] = ()) -> Artifact:
        """Take an entry of the lockfile; raise ArtifactError for the first thing that is wrong with it."""
        where = f"{model} {version}"
        for kind, name in (("model", model), ("version", version)):
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise ArtifactError(f"{kind} '{name}' is no name for a directory", where, LOCKFILE_FIX)
        parsed = tuple(sorted((_parse_file(entry, where) for entry in files), key=lambda file: file.path))
        _refuse_overlap(parsed, where)
        return cls(model, version, source, parsed)

    @property
    def title(self) -> str:
        return f"{self.model} {self.version}"

    @property
    def contents(self) -> list[File]:
        """The files, each content once: two paths may hold the same bytes."""
        return list({file.sha256: file for file in reversed(self.files)}.values())[::-1]


def _parse_file(entry: dict, where: str) -> File:
    path, size, digest = str(entry.get("path") or ""), entry.get("size"), str(entry.get("sha256") or "")
    origin, content = str(entry.get("from") or path), entry.get("content")
    for name in (path, origin):
        segments = name.split("/")
        if FORBIDDEN.search(name) or any(part in ("", ".", "..") or len(part.encode()) > 255 for part in segments):
            raise ArtifactError(f"file path {name!r} is not a plain relative path", where, LOCKFILE_FIX)
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ArtifactError(f"{path}: size {size!r} is not a number of bytes", where, LOCKFILE_FIX)
    if not DIGEST.fullmatch(digest):
        raise ArtifactError(f"{path}: sha256 {digest!r} is not 64 lower-case hexadecimal digits", where, LOCKFILE_FIX)
    if content is not None:
        _check_content(path, size, digest, content, where)
    return File(path, size, digest, origin, content)


def _check_content(path: str, size: int, digest: str, content: object, where: str) -> None:
    data = content.encode() if isinstance(content, str) else b""
    if len(data) != size or hashlib.sha256(data).hexdigest() != digest or size > LARGEST_CONTENT:
        raise ArtifactError(f"{path}: its content in the lockfile is not what its size and sha256 say", where, LOCKFILE_FIX)


def _refuse_overlap(files: tuple[File, ...], where: str) -> None:
    seen: dict[str, File] = {}
    sizes: dict[str, int] = {}
    for file in files:
        if file.path in seen:
            raise ArtifactError(f"file path '{file.path}' appears twice", where, LOCKFILE_FIX)
        if sizes.setdefault(file.sha256, file.size) != file.size:
            raise ArtifactError(f"{file.path}: the same sha256 appears with another size", where, LOCKFILE_FIX)
        seen[file.path] = file
    for file in files:
        for parent in PurePosixPath(file.path).parents:
            if str(parent) in seen:
                raise ArtifactError(f"'{parent}' is both a file and a directory", where, LOCKFILE_FIX)


def human(size: int) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.1f} {unit}" if unit != "bytes" else f"{int(size)} bytes"
        size /= 1024
    return f"{size:.1f} TiB"
