# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What differs between two lockfiles, or between a lockfile and a source, and what of it would hurt. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Callable, NamedTuple

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile_text import version_digest

NAMED = 3  # files that a message lists by name


class Use(NamedTuple):
    """A version that hosts run, or keep to go back to. `digest` is that of its files where a host tells it."""

    model: str
    version: str
    hosts: tuple[str, ...]
    digest: str = ""


def versions_in_use(hosts: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What hosts run or keep, as M(localfirst.llm_fleet.host_info) tells: [{model, version, hosts, digest}].

    Two hosts that have different files under one version make two entries.
    """
    users: dict[tuple, set[str]] = {}
    for host in hosts:
        for model, version, digest in _uses(host):
            users.setdefault((model, version, digest), set()).add(host["name"])
    return [
        {"model": model, "version": version, "hosts": sorted(names), "digest": digest}
        for (model, version, digest), names in sorted(users.items())
    ]


def _uses(host: dict[str, Any]) -> set[tuple]:
    plan = host.get("plan") if isinstance(host.get("plan"), dict) else {}
    releases = plan.get("releases") if isinstance(plan.get("releases"), dict) else {}
    told = {
        (record["model"], record["version"]): version_digest(record["files"])
        for record in releases.values()
        if isinstance(record, dict) and record.get("files")
    }
    labels = {(instance["model"], instance["version"]) for instance in host.get("instances") or []}
    found = {(model, version, told.get((model, version), "")) for model, version in labels | set(told)}
    return {(model, version, digest) for model, version, digest in found if model and version}


def entries(data: dict[str, Any]) -> dict[tuple[str, str], dict]:
    """The locked versions of a lockfile by (model, version)."""
    return {
        (model, version): entry
        for model, versions in (data.get("models") or {}).items()
        for version, entry in versions.items()
    }


def dropped_faults(
    before: dict[str, Any],
    after: dict[str, Any],
    postponed: set[tuple[str, str]],
    in_use: Iterable[Use],
    complete: bool,
    allow_drop: bool,
) -> list[Fault]:
    """Refuses to take a version away, or to give it other contents, where a host uses it or may use it."""
    old, new = entries(before), entries(after)
    faults, refused = [], set()
    for use in in_use:
        key = (use.model, use.version)
        if key in postponed:
            continue
        had = use.digest or old.get(key, {}).get("digest")
        gone = key in old and key not in new
        changed = key in new and had is not None and new[key]["digest"] != had
        if gone or changed:
            refused.add(key)
            faults.append(_in_use(use, gone))
    if complete or allow_drop:
        return faults
    for key, entry in sorted(old.items()):
        if key not in refused and key not in postponed and new.get(key, {}).get("digest") != entry["digest"]:
            verb = "get other contents" if key in new else "be dropped"
            faults.append(Fault(
                f"{key[0]} {key[1]} would {verb}, and not every host has said whether it uses it",
                f"models.{key[0]}.{key[1]}",
                "run again when all hosts answer; if you know that none uses it: -e allow_drop=true",
            ))
    return faults


def _in_use(use: Use, gone: bool) -> Fault:
    hosts, where = ", ".join(use.hosts), f"models.{use.model}.{use.version}"
    if gone:
        fix = "keep it in the catalog until the hosts run another one (rollout), or nothing of this model (site)"
        return Fault(f"{use.model} {use.version} would be dropped, and is in use on {hosts}", where, fix)
    fix = "a version never changes what it holds: leave this one as it is, and give the new contents a version of their own"
    return Fault(f"{use.model} {use.version} would get other contents, and is in use on {hosts}", where, fix)


def describe(before: dict[str, Any], after: dict[str, Any], postponed: set[tuple[str, str]]) -> list[str]:
    """What the new lockfile changes, a line each."""
    old, new = entries(before), entries(after)
    lines = []
    for key in sorted({*old, *new}):
        title = f"{key[0]} {key[1]}"
        if key in postponed or old.get(key) == new.get(key):
            continue
        if key not in old:
            signed = f", signed by {signed_by(new[key]['signature'])}" if "signature" in new[key] else ""
            lines.append(f"{title}: lock {new[key]['source']}{signed}")
        elif key not in new:
            lines.append(f"{title}: drop, the catalog has it no more")
        elif _differing(old[key], new[key]) <= {"shape", "signature"}:
            lines += [f"{title}: {line}" for line in _notes(old[key], new[key])]
        elif old[key]["digest"] == new[key]["digest"]:
            lines.append(f"{title}: same files, other particulars ({new[key]['source']})")
        else:
            lines.append(f"{title}: lock {new[key]['source']} in place of {old[key]['source']}")
    old_images, new_images = before.get("images") or {}, after.get("images") or {}
    for engine in sorted({*old_images, *new_images}):
        if old_images.get(engine) != new_images.get(engine):
            now = new_images.get(engine)
            lines.append(f"image of {engine}: " + (f"lock {now['image']}@{now['digest']}" if now else "drop, no model needs it"))
    old_choice, new_choice = before.get("selected") or {}, after.get("selected") or {}
    for model in sorted({*old_choice, *new_choice}):
        was, now = (choice.get(model, {}) for choice in (old_choice, new_choice))
        if was != now:
            lines.append(f"{model}: '{now['asked']}' means {now['version']}" if now else f"{model}: the catalog names its version")
    return lines


def _differing(old: dict[str, Any], new: dict[str, Any]) -> set[str]:
    return {key for key in {*old, *new} if old.get(key) != new.get(key)}


def _notes(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """What is said of the same files anew."""
    if old.get("shape") != new.get("shape"):
        yield "note what its memory depends on"
    if old.get("signature") != new.get("signature"):
        yield f"keep its signature by {signed_by(new['signature'])}" if "signature" in new else "forget its signature, nobody demands one"


def signed_by(signature: dict[str, Any]) -> str:
    """Who signed, for people."""
    return " ".join(filter(None, (signature.get("identity"), signature["signer"][: len("sha256:") + 16])))


def changed_files(old: dict[str, Any], resolution: Any, moved: Callable[[Any, str], bool]) -> str:
    """What a source has now and a locked entry has not, in words; empty where nothing is known to differ.

    `moved(file, locked digest)` says of a file whose digest the source does not tell whether it is surely another one.
    """
    digests = {file["sha256"] for file in old["files"]}
    locked = {file.get("from", file["path"]): file for file in old["files"] if "content" not in file}
    new, changed, unsure = [], [], False
    for file in resolution.files:
        if file.content is not None:
            locked.pop(file.path, None)
            if file.sha256 not in digests:
                changed.append(file.path)
            continue
        was = locked.pop(file.path, None)
        if was is None:
            new.append(file.path)
        elif file.size not in (None, was["size"]) or file.sha256 not in (None, was["sha256"]):
            changed.append(file.path)
        elif file.sha256 is None:
            unsure = True
            if moved(file, was["sha256"]):
                changed.append(file.path)
    said = [
        f"{len(paths)} {word} ({', '.join(sorted(paths)[:NAMED])}{', …' if len(paths) > NAMED else ''})"
        for word, paths in (("changed", changed), ("new", new), ("gone", list(locked)))
        if paths
    ]
    if not said and unsure and resolution.source != old["source"]:
        return "another revision; its small files may differ"
    return ", ".join(said)
