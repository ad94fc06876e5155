# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Files of the controller (`file://` sources): where they lie, and whether they are still what was locked."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources import open_source
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.staging import LOCAL


def local_files(artifacts: Iterable[Mapping[str, Any]], stored: Collection[str] = ()) -> tuple[dict[str, str], list[Fault]]:
    """({digest: path}, faults) of the files of these artifacts that lie on the controller, but for what its store has (`stored`).

    Their sizes are compared, their digests are not: whoever fetches a file does that, and reading all of them here would
    take as long as moving them.
    """
    found: dict[str, str] = {}
    faults: list[Fault] = []
    for artifact in artifacts:
        if not artifact["source"].startswith(LOCAL):
            continue
        for file in artifact["files"]:
            # A bundle may have brought it: on the other side of an air gap nothing lies where the source says.
            if file["sha256"] in stored:
                continue
            path, fault = _local_file(artifact, file)
            if fault:
                faults.append(fault)
            else:
                found[file["sha256"]] = path
    return found, faults


def _local_file(artifact: Mapping[str, Any], file: Mapping[str, Any]) -> tuple[str, Fault | None]:
    path = artifact["source"]
    try:
        path = open_source(artifact["source"]).locate(file.get("from", file["path"])).url[len(LOCAL) :]
        size = Path(path).stat().st_size
    except ArtifactError as error:
        return path, error.fault
    except OSError as error:
        return path, _fault(artifact, path, (error.strerror or str(error)).lower())
    if size != file["size"]:
        return path, _fault(artifact, path, f"it has {size} bytes, and {file['size']} were locked")
    return path, None


def _fault(artifact: Mapping[str, Any], path: str, problem: str) -> Fault:
    return Fault(
        f"{artifact['model']} {artifact['version']} cannot be handed out: {problem}",
        f"{path} on the controller",
        "put the file there that was locked, or lock what is there as a new version",
    )
