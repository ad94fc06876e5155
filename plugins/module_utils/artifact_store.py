# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""A host's content-addressed store: each content once, and a tree of hard links for each model version.

    blobs/sha256/<hex>               verified contents, named by what they are
    verified/<hex>                   when a content was last read and found right, and how its file looked then
    incoming/<hex>.part              contents that are on their way; whoever works on one has it locked
    incoming/progress*.json          how far stagings are
    claims/                          what the runs of this moment rely on
    models/<model>/<version>/<path>  hard links to blobs; all of a version or nothing

A name in `blobs` is a promise, so a file gets there by one rename after its digest was checked. A version
never changes what it holds: other contents under the same version are refused.

The store's lock is held for moments only: to look at the space and claim it, to link a tree, to remove one. Whoever
brings a content holds that content's own lock, so any number of runs share the work.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import Artifact, ArtifactError, File, human
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_claims import Claims
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_files import (
    DIRECTORY_MODE,
    FILE_MODE,
    Ownership,
    digest_of,
    directories_below,
    files_below,
    to_disk,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_part import Part, ranges
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_survey import (
    ABSENT,
    DAMAGED,
    SOUND,
    UNREAD,
    Survey,
    regular,
    survey,
    survey_removal,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_marks import Marks

# What is wrong with the file itself; any other error is about this run and says nothing of the file.
DAMAGE = (errno.EIO, errno.ELOOP, errno.EISDIR)


class Store:
    """The store below one directory."""

    def __init__(self, root: str | Path, owner: str | None = None, group: str | None = None) -> None:
        self.root = Path(root)
        self.blobs = self.root / "blobs" / "sha256"
        self.incoming = self.root / "incoming"
        self.torrents = self.root / "torrents" / "sha256"
        self.models = self.root / "models"
        self.claims = Claims(self.root / "claims")
        self.marks = Marks(self.root / "verified")
        self.ownership = Ownership(owner, group)

    def blob(self, file: File) -> Path:
        return self.blobs / file.sha256

    def part(self, file: File) -> Path:
        return self.incoming / f"{file.sha256}.part"

    def torrent(self, file: File) -> Path:
        """How hosts bring a content to each other; only where they do."""
        return self.torrents / f"{file.sha256}.torrent"

    def tree(self, artifact: Artifact) -> Path:
        return self.models / artifact.model / artifact.version

    def leaving(self, artifact: Artifact) -> Path:
        """The tree of a version whose removal has begun."""
        return self.models / artifact.model / f".{artifact.version}.old"

    def prepare(self) -> None:
        """Make the directories."""
        self.ownership.make_directory(self.root)
        # The peer program writes into parts that it was given, and sees nothing else there.
        modes = dict.fromkeys((self.blobs.parent, self.blobs, self.models, self.marks.folder), DIRECTORY_MODE)
        for folder, mode in {**modes, self.incoming: 0o711, self.claims.folder: 0o700}.items():
            self.ownership.make_directory(folder, mode)
            if self.ownership.differs(folder, mode):  # a run may have ended between its making and its giving away
                self.ownership.give(folder, mode)

    @contextlib.contextmanager
    def locked(self, timeout: float) -> Iterator[None]:
        """One run at a time. Nothing that takes longer than a moment happens under this lock."""
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
                    time.sleep(0.05)
            yield

    # Looking

    def state(self, file: File) -> str:
        """What the store has of a content. Sound is what was verified and has not been touched since."""
        status = regular(self.blob(file))
        if status is None:
            return ABSENT
        if status.st_size != file.size:
            return DAMAGED
        return SOUND if self.marks.fits(file.sha256, status) else UNREAD

    def rest(self, file: File) -> int:
        """The bytes of a content that have not arrived yet."""
        return self._rest(file.sha256, file.size)

    def _rest(self, digest: str, size: int) -> int:
        part = regular(self.incoming / f"{digest}.part")
        if part is None or part.st_size > size:
            return size
        have = self.incoming / f"{digest}.have"
        if have.exists():  # peers bring it, in any order
            return size - sum(end - begin for begin, end in ranges(have, part.st_size))
        return size - part.st_size

    def survey(self, artifact: Artifact, link: bool = True, counted: set[str] | None = None) -> Survey:
        """Compare the store with what the artifact needs; what is in `counted` another artifact brings."""
        return survey(self, artifact, link, set() if counted is None else counted)

    def check_space(self, surveys: Iterable[Survey], reserve: int, claimed: Mapping[str, int]) -> None:
        """Refuse before the first byte what cannot fit beside all that other runs are bringing."""
        ours = {file.sha256: self.rest(file) for found in surveys for file in found.missing}
        if not any(ours.values()):
            return
        theirs = sum(
            self._rest(digest, size)
            for digest, size in claimed.items()
            if digest not in ours and regular(self.blobs / digest) is None
        )
        needed = sum(ours.values())
        place = self.root
        while not place.exists():
            place = place.parent
        usage = os.statvfs(place)
        free = usage.f_bavail * usage.f_frsize
        if free - theirs - needed < reserve:
            others = f", {human(theirs)} are on their way for other runs" if theirs else ""
            raise ArtifactError(
                f"{human(needed)} are needed{others} and {human(reserve)} have to stay free, "
                f"but the file system of {place} has only {human(free)} left",
                str(self.root),
                f"free {human(needed + theirs + reserve - free)} there, or put the store on a larger disk",
                needed=needed,
                free=free,
            )

    def names(self) -> dict[int, str]:
        """The digest of each content of the store, by inode."""
        return {entry.inode(): entry.name for entry in os.scandir(self.blobs)} if self.blobs.is_dir() else {}

    # Bringing

    def adopt(self, part: Part) -> None:
        """Give verified contents their name. From here on everybody may rely on them."""
        self.ownership.give(part.path, FILE_MODE)
        part.finish()
        # The mark first: one without its content says nothing, but a content without a mark would be read again.
        self.marks.set(part.file.sha256, os.fstat(part.handle.fileno()))
        os.replace(part.path, self.blob(part.file))
        to_disk(self.blobs)

    def read_again(self, file: File) -> str:
        """Read a content once more: mark it where it is right, and take its name away where it is not."""
        blob, digests = self.blob(file), {}
        before = regular(blob)
        actual = _read_again(blob, digests)
        if actual == file.sha256 and before is not None:
            self.marks.set(file.sha256, before)
        elif before is not None:
            self._set_aside(file, before)
        return actual

    def _set_aside(self, file: File, status: os.stat_result) -> None:
        now = regular(self.blob(file))
        if now is not None and now.st_ino == status.st_ino:
            self.blob(file).unlink(missing_ok=True)
            self.forget(file.sha256)

    def forget(self, digest: str) -> None:
        """Forget what was known of a content that is gone."""
        self.marks.forget(digest)
        (self.torrents / f"{digest}.torrent").unlink(missing_ok=True)

    def link(self, artifact: Artifact, found: Survey) -> None:
        """Do what `found` says of the tree, under the store's lock. A new tree appears as a whole."""
        self._sweep_links()
        if self.tree(artifact).is_dir():
            self._repair(artifact, found)
        else:
            self._build(artifact)

    def _build(self, artifact: Artifact) -> None:
        tree = self.tree(artifact)
        self.ownership.make_directory(tree.parent)
        self._sweep(tree.parent)
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
            os.link(self.blob(contents[path]), link)
            os.replace(link, tree / path)
        self.own(found)

    def _sweep_links(self) -> None:
        for link in self.incoming.glob("*.link"):
            link.unlink()

    def own(self, found: Survey) -> None:
        """Correct owners and modes."""
        for path in found.to_own:
            if path.exists():
                self.ownership.give(path, DIRECTORY_MODE if path.is_dir() else FILE_MODE)

    # Verifying

    def verify(self, artifact: Artifact, set_aside: bool, link: bool = True, lock_timeout: float = 60) -> list[dict]:
        """Read every file again and return the damaged ones.

        With `set_aside`, damaged contents lose their name in `blobs`, so that the next run brings them again.
        """
        tree, damaged, digests = self.tree(artifact), {}, {}
        for file in artifact.files:
            blob = self.blob(file)
            before, sound = regular(blob), True
            for path in (tree / file.path, blob) if link else (blob,):
                actual = _read_again(path, digests)
                if actual != file.sha256:
                    damaged.setdefault(file.path, {"path": file.path, "expected": file.sha256, "actual": actual})
                    sound = sound and path != blob
            if not set_aside or before is None:
                continue
            if sound:
                self.marks.set(file.sha256, before)
            else:
                with self.locked(lock_timeout):
                    self._set_aside(file, before)
        wanted = {file.path for file in artifact.files}
        for path, _status in files_below(tree) if link else ():
            if path not in wanted:
                damaged[path] = {"path": path, "expected": "no such file", "actual": "present"}
        return [damaged[path] for path in sorted(damaged)]

    # Removing

    def survey_removal(self, artifact: Artifact) -> Survey:
        return survey_removal(self, artifact)

    def remove(self, artifact: Artifact) -> None:
        """Take a tree away, and then the contents that nothing else needs; under the store's lock."""
        tree, leaving = self.tree(artifact), self.leaving(artifact)
        self._sweep_links()
        if leaving.is_dir():
            self._finish_leaving(leaving)
        if tree.is_dir():
            # It goes at once, so that nobody ever sees half of it.
            os.rename(tree, leaving)
            self._finish_leaving(leaving)
        if tree.parent.is_dir():
            _remove_empty(tree.parent, self.models)
        for path in self.unfinished(artifact):
            self.drop_part(path)

    def _finish_leaving(self, leaving: Path) -> None:
        # The tree goes last: as long as it is there, a later run knows which contents were only its own.
        for blob in self.only_in([leaving]):
            blob.unlink()
            self.forget(blob.name)
        shutil.rmtree(leaving)

    def only_in(self, trees: Iterable[Path]) -> list[Path]:
        """The contents that these trees link to and nothing else does, nor is about to."""
        linked: dict[int, int] = {}
        for tree in trees:
            for _path, status in files_below(tree):
                linked[status.st_ino] = linked.get(status.st_ino, 0) + 1
        names, claimed = self.names(), self.claims.live(sweep=False)
        blobs = [self.blobs / names[inode] for inode in linked if inode in names and names[inode] not in claimed]
        return sorted(blob for blob in blobs if blob.stat().st_nlink - linked[blob.stat().st_ino] == 1)

    def unfinished(self, artifact: Artifact) -> list[Path]:
        """What interrupted runs left of an artifact's contents."""
        return sorted(self.part(file) for file in artifact.contents if regular(self.part(file)) is not None)

    def drop_part(self, path: Path) -> bool:
        """Throw away what has arrived of a content, unless a run works on it."""
        part = Part.take(path, File(path.stem, 0, path.stem))
        if part is not None:
            part.discard()
        return part is not None

    def _sweep(self, folder: Path) -> None:
        """Remove what an interrupted run left; the name of a version never begins with a dot."""
        for entry in folder.glob(".*"):
            if entry.name.endswith(".old"):
                self._finish_leaving(entry)
            else:
                shutil.rmtree(entry)


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


def _remove_empty(folder: Path, top: Path) -> None:
    """Remove a directory and those above it, up to `top`, as long as they are empty."""
    with contextlib.suppress(OSError):
        while folder != top:
            folder.rmdir()
            folder = folder.parent
