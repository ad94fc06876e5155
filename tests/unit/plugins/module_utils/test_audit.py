# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The audit trail as a file and in a system log: many writers, a full disk, and nothing secret."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from datetime import datetime, timezone

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import audit, client_registry

FORK = multiprocessing.get_context("fork")
ANN = {"user": "ann", "job": "17", "host": "ctl", "place": "boot:1", "process": "1:1"}
NOW = datetime(2026, 1, 1, 9, 30, 0, 123456, tzinfo=timezone.utc)
DRAIN = audit.entry_of(ANN, "drain", "be_tiny_x/tiny-0-a", details={"model": "tiny"})

# A log that listens at /dev/log, for a process whose /dev is its own.
LISTEN = """
import os, socket, sys
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
log.bind("/dev/log")
from ansible_collections.localfirst.llm_fleet.plugins.module_utils import audit
warning = audit.note(audit.entry_of({"user": "ann", "job": "", "host": "ctl", "process": "1:1"}, "drain", "a\\nb"), sys.argv[1])
print(warning + log.recv(4096).decode())
"""


@pytest.fixture
def trail(tmp_path):
    return tmp_path / "log" / "audit.jsonl"


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_who_from_where_what_on_what_and_how_it_ended(trail):
    before = datetime.now(timezone.utc)
    assert audit.note(DRAIN, trail) == ""
    [line] = lines(trail)
    assert list(line) == ["at", "who", "from", "what", "on", "result", "model"]
    assert line["at"].endswith("Z") and abs((datetime.fromisoformat(line["at"][:-1] + "+00:00") - before).total_seconds()) < 60
    assert (line["who"], line["from"]) == ({"user": "ann", "job": "17", "process": "1:1"}, "ctl")
    assert (line["what"], line["on"], line["result"], line["model"]) == ("drain", "be_tiny_x/tiny-0-a", "ok", "tiny")
    assert "boot:1" not in trail.read_text()
    assert trail.stat().st_mode & 0o777 == 0o640 and trail.parent.stat().st_mode & 0o007 == 0
    audit.note(audit.entry_of(ANN, "drain", "x", "failed: it is down"), trail)
    assert lines(trail)[1]["result"] == "failed: it is down"


def test_details_take_the_place_of_nothing():
    entry = audit.entry_of(ANN, "drain", "x", "ok", {"who": "somebody", "at": "never", "result": "fine", "from": "afar"})
    rows, _warning = audit.compose(entry, NOW)
    assert rows == {"at": "2026-01-01T09:30:00.123Z", "who": {"user": "ann", "job": "17", "process": "1:1"}, "from": "ctl",
                    "what": "drain", "on": "x", "result": "ok"}


def test_nothing_secret_is_taken_at_any_depth(trail):
    token = client_registry.PREFIX + "abc-DEF_123"
    secret = "do not tell"
    names = ("token", "key", "secret", "prompt", "Token", "api_key", "apiKey", "client-secret", "prompts", "PASSWORD", "X-Api-Key")
    details = {name: secret for name in names}
    details |= {"deep": [{"token": secret, "id": "5f1c09ab"}], "why": f"it was {token}.", "monkey": "fine", "keypad": "too"}
    warning = audit.note(audit.entry_of(ANN, "issue", "bob", f"failed: {token}", details), trail)
    text = trail.read_text()
    assert secret not in text and token not in text and secret not in warning and token not in warning
    for name in (*names, "deep[0].token", "why", "result"):
        assert name in warning
    [line] = lines(trail)
    assert (line["deep"], line["monkey"], line["keypad"]) == ([{"id": "5f1c09ab"}], "fine", "too")
    assert line["why"] == f"it was {audit.LEFT_OUT}."


def test_a_line_stays_one_line_whatever_it_is_told(trail):
    audit.note(audit.entry_of({**ANN, "user": "zoé\n{}"}, "drain", "a\nb\u2028c\x00", "ok", {"odd": {1, 2}, "lone": "\udc80"}), trail)
    assert trail.read_bytes().count(b"\n") == 1
    [line] = lines(trail)
    assert (line["who"]["user"], line["on"]) == ("zoé\n{}", "a\nb\u2028c\x00")


def write(path, name, barrier) -> None:
    barrier.wait()
    for number in range(50):
        audit.note(audit.entry_of(ANN, name, str(number)), path)


def test_no_line_is_lost_among_many_writers_while_files_move(trail, monkeypatch):
    # A limit that all of them together pass several times, yet fewer times than files are kept.
    monkeypatch.setattr(audit, "LIMIT", 20_000)
    barrier = FORK.Barrier(8)
    writers = [FORK.Process(target=write, args=(trail, f"writer{n}", barrier)) for n in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    files = sorted(trail.parent.iterdir())
    written = [(line["what"], line["on"]) for path in files for line in lines(path)]
    assert len(files) > 2, "the files did not move"
    assert sorted(written) == sorted((f"writer{n}", str(number)) for n in range(8) for number in range(50))
    assert all(path.stat().st_size <= 20_000 and path.stat().st_mode & 0o777 == 0o640 for path in files)


def test_the_oldest_files_go(trail, monkeypatch):
    monkeypatch.setattr(audit, "LIMIT", 1)
    for number in range(15):
        audit.note(audit.entry_of(ANN, "drain", str(number)), trail)
    kept = {path.name: lines(path)[0]["on"] for path in trail.parent.iterdir()}
    assert kept == {"audit.jsonl": "14", **{f"audit.jsonl.{n}": str(14 - n) for n in range(1, audit.KEPT + 1)}}


def test_a_full_disk_is_a_warning_and_leaves_no_half_line(small_disk):
    trail = small_disk / "audit.jsonl"
    big = audit.entry_of(ANN, "drain", "x", "ok", {"more": "y" * 100_000})
    warnings = [audit.note(big, trail) for _number in range(40)]
    lacking = [warning for warning in warnings if warning]
    assert lacking and "No space left" in lacking[0] and str(trail) in lacking[0]
    assert len(lines(trail)) + len(lacking) == 40
    os.truncate(trail, 0)
    assert audit.note(DRAIN, trail) == "" and len(lines(trail)) == 1


def test_half_a_line_that_a_crash_left_spoils_no_other(trail):
    audit.note(DRAIN, trail)
    with trail.open("a") as file:
        file.write('{"at": "2026')
    audit.note(DRAIN, trail)
    first, half, last = trail.read_text().splitlines()
    assert json.loads(first)["on"] == json.loads(last)["on"] and half == '{"at": "2026'


def test_a_place_that_is_none_is_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file" / "audit.jsonl") in audit.note(DRAIN, tmp_path / "file" / "audit.jsonl")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert "link" in audit.note(DRAIN, tmp_path / "link") and not (tmp_path / "elsewhere").exists()


def test_the_system_log_gets_the_line_too(trail):
    path = next(path for path in sys.path if path.endswith(".venv/collections"))
    own_dev = 'mount -t tmpfs none /dev && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", own_dev, "sh", sys.executable, "-c", LISTEN, str(trail)],
        env={**os.environ, "PYTHONPATH": path}, text=True, capture_output=True, check=False, timeout=60,
    )
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no /dev of one's own can be had here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    # 10 is authpriv, 5 is notice.
    assert done.stdout.startswith(f"<{10 * 8 + 5}>") and "llm_fleet: {" in done.stdout
    assert done.stdout.partition("llm_fleet: ")[2].rstrip("\x00\n") == trail.read_text().rstrip("\n")
