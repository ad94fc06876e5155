# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Files and directories of the store: whose they are, what they hold, and that they are on the disk."""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError

CHUNK = 1 << 20
DIRECTORY_MODE = 0o750
FILE_MODE = 0o440


class Ownership:
    """Who owns the store. None leaves it to whoever runs this."""

    def __init__(self, owner: str | None, group: str | None) -> None:
        self.owner = owner
        self.group = group

    def ids(self, strict: bool = True) -> tuple[int, int]:
        """Numbers of owner and group; -1 stands for "as it is"."""
        try:
            user = pwd.getpwnam(self.owner).pw_uid if self.owner else -1
            group = grp.getgrnam(self.group).gr_gid if self.group else -1
        except KeyError as error:
            if strict:
                raise ArtifactError(
                    f"there is no owner '{self.owner}' or no group '{self.group}'",
                    "this host",
                    "create them first, as the role model_store does",
                ) from error
            # In check mode on a bare host nobody has created them yet.
            return -1, -1
        return user, group

    def give(self, path: Path, mode: int) -> None:
        os.chown(path, *self.ids())
        os.chmod(path, mode)

    def differs(self, path: Path, mode: int) -> bool:
        status = path.lstat()
        user, group = self.ids(strict=False)
        return (
            stat.S_IMODE(status.st_mode) != mode
            or (user != -1 and status.st_uid != user)
            or (group != -1 and status.st_gid != group)
        )

    def make_directory(self, path: Path, mode: int = DIRECTORY_MODE) -> None:
        if not path.is_dir():
            path.mkdir(parents=True, exist_ok=True)  # another run may be making it, too
            self.give(path, mode)

    def make_parents(self, tree: Path, path: str) -> None:
        """Make the directories between `tree` and the file at `path` in it."""
        for parent in reversed(list(Path(path).parents)[:-1]):
            self.make_directory(tree / parent)


def digest_of(path: Path) -> str:
    """The sha256 of a regular file, read once."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK))
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb", buffering=0) as handle:
        while count := handle.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def files_below(tree: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Everything in a tree that is no directory, by its relative path."""
    for folder, folders, files in os.walk(tree):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in (*files, *links):
            path = Path(folder, name)
            yield str(path.relative_to(tree)), path.lstat()


def directories_below(tree: Path) -> list[Path]:
    """Every directory in a tree, the deepest first."""
    return sorted((path for path in tree.rglob("*") if path.is_dir() and not path.is_symlink()), reverse=True)


def same_file(status: os.stat_result, path: Path) -> bool:
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    return (status.st_ino, status.st_dev) == (there.st_ino, there.st_dev)


def to_disk(path: Path) -> None:
    """Wait until a file's contents, or a directory's names, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
