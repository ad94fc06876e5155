# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""A file or a directory of the controller: `file:///path`. A directory is taken with all that is below it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.source_choice import is_hidden
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.base import (
    RemoteFile,
    Resolution,
    Source,
    guess_format,
    some,
    whatever,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.web import Request


class LocalSource(Source):
    """Files of this host. They are read where they lie, so their digests are left to who needs them."""

    def __init__(self, url, settings) -> None:
        super().__init__(url, settings)
        self.root = Path(url.path)

    def resolve(self) -> Resolution:
        try:
            found = self.root.stat()
        except OSError as error:
            raise self._error((error.strerror or str(error)).lower(), "put it there, or correct the source") from error
        if stat.S_ISDIR(found.st_mode):
            files, left_out = self._below(), self._is_hidden
            if not files:
                raise self._error("the directory holds no files", "put the model's files there")
        else:
            problem = _problem(self.root)
            if problem:
                raise self._error(problem, "make it a file that the user who locks can read")
            files, left_out = [RemoteFile(self.root.name, found.st_size, None)], whatever
        return Resolution(self.url.text, tuple(files), guess_format([file.path for file in files]), None, left_out)

    def locate(self, path: str, size: int | None = None, sha256: str | None = None) -> Request:
        target = self.root / path if self.root.is_dir() else self.root
        if not self._inside(target):
            raise self._error(f"{path} is a link that leads out of the source", "put the file itself there")
        return Request(f"file://{target}")

    def beside(self, name: str, resolution: Resolution) -> Request | None:
        place = self.root if self.root.is_dir() else self.root.parent
        return Request(f"file://{place / name}") if (place / name).exists() else None

    def _is_hidden(self, name: str) -> bool:
        return is_hidden(name) and (self.root / name).is_file()

    def _below(self) -> list[RemoteFile]:
        """All files below the directory; whatever cannot be taken is named, and all of it at once."""
        files, unreadable, odd = [], [], []
        for path, trouble in self._walk(self.root):
            name = str(path.relative_to(self.root))
            if trouble:
                unreadable.append(f"{name} ({trouble})")
            elif not name.isprintable():
                odd.append(repr(name))
            elif path.is_symlink() and (path.is_dir() or not self._inside(path)):
                odd.append(f"{name} (a link to {'a directory' if path.is_dir() else os.readlink(path)})")
            else:
                problem = _problem(path)
                if problem:
                    unreadable.append(f"{name} ({problem})")
                else:
                    files.append(RemoteFile(name, path.stat().st_size, None))
        if unreadable:
            raise self._error(f"cannot be read: {some(unreadable)}", "make them files that the user who locks can read")
        if odd:
            # Through a link, what is locked could change without a trace in this directory, or be anything of this host.
            raise self._error(f"not taken: {some(odd)}", "put the files themselves there (cp -RL), under plain names")
        return sorted(files, key=lambda file: file.path)

    def _walk(self, folder: Path) -> Iterator[tuple[Path, str]]:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            yield folder, (error.strerror or str(error)).lower()
            return
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(Path(entry.path))
            else:
                yield Path(entry.path), ""

    def _inside(self, path: Path) -> bool:
        root = os.path.realpath(self.root)
        return os.path.realpath(path) == root or os.path.realpath(path).startswith(root.rstrip("/") + "/")

    def _error(self, what: str, fix: str) -> ArtifactError:
        return ArtifactError(what, self.url.text, fix)


def _problem(path: Path) -> str:
    """Why a file cannot be read; empty where it can."""
    try:
        # Without O_NONBLOCK, a pipe would wait for its writer for ever.
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    try:
        return "" if stat.S_ISREG(os.fstat(number).st_mode) else "no regular file"
    finally:
        os.close(number)
