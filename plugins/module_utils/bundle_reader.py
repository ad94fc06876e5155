# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""A bundle on a disk: whether it is whole, unchanged, and from somebody whom this side trusts. All faults at once."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import regular_files, signature_bundle
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_files import digest_of
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_survey import regular
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.bundle_manifest import (
    COPY_AGAIN,
    LARGEST,
    MANIFEST,
    SIGNATURE,
    Entry,
    Manifest,
    parse_manifest,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_bundle import WHOLE, Mismatch, SignatureError, parse_bundle
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_demand import blank
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_trust import CertificateTrust, KeyTrust

READERS = 4  # files that are hashed at the same time
UNSIGNED_FIX = "have it written with -e sign_key=…; or take it as it is, with -e unsigned=true, if you know where it comes from"
TRUST = "llm_fleet_bundle_signature"
TRUST_FIX = (
    f"say whose signature counts: {TRUST}: {{key: /path/to/bundle.pub}} or {{ca: /path/to/ca.pem, identity: who@example.com}}, "
    "or with -e unsigned=true take it without"
)


class Found(NamedTuple):
    """What a look at a bundle has found. Without faults, each of its files is the one that the manifest names."""

    manifest: Manifest | None
    digest: str  # of the manifest
    signer: str
    faults: list[Fault]


def read_manifest(path: Path) -> tuple[Manifest | None, str, list[Fault]]:
    """The manifest at `path`, a file or a bundle, with its digest; nothing is verified."""
    file = path
    try:
        file = path / MANIFEST if path.is_dir() else path
        data = regular_files.read(file, LARGEST)
    except OSError as error:
        what = f"there is no manifest: {(error.strerror or str(error)).lower()}"
        return None, "", [Fault(what, str(file), "name a directory that bundle.yml has written, or its manifest.json")]
    manifest, faults = parse_manifest(data, str(file))
    return manifest, f"sha256:{hashlib.sha256(data).hexdigest()}", faults


def base_faults(folder: Path, base: str) -> list[Fault]:
    """Why a bundle in this folder cannot go on from the one whose manifest has the digest `base`.

    What the base has is not kept twice. So a whole bundle would lose its files, and one that is its own base all of them.
    """
    there, digest, _faults = read_manifest(folder)
    if there is None or there.base == base:
        return []
    what = "this bundle cannot be its own base" if digest == base else "another bundle is here already, which would lose what the base has"
    return [Fault(what, str(folder), "name another directory with -e dir=…, or leave -e base=… out")]


def read_bundle(folder: Path, trust: dict[str, Any], unsigned: bool) -> Found:
    """Read every file of a bundle. `trust` is {key} or {ca, identity}, with paths; `unsigned` does without a signature."""
    manifest, digest, faults = read_manifest(folder)
    signer = ""
    if digest:
        try:
            signer = "" if unsigned else check_signature(folder, digest, trust)
        except SignatureError as error:
            faults = [error.fault(str(folder / SIGNATURE)), *faults]
    return Found(manifest, digest, signer, faults + (file_faults(folder, manifest.files) if manifest else []))


def check_signature(folder: Path, digest: str, trust: dict[str, Any]) -> str:
    """Who signed the manifest; raises SignatureError."""
    trusted = trust_of(trust)
    try:
        # Whoever wrote the bundle is not known yet.
        data = regular_files.read(folder / SIGNATURE, signature_bundle.LARGEST)
    except FileNotFoundError:
        raise SignatureError("the bundle is not signed", UNSIGNED_FIX) from None
    except OSError as error:
        raise SignatureError(f"the signature cannot be read: {(error.strerror or str(error)).lower()}", COPY_AGAIN) from None
    bundle = parse_bundle(data)
    signer = trusted.verify(bundle)
    signed = bundle.files()
    if signed not in ({WHOLE: digest.partition(":")[2]}, {MANIFEST: digest.partition(":")[2]}):
        raise Mismatch("the manifest was changed after it was signed", COPY_AGAIN)
    return signer.fingerprint


def trust_of(trust: dict[str, Any]) -> Any:
    """Whose signature counts; raises SignatureError where that is not said, or cannot be read."""
    if empty := blank(trust):
        raise SignatureError(f"{TRUST} names no text as {' and '.join(empty)}", TRUST_FIX)
    key, ca, identity = (trust.get(name, "") for name in ("key", "ca", "identity"))
    if bool(key) == bool(ca) or set(trust) - {"key", "ca", "identity"}:
        raise SignatureError(f"{TRUST} names neither a key nor a CA, or both, or something else", TRUST_FIX)
    try:
        text = regular_files.read(key or ca, signature_bundle.LARGEST).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        said = (getattr(error, "strerror", None) or "it is no text").lower()
        raise SignatureError(f"{key or ca} cannot be read: {said}", f"correct the path in {TRUST}") from None
    return KeyTrust(text) if key else CertificateTrust(text, identity)


def file_faults(folder: Path, entries: list[Entry]) -> list[Fault]:
    """Files that are missing, or are others than the manifest says."""
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda entry: _file_fault(folder / entry.path, entry), entries)
    return [fault for fault in found if fault]


def _file_fault(path: Path, entry: Entry) -> Fault | None:
    try:
        status = regular(path)
        if status is None:
            return Fault("it is missing, or no regular file", str(path), COPY_AGAIN)
        if status.st_size != entry.size:
            return Fault(f"it has {status.st_size} bytes, and the manifest says {entry.size}", str(path), COPY_AGAIN)
        actual = digest_of(path)
    except OSError as error:
        return Fault(f"it cannot be read: {(error.strerror or str(error)).lower()}", str(path), COPY_AGAIN)
    if actual == entry.sha256:
        return None
    return Fault(f"its digest is sha256:{actual}, and the manifest says sha256:{entry.sha256}", str(path), COPY_AGAIN)
