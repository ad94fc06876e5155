# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Whose Python runs the peer program: this machine's, or that of another Debian, as it lies in an image of the testbed.

Another one's files are unpacked into a directory, and a program that runs there has that for its root. The network that it
sees, and the files that it is to work on, are those of the bench.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness import DOCKER, BenchError, run, say

PYTHON = "/usr/bin/python3"  # that of the distribution, for which its libtorrent is made
INSTALL = "apt-get update -qq && apt-get install -qq --no-install-recommends python3-libtorrent >/dev/null"
# In a mount namespace of its own, so that nothing of it is left.
ENTER = """
root=$1; shift
for each in $SHOWN; do mkdir -p "$root$each" && mount --rbind "$each" "$root$each" || exit; done
exec chroot "$root" "$@"
"""


class System:
    """This machine, or the one below `root`; `shown`: directories that it sees as they are here."""

    def __init__(self, root: Path | None, shown: list[Path]) -> None:
        self.root = root
        self.shown = shown

    def command(self, *arguments: object) -> list[str]:
        """How to run the system's Python."""
        python = [PYTHON, *map(str, arguments)]
        if self.root is None:
            return python
        shown = " ".join(str(each) for each in [*self.shown, "/proc", "/dev"] if not str(each).startswith("/dev/"))
        return ["env", f"SHOWN={shown}", "unshare", "--mount", "sh", "-c", ENTER, "sh", str(self.root), *python]


@contextlib.contextmanager
def system(image: str | None, shown: list[Path]) -> Iterator[System]:
    """This machine where no image is named."""
    if image is None:
        yield System(None, [])
        return
    name = f"llm-fleet-testbed/{image}"
    if not run(*DOCKER, "image", "ls", "--quiet", name):
        raise BenchError(f"there is no image {name}: `make images` builds it")
    with tempfile.TemporaryDirectory(prefix="llmf-root") as root:
        say(f"unpacking {name}, with libtorrent")
        container = run(*DOCKER, "create", "--network", "host", "--entrypoint", "/bin/sh", name, "-c", INSTALL).strip()
        try:
            run(*DOCKER, "start", "--attach", container)
            with subprocess.Popen([*DOCKER, "export", container], stdout=subprocess.PIPE) as export:
                unpacked = subprocess.run(["tar", "-x", "-C", root], stdin=export.stdout, check=False)
            if unpacked.returncode or export.returncode:
                raise BenchError(f"{name} could not be unpacked")
        finally:
            run(*DOCKER, "rm", "--force", container)
        yield System(Path(root), shown)
