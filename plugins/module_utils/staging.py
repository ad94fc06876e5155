# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Which files have to get to which host, and which of them the controller has to hand out. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import human

KEYS = ("model", "version", "source", "format", "size", "files", "signature")
LOCAL = "file://"


def fleet_artifacts(plan: Mapping[str, Any], lock: Mapping[str, Any], depots: Iterable[str] = ()) -> dict[str, list]:
    """{host: the model versions whose files it needs}: what its instances run, and what they are to run after a rollout.

    A depot needs what all the others need. Hosts that need nothing are not named.
    """
    needed: dict[str, dict] = {}
    for instance in plan["instances"]:
        mine = needed.setdefault(instance["host"], {})
        for artifact in _of_instance(plan, lock, instance):
            mine[artifact["model"], artifact["version"]] = artifact
    every = {key: artifact for artifacts in needed.values() for key, artifact in artifacts.items()}
    for depot in depots:
        if every:
            needed[depot] = {**every, **needed.get(depot, {})}
    return {host: [artifacts[key] for key in sorted(artifacts)] for host, artifacts in sorted(needed.items())}


def _of_instance(plan: Mapping[str, Any], lock: Mapping[str, Any], instance: Mapping[str, Any]) -> list[dict]:
    model = instance["model"]
    versions = lock.get("models", {}).get(model, {})
    wanted = plan["models"].get(model, {}).get("wanted_version")
    found = []
    if wanted in versions and wanted != instance["version"]:
        found.append({"model": model, "version": wanted, **versions[wanted]})
    record = plan["releases"][instance["release"]]
    locked = versions.get(instance["version"])
    # The lockfile knows more of a file than the release does: its path at the source, and small ones as a whole.
    same = locked is not None and _contents(locked) == _contents(record)
    found.append({**record, **locked} if same else record)
    return [{key: artifact[key] for key in KEYS if key in artifact} for artifact in found]


def with_signatures(
    artifacts: Mapping[str, list], verifiers: Collection[str], told: Mapping[tuple[str, str], Mapping[str, Any]]
) -> dict[str, list]:
    """The same artifacts, with what `told` has of each version for the hosts that verify signatures, and none for all others."""
    found: dict[str, list] = {}
    for host, needed in artifacts.items():
        found[host] = []
        for artifact in needed:
            plain = {key: value for key, value in artifact.items() if key != "signature"}
            signature = told.get((artifact["model"], artifact["version"])) if "signature" in artifact and host in verifiers else None
            found[host].append({**plain, "signature": signature} if signature else plain)
    return found


def _contents(entry: Mapping[str, Any]) -> set:
    return {(file["path"], file["sha256"]) for file in entry["files"]}


def missing(artifacts: Iterable[Mapping[str, Any]], held: Mapping[str, int]) -> dict[str, dict]:
    """{digest: file} of what a host's store lacks. A blob of another size is as good as none."""
    return {
        file["sha256"]: file
        for artifact in artifacts
        for file in artifact["files"]
        if held.get(file["sha256"]) != file["size"]
    }


def bringing(artifacts: Mapping[str, list], held: Mapping[str, Mapping[str, int]]) -> list[str]:
    """A line for each host that lacks something: how much, and of which model versions."""
    lines = []
    for host, blobs in sorted(held.items()):
        lacking = missing(artifacts.get(host, []), blobs)
        if lacking:
            titles = [
                f"{each['model']} {each['version']}"
                for each in artifacts[host]
                if any(file["sha256"] in lacking for file in each["files"])
            ]
            lines.append(f"{host}: bring {human(sum(file['size'] for file in lacking.values()))} of {', '.join(titles)}")
    return lines


def supply(
    artifacts: Mapping[str, list], held: Mapping[str, Mapping[str, int]], here: Collection[str] | None = None
) -> list[dict]:
    """The artifacts that the controller has to hand out, each with the files that some host of `held` lacks.

    A content that several versions share is named once. What the lockfile itself holds travels with the playbook.
    `here`: where the hosts can ask the sources themselves, as depots can, the digests that the controller's own store has:
    what was downloaded to be locked is not downloaded again. Its local files only it can hand out in any case.
    """
    lacking: set[str] = set()
    for host, blobs in held.items():
        lacking |= set(missing(artifacts.get(host, []), blobs))
    every = {(each["model"], each["version"]): each for host in held for each in artifacts.get(host, [])}
    found = []
    for _key, artifact in sorted(every.items()):
        files = [file for file in artifact["files"] if file["sha256"] in lacking and file.get("content") is None]
        if here is not None and not artifact["source"].startswith(LOCAL):
            files = [file for file in files if file["sha256"] in here]
        lacking -= {file["sha256"] for file in files}
        if files:
            found.append({**artifact, "files": files, "size": sum(file["size"] for file in files)})
    return found
