# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What the fleet's stores have to keep, and what came of looking after them, for people to read. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import human


def known_artifacts(planned: Mapping[str, Any], told: Iterable[Mapping[str, Any]], lock: Mapping[str, Any]) -> list[dict]:
    """[{model, version, files, reasons}]: what the fleet runs, is to run, keeps to go back to, and has locked.

    `planned` is what M(localfirst.llm_fleet.fleet_plan) returned, `told` what M(localfirst.llm_fleet.host_info) did for each
    host, `lock` the parsed lockfile. Entries with other contents under the same name stand beside each other. What depots verify
    has its `signature` as well.
    """
    plan = planned["plan"]
    running = {instance["release"] for instance in plan["instances"]}
    found: list[tuple[str, Mapping[str, Any]]] = []
    for state in ({"plan": plan}, *told):
        found += [("current" if name in running else "previous", record) for name, record in _releases(state.get("plan")).items()]
    found += [("wanted", artifact) for artifacts in planned["artifacts"].values() for artifact in artifacts]
    for model, versions in (lock.get("models") or {}).items():
        found += [("locked", {"model": model, "version": version, **entry}) for version, entry in versions.items()]
    entries: dict[tuple, dict] = {}
    for reason, record in found:
        files = [{key: file[key] for key in ("path", "size", "sha256", "from") if key in file} for file in record["files"]]
        files.sort(key=lambda file: file["path"])
        key = (record["model"], record["version"], tuple((file["path"], file["sha256"]) for file in files))
        entry = entries.setdefault(key, {"model": key[0], "version": key[1], "files": files, "reasons": []})
        # The lockfile's own says not yet whom to trust; that of a planned artifact does.
        if reason == "wanted" and "signature" in record:
            entry.update(files=files, signature=record["signature"])
        # What a host is to have is mostly what it runs already.
        if reason not in entry["reasons"] and not (reason == "wanted" and "current" in entry["reasons"]):
            entry["reasons"].append(reason)
    return [entries[key] for key in sorted(entries)]


def _releases(plan: object) -> dict[str, Mapping[str, Any]]:
    """The releases of a plan as a host has it: it may be damaged."""
    releases = plan.get("releases") if isinstance(plan, Mapping) else None
    if not isinstance(releases, Mapping):
        return {}
    return {name: record for name, record in releases.items() if isinstance(record, Mapping) and record.get("files")}


def gc_rows(results: Mapping[str, Mapping[str, Any]]) -> list[dict]:
    """A row for each version that went or stays, for the rest of each host, and for all of it. By host: what
    M(localfirst.llm_fleet.model_gc) returned."""
    rows = []
    for host, result in sorted(results.items()):
        versions = [{**each, "bytes": each["bytes"], "because": "nobody names it"} for each in result["freed"]]
        versions += [{**each, "bytes": None, "because": ", ".join(each["reasons"])} for each in result["kept"]]
        for each in sorted(versions, key=lambda each: (each["model"], each["version"], each["path"])):
            rows.append(_gc_row(host, each["model"], each["version"], each["bytes"], each["because"]))
        for key, what in (("unnamed", "contents of no version"), ("unfinished", "unfinished downloads")):
            if result[key]["count"]:
                rows.append(_gc_row(host, f"{result[key]['count']} {what}", None, result[key]["bytes"], "nobody names them"))
        rows.append(_gc_row(host, "total", None, result["freed_bytes"], None))
    return rows


def _gc_row(host: str, model: str, version: str | None, size: int | None, because: str | None) -> dict:
    freed = "stays" if size is None else human(size)
    return {"host": host, "model": model, "version": version, "freed": freed, "would_free": freed, "because": because}


def damage_rows(results: Mapping[str, Mapping[str, Any]], instances: Mapping[str, Iterable[Mapping[str, Any]]]) -> list[dict]:
    """A row for each damaged file, with the instances that run its version. By host: what M(localfirst.llm_fleet.model_verify)
    returned, and the instances that M(localfirst.llm_fleet.host_info) found."""
    rows = []
    for host, result in sorted(results.items()):
        for each in result.get("damaged") or []:
            users = [
                instance["id"]
                for instance in instances.get(host) or []
                if (instance["model"], instance["version"]) == (each["model"], each["version"])
            ]
            rows.append({"host": host, **each, "used_by": sorted(users)})
    return rows


def still_damaged(rows: Iterable[Mapping[str, Any]], after: Mapping[str, Iterable[Mapping[str, Any]]]) -> list[dict]:
    """What of `rows` a staging did not mend. `after` has, by host, the artifacts that M(localfirst.llm_fleet.model_artifact_info)
    found after it; without any, nothing was staged.

    What was set aside is gone, so only a tree can still have it: that of a version which the staging did not bring.
    """
    if not after:
        return [dict(row) for row in rows]
    broken = {(host, each["model"], each["version"]) for host, found in after.items() for each in found if not each["complete"]}
    return [dict(row) for row in rows if (row["host"], row["model"], row["version"]) in broken]


def verified_lines(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each host: how much was read, how fast, and what came of it."""
    width = max(map(len, results), default=0)
    return [f"{host.ljust(width)}  {_verified(result)}" for host, result in sorted(results.items())]


def _verified(result: Mapping[str, Any]) -> str:
    read = f"{result['contents']} contents, {human(result['bytes_read'])} in {result['seconds']:g} s ({human(result['rate'])}/s)"
    damaged = len(result["damaged"])
    return f"{read}: {f'{damaged} damaged' if damaged else 'all as they should be'}"
