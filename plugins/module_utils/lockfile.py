# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The lockfile: every file of every model version by its digest, and every engine image by its own.

It is read as if somebody had changed it by hand, or a disk had filled up while it was written: each version has
a digest over all its files, and the last line says that it is the last. lockfile_text.py writes it.
"""
from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import semver, source_url, words
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile_text import CONTENT_LIMIT, FORMAT, version_digest
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.model_shape import SHAPE
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.schema import (
    Check,
    Field,
    anything,
    inside,
    list_of,
    map_of,
    one_of,
    optional,
    record,
    repeated,
    required,
    show,
    text,
    whole,
    wrong,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_bundle import LARGEST
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.strict_yaml import Lines, load_with_lines

LOCK_AGAIN = "lock again (ansible-playbook localfirst.llm_fleet.lock)"
RESTORE = f"take this entry back from git, or {LOCK_AGAIN}"

_MOVABLE = ("hf", "oci", "mlflow")  # kinds of source that have a way to say exactly which bytes they mean
_CONFLICT = re.compile(r"^(?:<{7}|={7}|>{7})(?: |$)", re.MULTILINE)


def parse_lockfile(text: str, name: str) -> tuple[dict, list[Fault]]:
    """The lockfile as data, and everything that is wrong with it, by line; `name` is the file's name for messages.

    Optional keys that are not there are not in the data either. With faults, the data hold only what is sound:
    enough to look at, not enough to act on.
    """
    conflict = _CONFLICT.search(text) if isinstance(text, str) else None
    if conflict:
        where = f"{name}: line {text.count(chr(10), 0, conflict.start()) + 1}"
        return {}, [Fault("git left a conflict here", where, f"take one side of the file whole, then {LOCK_AGAIN}")]
    data, faults, lines = load_with_lines(text, name)
    if not faults:
        faults = _whole_faults(data, name, text)
    elif _breaks_off(text, name, faults[0]):
        faults = [_cut_off(_last_line(name, text))]  # more to the point than what YAML makes of half a line
    if faults:
        return {}, [_at_its_line(fault, name, lines) for fault in faults]
    lock = _lockfile(data, f"{name}:", faults)
    return lock or {}, [_at_its_line(fault, name, lines) for fault in faults]


def check_locked(
    models: Iterable[dict],
    lock: dict[str, Any],
    name: str,
    profiles: dict[str, Any],
    engine_images: dict[str, str] | None = None,
) -> list[Fault]:
    """What the catalog wants and the lockfile lacks. `models` are check_catalog's, `lock` is parse_lockfile's.

    `engine_images` is the variable llm_fleet_engine_images: {engine: image as the operator named it}.
    """
    faults: list[Fault] = []
    for model in models:
        faults += _version_faults(model, lock, name, profiles)
        faults += _source_faults(model, lock, name)
        engine = model["engine"]
        if engine is not None and engine not in (lock.get("images") or {}):
            what, where = f"no image of the engine '{engine}' is locked", f"{name}: images"
            faults.append(Fault(what, where, f"name it in llm_fleet_engine_images.{engine}, then {LOCK_AGAIN}"))
        elif engine is not None:
            faults += _image_faults(engine, lock["images"][engine], name, (engine_images or {}).get(engine))
    return list(dict.fromkeys(faults))  # two models with one engine lack the same image


def _image_faults(engine: str, locked: dict, name: str, wanted: str | None) -> Iterator[Fault]:
    """An image that was named anew, and is still locked as it was."""
    asked = locked.get("asked")
    if wanted is not None and asked is not None and wanted != asked:
        what = f"the image of '{engine}' was locked from {show(asked)}, and llm_fleet_engine_images now says {show(wanted)}"
        yield Fault(what, f"{name}: images.{engine}", LOCK_AGAIN)


def exact_versions(models: Iterable[dict], lock: dict[str, Any]) -> list[dict]:
    """The models with the version that was selected for them in the place of a constraint.

    For models that check_locked found no fault with. Nothing is selected here: that is done when locking, so that
    a version which is added to the catalog later is never served by itself.
    """
    return [{**model, "version": _exact(model, lock)} for model in models]


def _exact(model: dict, lock: dict[str, Any]) -> str | None:
    """The version that is wanted now, or None where the lockfile does not know."""
    wanted = model["version"]
    if wanted is None or semver.is_version(wanted):
        return wanted
    return ((lock.get("selected") or {}).get(model["name"]) or {}).get("version")


def _version_faults(model: dict, lock: dict[str, Any], name: str, profiles: dict[str, Any]) -> Iterator[Fault]:
    """The wanted version must be locked, in a format that its engine reads."""
    model_name, wanted, version = model["name"], model["version"], _exact(model, lock)
    versions = (lock.get("models") or {}).get(model_name)
    if versions is None:
        yield Fault(f"the model '{model_name}' is not locked", f"{name}: models", LOCK_AGAIN)
    elif wanted is None:
        return  # the catalog's own fault
    elif version is None:
        what = f"no version of '{model_name}' is selected for the constraint '{wanted}'"
        yield Fault(what, f"{name}: selected", LOCK_AGAIN)
    elif version != wanted and not _still_selected(model, version):
        what = f"the selected version {version} is no longer in the catalog, or not allowed by '{wanted}'"
        yield Fault(what, f"{name}: selected.{model_name}", LOCK_AGAIN)
    elif version not in versions:
        locked = ", ".join(sorted(versions, key=semver.order)) or "none yet"
        yield Fault(f"version {version} is not locked", f"{name}: models.{model_name}", f"{LOCK_AGAIN}, or choose one that is: {locked}")
    elif model["engine"] is not None:
        form, formats = versions[version]["format"], profiles[model["engine"]]["formats"]
        if form not in formats:
            what = f"the engine '{model['engine']}' does not read the format '{form}'"
            where = f"{name}: models.{model_name}.{version}.format"
            yield Fault(what, where, f"choose another engine, or lock files in: {', '.join(sorted(formats))}")


def _still_selected(model: dict, version: str) -> bool:
    return version in (model.get("versions") or {version}) and semver.satisfies(version, model["version"])


def _source_faults(model: dict, lock: dict[str, Any], name: str) -> Iterator[Fault]:
    """Each version must have been locked from where the catalog says that it comes from."""
    locked = (lock.get("models") or {}).get(model["name"]) or {}
    for version, entry in sorted((model.get("versions") or {}).items()):
        asked = (locked.get(version) or {}).get("asked")
        if asked is not None and entry.get("source") not in (None, asked):
            where = f"{name}: models.{model['name']}.{version}.asked"
            advice = f"give the other files a version of their own, or {LOCK_AGAIN}"
            yield Fault("the catalog has another source for this version", where, advice)


def _whole_faults(data: Any, name: str, text: str) -> list[Fault]:
    """What can be said of a file without looking into its parts: that it is all there, and of a known format."""
    form = data.get("lockfile") if isinstance(data, dict) else None
    if form is not None and one_of(FORMAT)(form, "", []) is None:
        advice = f"this release of the collection reads format {FORMAT}"
        return [Fault(f"the format {show(form)} is unknown", f"{name}: lockfile", advice)]
    if isinstance(data, dict) and data.get("end") is not True:
        return [_cut_off(f"{name}: end" if "end" in data else _last_line(name, text))]
    return []


def _breaks_off(text: Any, name: str, fault: Fault) -> bool:
    """Whether YAML's fault is at the end of a text that is not whole. The end may count as a line of its own."""
    if not isinstance(text, str) or text.rstrip().endswith("\nend: true"):
        return False
    return fault.where in (_last_line(name, text), _last_line(name, f"{text.rstrip()}\n-"))


