# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Small catalogs for tests of the lock, with engines that read what the tests write."""

from __future__ import annotations

from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.lookup.engine_profiles import BUILT_IN, read_profiles
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lock_bytes import Digests
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lock_changes import entries
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lock_models import Lock, Locker
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile import parse_lockfile

PROFILES, _faults = read_profiles([BUILT_IN])
# Pinned by their digests, so that no registry has to answer.
IMAGES = {engine: f"registry.example:5000/{engine}@sha256:{'ab' * 32}" for engine in PROFILES}


def model(name: str, sources: dict[str, str], engine: str = "llamacpp", version: str = "") -> dict[str, Any]:
    """A catalog entry with a source for each version; the first one is wanted where `version` is empty."""
    return {
        "name": name,
        "version": version or next(iter(sources)),
        "versions": {number: {"source": source} for number, source in sources.items()},
        "engine": engine,
    }


def lock(models: list[dict], current: str = "", store=None, settings: dict | None = None, keep: bool = True, **options) -> Lock:
    """One lock; `current` is the text of the one before."""
    data: dict[str, Any] = {}
    if current:
        data, faults = parse_lockfile(current, "models.lock.yml")
        assert faults == []
    digests = Digests(store, settings or {}, keep)
    images, profiles = options.pop("images", IMAGES), options.pop("profiles", PROFILES)
    found = Locker(models, profiles, images, settings or {}, data, digests, **options).run()
    found.downloaded = digests.downloaded
    return found


def locked(text: str) -> dict[tuple[str, str], dict]:
    """The entries of a lockfile, which has to be sound."""
    data, faults = parse_lockfile(text, "models.lock.yml")
    assert faults == []
    return entries(data)
