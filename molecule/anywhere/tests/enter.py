#!/usr/bin/env python3
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Run a command as it would run in an execution environment of AWX. Called as root, in a mount namespace of its own.

    unshare --mount --propagation private enter.py SPEC.json COMMAND…

AWX starts a container from an image with Ansible and the collections in it, under a user id that may be in no
image's /etc/passwd (Kubernetes, OpenShift). ssh refuses to work for such a user ("No user exists for uid"), so the
entrypoint that ansible-builder puts into every image adds a line for it. Here the same comes about without a
container, and without a change to this machine: mounts in a namespace of one's own vanish with the command.
  * the checkout is covered by an empty file system: nothing of it can be used by accident;
  * what the image would hold (`show`) is mounted where it belongs, read-only unless it says otherwise;
  * /etc/passwd is covered by a copy with one more line, the entrypoint's;
  * then root is given up for good, and the command begins with a new environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def mount(*arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def closed_to_others(path: Path) -> Path | None:
    """The topmost directory on the way to a path that only its owner may pass (a checkout below /root, say)."""
    return next((p for p in reversed(path.parents) if p.is_dir() and not p.stat().st_mode & 0o001), None)


def outermost(paths: set[Path]) -> list[Path]:
    return [p for p in sorted(paths) if not any(q in p.parents for q in paths)]


def arrange(spec: dict) -> None:
    """Cover what must not be seen and mount what must be."""
    stage = Path(spec["stage"])
    shown = [(stage / str(n), Path(item["at"]), item.get("writable", False)) for n, item in enumerate(spec["show"])]
    for (held, _, _), item in zip(shown, spec["show"], strict=True):
        held.mkdir(parents=True, exist_ok=True)
        mount("--bind", item["from"], held)
    for path in outermost({Path(spec["hide"]), *filter(None, (closed_to_others(at) for _, at, _ in shown))}):
        mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", path)
    for held, at, writable in shown:
        at.mkdir(parents=True, exist_ok=True)
        mount("--move", held, at)
        if not writable:
            mount("-o", "remount,bind,ro", at)
    passwd = stage / "passwd"
    line = f"runner:x:{spec['uid']}:{spec['uid']}::{spec['home']}:/bin/sh\n"
    passwd.write_text(Path("/etc/passwd").read_text() + line)
    passwd.chmod(0o644)
    mount("--bind", passwd, "/etc/passwd")


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    arrange(spec)
    os.setgroups([])
    os.setresgid(*[spec["uid"]] * 3)
    os.setresuid(*[spec["uid"]] * 3)
    os.umask(0o022)
    os.chdir(spec["home"])
    environment = {"HOME": spec["home"], "PATH": spec["path"], "LANG": "C.UTF-8"}
    os.execvpe(sys.argv[2], sys.argv[2:], environment)


if __name__ == "__main__":
    main()
