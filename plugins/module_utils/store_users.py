# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Who uses a store at this moment: containers that have a part of it mounted, and processes that have a file of it open."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError

LABEL = "llm_fleet."
DOCKER_FIX = "start Docker (systemctl start docker), then run again: nothing is removed without knowing what uses it"

# Runs docker with these arguments and returns (status, output, errors); None where there is no docker.
Docker = Callable[..., Any]


@dataclass(frozen=True)
class Container:
    """A container, running or not: one that is stopped keeps its mounts, and may be started at any moment."""

    name: str
    model: str
    version: str
    mounts: tuple[str, ...]

    @classmethod
    def parse(cls, inspected: dict) -> Container:
        labels = (inspected.get("Config") or {}).get("Labels") or {}
        return cls(
            labels.get(LABEL + "instance") or inspected.get("Name", "").lstrip("/"),
            labels.get(LABEL + "model", ""),
            labels.get(LABEL + "version", ""),
            tuple(os.path.realpath(mount["Source"]) for mount in inspected.get("Mounts") or [] if mount.get("Source")),
        )

    def uses(self, root: Path, tree: Path, model: str, version: str) -> bool:
        """Whether it is an instance of this version, or has the version's tree mounted, or a part of the store with it in it.

        Whoever mounts more than the store (a monitor the whole machine) uses no tree by that alone.
        """
        if (self.model, self.version) == (model, version):
            return True
        top, place = os.path.realpath(root), os.path.realpath(tree)
        return any(
            _within(mount, place) or (_within(place, mount) and _within(mount, top)) for mount in self.mounts
        )


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def docker_of(module: Any) -> Docker | None:
    """Docker's command as a module of Ansible runs it; None where it is not installed."""
    path = module.get_bin_path("docker")
    return None if path is None else lambda *arguments: module.run_command([path, *arguments])


def containers(docker: Docker | None) -> list[Container]:
    """All containers of this host; none where there is no Docker. Raises ArtifactError where Docker does not tell."""
    if docker is None:
        return []
    identifiers = _say(docker, "ps", "--all", "--quiet", "--no-trunc").split()
    if not identifiers:
        return []
    found = []
    # One by one where one has gone meanwhile: `inspect` then prints the others and fails.
    status, output, _errors = docker("inspect", *identifiers)
    for text in [output] if status == 0 else filter(None, (_inspect(docker, each) for each in identifiers)):
        found += json.loads(text)
    return sorted((Container.parse(each) for each in found), key=lambda container: container.name)


def _inspect(docker: Docker, identifier: str) -> str:
    status, output, errors = docker("inspect", identifier)
    if status == 0:
        return output
    if "no such" in errors.lower():
        return ""
    raise _silent(errors)


def _say(docker: Docker, *arguments: str) -> str:
    status, output, errors = docker(*arguments)
    if status != 0:
        raise _silent(errors)
    return output


def _silent(errors: str) -> ArtifactError:
    said = (errors.strip().splitlines() or ["no reason given"])[-1]
    return ArtifactError(f"Docker does not tell which containers there are: {said}", "docker", DOCKER_FIX)


def open_files(wanted: Collection[tuple[int, int]], proc: Path = Path("/proc")) -> set[tuple[int, int]]:
    """Those of the given files, by device and inode, that a process has open or mapped, as far as this user may look."""
    if not wanted:
        return set()
    by_inode = {inode: (device, inode) for device, inode in wanted}
    found: set[tuple[int, int]] = set()
    for process in proc.iterdir():
        if not process.name.isdigit():
            continue
        found |= {key for key in _descriptors(process / "fd") if key in wanted}
        # Some file systems tell another device here than stat does, so the number of the inode has to do.
        found |= {by_inode[inode] for inode in _mapped(process / "maps") if inode in by_inode}
    return found


def _descriptors(folder: Path) -> Iterator[tuple[int, int]]:
    try:
        names = os.listdir(folder)
    except OSError:  # the process has ended, or belongs to somebody else
        return
    for name in names:
        try:
            status = os.stat(folder / name)
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):
            yield status.st_dev, status.st_ino


def _mapped(path: Path) -> Iterator[int]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        fields = line.split(None, 5)
        if len(fields) > 5 and fields[4].isdigit():
            yield int(fields[4])
