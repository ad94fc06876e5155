#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Stands for systemctl where a test has units and no systemd: starts and ends what ExecStart says.

It knows start, stop, ExecStartPre and RuntimeDirectory, and neither users, sandboxes nor restarts. Units are looked for in $UNITS_DIR.
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


def start(unit: str) -> int:
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
    return 0


def stop(unit: str) -> int:
    path = UNITS / f"{unit}.pid"
    try:
        pid = int(path.read_text())
        os.kill(pid, signal.SIGTERM)
    except (FileNotFoundError, ProcessLookupError):
        return 0
    for _look in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            break
        if state == "Z":
            break
        time.sleep(0.1)
    path.unlink()
    return 0


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    sys.exit({"start": start, "stop": stop}[what](rest[0]) if what in ("start", "stop") else 0)
