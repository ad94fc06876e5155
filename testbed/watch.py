# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A playbook on the demo's fleet while clients stream from it: what happens, line by line, and below it what the clients see."""
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
from pathlib import Path
from typing import Protocol

import demo
import fleet as testbed

sys.path.insert(0, str(testbed.REPO / ".venv" / "collections"))

from ansible_collections.localfirst.llm_fleet.tests.load.report import Report
from ansible_collections.localfirst.llm_fleet.tests.load.settings import LoadError
from ansible_collections.localfirst.llm_fleet.tests.load.stream_load import StreamLoad, answer_prefix
from ansible_collections.localfirst.llm_fleet.tests.load.tally import live_line, summary

GATEWAY = "127.0.0.1:8443"
CALLBACKS = demo.REPO / "testbed" / "callbacks"
# People who read: their answers are longer than their questions are frequent. The demo's client may ask 600 times a minute.
CLIENTS = {"clients": 4, "tokens": (32, 160), "pause": 0.6, "seconds": 3600}
# Before and after, so that one sees what is usual.
QUIET = 4.0
SHOWN = 40  # lines of Ansible's output, where it failed
CLEAR = "\r\x1b[K"
# Where nothing can be written over: seconds between two lines of figures, and how long they may be.
PLAIN_EVERY, PLAIN_WIDTH = 10.0, 160


class Story(Protocol):
    """Makes sentences of the events of testbed/callbacks/run_events.py."""

    def tell(self, event: dict) -> list[str]: ...


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of it: Ansible's exit status, its seconds, and what clients saw."""

    status: int
    seconds: float
    clients: Report


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


class Watch:
    """Runs a playbook while clients stream, and shows both for as long as that takes.

    name: of its files in .demo/. figures: makes what is shown of the running figures.
    """

    def __init__(self, name: str, story: Story, figures: Callable[[dict], dict]) -> None:
        self.log, self._events = demo.STATE / f"{name}.log", demo.STATE / f"{name}-events.jsonl"
        self._story, self._figures = story, figures
        self._read = 0

    def run(self, arguments: list[str], load: StreamLoad, concluded: Callable[[], str], own: tuple[str, ...] = ()) -> Outcome:
        """arguments: of ansible-playbook, and `own` those that only the demo wants. concluded: says in the end what came of it."""
        for file in (self.log, self._events):
            file.unlink(missing_ok=True)
        print(f"$ .venv/bin/{shlex.join(['ansible-playbook', *arguments])}\n", flush=True)
        with load:
            screen = Screen()
            screen.say(f"{load.settings.clients} clients stream from {' and '.join(load.settings.models)}, and ask again and again")
            self._quiet(screen, load)
            begun = time.monotonic()
            with self._ansible([*arguments, *own]) as process:
                self._until(screen, load, lambda: process.poll() is not None)
            took = time.monotonic() - begun
            screen.say(f"{concluded()}, after {took:.0f} s")
            self._quiet(screen, load)
            screen.end()
            return Outcome(process.returncode, took, load.stop())

    def _quiet(self, screen: Screen, load: StreamLoad) -> None:
        deadline = time.monotonic() + QUIET
        self._until(screen, load, lambda: time.monotonic() > deadline)

    def _until(self, screen: Screen, load: StreamLoad, over: Callable[[], bool]) -> None:
        ended = False
        while not ended:
            # Asked before the last look: what came until then is then shown.
            ended = over()
            for event in self._new_events():
                for sentence in self._story.tell(event):
                    screen.say(sentence)
            if now := load.now():
                screen.figures(self._figures(now))
            time.sleep(0.2)

    def _new_events(self) -> list[dict]:
        """What was written since the last look, in whole lines."""
        if not self._events.exists():
            return []
        with self._events.open("rb") as handle:
            handle.seek(self._read)
            whole, newline, _rest = handle.read().rpartition(b"\n")
        self._read += len(whole + newline)
        return [json.loads(line) for line in whole.splitlines()]

    @contextlib.contextmanager
    def _ansible(self, arguments: list[str]) -> Iterator[subprocess.Popen]:
        """The playbook, in a session of its own, which ends with what is done here."""
        environment = {
            **os.environ,
            "PATH": f"{demo.BIN}:{os.environ['PATH']}",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_CALLBACK_PLUGINS": str(CALLBACKS),
            "ANSIBLE_CALLBACKS_ENABLED": "run_events",
            "LLM_FLEET_EVENTS": str(self._events),
        }
        with self.log.open("w") as output:
            streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
            command = [demo.BIN / "ansible-playbook", *arguments]
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


def read_token() -> str:
    return demo.TOKEN.read_text().strip()


def clients(models: list[str], **options) -> StreamLoad:
    """People who ask the demo's fleet; they begin when it is entered."""
    return StreamLoad([GATEWAY], demo.CA, read_token(), models, **CLIENTS, **options)


def beginning_of_answers(model: str) -> str:
    """By which a version is told; `model` is a name, or model@version."""
    return answer_prefix(GATEWAY, demo.CA, read_token(), model)


def show_table(title: str, outcome: Outcome, **more: object) -> None:
    """What it cost clients; `more` are rows beyond that."""
    seen = outcome.clients
    broken = seen.broken + seen.short + seen.duplicated
    rows = {
        "seconds": f"{outcome.seconds:.0f}",
        "requests": seen.requests,
        "broken streams": broken,
        "other faults": seen.failed - broken,
        "longest stall": f"{seen.longest_stall_s:.2f} s within an answer, {seen.longest_first_token_s:.2f} s before one",
        **more,
    }
    print(f"\n  {title}")
    for name, value in rows.items():
        print(f"  {name:<15} {value}", flush=True)


def show_fault(outcome: Outcome, playbook: str, log: Path) -> bool:
    """Whether something went wrong, and what."""
    if outcome.status:
        print("\n".join(["", *log.read_text().splitlines()[-SHOWN:]]), file=sys.stderr)
        text = f"{playbook} failed (exit status {outcome.status}); {log.relative_to(demo.REPO)} has all of its output"
    elif outcome.clients.failed:
        text = f"{outcome.clients.failed} requests went wrong"
        print(f"\n{summary(outcome.clients)}", file=sys.stderr)
    else:
        return False
    print(f"error: {text}", file=sys.stderr)
    return True


def run(show: Callable[[], int], target: str) -> int:
    """The exit status of what `make <target>` does; broken off, it says how to go on."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        return show()
    except (demo.DemoError, testbed.FleetError, LoadError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        return error.returncode
    except KeyboardInterrupt:
        print(f"\ninterrupted; the fleet goes on serving, and `make {target}` goes on from here", file=sys.stderr)
        return 130