def _cut_off(where: str) -> Fault:
    return Fault("the file is cut off: it does not end with 'end: true'", where, f"take it back from git, or {LOCK_AGAIN}")


def _last_line(name: str, text: str) -> str:
    return f"{name}: line {len(text.splitlines())}"


def _at_its_line(fault: Fault, name: str, lines: Lines) -> Fault:
    """The same fault, with the line before the place."""
    place = fault.where[len(name) :].lstrip(": ")
    if place.startswith("line "):
        return fault
    # An unknown key is a fault of the mapping that it is in, but has a line of its own.
    unknown = re.fullmatch(r"unknown key '(.*)'", fault.what)
    line = lines.of(inside(place, unknown[1]) if place else unknown[1]) if unknown else None
    line = line or lines.of(place)
    if line is None:
        return fault
    return fault._replace(where=f"{name}: line {line}: {place}" if place else f"{name}: line {line}")


def _lean(fields: dict[str, Field]) -> Check:
    """A record in which what may be left out, and was, stays out."""
    check = record(fields)

    def lean(value: Any, where: str, faults: list[Fault]) -> dict | None:
        found = check(value, where, faults)
        return found and {key: entry for key, entry in found.items() if entry is not None or fields[key].required}

    return lean


def _lockfile(value: Any, where: str, faults: list[Fault]) -> dict | None:
    """The whole file: what is selected must be there, and be what was asked for."""
    found = _PARTS(value, where, faults)
    if found is None:
        return None
    found.pop("end", None)
    for model, choice in (found.get("selected") or {}).items():
        place, version, asked = inside(inside(where, "selected"), model), choice["version"], choice["asked"]
        if version is None or asked is None:
            continue
        if not semver.satisfies(version, asked):
            wrong(faults, f"version {version} is none that '{asked}' allows", f"{place}.version", RESTORE)
        elif version not in ((found.get("models") or {}).get(model) or {}):
            wrong(faults, f"version {version} of '{model}' is not locked", f"{place}.version", RESTORE)
    return found


