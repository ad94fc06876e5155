# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Who runs a playbook, and whether that run is still there.

An actor is {"user", "job", "host", "place", "process"}, all texts. `place` is equal only where process ids mean the same: one boot
of one kernel, and one namespace of process ids (each execution environment has its own). `process` is "<pid>:<start time>", since
a pid alone may belong to another program by now. None of it is a proof of identity: it says what the controller says of itself.
"""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

FIELDS = ("user", "job", "host", "place", "process")
PROC = Path("/proc")


class Process(NamedTuple):
    """What /proc says of a process."""

    pid: int
    parent: int
    started: str
    ended: bool
    command: bytes

    @property
    def identity(self) -> str:
        return f"{self.pid}:{self.started}"


def current(variables: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, str]:
    """The actor of the run that this process belongs to; AWX says who it is in variables."""
    job = _first(variables, "awx_job_id", "tower_job_id")
    asked = _first(variables, "awx_user_name", "tower_user_name") if job else ""
    run = outermost(os.getpid())
    return {
        "user": asked or _login(environment),
        "job": job,
        "host": socket.gethostname(),
        "place": _place(),
        "process": run.identity if run else "",
    }


def checked(actor: Mapping[str, Any]) -> dict[str, str]:
    """The fields of an actor and nothing else of it. Raises ValueError where it is none."""
    lacking = [field for field in FIELDS if not isinstance(actor.get(field, ""), (str, int))]
    known = {field: str(actor.get(field, "")) for field in FIELDS if field not in lacking}
    if not known.get("user"):
        lacking.insert(0, "user")
    if lacking:
        raise ValueError(f"it has no {lacking[0]}; pass what lookup('localfirst.llm_fleet.actor') returns")
    return known


def identified(actor: Mapping[str, str]) -> bool:
    """Whether two runs of this actor could be told apart."""
    return bool(actor["job"] or (actor["place"] and actor["process"]))


def same(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two actors are one run: one process, or one job of AWX, whose processes say nothing from outside its container."""
    if one["job"] and (one["job"], one["user"]) == (other["job"], other["user"]):
        return True
    return bool(one["place"] and one["process"]) and (one["place"], one["process"]) == (other["place"], other["process"])


def is_gone(actor: Mapping[str, str], here: Mapping[str, str]) -> bool:
    """Whether it is certain that the actor's run has ended. Call it on the controller where `here` was looked up.

    Somewhere else nothing is certain, and neither is it of a process that this user may not look at.
    """
    pid = actor.get("process", "").partition(":")[0]
    if not pid.isdecimal() or not actor.get("place") or actor["place"] != here.get("place"):
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        # It belongs to somebody else. /proc tells its start time all the same, unless it hides other users' processes.
        pass
    process = look(int(pid))
    return process is not None and (process.ended or process.identity != actor["process"])


def named(actor: Mapping[str, Any]) -> str:
    """The actor for people."""
    return f"{actor['user']}{' (job ' + actor['job'] + ')' if actor['job'] else ''} on {actor['host'] or 'an unknown host'}"


def outermost(pid: int) -> Process | None:
    """The first process of the program that `pid` is a fork of; None where there is no /proc.

    Ansible runs each task in a fork, which goes into a session of its own but keeps the command line. Whatever has started
    ansible-playbook has another one, even where it is ansible-playbook again: a module's process stands between the two.
    """
    process = look(pid)
    while process is not None:
        parent = look(process.parent)
        if parent is None or parent.command != process.command:
            break
        process = parent
    return process


def look(pid: int) -> Process | None:
    """A process, or None where there is none or it cannot be looked at."""
    try:
        # The name in brackets may have spaces and brackets of its own.
        fields = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        command = (PROC / str(pid) / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError, NotADirectoryError, PermissionError):
        return None
    return Process(pid, int(fields[1]), fields[19], fields[0] in "ZX", command)


def _place() -> str:
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{os.stat(PROC / 'self/ns/pid').st_ino}"
    except (FileNotFoundError, PermissionError):
        return ""


def _first(variables: Mapping[str, Any], *names: str) -> str:
    return next((str(variables[name]) for name in names if variables.get(name) not in (None, "")), "")


def _login(environment: Mapping[str, str]) -> str:
    for name in ("SUDO_USER", "USER", "LOGNAME"):
        if environment.get(name):
            return environment[name]
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a random uid, as execution environments have them
        return f"uid {os.getuid()}"
