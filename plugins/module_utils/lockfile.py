# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The lockfile: every file of every model version by its digest, and every engine image by its own."""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import source_url, words
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.schema import (
    anything,
    list_of,
    map_of,
    one_of,
    record,
    repeated,
    required,
    show,
    text,
    whole,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.strict_yaml import load_yaml

FORMAT = 1


def parse_lockfile(text: str, name: str) -> tuple[dict, list[Fault]]:
    """The lockfile as data, and everything that is wrong with it; `name` is the file's name for messages.

    With faults, the data hold only what is sound: enough to look at, not enough to act on.
    """
    data, faults = load_yaml(text, name)
    if faults:
        return {}, faults
    form = data.get("lockfile") if isinstance(data, dict) else None
    if form is not None and one_of(FORMAT)(form, "", []) is None:
        advice = f"this release of the collection reads format {FORMAT}"
        return {}, [Fault(f"the format {show(form)} is unknown", f"{name}: lockfile", advice)]
    lock = _LOCKFILE(data, f"{name}:", faults)
    return lock or {}, faults


def check_locked(
    models: Iterable[dict], lock: dict[str, Any], name: str, profiles: dict[str, Any]
) -> list[Fault]:
    """What the catalog wants and the lockfile lacks. `models` are check_catalog's, `lock` is parse_lockfile's."""
    faults: list[Fault] = []
    for model in models:
        faults += _version_faults(model, lock.get("models") or {}, name, profiles)
        if model["engine"] is not None and model["engine"] not in (lock.get("images") or {}):
            what, where = f"no image of the engine '{model['engine']}' is locked", f"{name}: images"
            faults.append(Fault(what, where, f"add images.{model['engine']} with its image and digest"))
    return list(dict.fromkeys(faults))  # two models with one engine lack the same image


def _version_faults(model: dict, locked: dict, name: str, profiles: dict[str, Any]) -> Iterator[Fault]:
    """The wanted version must be locked, in a format that its engine reads."""
    model_name, version = model["name"], model["version"]
    versions = locked.get(model_name)
    if versions is None:
        yield Fault(f"the model '{model_name}' is not locked", f"{name}: models", f"add models.{model_name}")
    elif version is not None and version not in versions:
        what, where = f"version {version} is not locked", f"{name}: models.{model_name}"
        yield Fault(what, where, f"add it, or choose one that is: {', '.join(sorted(versions)) or 'none yet'}")
    elif version is not None and model["engine"] is not None:
        form, formats = versions[version]["format"], profiles[model["engine"]]["formats"]
        if form not in formats:
            what = f"the engine '{model['engine']}' does not read the format '{form}'"
            where = f"{name}: models.{model_name}.{version}.format"
            yield Fault(what, where, f"choose another engine, or lock files in: {', '.join(sorted(formats))}")


def _version(value: Any, where: str, faults: list[Fault]) -> dict | None:
    """One locked model version."""
    mine: list[Fault] = []
    found = _VERSION(value, where, mine)
    if not mine:  # the files are compared with each other, so each must be sound first
        mine += _file_faults(found, where)
    faults += mine
    return found


def _file_faults(version: dict, where: str) -> Iterator[Fault]:
    """Files that contradict each other, or the total."""
    files = version["files"]
    total = sum(file["size"] for file in files)
    if total != version["size"]:
        what = f"the files have {total} bytes together, and not {version['size']}"
        yield Fault(what, f"{where}.size", "lock this version again")
    paths = [file["path"] for file in files]
    for path in repeated(paths):
        yield Fault(f"{show(path)} is there twice", f"{where}.files", "keep one of them")
    parents = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
    for path in sorted(parents.intersection(paths)):
        yield Fault(f"{show(path)} is a file and a directory", f"{where}.files", "lock this version again")
    pairs = {(file["sha256"], file["size"]) for file in files}
    for digest in repeated(digest for digest, _size in sorted(pairs)):
        yield Fault(f"files with the digest {digest} differ in size", f"{where}.files", "lock this version again")


_SEGMENT = r"(?!\.{1,2}(?:/|\Z))[^/\\\x00-\x1f\x7f\ud800-\udfff]{1,255}"
_PATH = text(
    rf"(?=.{{1,1024}}\Z){_SEGMENT}(?:/{_SEGMENT})*",
    "a path inside the model's directory",
    "a relative one without '.', '..' and empty parts",
)

_FILE = record({
    "path": required(_PATH),
    "size": required(whole(0)),
    "sha256": required(words.SHA256),
})

_VERSION = record({
    "source": required(source_url.check),
    "format": required(words.WORD),
    "size": required(whole(0)),
    "files": required(list_of(_FILE, least=1)),
})

_IMAGE = record({
    "image": required(words.IMAGE),
    "digest": required(words.IMAGE_DIGEST),
})

_LOCKFILE = record({
    "lockfile": required(anything),
    "images": required(map_of(words.WORD, _IMAGE)),
    "models": required(map_of(words.MODEL_NAME, map_of(words.VERSION, _version))),
})
