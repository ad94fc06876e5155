# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Verifies signatures of locked versions, wherever that is asked for: when locking, before a run, and on a depot.

What is verified is always the same: the right one signed, and signed exactly the files that the lockfile names. That the bytes
on a host are those files is what its store is for.

A lockfile's entry keeps the signature, so that none of this needs the source again:

    signature: {signer: "sha256:…", identity: "…", sha256: "…", left_out: ["README.md"], content: "{…}"}
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Callable

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import regular_files
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_bundle import (
    LARGEST,
    Mismatch,
    SignatureError,
    parse_bundle,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_demand import GONE_FIX, Demand, demands, where_of
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_files import compare, may_lack, signed_names
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_trust import CertificateTrust, KeyTrust, Trust

LOCK_AGAIN = "lock again (ansible-playbook localfirst.llm_fleet.lock), with -e sign_key=… if you sign it yourself"
EDITED_FIX = f"take this entry back from git, or {LOCK_AGAIN}"


def verify(
    model: str,
    entry: Mapping[str, Any],
    text: str,
    demand: Demand,
    trust: Trust,
    does_without: Callable[[str], bool],
    fresh: bool = True,
) -> dict[str, Any]:
    """What the lockfile keeps of the signature `text` of an entry; raises SignatureError where it does not hold.

    `does_without(name)` says which signed files the version is meant to be without; `fresh` asks certificates to be valid now.
    """
    data = text.encode()
    bundle = parse_bundle(data)
    signer = trust.verify(bundle, fresh)
    digest = hashlib.sha256(data).hexdigest()
    files = signed_names(model, entry)
    if files.get(demand.file) == digest:
        del files[demand.file]  # locked before anybody asked for a signature; it cannot sign itself
    left_out = compare(bundle.files(), files, does_without)
    return {
        "signer": signer.fingerprint,
        **({"identity": signer.identity} if signer.identity else {}),
        "sha256": digest,
        **({"left_out": left_out} if left_out else {}),
        "content": text,
    }


def verify_again(model: str, entry: Mapping[str, Any], demand: Demand, trust: Trust) -> dict[str, Any]:
    """The same of the signature that a lockfile keeps. Certificates were valid when it was locked; that they end changes nothing.

    What is left out has to follow from the catalog's source once more: the lockfile's word for it may have been edited.
    """
    return _verify_kept(model, entry, demand, trust, may_lack(demand.source, entry))


def _verify_kept(
    model: str, entry: Mapping[str, Any], demand: Demand, trust: Trust, may_lack_file: Callable[[str], bool]
) -> dict[str, Any]:
    kept = entry["signature"]
    left_out = kept.get("left_out") or []
    found = verify(
        model, entry, kept["content"], demand, trust, lambda name: name in left_out and may_lack_file(name), fresh=False
    )
    if (found["signer"], found.get("left_out") or []) != (kept["signer"], left_out):
        raise Mismatch("signer and files left out are not those of the signature beside them", EDITED_FIX)
    return found


def check_signatures(
    models: Iterable[Mapping[str, Any]], lock: Mapping[str, Any], name: str, files: Mapping[str, Mapping[str, str]]
) -> list[Fault]:
    """What of the lockfile is not signed as the catalog demands. `files` are read_files' of what the catalog names."""
    faults = []
    for (model, version), demand in sorted(demands(models, lock).items()):
        entry = ((lock.get("models") or {}).get(model) or {}).get(version)
        where = f"{name}: models.{model}.{version}.signature"
        if entry is None:
            continue  # whether it has to be locked is asked elsewhere
        if "signature" not in entry:
            faults.append(Fault("it was locked without the signature that the catalog demands", where, LOCK_AGAIN))
            continue
        if not demand.source and entry["signature"].get("left_out"):
            what = "the catalog does not have this version, so nothing says which of the signed files it may be without"
            faults.append(Fault(what, where, GONE_FIX))
            continue
        try:
            verify_again(model, entry, demand, trust_of(demand, files))
        except SignatureError as error:
            faults.append(error.fault(f"{where} ({where_of(model, version)})"))
    return faults


# What is trusted: files of the controller, whose text is what travels


def read_files(paths: Iterable[str]) -> dict[str, dict[str, str]]:
    """{path: {text}} of files of this host, or {path: {error}}: whether somebody needs it shows later."""
    found = {}
    for path in paths:
        try:
            found[path] = {"text": regular_files.read(path, LARGEST).decode("utf-8")}
        except OSError as error:
            found[path] = {"error": (error.strerror or str(error)).lower()}
        except UnicodeDecodeError:
            found[path] = {"error": "it is no text"}
    return found


def text_of(path: str, files: Mapping[str, Mapping[str, str]]) -> str:
    """What read_files found in a file; raises SignatureError where it found nothing."""
    found = files.get(path) or {"error": "it was not read"}
    if "text" not in found:
        raise SignatureError(f"{path} cannot be read on the controller: {found['error']}", "put it there, or correct the path")
    return found["text"]


def trust_of(demand: Demand, files: Mapping[str, Mapping[str, str]]) -> Trust:
    """Who is trusted to sign; raises SignatureError where that cannot be read. `files` are read_files'."""
    if demand.key:
        return KeyTrust(text_of(demand.key, files))
    return CertificateTrust(text_of(demand.ca, files), demand.identity)


# What a depot gets to verify a version itself


def hand_out(
    artifacts: Mapping[str, Iterable[Mapping[str, Any]]],
    models: Iterable[Mapping[str, Any]],
    lock: Mapping[str, Any],
    files: Mapping[str, Mapping[str, str]],
) -> dict[tuple[str, str], dict[str, Any]]:
    """{(model, version): its signature, with all that it takes to verify it elsewhere} of signed artifacts, which hosts need.

    They have passed check_signatures, and `files` are read_files' as they were then.
    """
    demanded = demands(models, lock)
    every = {(each["model"], each["version"]): each for needed in artifacts.values() for each in needed if "signature" in each}
    return {key: _handed(each, demanded[key], files) for key, each in every.items() if key in demanded}


def _handed(entry: Mapping[str, Any], demand: Demand, files: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    kept = entry["signature"]
    return {
        **{key: kept[key] for key in ("signer", "sha256", "content")},
        "left_out": kept.get("left_out") or [],
        "file": demand.file,
        "format": entry["format"],
        "by": "key" if demand.key else "ca",
        "trust": text_of(demand.key or demand.ca, files),
        "identity": demand.identity,
    }


def verify_handed(model: str, files: Iterable[Mapping[str, Any]], handed: Mapping[str, Any]) -> None:
    """Verify on another host what hand_out gave it; raises SignatureError.

    Which files may be left out was asked where the catalog is, by whoever handed out the key as well.
    """
    demand = Demand("", "", handed["identity"], handed["file"])
    by_key = handed["by"] == "key"
    trust = KeyTrust(handed["trust"]) if by_key else CertificateTrust(handed["trust"], handed["identity"])
    entry = {"format": handed["format"], "files": list(files), "signature": handed}
    _verify_kept(model, entry, demand, trust, lambda _name: True)
