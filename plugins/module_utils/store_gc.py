# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Frees what nobody needs of a store: versions, contents and unfinished downloads.

What stays: versions that a list names, with all their contents; what a container has mounted or is labelled with; what
a process has open; what a staging of this moment relies on; contents that something else links to; and whatever is younger
than the grace, because a run that brings or locks a version comes before anybody can name it. Notes of locked sources are
left alone.

All of it is decided and done under the store's lock, and a tree goes at once, so a run that ends in between leaves
nothing that could be taken for a version; the next one finishes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import human
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_store import Store
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_report import Key, Known, Tree, contents, key_of, parts, trees
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_signatures import StoreSignatures
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_users import Container, open_files

GRACE = 3600  # seconds


@dataclass
class Going:
    """A tree that goes, with what goes with it: contents by digest, and the bytes that this frees."""

    tree: Tree
    digests: list[str] = field(default_factory=list)
    size: int = 0


@dataclass
class Garbage:
    """What can go, and why the rest stays."""

    going: list[Going] = field(default_factory=list)
    unnamed: dict[str, int] = field(default_factory=dict)  # contents that no version has: sizes by digest
    parts: dict[Path, int] = field(default_factory=dict)
    signatures: list[Path] = field(default_factory=list)  # of versions that go, or were never here as trees
    staying: list[tuple[Tree, list[str]]] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(each.size for each in self.going) + sum(self.unnamed.values()) + sum(self.parts.values())

    @property
    def actions(self) -> list[str]:
        lines = [f"remove {each.tree.title} ({human(each.size)})" for each in self.going]
        for found, what in ((self.unnamed, "contents that no version names"), (self.parts, "unfinished downloads")):
            if found:
                lines.append(f"remove {len(found)} {what} ({human(sum(found.values()))})")
        if self.signatures:
            lines.append(f"remove {len(self.signatures)} signatures of versions that nobody names")
        return lines

    def as_dict(self) -> dict:
        return {
            "freed_bytes": self.size,
            "freed": [
                {"model": each.tree.model, "version": each.tree.version, "path": str(each.tree.path), "bytes": each.size}
                for each in self.going
            ],
            "kept": [
                {"model": tree.model, "version": tree.version, "path": str(tree.path), "reasons": reasons}
                for tree, reasons in self.staying
            ],
            "unnamed": {"count": len(self.unnamed), "bytes": sum(self.unnamed.values())},
            "unfinished": {"count": len(self.parts), "bytes": sum(self.parts.values())},
        }

    @property
    def diff(self) -> dict[str, str]:
        stay = [tree.title for tree, _reasons in self.staying]
        before = sorted(stay + [each.tree.title for each in self.going])
        rest = [f"content sha256:{digest}" for digest in sorted(self.unnamed)] + [f"unfinished {path.name}" for path in self.parts]
        return {"before": "".join(f"{line}\n" for line in [*before, *rest]), "after": "".join(f"{line}\n" for line in sorted(stay))}


