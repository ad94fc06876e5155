# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Installed collections as archives that ansible-galaxy installs without a network, with all that they depend on.

A collection that came with a Python package has lost some of its files (tests, mostly), so what it says of itself is made anew of what is
there; a checkout is packed as `ansible-galaxy collection build` does it. The same collection always gives the same bytes.
"""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.strict_yaml import load_yaml

ABOUT, FILES, SOURCE = "MANIFEST.json", "FILES.json", "galaxy.yml"
INFO = (
    "namespace", "name", "version", "authors", "readme", "tags", "description", "license", "license_file", "dependencies", "repository",
    "documentation", "homepage", "issues",
)
_NAME = re.compile(r"[a-z_][a-z0-9_]*\.[a-z_][a-z0-9_]*")
_LEFT_OUT = {".git", ".github", "__pycache__", ABOUT, FILES, SOURCE}
INSTALL = "install it on this controller (ansible-galaxy collection install {name}), and write the bundle again"


class Collections:
    """The collections below some directories, the first that has one counts, as it does for Ansible."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = [path / "ansible_collections" for path in paths]

    def folder(self, name: str) -> Path:
        """Where a collection is."""
        if not _NAME.fullmatch(name):
            raise ArtifactError(f"'{name}' is no name of a collection", "collections", "write namespace.name")
        for path in self.paths:
            folder = path / name.replace(".", "/")
            if (folder / ABOUT).is_file() or (folder / SOURCE).is_file():
                return folder
        looked = ", ".join(map(str, self.paths))
        raise ArtifactError(f"the collection {name} is not installed (looked in {looked})", "this controller", INSTALL.format(name=name))

    def about(self, name: str) -> dict[str, Any]:
        """What a collection says of itself."""
        folder = self.folder(name)
        file = folder / ABOUT if (folder / ABOUT).is_file() else folder / SOURCE
        text = file.read_text(encoding="utf-8")
        try:
            about = json.loads(text) if file.name == ABOUT else _of_source(text, str(file))
            about["collection_info"]["version"].strip()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"this does not describe a collection: {error}", str(file), INSTALL.format(name=name)) from None
        return about

    def closure(self, names: Iterable[str]) -> list[str]:
        """These collections and all that they depend on."""
        found: dict[str, None] = {}
        left = list(names)
        while left:
            name = left.pop()
            if name not in found:
                found[name] = None
                left += self.about(name)["collection_info"].get("dependencies") or {}
        return sorted(found)

    def archive_name(self, name: str) -> str:
        return f"{name.replace('.', '-')}-{self.about(name)['collection_info']['version']}.tar.gz"

    def pack(self, name: str) -> bytes:
        """The archive's bytes."""
        folder, about = self.folder(name), self.about(name)
        files = _files(folder, about.pop("build_ignore", []))
        top = {"name": ".", "ftype": "dir", "chksum_type": None, "chksum_sha256": None, "format": 1}
        listing = _json({"files": [top, *files], "format": 1})
        about["file_manifest_file"] = {
            "name": FILES, "ftype": "file", "chksum_type": "sha256", "chksum_sha256": hashlib.sha256(listing).hexdigest(), "format": 1,
        }
        packed = io.BytesIO()
        with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as stream, tarfile.open(fileobj=stream, mode="w") as archive:
            for name_in, body in ((ABOUT, _json(about)), (FILES, listing)):
                archive.addfile(_member(name_in, len(body), 0o644), io.BytesIO(body))
            for file in files:
                path = folder / file["name"]
                if file["ftype"] == "dir":
                    member = _member(file["name"], 0, 0o755)
                    member.type = tarfile.DIRTYPE
                    archive.addfile(member)
                else:
                    body = path.read_bytes()
                    archive.addfile(_member(file["name"], len(body), 0o755 if os.access(path, os.X_OK) else 0o644), io.BytesIO(body))
        return packed.getvalue()


def _of_source(text: str, name: str) -> dict[str, Any]:
    data, faults = load_yaml(text, name)
    if faults:
        raise ArtifactError(*faults[0])
    info = {key: data.get(key) for key in INFO}
    info["dependencies"] = info["dependencies"] or {}
    return {"collection_info": info, "build_ignore": data.get("build_ignore") or [], "format": 1}


def _walk(folder: Path, top: Path, ignored: list[str]) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        inside = str(path.relative_to(top))
        if path.name in _LEFT_OUT or path.suffix == ".pyc" or any(fnmatch.fnmatch(inside, pattern) for pattern in ignored):
            continue
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path, top, ignored)


def _files(folder: Path, ignored: list[str]) -> list[dict[str, Any]]:
    found = []
    for path in _walk(folder, folder, ignored):
        inside = path.relative_to(folder)
        entry = {"name": str(inside), "ftype": "dir" if path.is_dir() else "file", "chksum_type": None, "chksum_sha256": None, "format": 1}
        if path.is_file():
            entry |= {"chksum_type": "sha256", "chksum_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        if path.is_file() or path.is_dir():
            found.append(entry)
    return found


def _member(name: str, size: int, mode: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, mode
    return member


def _json(data: Any) -> bytes:
    return f"{json.dumps(data, indent=1)}\n".encode()
