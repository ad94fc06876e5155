# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Whether the files of a version are those that somebody signed: all of them, and nothing beside. Pure: no I/O.

Files are compared under their names at the source, because those were signed. A version may do without some of them (one
GGUF file out of ten, no README); these are written down, so that the two sets still have to be equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Callable

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import ollama_store
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.schema import repeated
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_bundle import WHOLE, Mismatch
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.source_choice import passed_over
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.source_url import parse_source

OLLAMA = "ollama"  # the format in which locking writes files of its own beside the weights
NAMED = 5  # files that a message lists by name
FIX = "find out who changed the files; if the change is meant, have them signed again, as a version of their own"


def compare(signed: Mapping[str, str], files: Mapping[str, str], does_without: Callable[[str], bool]) -> list[str]:
    """The signed files that the version does without; raises Mismatch where the two sets differ otherwise.

    `signed` and `files` are {name: sha256}. `does_without(name)` says of a signed file whether the version was meant to be
    without it; if not, it is missing.
    """
    if set(signed) == {WHOLE} and len(files) == 1:
        signed = dict.fromkeys(files, signed[WHOLE])  # a file was signed by itself, under no name
    beside = sorted(set(signed) - set(files))
    problems = {
        "not signed": sorted(set(files) - set(signed)),
        "changed since they were signed": sorted(name for name in files if signed.get(name, files[name]) != files[name]),
        "signed, but missing": [name for name in beside if not does_without(name)],
    }
    said = [f"{what}: {_some(names)}" for what, names in problems.items() if names]
    if said:
        raise Mismatch(f"the files are not those of the signature ({'; '.join(said)})", FIX)
    return beside


def signed_names(model: str, entry: Mapping[str, Any]) -> dict[str, str]:
    """{name at the source: sha256} of the files of a locked version, without what locking itself wrote around them.

    Raises Mismatch where that is not what locking would write: nobody signed it, so it has to follow from what was signed.
    """
    files = entry["files"]
    weights = [{"path": file["from"], "size": file["size"], "sha256": file["sha256"]} for file in files if file.get("from")]
    if entry["format"] != OLLAMA or not weights:
        return {file["path"]: file["sha256"] for file in files}
    # Of two files with one name, only one could be compared with the signed one.
    twice = repeated(file["path"] for file in weights)
    if twice:
        raise Mismatch(f"more than one file is to come from {_some(twice)}", FIX)
    try:
        made = ollama_store.from_gguf(model, weights)
    except ArtifactError as error:
        raise Mismatch(error.fault.what, error.fault.fix) from None
    if _contents(made) != _contents(files):
        raise Mismatch("the store that Ollama reads is not the one that follows from the signed files", FIX)
    return {file["path"]: file["sha256"] for file in weights}


def may_lack(source: str, entry: Mapping[str, Any]) -> Callable[[str], bool]:
    """Whether a locked version of a source was meant to be without a signed file, by the file's name. Nobody asks the source.

    Without a `source` nothing was.
    """
    files = entry["files"]
    made = entry["format"] == OLLAMA and any(file.get("from") for file in files)
    taken = {file["from"] for file in files if file.get("from")} if made else {file["path"] for file in files}
    url = parse_source(source) if source else None
    return lambda name: (made and not ollama_store.is_made_of(name)) or (url is not None and passed_over(url, name, taken))


def _contents(files: Iterable[Mapping[str, Any]]) -> set[tuple]:
    return {(file["path"], file["size"], file["sha256"]) for file in files}


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
