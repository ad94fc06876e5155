# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Gets contents of a store ready for hosts that bring them to each other: a torrent beside each, and this host as the first to have it.

Only what is known to be right is handed out: a host that has wrong bytes under the right name would keep all others waiting.
"""

from __future__ import annotations

from collections.abc import Iterable

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import whole_files
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import Artifact, File
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_files import DIRECTORY_MODE, FILE_MODE, to_disk
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_store import Store
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_survey import SOUND, UNREAD
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.swarm_client import Peer
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.swarm_fetch import SMALLEST_FILE
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.swarm_torrent import fits, make_torrent


class Offer:
    """What of some artifacts a host can hand out. `ca`: whose certificates those show who may have it (PEM)."""

    def __init__(self, store: Store, artifacts: Iterable[Artifact], ca: bytes | None) -> None:
        self.store = store
        self.ca = ca
        found = {file.sha256: (artifact, file) for artifact in artifacts for file in artifact.contents if _worth_it(file)}
        self.contents = list(found.values())

    def look(self) -> list[str]:
        """What there is to do; changes nothing."""
        return [action for artifact, file in self.contents if (action := self._action(artifact, file))]

    def run(self, peer: Peer | None) -> dict[str, list[str]]:
        """Do it, and hand out what is right. Returns what was done, what is handed out, and what is not."""
        actions, offered, left_out = [], [], []
        for artifact, file in self.contents:
            if self._state(file) != SOUND:
                left_out.append(f"{artifact.title}: {file.path}")
                continue
            action = self._action(artifact, file)
            if action:
                self._describe(file)
                actions.append(action)
            if peer is not None:
                peer.seed(file.sha256, self.store.torrent(file).read_bytes(), self.store.blob(file))
            offered.append(f"{artifact.title}: {file.path}")
        return {"actions": actions, "offered": offered, "left_out": left_out}

    def _state(self, file: File) -> str:
        state = self.store.state(file)
        if state == UNREAD and self.store.read_again(file) == file.sha256:
            return SOUND
        return state

    def _action(self, artifact: Artifact, file: File) -> str:
        path = self.store.torrent(file)
        if self.ca is not None and path.exists() and fits(path.read_bytes(), file.size, self.ca):
            return ""
        return f"{artifact.title}: describe {file.path} to peers"

    def _describe(self, file: File) -> None:
        path, own = self.store.torrent(file), self.store.ownership
        for folder in (path.parent.parent, path.parent):
            own.make_directory(folder, DIRECTORY_MODE)
        whole_files.write(path, make_torrent(self.store.blob(file), self.ca), FILE_MODE, own.ids())
        to_disk(path.parent)


def _worth_it(file: File) -> bool:
    return file.content is None and file.size >= SMALLEST_FILE
