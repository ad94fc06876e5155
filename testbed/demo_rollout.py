#!/usr/bin/env python3
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A rollout on the demo's fleet, while clients stream from it: what happens, line by line, and below it what the clients see.

From 1.0.0 to 1.1.0, and when called again back. Brings the demo up where it does not run. Broken off, the next call goes on from there.
"""
from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import yaml

import demo
import fleet as testbed
from rollout_story import Story

sys.path.insert(0, str(testbed.REPO / ".venv" / "collections"))

from ansible_collections.localfirst.llm_fleet.tests.load.report import Report
from ansible_collections.localfirst.llm_fleet.tests.load.settings import LoadError
from ansible_collections.localfirst.llm_fleet.tests.load.stream_load import StreamLoad, answer_prefix
from ansible_collections.localfirst.llm_fleet.tests.load.tally import live_line, summary

MODEL, FIRST, SECOND = demo.MODEL, "1.0.0", "1.1.0"
GATEWAY = "127.0.0.1:8443"
EVENTS, OUTPUT, REPORT = demo.STATE / "rollout-events.jsonl", demo.STATE / "rollout.log", demo.STATE / "rollout.json"
CALLBACKS = demo.REPO / "testbed" / "callbacks"
# People who read: their answers are longer than their questions are frequent. The demo's client may ask 600 times a minute.
CLIENTS = {"clients": 4, "tokens": (32, 160), "pause": 0.6, "seconds": 3600}
# Before and after, so that one sees what is usual.
QUIET = 4.0
SHOWN = 40  # lines of Ansible's output, where it failed
CLEAR = "\r\x1b[K"
# Where nothing can be written over: seconds between two lines of figures, and how long they may be.
PLAIN_EVERY, PLAIN_WIDTH = 10.0, 160


@dataclasses.dataclass(frozen=True)
class Move:
    """What to do next: a playbook, and what it is told."""

    playbook: str
    old: str
    new: str
    variables: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        given = (f"model={MODEL}", *self.variables)
        return [f"playbooks/{self.playbook}.yml", "-i", "inventories/demo", *(part for one in given for part in ("-e", one))]


def next_move(plan: dict) -> Move:
    """To the second version, or back; and first to the end of what was begun."""
    entry, begun = plan["models"][MODEL], plan["rollouts"].get(MODEL)
    if begun:
        name = "rollback" if begun["undo"] else "rollout"
        return Move(name, begun["from_version"], begun["to_version"], () if begun["undo"] else (f"version={begun['to_version']}",))
    old = entry["version"]
    new = SECOND if old == FIRST else FIRST
    if new == FIRST and (entry.get("previous") or {}).get("version") == FIRST:
        return Move("rollback", old, new)
    # What was rolled back is rejected: the fleet wants to be told that somebody means it.
    retry = ("retry_rejected=true",) if any(one["version"] == new for one in entry.get("rejected") or []) else ()
    return Move("rollout", old, new, (f"version={new}", *retry))


def read_plan(fleet: testbed.Fleet) -> dict:
    gateway = next(fleet.container(host) for host in fleet.hosts if host.name == "gw1")
    plan = json.loads(testbed.docker("exec", gateway, "cat", "/var/lib/llm_fleet/plan.json", check=False) or "{}")
    return {"models": {}, "rollouts": {}, **plan}


def serves(fleet: testbed.Fleet) -> bool:
    """Whether the demo runs, with both versions in its lockfile."""
    running = testbed.docker("ps", "--format={{.Names}}").split()
    lockfile = demo.STATE / "models.lock.yml"
    if not {fleet.container(host) for host in fleet.hosts} <= set(running) or not lockfile.exists():
        return False
    locked = yaml.safe_load(lockfile.read_text())["models"].get(MODEL, {})
    return {FIRST, SECOND} <= set(locked) and MODEL in read_plan(fleet)["models"] and demo.token_works()


class Screen:
    """Sentences, and below them one line that changes; where there is no terminal, one such line now and then."""

    def __init__(self) -> None:
        self.live = sys.stdout.isatty()
        self.begun = time.monotonic()
        self._line = ""
        self._shown = 0.0

    def say(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self.begun), 60)
        over = CLEAR if self.live else ""
        print(f"{over}  {minutes:02}:{seconds:02}  {text}", flush=True)
        if self.live:
            self._write()

    def figures(self, now: dict) -> None:
        line = live_line(now, shutil.get_terminal_size().columns - 1 if self.live else PLAIN_WIDTH)
        if self.live and line != self._line:
            self._line = line
            self._write()
        elif not self.live and time.monotonic() - self._shown >= PLAIN_EVERY:
            self._shown = time.monotonic()
            print(f"  {line}", flush=True)

    def end(self) -> None:
        if self.live:
            print(flush=True)

    def _write(self) -> None:
        print(f"{CLEAR}{self._line}", end="", flush=True)


def named(now: dict, move: Move) -> dict:
    """The figures with versions by name: what does not answer as the old one does is the new one."""
    old = now["shares"].get(move.old, 0)
    shares = {move.old: old, move.new: 1 - old} if now["shares"] else {}
    return {**now, "shares": {name: shares[name] for name in sorted(shares)}}


@contextlib.contextmanager
def ansible(move: Move) -> Iterator[subprocess.Popen]:
    """The playbook, in a session of its own, which ends with what is done here."""
    environment = {
        **os.environ,
        "PATH": f"{demo.BIN}:{os.environ['PATH']}",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_CALLBACK_PLUGINS": str(CALLBACKS),
        "ANSIBLE_CALLBACKS_ENABLED": "rollout_events",
        "LLM_FLEET_EVENTS": str(EVENTS),
    }
    command = [demo.BIN / "ansible-playbook", *move.arguments, "-e", f"report_file={REPORT}"]
    with OUTPUT.open("w") as output:
        streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, cwd=demo.REPO, env=environment, start_new_session=True, **streams)
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen) -> None:
    """End what still runs, and all that it has started: first as Ctrl-C does it, then without asking."""
    if process.poll() is None:
        # Whoever presses it twice still has it ended.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Watch:
    """Shows what happens and what clients see, for as long as it is told to."""

    def __init__(self, load: StreamLoad, move: Move) -> None:
        self.load, self.move = load, move
        self.screen, self.story = Screen(), Story()
        self._read = 0

    def until(self, over: Callable[[], bool]) -> None:
        ended = False
        while not ended:
            # Asked before the last look: what came until then is then shown.
            ended = over()
            for event in self._events():
                for sentence in self.story.tell(event):
                    self.screen.say(sentence)
            if now := self.load.now():
                self.screen.figures(named(now, self.move))
            time.sleep(0.2)

    def quiet(self) -> None:
        deadline = time.monotonic() + QUIET
        self.until(lambda: time.monotonic() > deadline)

    def _events(self) -> list[dict]:
        """What was written since the last look, in whole lines."""
        if not EVENTS.exists():
            return []
        with EVENTS.open("rb") as handle:
            handle.seek(self._read)
            whole, newline, _rest = handle.read().rpartition(b"\n")
        self._read += len(whole + newline)
        return [json.loads(line) for line in whole.splitlines()]


def roll(move: Move) -> tuple[int, float, Report]:
    """Ansible's exit status, its seconds, and what clients saw."""
    for file in (EVENTS, OUTPUT, REPORT):
        file.unlink(missing_ok=True)
    token = demo.TOKEN.read_text().strip()
    tell = {move.old: answer_prefix(GATEWAY, demo.CA, token, f"{MODEL}@{move.old}")}
    print(f"$ .venv/bin/{shlex.join(['ansible-playbook', *move.arguments])}\n", flush=True)
    with StreamLoad([GATEWAY], demo.CA, token, [MODEL], tell=tell, **CLIENTS) as load:
        watch = Watch(load, move)
        watch.screen.say(f"{CLIENTS['clients']} clients stream from {MODEL}, and ask again and again")
        watch.quiet()
        begun = time.monotonic()
        with ansible(move) as process:
            watch.until(lambda: process.poll() is not None)
        took = time.monotonic() - begun
        outcome = json.loads(REPORT.read_text())["outcome"] if REPORT.exists() else "it ended without a report"
        watch.screen.say(f"{outcome}, after {took:.0f} s")
        watch.quiet()
        watch.screen.end()
        return process.returncode, took, load.stop()


