# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Who did what to the fleet, on each host that it was done to: one line of JSON in a file, and the same in the system's log.

An action never fails because its note could not be written: what went wrong comes back as a text, for a warning.
"""

from __future__ import annotations

import errno
import json
import os
import re
import syslog
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import client_registry, directory_lock

FILE = "/var/log/llm_fleet/audit.jsonl"
LIMIT = 10 * 2**20  # bytes of one file
KEPT = 9  # files beside the current one

# A note names secrets by their ids. Keys of whole words, so that `monkeys` and `keypad` may be written.
REFUSED = {"token", "tokens", "key", "keys", "secret", "secrets", "prompt", "prompts", "password", "passwords", "authorization"}
TOKEN = re.compile(re.escape(client_registry.PREFIX) + "[A-Za-z0-9_-]+")
LEFT_OUT = "(left out)"


def entry_of(actor: Mapping[str, str], what: str, on: str, result: str = "ok", details: Mapping[str, Any] | None = None) -> dict:
    """What note() writes. `details` are further keys, which never take the place of these.

    :param actor: who it is, as the lookup `actor` tells it.
    :param what: a verb of the fleet, for example drain.
    :param on: what it was done to: an instance as `backend/server`, a model, a client.
    :param result: `ok`, or `failed: ` and the reason.
    """
    who = {field: actor[field] for field in ("user", "job", "process")}
    return {**(details or {}), "who": who, "from": actor["host"], "what": what, "on": on, "result": result}


def tell(module: Any, actor: Mapping[str, str] | None, notes: Iterable[tuple[str, str, str, Mapping[str, Any]]], path: str | Path) -> None:
    """Write what a module has done, each as (what, on, result, details). Without an actor nothing is noted, and nothing in check mode."""
    for what, on, result, details in notes if actor and not module.check_mode else []:
        warning = note(entry_of(actor, what, on, result, details), path)
        if warning:
            module.warn(warning)


def note(entry: Mapping[str, Any], path: str | Path = FILE) -> str:
    """Write one line. Returns what went wrong, or an empty text."""
    rows, warning = compose(entry, datetime.now(timezone.utc))
    return " ".join(filter(None, [warning, record(rows, path)]))


def compose(entry: Mapping[str, Any], now: datetime) -> tuple[dict, str]:
    """What is written for an entry, and what was left out of it if anything was."""
    left_out: list[str] = []
    shown = _shown(entry, left_out)
    moment = now.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    first = {"at": moment, **{key: shown[key] for key in ("who", "from", "what", "on", "result") if key in shown}}
    rows = {**first, **{key: value for key, value in shown.items() if key not in first}}
    return rows, f"The audit trail takes no secrets, so this was left out: {', '.join(left_out)}." if left_out else ""


def record(rows: Mapping[str, Any], path: str | Path = FILE) -> str:
    """Write what compose() has made. Returns what went wrong, or an empty text."""
    # ASCII: whatever a value holds, a line stays one line in every log.
    line = json.dumps(rows, default=str)
    _to_system_log(line)
    try:
        _append(Path(path), line.encode() + b"\n")
    except OSError as error:
        return f"The audit trail {path} lacks a line: {error}. Make room for it; where the host has a system log, the line is there."
    return ""


def _shown(value: Any, left_out: list[str], where: str = "") -> Any:
    if isinstance(value, Mapping):
        rows = {}
        for key, item in value.items():
            place = f"{where}.{key}" if where else str(key)
            if REFUSED & set(re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", str(key)).lower())):
                left_out.append(place)
            else:
                rows[str(key)] = _shown(item, left_out, place)
        return rows
    if isinstance(value, (list, tuple)):
        return [_shown(item, left_out, f"{where}[{number}]") for number, item in enumerate(value)]
    if isinstance(value, str) and TOKEN.search(value):
        left_out.append(f"a token in {where}")
        return TOKEN.sub(LEFT_OUT, value)
    return value


def _append(path: Path, line: bytes) -> None:
    """One line at the end, or nothing. Writers take turns, so that none writes to a file that another has just moved away."""
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    with directory_lock.locked(path.parent):
        if path.exists() and path.stat().st_size + len(line) > LIMIT:
            _rotate(path)
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o640)
        try:
            _write(file, line)
        finally:
            os.close(file)


def _write(file: int, line: bytes) -> None:
    size = os.fstat(file).st_size
    if size == 0:
        os.fchmod(file, 0o640)  # whatever the umask
    elif os.pread(file, 1, size - 1) != b"\n":
        line = b"\n" + line  # the power went in the middle of the last one
    written = os.write(file, line)
    if written != len(line):
        # Half a line would spoil the next one too.
        os.ftruncate(file, size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{written} of {len(line)} bytes")


def _rotate(path: Path) -> None:
    for number in range(KEPT - 1, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        if older.exists():
            older.replace(path.with_name(f"{path.name}.{number + 1}"))
    path.replace(path.with_name(f"{path.name}.1"))


def _to_system_log(line: str) -> None:
    """As sudo does: authpriv keeps who did what out of logs that everybody may read, and many sites collect it already.

    The C library drops the line without a word where no log listens.
    """
    syslog.openlog("llm_fleet", 0, syslog.LOG_AUTHPRIV)
    syslog.syslog(syslog.LOG_NOTICE, line)
    # AnsibleModule logs under a name of its own.
    syslog.closelog()
