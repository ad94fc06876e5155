# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Closes a bundle: what is in it is written down by size and digest, and signed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import regular_files, whole_files
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_files import digest_of
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_survey import regular
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.bundle_manifest import (
    MANIFEST,
    SIGNATURE,
    Entry,
    Manifest,
    left_out,
    parse_manifest,
    render_manifest,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.bundle_reader import READERS, base_faults, read_manifest
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_bundle import LARGEST, WHOLE, SignatureError, parse_bundle
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_key import SigningKey
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_trust import check_signature

UNFINISHED = "run bundle.yml again: it goes on where it stopped"
DAMAGED = "remove the file, and run bundle.yml again: it is brought anew"


class BundleWriter:
    """The bundle in one directory, with the manifest that it goes on from."""

    def __init__(self, folder: Path, base: Manifest | None, base_digest: str) -> None:
        self.folder = folder
        self.base = base
        self.base_digest = base_digest
        self.actions: list[str] = []
        self.faults: list[Fault] = []

    def close(self, wanted: Iterable[str], about: dict[str, Any], key: SigningKey | None, change: bool) -> Manifest | None:
        """Write manifest and signature. `wanted` are the paths that the bundle is for; `about` is the rest of the manifest."""
        wanted = sorted(set(wanted))
        self.faults += base_faults(self.folder, self.base_digest) if self.base else []
        if self.faults:
            return None
        here = [path for path in wanted if regular(self.folder / path) is not None]
        with ThreadPoolExecutor(READERS) as pool:
            entries = list(pool.map(self._entry, here))
        if self.base:
            entries = list(self._without(entries, change))
        earlier, absent = left_out(wanted, [entry.path for entry in entries], self.base)
        self.faults += [Fault("it was to be in the bundle, and is not there", str(self.folder / path), UNFINISHED) for path in absent]
        if self.faults:
            return None
        manifest = Manifest(base=self.base_digest if self.base else "", files=entries, earlier=earlier, **about)
        # Whoever imports it reads as strictly: a file that rotted here is found here.
        self.faults += [fault._replace(fix=DAMAGED) for fault in parse_manifest(render_manifest(manifest), str(self.folder / MANIFEST))[1]]
        return None if self.faults else self._write(manifest, key, change)

    def _entry(self, path: str) -> Entry:
        file = self.folder / path
        try:
            return Entry(path, file.stat().st_size, digest_of(file))
        except OSError as error:  # a disk that fails does not say at which file
            raise OSError(error.errno, error.strerror, str(file)) from None

    def _without(self, entries: list[Entry], change: bool) -> Iterator[Entry]:
        """What the base has is not kept twice. A file of the same name with another content takes its place."""
        known = self.base.entries()
        for entry in entries:
            if known.get(entry.path) != entry:
                yield entry
            elif change:
                (self.folder / entry.path).unlink()

    def _write(self, manifest: Manifest, key: SigningKey | None, change: bool) -> Manifest:
        before, _digest, _faults = read_manifest(self.folder)
        # The same content keeps its date, and with it its signature.
        if before and before._replace(created="") == manifest._replace(created="", files=sorted(manifest.files)):
            manifest = manifest._replace(created=before.created)
        data = render_manifest(manifest)
        file, signature = self.folder / MANIFEST, self.folder / SIGNATURE
        if not file.is_file() or regular_files.read(file) != data:
            self.actions.append(f"write {MANIFEST}: {len(manifest.files)} files, {len(manifest.earlier)} in earlier bundles")
            if change:
                # Without its old signature first: a run that breaks off leaves an unsigned bundle, not a wrong one.
                signature.unlink(missing_ok=True)
                _put(file, data)
        digest = digest_of(file) if file.is_file() else ""
        if key and not _signed(signature, key, digest):
            self.actions.append(f"sign it with {key.fingerprint[:23]}")
            if change:
                _put(signature, key.sign(MANIFEST, {WHOLE: digest}).encode())
        elif not key and signature.is_file() and not _of(signature, digest):
            self.actions.append("remove a signature of something else")
            if change:
                signature.unlink()
        return manifest

    @property
    def signed(self) -> bool:
        """Whether the manifest that is there has a signature."""
        return _of(self.folder / SIGNATURE, digest_of(self.folder / MANIFEST)) if (self.folder / MANIFEST).is_file() else False


def _put(path: Path, data: bytes) -> None:
    """At once, so that nobody ever reads half of it. With whatever mode the disk gives: one that goes from hand to hand may have none."""
    with whole_files.draft_of(path) as draft:
        draft.write_bytes(data)
        os.replace(draft, path)


def _signed(signature: Path, key: SigningKey, digest: str) -> bool:
    with contextlib.suppress(OSError, SignatureError):
        bundle = parse_bundle(regular_files.read(signature, LARGEST))
        check_signature(key.key.public_key(), bundle)
        # With other certificates, or none, the other side may refuse what this key signed.
        return bundle.chain == key.chain_der and bundle.files() == {WHOLE: digest}
    return False


def _of(signature: Path, digest: str) -> bool:
    with contextlib.suppress(OSError, SignatureError):
        return parse_bundle(regular_files.read(signature, LARGEST)).files() == {WHOLE: digest}
    return False
