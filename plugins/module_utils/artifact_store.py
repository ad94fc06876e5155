# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""A host's content-addressed store: each content once, and a tree of hard links for each model version.

    blobs/sha256/<hex>               verified contents, named by what they are
    incoming/<hex>                   contents that somebody brought here, not yet verified
    incoming/<hex>.part              contents that are on their way
    models/<model>/<version>/<path>  hard links to blobs; all of a version or nothing

A name in `blobs` is a promise, so a file gets there by one rename after its digest was checked. A version
never changes what it holds: other contents under the same version are refused.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import Artifact, ArtifactError, File, human
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_fetch import Fetcher
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_files import (
    DIRECTORY_MODE,
    FILE_MODE,
    Ownership,
    digest_of,
    directories_below,
    files_below,
    same_file,
    to_disk,
)

# What is wrong with the file itself; any other error is about this run and says nothing of the file.
DAMAGE = (errno.EIO, errno.ELOOP, errno.EISDIR)


@dataclass
class Survey:
    """What is there of an artifact, and what has to be done about the rest; found without changing anything."""

    path: str
    missing: list[File] = field(default_factory=list)  # neither in blobs nor in incoming
    brought: list[File] = field(default_factory=list)  # in incoming, to be verified
    spare: list[Path] = field(default_factory=list)  # in incoming, and in the store already
    to_link: list[str] = field(default_factory=list)  # paths of the tree that are not what they should be
    to_drop: list[str] = field(default_factory=list)  # paths of the tree that nobody asked for
    to_own: list[Path] = field(default_factory=list)  # files and directories with the wrong owner or mode
    actions: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    bytes_missing: int = 0
    bytes_moved: int = 0

    @property
    def diff(self) -> dict:
        texts = {"before": self.before, "after": self.after}
        return {name: "".join(f"{line}\n" for line in lines) for name, lines in texts.items()}


