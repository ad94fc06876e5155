# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Where nodes get images: the digest that is locked, or that a variable names, says which image it is, and not from where it comes."""
from __future__ import annotations

import re
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.image_archive import ArchivedImage
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.words import IMAGE

_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*(?::[0-9]{1,5})?")


def mirrored_image(image: str, mirror: Any) -> str:
    """The reference by which a node pulls a locked image, `registry/repository@sha256:...`, from a mirror.

    mirror: a prefix that takes the place of the registry's name, for all registries or for each ({registry: prefix});
    empty, or without the image's registry, the image comes from where it is named after.
    """
    registry, _slash, name = image.partition("/")
    prefix = mirror.get(registry, "") if isinstance(mirror, dict) else mirror
    if not prefix:
        return image
    if not isinstance(prefix, str) or not _is_prefix(prefix.rstrip("/")):
        raise ValueError(f"llm_fleet_image_mirror: {prefix!r} is no registry with a path; write registry:port/path, without https://")
    return f"{prefix.rstrip('/')}/{name}"


def _is_prefix(prefix: str) -> bool:
    host, slash, path = prefix.partition("/")
    local = host == "localhost" or "." in host or ":" in host
    return bool(local and _HOST.fullmatch(host) and (not slash or IMAGE(path, "", [])))


def image_supply(records: list[dict[str, Any]], archives: list[dict[str, Any]], platform: str, mirror: Any) -> list[dict[str, Any]]:
    """Where a node gets some images: {"image", "pull", "archive", "ids"}, one for each. A record is a release, or only {"image"}.

    archives: what the module image_archive_info found. `archive` is the one that holds the image for the node's platform,
    or empty; then the image is pulled. `ids` are what Docker may call it once it came out of there: the digest of its
    configuration, or that of its manifest where containerd keeps Docker's images.
    """
    supply = {}
    for record in records:
        held = [(archive["path"], image) for archive in archives for image in archive["images"] if _is_meant(record, image, platform)]
        supply[record["image"]] = {
            "image": record["image"],
            "pull": mirrored_image(record["image"], mirror),
            "archive": held[0][0] if held else "",
            "ids": [name for name in (held[0][1]["id"], held[0][1]["manifest"]) if name] if held else [],
        }
    return [supply[image] for image in sorted(supply)]


def _is_meant(record: dict[str, Any], image: dict[str, Any], platform: str) -> bool:
    """By the digest of its configuration, where the lockfile has that; otherwise by the one in its name, if the archive proves it."""
    wanted = (record.get("image_ids") or {}).get(platform)
    if wanted:
        return image["id"] == wanted
    return ArchivedImage(**image).proves(record["image"].partition("@")[2], platform)


def images_to_load(supply: list[dict[str, Any]], standing: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What of the supply has to come out of its archive; `standing` are images as Docker inspects them."""
    ids = {image["Id"] for image in standing}
    return [entry for entry in supply if entry["archive"] and ids.isdisjoint(entry["ids"])]


def image_names(supply: list[dict[str, Any]], standing: list[dict[str, Any]]) -> dict[str, str]:
    """{locked image: what to run it by}: an id that Docker has, for images out of archives, otherwise the reference that was pulled.

    standing: images as Docker inspects them.
    """
    ids = {image["Id"] for image in standing}
    return {entry["image"]: next((name for name in entry["ids"] if name in ids), entry["pull"]) for entry in supply}
