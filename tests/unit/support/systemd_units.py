#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Stands for systemctl where a test has units and no systemd: starts and ends what ExecStart says.

It knows start, stop, restart, ExecStartPre and RuntimeDirectory, and neither users, sandboxes nor restarts of its own accord.
Units are looked for in $UNITS_DIR.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

UNITS = Path(os.environ.get("UNITS_DIR", "/nonexistent"))


def start(unit: str) -> None:
    text = (UNITS / unit).read_text()
    directory = UNITS / f"{unit}.run"
    directory.mkdir(exist_ok=True)
    place = "%t/" + re.search(r"^RuntimeDirectory=(.+)$", text, re.MULTILINE)[1]
    for before in re.findall(r"^ExecStartPre=\+(.+)$", text, re.MULTILINE):
        subprocess.run(before.replace(place, str(directory)).split(), check=True)
    command = re.search(r"^ExecStart=(.+)$", text, re.MULTILINE)[1].split()
    log = (UNITS / f"{unit}.log").open("a")
    environment = {**os.environ, "RUNTIME_DIRECTORY": str(directory)}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment)
    (UNITS / f"{unit}.pid").write_text(str(process.pid))


def stop(unit: str) -> None:
    path = UNITS / f"{unit}.pid"
    try:
        pid = int(path.read_text())
        os.kill(pid, signal.SIGTERM)
    except (FileNotFoundError, ProcessLookupError):
        return
    for _look in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            break
        if state == "Z":
            break
        time.sleep(0.1)
    path.unlink()


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what in ("stop", "restart"):
        stop(rest[0])
    if what in ("start", "restart"):
        start(rest[0])
