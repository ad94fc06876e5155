# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Clients that stream from the fleet all the time, and count every answer that is broken, short, duplicated, late or refused.

As a program, for somebody who watches a rollout:

    LLM_FLEET_TOKEN=… stream_load.py --gateway 10.0.0.11 --gateway 10.0.0.12 --ca ca.pem --model chat --live

and in tests, where it runs as a process of its own, so that neither slows the other down:

    with StreamLoad(gateways=["10.0.0.11:443"], ca=ca, token=token, models=["chat"], clients=8) as load:
        ...
    assert load.report.broken == 0
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

# As a program, too, it finds its parts by the name that they have in tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / ".venv" / "collections"))

from ansible_collections.localfirst.llm_fleet.tests.load import settings as load_settings
from ansible_collections.localfirst.llm_fleet.tests.load.clients import Load, http_request, tls
from ansible_collections.localfirst.llm_fleet.tests.load.report import Report
from ansible_collections.localfirst.llm_fleet.tests.load.settings import LoadError, Settings
from ansible_collections.localfirst.llm_fleet.tests.load.tally import live_line, summary
from ansible_collections.localfirst.llm_fleet.tests.load.verdict import PREFIX

STARTED = "started"
# Beyond the longest answer: to write the report.
GRACE = 15.0


class StreamLoad:
    """A load in a process of its own. It ends with the process that started it, and at the latest after `seconds`."""

    def __init__(self, gateways: Sequence[str], ca: str | Path, token: str, models: Sequence[str] = ("tiny",), **options) -> None:
        """`options` are the other fields of `Settings`."""
        self.settings = Settings(gateways=tuple(gateways), ca=str(ca), token=token, models=tuple(models), **options)
        self.report: Report | None = None
        self._process: subprocess.Popen | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="stream-load-")
        root = Path(self._folder.name)
        self._result, self._status, self._errors = root / "report.json", root / "now.json", root / "stderr"

    def __enter__(self) -> StreamLoad:
        self.start()
        return self

    def __exit__(self, *_error) -> None:
        self.stop()

    def start(self) -> None:
        """Start the clients; when this returns, they ask."""
        own = ["--report", self._result, "--status", self._status, "--until-stdin-closes"]
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).resolve()), *self.settings.arguments(), *own],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, load_settings.TOKEN: self.settings.token},
            )
        if self._process.stdout.readline().strip() != STARTED:
            self._process.wait()
            raise LoadError(f"the load did not start: {self._said()}")

    def now(self) -> dict:
        """The running figures, not older than a second: `Tally.now`. Empty before the first."""
        return json.loads(self._status.read_text()) if self._status.exists() else {}

    def stop(self) -> Report:
        """No request begins any more; those that are open end by themselves. Return what was seen."""
        if self.report is not None:
            return self.report
        if self._process is None:
            raise LoadError("the load was not started")
        self._process.stdin.close()
        try:
            self._process.wait(self.settings.timeout + GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        if not self._result.exists():
            raise LoadError(f"the load ended with {self._process.returncode} and left no report: {self._said()}")
        self.report = Report.from_json(self._result.read_text())
        self._folder.cleanup()
        return self.report

    def _said(self) -> str:
        return self._errors.read_text().strip()[-2000:] or "it said nothing"


def answer_prefix(gateway: str, ca: str | Path, token: str, model: str) -> str:
    """How the answers of a model, or of a model@version, begin: a value of `tell`."""
    host, port = load_settings.address_of(gateway)
    connection = http.client.HTTPSConnection(host, port, timeout=60, context=tls(str(ca)))
    connection.connect()
    connection.sock.sendall(http_request(gateway, token, model, 2 * PREFIX, streamed=False, by_path=True, exact=True))
    response = http.client.HTTPResponse(connection.sock, method="POST")
    response.begin()
    body = response.read()
    connection.close()
    if response.status != 200:
        raise LoadError(f"{gateway} answers {response.status} for {model}: {body[:300].decode(errors='replace')}")
    return json.loads(body)["choices"][0]["message"]["content"].lstrip()[:PREFIX]


async def _watch(load: Load, live: bool, status: Path | None) -> None:
    """Show the figures each second until the load is over."""
    while True:
        now = load.tally.now()
        if status:
            part = status.with_suffix(".part")
            part.write_text(json.dumps(now))
            part.replace(status)
        if live:
            _show(now)
        await asyncio.sleep(1)


def _show(now: dict) -> None:
    print(f"\r{live_line(now, shutil.get_terminal_size().columns - 1)}\x1b[K", end="", flush=True)


def _stop_when_closed(load: Load) -> None:
    """Stop with the process that holds the other end of stdin, even where that one is killed."""
    loop = asyncio.get_running_loop()

    def read() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            load.stopping.set()

    loop.add_reader(0, read)


async def _run(settings: Settings, live: bool, status: Path | None, until_stdin_closes: bool) -> Report:
    load = Load(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, load.stopping.set)
    if until_stdin_closes:
        _stop_when_closed(load)
        print(STARTED, flush=True)
    watch = asyncio.ensure_future(_watch(load, live, status)) if live or status else None
    await load.run()
    if watch:
        watch.cancel()
    if live:
        _show(load.tally.now())
    return load.tally.report()


def main(arguments: list[str] | None = None) -> int:
    cli = load_settings.parser(__doc__.splitlines()[0])
    cli.add_argument("--live", action="store_true", help="show what clients see, each second")
    cli.add_argument("--report", type=Path, help="write the report to this file, as JSON")
    cli.add_argument("--status", type=Path, help="write the running figures to this file each second, as JSON")
    cli.add_argument("--until-stdin-closes", action="store_true", help="stop when stdin ends")
    given = cli.parse_args(arguments)
    try:
        report = asyncio.run(_run(load_settings.from_arguments(given), given.live, given.status, given.until_stdin_closes))
    except (LoadError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.report:
        given.report.write_text(report.to_json())
    if not given.until_stdin_closes:
        print(f"\n{summary(report)}" if given.live else summary(report))
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