def _version(value: Any, where: str, faults: list[Fault]) -> dict | None:
    """One locked model version."""
    mine: list[Fault] = []
    found = _VERSION(value, where, mine)
    if not mine:  # the files are compared with each other, so each must be sound first
        mine += _file_faults(found, where)
    if not mine and version_digest(found["files"]) != found["digest"]:
        # With the digest that would fit, this message would be a recipe for changing the file by hand.
        mine.append(Fault("the files below are not those that were locked under this digest", f"{where}.digest", RESTORE))
    faults += mine
    return found


def _file_faults(version: dict, where: str) -> Iterator[Fault]:
    """Files that contradict each other, or the total."""
    files = version["files"]
    total = sum(file["size"] for file in files)
    if total != version["size"]:
        what = f"the files have {total} bytes together, and not {version['size']}"
        yield Fault(what, f"{where}.size", RESTORE)
    paths = [file["path"] for file in files]
    for path in repeated(paths):
        yield Fault(f"{show(path)} is there twice", f"{where}.files", RESTORE)
    for origin in repeated(file["from"] for file in files if "from" in file):
        yield Fault(f"two files are said to come from {show(origin)}", f"{where}.files", RESTORE)
    parents = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
    for path in sorted(parents.intersection(paths)):
        yield Fault(f"{show(path)} is a file and a directory", f"{where}.files", RESTORE)
    pairs = {(file["sha256"], file["size"]) for file in files}
    for digest in repeated(digest for digest, _size in sorted(pairs)):
        yield Fault(f"files with the digest {digest} differ in size", f"{where}.files", RESTORE)


def _file(value: Any, where: str, faults: list[Fault]) -> dict | None:
    """One file; one whose content is here must be that content."""
    mine: list[Fault] = []
    found = _FILE(value, where, mine)
    if not mine and "content" in found:
        content = found["content"].encode()
        if len(content) != found["size"] or hashlib.sha256(content).hexdigest() != found["sha256"]:
            wrong(mine, "the content is not what size and sha256 say", inside(where, "content"), RESTORE)
    faults += mine
    return found


def _source(value: Any, where: str, faults: list[Fault]) -> str | None:
    """A source that always means the same bytes, where its kind has a way to say so."""
    found = source_url.check(value, where, faults)
    if found is not None:
        url = source_url.parse_source(found)
        if url.scheme in _MOVABLE and not source_url.is_pinned(url):
            return wrong(faults, "this source can mean other bytes tomorrow", where, LOCK_AGAIN)
    return found