class Collector:
    """Finds the garbage of one store, and removes it."""

    def __init__(
        self,
        store: Store,
        keep: Iterable[Known],
        containers: Callable[[], list[Container]] = list,
        *,
        grace: float = GRACE,
        open_files: Callable[[Collection[Key]], set[Key]] = open_files,
    ) -> None:
        self.store = store
        self.keep = list(keep)
        self.containers = containers
        self.grace = grace
        self.open_files = open_files

    def look(self) -> Garbage:
        """What would go; changes nothing."""
        garbage, there = Garbage(), contents(self.store)
        all_trees = trees(self.store)
        names = {key_of(status): digest for digest, status in there.items()}
        statuses = {key_of(status): status for tree in all_trees for status in tree.files.values()}
        statuses.update((key_of(status), status) for status in there.values())
        claimed = set(self.store.claims.live(sweep=False))
        wanted = {file.sha256 for each in self.keep for file in each.artifact.files} | claimed
        opened = self.open_files(statuses.keys())
        # What an interrupted run left goes first: a version's tree takes its place on the way out.
        leaving = set()
        containers = self.containers()
        for tree in sorted(all_trees, key=lambda tree: tree.whole):
            digests = {names.get(key) for key in tree.inodes()}
            reasons = self._reasons(tree, containers, tree.inodes() & opened, bool(digests) and digests <= claimed)
            if tree.whole and not reasons and _leaving(tree).is_dir() and _leaving(tree) not in leaving:
                reasons = ["its earlier removal has not ended"]
            if reasons:
                garbage.staying.append((tree, reasons))
            else:
                leaving.add(tree.path)
                garbage.going.append(Going(tree))
        garbage.staying.sort(key=lambda item: item[0].path)
        self._count(garbage, names, statuses, wanted, opened)
        gone = {digest for each in garbage.going for digest in each.digests}
        young = time.time() - self.grace
        garbage.unnamed = {
            digest: status.st_size
            for digest, status in sorted(there.items())
            if status.st_nlink == 1
            and digest not in gone | wanted
            and key_of(status) not in opened
            and status.st_mtime <= young
        }
        garbage.parts = {
            path: status.st_size
            for path, status in parts(self.store).items()
            if path.stem not in wanted and status.st_mtime <= young and not _locked(path)
        }
        named = {(each.artifact.model, each.artifact.version) for each in self.keep}
        named |= {(tree.model, tree.version) for tree, _reasons in garbage.staying}
        garbage.signatures = StoreSignatures(self.store).unneeded(named)
        return garbage

    def run(self, lock_timeout: float) -> Garbage:
        """Remove it, and return what went."""
        if not self.store.root.is_dir():
            return Garbage()
        with self.store.locked(lock_timeout):
            garbage = self.look()
            for each in garbage.going:
                self._remove(each)
            for digest in garbage.unnamed:
                self._forget(digest)
            for path in garbage.signatures:
                StoreSignatures(self.store).remove(path)
            # Whoever takes one up at this moment keeps it.
            garbage.parts = {path: size for path, size in garbage.parts.items() if self.store.drop_part(path)}
        return garbage

    def _reasons(self, tree: Tree, containers: list[Container], opened: set[Key], being_staged: bool) -> list[str]:
        """Why a tree stays; nothing for one that goes."""
        reasons: list[str] = []
        if tree.whole:
            for each in self.keep:
                if (each.artifact.model, each.artifact.version) == (tree.model, tree.version):
                    reasons += [reason for reason in each.reasons or ("named",) if reason not in reasons]
            users = {each.name for each in containers if each.uses(self.store.root, tree.path, tree.model, tree.version)}
            reasons += [f"used by {name}" for name in sorted(users)]
            reasons += ["being staged"] if being_staged else []
        return reasons + (["open"] if opened else [])

    @staticmethod
    def _count(
        garbage: Garbage, names: dict[Key, str], statuses: dict[Key, os.stat_result], wanted: set[str], opened: set[Key]
    ) -> None:
        """Which contents go with the trees: those that nothing else links to. Each is counted once, for the last that has it."""
        links: dict[Key, int] = {}
        last: dict[Key, Going] = {}
        for each in garbage.going:
            for status in each.tree.files.values():
                links[key_of(status)] = links.get(key_of(status), 0) + 1
                last[key_of(status)] = each
        for key, each in last.items():
            digest = names.get(key)
            if digest in wanted or key in opened:
                continue
            if statuses[key].st_nlink - links[key] - (digest is not None) <= 0:
                each.size += statuses[key].st_size
                if digest is not None:
                    each.digests.append(digest)

    def _remove(self, each: Going) -> None:
        path = each.tree.path
        if each.tree.whole:
            path = _leaving(each.tree)
            # At once, so that nobody ever sees half of it.
            os.rename(each.tree.path, path)
        for digest in each.digests:
            self._forget(digest)
        shutil.rmtree(path)
        with contextlib.suppress(OSError):  # where it has other versions
            path.parent.rmdir()

    def _forget(self, digest: str) -> None:
        (self.store.blobs / digest).unlink(missing_ok=True)
        self.store.forget(digest)


def _leaving(tree: Tree) -> Path:
    """Where a tree is while it goes; Store calls it the same."""
    return tree.path.with_name(f".{tree.version}.old")


def _locked(path: Path) -> bool:
    """Whether somebody works on an unfinished download."""
    try:
        with path.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