def conclude(move: Move, status: int, took: float, seen: Report) -> int:
    print(f"""
  {MODEL} {move.old} -> {move.new}
  seconds         {took:.0f}
  requests        {seen.requests}
  broken streams  {seen.broken + seen.short + seen.duplicated}
  other faults    {seen.failed - seen.broken - seen.short - seen.duplicated}
  longest stall   {seen.longest_stall_s:.2f} s within an answer, {seen.longest_first_token_s:.2f} s before one""", flush=True)
    if status:
        print("\n".join(["", *OUTPUT.read_text().splitlines()[-SHOWN:]]), file=sys.stderr)
        log = OUTPUT.relative_to(demo.REPO)
        print(f"error: playbooks/{move.playbook}.yml failed (exit status {status}); {log} has all of its output", file=sys.stderr)
        return 1
    if seen.failed:
        print(f"\n{summary(seen)}\nerror: {seen.failed} requests went wrong", file=sys.stderr)
        return 1
    if move.playbook == "rollout":
        print(f"""
Back to {move.old}, from {demo.REPO}:

.venv/bin/ansible-playbook playbooks/rollback.yml -i inventories/demo -e model={MODEL} -e reason='just a try'

or `make demo-rollout` once more.""")
    else:
        print("\n`make demo-rollout` once more goes forward again.")
    return 0


def demo_rollout() -> int:
    fleet = testbed.read_fleet(demo.INVENTORY)
    if not serves(fleet):
        demo.bring_up()
    move = next_move(read_plan(fleet))
    demo.step(f"{MODEL} from {move.old} to {move.new}, while clients stream")
    return conclude(move, *roll(move))


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        return demo_rollout()
    except (demo.DemoError, testbed.FleetError, LoadError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        return error.returncode
    except KeyboardInterrupt:
        print("\ninterrupted; the fleet goes on serving, and `make demo-rollout` goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