class Store:
    """The store below one directory."""

    def __init__(self, root: str | Path, owner: str | None = None, group: str | None = None) -> None:
        self.root = Path(root)
        self.blobs = self.root / "blobs" / "sha256"
        self.incoming = self.root / "incoming"
        self.models = self.root / "models"
        self.ownership = Ownership(owner, group)

    def blob(self, file: File) -> Path:
        return self.blobs / file.sha256

    def part(self, file: File) -> Path:
        return self.incoming / f"{file.sha256}.part"

    def tree(self, artifact: Artifact) -> Path:
        return self.models / artifact.model / artifact.version

    @contextlib.contextmanager
    def locked(self, timeout: float) -> Iterator[None]:
        """One run at a time: a second one waits, and then finds the work done."""
        self.ownership.make_directory(self.root)
        with open(self.root / ".lock", "a", encoding="ascii") as handle:
            deadline = time.monotonic() + timeout
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise ArtifactError(
                            f"another run still works on this store after {timeout:g} seconds",
                            str(self.root),
                            "wait for it to end, or raise lock_timeout",
                        ) from None
                    time.sleep(0.1)
            yield

    # Looking

    def survey(self, artifact: Artifact) -> Survey:
        """Compare the store with what the artifact needs."""
        found = Survey(str(self.tree(artifact)))
        for file in artifact.contents:
            self._survey_content(artifact, file, found)
        self._survey_tree(artifact, found)
        return found

    def _survey_content(self, artifact: Artifact, file: File, found: Survey) -> None:
        blob, brought, part = self.blob(file), self.incoming / file.sha256, self.part(file)
        if blob.is_file() and blob.stat().st_size == file.size:
            if brought.is_file():
                found.spare.append(brought)
                found.actions.append(f"remove {brought}, which the store has already")
            return
        again = " again, because what the store has is damaged" if blob.is_file() else ""
        if brought.is_file():
            found.brought.append(file)
            found.bytes_moved += file.size
            found.actions.append(f"take {file.path} ({human(file.size)}) from {brought}{again}")
            return
        arrived = part.stat().st_size if part.is_file() else 0
        rest = file.size - arrived if arrived <= file.size else file.size
        verb = "continue" if rest < file.size else "copy" if artifact.local else "fetch"
        found.missing.append(file)
        found.bytes_missing += rest
        found.bytes_moved += rest
        found.actions.append(f"{verb} {file.path} ({human(rest)}) from {artifact.origin(file)}{again}")

    def _survey_tree(self, artifact: Artifact, found: Survey) -> None:
        tree, wanted = self.tree(artifact), {file.path: file for file in artifact.files}
        present = dict(files_below(tree))
        absent = {file.sha256 for file in (*found.missing, *found.brought)}
        for path, file in wanted.items():
            if path not in present or file.sha256 in absent or not same_file(present[path], self.blob(file)):
                found.to_link.append(path)
        found.to_drop = sorted(set(present) - set(wanted))
        complete = not found.to_link and not found.to_drop
        names = {} if complete else self._names()
        for path, status in sorted(present.items()):
            digest = wanted[path].sha256 if complete else names.get(status.st_ino)
            if digest is not None and (path not in wanted or digest != wanted[path].sha256):
                raise self._other_contents(artifact, path, digest, wanted.get(path))
            found.before.append(_line(path, status.st_size, digest))
        found.after = [_line(file.path, file.size, file.sha256) for file in artifact.files]
        kept = [tree / path for path in present if path not in (*found.to_link, *found.to_drop)]
        folders = sorted({tree / parent for path in wanted for parent in Path(path).parents})
        found.to_own = [path for path in kept if self.ownership.differs(path, FILE_MODE)]
        found.to_own += [path for path in folders if path.is_dir() and self.ownership.differs(path, DIRECTORY_MODE)]
        if found.to_link:
            found.actions.append(f"link into {tree}: {', '.join(found.to_link)}")
        found.actions += [f"remove {tree / path}, which is no part of {artifact.title}" for path in found.to_drop]
        found.actions += [f"correct owner and mode of {path}" for path in found.to_own]

    def _other_contents(self, artifact: Artifact, path: str, digest: str, file: File | None) -> ArtifactError:
        wanted = f"with sha256:{file.sha256}" if file else "not at all"
        return ArtifactError(
            f"{artifact.title} is here already with other contents: {path} has sha256:{digest}, and the lockfile wants it {wanted}",
            str(self.tree(artifact)),
            "a version never changes what it holds: lock the new contents as a new version, or remove this one first (state: absent)",
            file=path,
            actual=digest,
        )

    def check_space(self, artifact: Artifact, found: Survey, reserve: int) -> None:
        """Refuse before the first byte what cannot fit."""
        if not found.bytes_missing:
            return
        place = self.root
        while not place.exists():
            place = place.parent
        usage = os.statvfs(place)
        free = usage.f_bavail * usage.f_frsize
        if free - found.bytes_missing < reserve:
            raise ArtifactError(
                f"{artifact.title} needs {human(found.bytes_missing)} and {human(reserve)} have to stay free, "
                f"but the file system of {place} has only {human(free)} left",
                str(self.root),
                f"free {human(found.bytes_missing + reserve - free)} there, or put the store on a larger disk",
                needed=found.bytes_missing,
                free=free,
            )

    # Bringing

    def place(self, artifact: Artifact, found: Survey, fetcher: Fetcher) -> None:
        """Do what `survey` found. The tree appears last, and as a whole."""
        for folder in (self.blobs.parent, self.blobs, self.models):
            self.ownership.make_directory(folder)
        self.ownership.make_directory(self.incoming, 0o700)
        for path in found.spare:
            path.unlink()
        for file in found.brought:
            self._take(artifact, file)
        found.bytes_moved -= found.bytes_missing
        for file in found.missing:
            if artifact.local:
                raise self._not_brought(artifact, file)
            found.bytes_moved += fetcher.fetch(artifact.origin(file), self.part(file), file)
            self._adopt(self.part(file), file)
        if self.tree(artifact).is_dir():
            self._repair(artifact, found)
        else:
            self._build(artifact)

    def _not_brought(self, artifact: Artifact, file: File) -> ArtifactError:
        return ArtifactError(
            f"{file.path} is on the controller ({artifact.origin(file)}), and nobody brought it here",
            str(self.incoming / file.sha256),
            "copy it to that path first, as the role model_store does",
            file=file.path,
        )

    def _take(self, artifact: Artifact, file: File) -> None:
        brought = self.incoming / file.sha256
        self._forget(self.part(file))
        actual = digest_of(brought)
        if actual != file.sha256:
            brought.unlink()
            raise file.wrong_digest(actual, artifact.origin(file) if artifact.local else brought)
        self._adopt(brought, file)

    def _adopt(self, path: Path, file: File) -> None:
        """Give verified contents their name. From here on everybody may rely on them."""
        self.ownership.give(path, FILE_MODE)
        to_disk(path)
        os.replace(path, self.blob(file))
        to_disk(self.blobs)

    def _build(self, artifact: Artifact) -> None:
        tree = self.tree(artifact)
        self.ownership.make_directory(tree.parent)
        _sweep(tree.parent)
        draft = tree.with_name(f".{tree.name}.new")
        self.ownership.make_directory(draft)
        for file in artifact.files:
            self.ownership.make_parents(draft, file.path)
            os.link(self.blob(file), draft / file.path)
        for folder in (*directories_below(draft), draft):
            to_disk(folder)
        os.rename(draft, tree)
        to_disk(tree.parent)

    def _repair(self, artifact: Artifact, found: Survey) -> None:
        """Mend a tree file by file: engines have its directory mounted, so it cannot be replaced as a whole."""
        tree, contents = self.tree(artifact), {file.path: file for file in artifact.files}
        for path in found.to_drop:
            (tree / path).unlink()
            _remove_empty((tree / path).parent, tree)
        for path in found.to_link:
            self.ownership.make_parents(tree, path)
            link = self.incoming / f"{contents[path].sha256}.link"
            link.unlink(missing_ok=True)
            os.link(self.blob(contents[path]), link)
            os.replace(link, tree / path)
        for path in found.to_own:
            if path.exists():
                self.ownership.give(path, DIRECTORY_MODE if path.is_dir() else FILE_MODE)

    # Verifying

    def verify(self, artifact: Artifact, set_aside: bool) -> list[dict]:
        """Read every file again and return the damaged ones.

        With `set_aside`, damaged contents lose their name in `blobs`, so that the next run brings them again.
        """
        tree, damaged, digests = self.tree(artifact), {}, {}
        for file in artifact.files:
            for path in (tree / file.path, self.blob(file)):
                actual = _read_again(path, digests)
                if actual != file.sha256:
                    damaged.setdefault(file.path, {"path": file.path, "expected": file.sha256, "actual": actual})
                    if set_aside and path == self.blob(file):
                        path.unlink(missing_ok=True)
        wanted = {file.path for file in artifact.files}
        for path, _status in files_below(tree):
            if path not in wanted:
                damaged[path] = {"path": path, "expected": "no such file", "actual": "present"}
        return [damaged[path] for path in sorted(damaged)]

    # Removing

    def survey_removal(self, artifact: Artifact) -> Survey:
        tree, names = self.tree(artifact), self._names()
        found = Survey(str(tree))
        present = dict(files_below(tree))
        for path, status in sorted(present.items()):
            found.before.append(_line(path, status.st_size, names.get(status.st_ino)))
        if tree.is_dir():
            found.actions.append(f"remove {tree}")
        found.actions += [f"remove {path}, which an interrupted run left" for path in self._unfinished()]
        leaving = [status.st_ino for status in present.values()]
        for inode, digest in sorted(names.items(), key=lambda item: item[1]):
            status = (self.blobs / digest).stat()
            if status.st_nlink - leaving.count(inode) == 1:
                found.actions.append(f"remove {self.blobs / digest} ({human(status.st_size)}), which no tree needs")
        return found

    def remove(self, artifact: Artifact) -> None:
        """Take a tree away, and then the contents that no other tree links to."""
        tree = self.tree(artifact)
        if tree.is_dir():
            # It goes at once, so that nobody ever sees half of it.
            os.rename(tree, tree.with_name(f".{tree.name}.old"))
        if tree.parent.is_dir():
            _sweep(tree.parent)
            _remove_empty(tree.parent, self.models)
        for path in self._unfinished():
            self._forget(path)
        for digest in self._names().values():
            if (self.blobs / digest).stat().st_nlink == 1:
                (self.blobs / digest).unlink()

    def _unfinished(self) -> list[Path]:
        """What interrupted runs left in incoming. Files that somebody brought are not ours to judge."""
        return sorted(path for path in self.incoming.glob("*") if path.suffix in (".part", ".link"))

    @staticmethod
    def _forget(path: Path) -> None:
        path.unlink(missing_ok=True)
        path.with_suffix(".validator").unlink(missing_ok=True)

    def _names(self) -> dict[int, str]:
        """The digest of each content of the store, by inode."""
        return {entry.inode(): entry.name for entry in os.scandir(self.blobs)} if self.blobs.is_dir() else {}


def _line(path: str, size: int, digest: str | None) -> str:
    return f"{path} {size} sha256:{digest or 'unknown'}"


def _read_again(path: Path, digests: dict[int, str]) -> str:
    try:
        inode = path.lstat().st_ino
        if inode not in digests:
            digests[inode] = digest_of(path)
        return digests[inode]
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        if error.errno not in DAMAGE:
            raise
        return f"unreadable ({error.strerror})"


def _sweep(folder: Path) -> None:
    """Remove what an interrupted run left; the name of a version never begins with a dot."""
    for entry in folder.glob(".*"):
        shutil.rmtree(entry)


def _remove_empty(folder: Path, top: Path) -> None:
    """Remove a directory and those above it, up to `top`, as long as they are empty."""
    with contextlib.suppress(OSError):
        while folder != top:
            folder.rmdir()
            folder = folder.parent
