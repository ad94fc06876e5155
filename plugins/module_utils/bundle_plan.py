# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What a bundle has to hold: the locked versions of some models, and the images of their engines. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.bundle_manifest import LOCKFILE, Manifest, blob_path
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault, suggestion
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.words import IMAGE_DIGEST

KEYS = ("source", "format", "size", "files")


class BundlePlan(NamedTuple):
    """What is to be brought, and what of it is to be fetched because no earlier bundle has it."""

    artifacts: list[dict]
    fetch: list[dict]
    images: list[dict]
    wanted: list[str]


def choose(models: Iterable[Mapping[str, Any]], asked: Iterable[str]) -> tuple[list[tuple[dict, str]], list[Fault]]:
    """The models that are meant, each with the one version or "" for all of them. `asked`: `name` or `name@version`; nothing is all."""
    known = {model["name"]: dict(model) for model in models}
    chosen, faults = [], []
    for entry in asked or known:
        name, _at, version = entry.partition("@")
        if name in known:
            chosen.append((known[name], version))
        else:
            faults.append(Fault(f"the catalog has no model '{name}'", "-e models", suggestion(name, known, "models")))
    if not known:
        faults.append(Fault("the catalog is empty", "llm_fleet_models", "check the path after -i"))
    return chosen, faults


def plan_bundle(
    chosen: Iterable[tuple[Mapping[str, Any], str]],
    lock: Mapping[str, Any],
    name: str,
    more_images: Iterable[str],
    platforms: Iterable[str],
    base: Manifest | None,
) -> tuple[BundlePlan, list[Fault]]:
    """All locked versions of these models (`name` is the lockfile's), and images; `more_images` are references by digest."""
    faults: list[Fault] = []
    artifacts: dict[tuple[str, str], dict] = {}
    engines: dict[str, None] = {}
    for model, version in chosen:
        versions = (lock.get("models") or {}).get(model["name"]) or {}
        if version and version not in versions:
            what, fix = f"version {version} of '{model['name']}' is not locked", suggestion(version, versions, "versions")
            faults.append(Fault(what, f"{name}: models.{model['name']}", fix))
        for number, entry in versions.items():
            if version in ("", number):
                artifacts[model["name"], number] = {
                    "model": model["name"], "version": number, **{key: entry[key] for key in KEYS if key in entry}
                }
        if model["engine"]:
            engines[model["engine"]] = None
    locked = [lock["images"][engine] for engine in engines if engine in (lock.get("images") or {})]
    images, image_faults = _images(locked, more_images, platforms)
    every = [artifacts[key] for key in sorted(artifacts)]
    has = set(base.entries()) if base else set()
    contents = sorted({file["sha256"] for each in every for file in each["files"]})
    return BundlePlan(every, _fetched(every, has), images, [LOCKFILE, *map(blob_path, contents)]), faults + image_faults


def _images(locked: list[Mapping[str, Any]], more: Iterable[str], platforms: Iterable[str]) -> tuple[list[dict], list[Fault]]:
    """One entry for each image and platform. The lockfile says what Docker calls a locked one; others are known by digest."""
    found: dict[tuple[str, str, str], dict] = {}
    faults: list[Fault] = []
    for entry in locked:
        for platform in platforms:
            identity = (entry.get("ids") or {}).get(platform, "")
            image = {"image": entry["image"], "digest": entry["digest"], "platform": platform, "id": identity, "by_digest": not identity}
            found[entry["image"], entry["digest"], platform] = image
    for reference in more:
        image, _at, digest = reference.partition("@")
        mine: list[Fault] = []
        IMAGE_DIGEST(digest, f"image {reference}", mine)
        faults += [fault._replace(fix="name it as registry/repository@sha256:…") for fault in mine]
        for platform in platforms if not mine else ():
            asked = {"image": image, "digest": digest, "platform": platform, "id": ""}
            found[image, digest, platform] = {**found.get((image, digest, platform), asked), "by_digest": True}
    return list(found.values()), faults


def _fetched(artifacts: list[dict], has: set[str]) -> list[dict]:
    found = []
    for artifact in artifacts:
        files = [file for file in artifact["files"] if blob_path(file["sha256"]) not in has]
        if files:
            found.append({**artifact, "files": files, "size": sum(file["size"] for file in files)})
    return found