def _constraint(value: Any, where: str, faults: list[Fault]) -> str | None:
    if semver.is_constraint(value):
        return value
    return wrong(faults, f"{show(value)} is no constraint on versions", where, RESTORE)


def _content(value: Any, where: str, faults: list[Fault]) -> str | None:
    """The text of a small file."""
    found = _TEXT(value, where, faults)
    if found is not None and len(found.encode()) > CONTENT_LIMIT:
        return wrong(faults, f"the content has more than {CONTENT_LIMIT} bytes", where, LOCK_AGAIN)
    return found


def _shape(value: Any, where: str, faults: list[Fault]) -> dict | None:
    """What a version's memory depends on; what may be left out, and was, stays out."""
    mine: list[Fault] = []
    found = SHAPE(value, where, mine)
    faults += [fault._replace(fix=RESTORE) for fault in mine]
    if found is None or mine:
        return None
    groups = [_said(group) for group in found["cache"]]
    return {**_said(found), "cache": groups}


def _said(found: dict) -> dict:
    return {key: value for key, value in found.items() if value is not None}


def _signature(value: Any, where: str, faults: list[Fault]) -> dict | None:
    """The signature of a version as it was verified; whether it holds is asked with the catalog at hand (signature_check.py)."""
    mine: list[Fault] = []
    found = _SIGNATURE(value, where, mine)
    if not mine and hashlib.sha256(found["content"].encode()).hexdigest() != found["sha256"]:
        wrong(mine, "the content is not what sha256 says", inside(where, "content"), RESTORE)
    faults += mine
    return None if mine else found


def _bundle(value: Any, where: str, faults: list[Fault]) -> str | None:
    found = _TEXT(value, where, faults)
    if found is not None and len(found.encode()) > LARGEST:
        return wrong(faults, f"the signature has more than {LARGEST} bytes", where, LOCK_AGAIN)
    return found


_TEXT = text(r"[^\ud800-\udfff]*", "a text", "it in quotes")
_SEGMENT = r"(?!\.{1,2}(?:/|\Z))[^/\\\x00-\x1f\x7f\ud800-\udfff]{1,255}"
_PATH = text(
    rf"(?=.{{1,1024}}\Z){_SEGMENT}(?:/{_SEGMENT})*",
    "a path inside the model's directory",
    "a relative one without '.', '..' and empty parts",
)

_FILE = _lean({
    "path": required(_PATH),
    "size": required(whole(0)),
    "sha256": required(words.SHA256),
    "from": optional(_PATH),
    "content": optional(_content),
})

_SIGNATURE = _lean({
    "signer": required(words.DIGEST),
    "identity": optional(text()),
    "sha256": required(words.SHA256),
    "left_out": optional(list_of(_PATH, least=1)),
    "content": required(_bundle),
})

_VERSION = _lean({
    "asked": optional(source_url.check),
    "source": required(_source),
    "format": required(words.WORD),
    "licence": optional(text()),
    "size": required(whole(0)),
    "digest": required(words.DIGEST),
    "shape": optional(_shape),
    "signature": optional(_signature),
    "files": required(list_of(_file, least=1)),
})

_IMAGE = _lean({
    "image": required(words.IMAGE),
    "digest": required(words.IMAGE_DIGEST),
    "asked": optional(text()),
    # What Docker calls the image on each platform, for images that come in archives.
    "ids": optional(map_of(one_of("linux/amd64", "linux/arm64"), words.IMAGE_DIGEST)),
})

_PARTS = _lean({
    "lockfile": required(anything),
    "tool": optional(text()),
    "images": required(map_of(words.WORD, _IMAGE)),
    "selected": optional(map_of(words.MODEL_NAME, record({"asked": required(_constraint), "version": required(words.VERSION)}))),
    "models": required(map_of(words.MODEL_NAME, map_of(words.VERSION, _version))),
    "end": required(anything),
})
