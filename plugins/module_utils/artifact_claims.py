# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What the runs on one store rely on at this moment.

A claim is a file that names contents by digest and size, locked for as long as its run lives. Others count it when they
ask whether a disk is large enough, and nobody removes what is claimed, although nothing links to it yet. All of this
happens under the store's lock, so that between a look and a claim there is nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path


class Claims:
    """The claims in one directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def hold(self, contents: Mapping[str, int]) -> Claim:
        """Claim contents, sizes by digest, until the claim is let go or this process ends."""
        descriptor, name = tempfile.mkstemp(dir=self.folder)
        claim = Claim(descriptor, Path(name))
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with os.fdopen(os.dup(descriptor), "wb") as handle:
                handle.write(json.dumps(dict(contents)).encode())
        except BaseException:
            claim.release()
            raise
        return claim

    def live(self, sweep: bool = True) -> dict[str, int]:
        """All that is claimed now: sizes by digest. With `sweep`, what dead runs claimed is forgotten.

        Only a look goes without the store's lock; it must not sweep, and may meet a claim that is being written.
        """
        claimed: dict[str, int] = {}
        for path in self.folder.glob("*"):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as handle:
                try:
                    fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    with contextlib.suppress(ValueError):
                        claimed.update(json.loads(handle.read()))
                else:
                    if sweep:
                        path.unlink(missing_ok=True)
        return claimed


class Claim:
    """One claim, held until it is released."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self.descriptor = descriptor
        self.path = path

    def release(self) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self.descriptor)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        try:
            yield
        finally:
            self.release()
