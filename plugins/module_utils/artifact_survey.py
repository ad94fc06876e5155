# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What is there of an artifact, and what has to be done about the rest; found without changing anything."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import Artifact, ArtifactError, File, human
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_files import (
    DIRECTORY_MODE,
    FILE_MODE,
    files_below,
    same_file,
)

ABSENT, DAMAGED, UNREAD, SOUND = "absent", "damaged", "unread", "sound"
SHOWN = 5  # files that one line of `actions` names


@dataclass
class Survey:
    """What one artifact needs of a store."""

    path: str
    missing: list[File] = field(default_factory=list)  # contents that have to be brought
    unread: list[File] = field(default_factory=list)  # contents that changed since they were verified, to be read again
    to_link: list[str] = field(default_factory=list)  # paths of the tree that are not what they should be
    to_drop: list[str] = field(default_factory=list)  # paths of the tree that nobody asked for
    to_own: list[Path] = field(default_factory=list)  # files and directories with the wrong owner or mode
    actions: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    bytes_missing: int = 0  # that the disk needs room for
    bytes_moved: int = 0  # of these, what comes from elsewhere

    @property
    def diff(self) -> dict:
        texts = {"before": self.before, "after": self.after}
        return {name: "".join(f"{line}\n" for line in lines) for name, lines in texts.items()}


def survey(store, artifact: Artifact, link: bool, counted: set[str]) -> Survey:
    """Compare a store with what an artifact needs: its contents, and with `link` its tree too.

    What is in `counted` is brought for another artifact; what this one brings is added to it.
    """
    found = Survey(str(store.tree(artifact) if link else store.blobs))
    for file in artifact.contents:
        _survey_content(store, file, found, counted)
    if link:
        _survey_tree(store, artifact, found)
    else:
        _survey_contents(store, artifact, found)
    return found


def _survey_content(store, file: File, found: Survey, counted: set[str]) -> None:
    state = store.state(file)
    if state == SOUND:
        return
    (found.unread if state == UNREAD else found.missing).append(file)
    if file.sha256 in counted:
        return
    counted.add(file.sha256)
    rest = file.size if state == UNREAD else store.rest(file)
    found.actions.append(content_action(file, state, rest))
    if state != UNREAD:
        found.bytes_missing += rest
        found.bytes_moved += rest if file.content is None else 0


def content_action(file: File, state: str, rest: int) -> str:
    """What is done about a content, in words."""
    if state == UNREAD:
        return f"read {file.path} ({human(file.size)}) again, because it is not as it was when it was verified"
    again = " again, because what the store has is damaged" if state == DAMAGED else ""
    if file.content is not None:
        return f"write {file.path} ({human(rest)}), which the lockfile holds{again}"
    return f"{'continue' if rest < file.size else 'fetch'} {file.path} ({human(rest)}){again}"


def _survey_contents(store, artifact: Artifact, found: Survey) -> None:
    absent = {file.sha256 for file in found.missing if store.state(file) == ABSENT}
    found.before = [line(file.path, file.size, file.sha256) for file in artifact.files if file.sha256 not in absent]
    found.after = [line(file.path, file.size, file.sha256) for file in artifact.files]
    blobs = [store.blob(file) for file in artifact.contents]
    found.to_own = [path for path in blobs if path.is_file() and store.ownership.differs(path, FILE_MODE)]
    found.actions += [f"correct owner and mode of {path}" for path in found.to_own]


def _survey_tree(store, artifact: Artifact, found: Survey) -> None:
    tree, wanted = store.tree(artifact), {file.path: file for file in artifact.files}
    present = dict(files_below(tree))
    absent = {file.sha256 for file in found.missing}
    for path, file in wanted.items():
        if path not in present or file.sha256 in absent or not same_file(present[path], store.blob(file)):
            found.to_link.append(path)
    found.to_drop = sorted(set(present) - set(wanted))
    _refuse_other_contents(store, artifact, present, found)
    found.after = [line(file.path, file.size, file.sha256) for file in artifact.files]
    kept = [tree / path for path in present if path not in (*found.to_link, *found.to_drop)]
    folders = sorted({tree / parent for path in wanted for parent in Path(path).parents})
    found.to_own = [path for path in kept if store.ownership.differs(path, FILE_MODE)]
    found.to_own += [path for path in folders if path.is_dir() and store.ownership.differs(path, DIRECTORY_MODE)]
    if found.to_link:
        found.actions.append(f"link into {tree}: {some(found.to_link)}")
    found.actions += [f"remove {tree / path}, which is no part of {artifact.title}" for path in found.to_drop]
    found.actions += [f"correct owner and mode of {path}" for path in found.to_own]


def _refuse_other_contents(store, artifact: Artifact, present: dict[str, os.stat_result], found: Survey) -> None:
    wanted = {file.path: file for file in artifact.files}
    complete = not found.to_link and not found.to_drop
    names = {} if complete else store.names()
    for path, status in sorted(present.items()):
        digest = wanted[path].sha256 if complete else names.get(status.st_ino)
        if digest is not None and (path not in wanted or digest != wanted[path].sha256):
            raise other_contents(store, artifact, path, digest, wanted.get(path))
        found.before.append(line(path, status.st_size, digest))


def other_contents(store, artifact: Artifact, path: str, digest: str, file: File | None) -> ArtifactError:
    wanted = f"with sha256:{file.sha256}" if file else "not at all"
    return ArtifactError(
        f"{artifact.title} is here already with other contents: {path} has sha256:{digest}, and the lockfile wants it {wanted}",
        str(store.tree(artifact)),
        "a version never changes what it holds: lock the new contents as a new version, or remove this one first (state: absent)",
        file=path,
        actual=digest,
    )


def survey_removal(store, artifact: Artifact) -> Survey:
    """What would go with a version: its tree, the contents that are only its own, and its unfinished downloads."""
    found = Survey(str(store.tree(artifact)))
    trees = [tree for tree in (store.tree(artifact), store.leaving(artifact)) if tree.is_dir()]
    names = store.names()
    for tree in trees:
        found.actions.append(f"remove {tree}")
        if tree == store.tree(artifact):
            present = sorted(files_below(tree), key=lambda item: item[0])
            found.before += [line(path, status.st_size, names.get(status.st_ino)) for path, status in present]
    for path in store.only_in(trees):
        found.actions.append(f"remove {path} ({human(path.stat().st_size)}), which no tree needs")
    found.actions += [f"remove {path}, which an interrupted run left" for path in store.unfinished(artifact)]
    return found


def regular(path: Path) -> os.stat_result | None:
    """The status of a regular file; None for anything else, and for nothing."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def line(path: str, size: int, digest: str | None) -> str:
    return f"{path} {size} sha256:{digest or 'unknown'}"


def some(paths: Iterable[str]) -> str:
    """The first few of many names, and how many more there are."""
    paths = list(paths)
    rest = len(paths) - SHOWN
    return ", ".join(paths[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
