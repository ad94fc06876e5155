# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What the benches share: a fleet of their own, playbooks, rounds, medians, a table, a file of results."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
BIN = Path(sys.executable).parent
STATE = REPO / ".testbed" / "bench"
RESULTS = REPO / ".bench"
NETWORK = "llm-fleet-bench"
DOCKER = shlex.split(os.environ.get("DOCKER", "docker"))

sys.path.insert(0, str(REPO / ".venv" / "collections"))


class BenchError(Exception):
    """What was measured would not be what it is called."""


def say(text: str) -> None:
    print(f"  {text}", flush=True)


def run(*command: object, stdin: str | None = None, env: dict | None = None) -> str:
    """Run a command and return what it prints; its output is shown only when it fails."""
    done = subprocess.run(
        [*map(str, command)], input=stdin, capture_output=True, text=True, check=False, cwd=REPO, env=env
    )
    if done.returncode:
        said = (done.stdout + done.stderr)[-6000:]
        raise BenchError(f"{command[0]} {command[-1]} ended with {done.returncode}:\n{said}")
    return done.stdout


def ansible(*command: object, **variables: str) -> str:
    """Run one of Ansible's commands with the settings of the checkout and facts of its own.

    The cache knows hosts by their names, and other fleets have a gw1 too.
    """
    clean = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
    settings = {
        "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"),
        "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(STATE / "facts"),
        "ANSIBLE_NOCOLOR": "1",
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONDONTWRITEBYTECODE": "",
    }
    name, *arguments = command
    return run(BIN / str(name), *arguments, env={**clean, **settings, **variables})


def playbook(path: Path, inventory: Path, *arguments: object) -> str:
    return ansible("ansible-playbook", "-i", inventory, path, *arguments)


@contextlib.contextmanager
def fleet(inventory: Path, keep: bool) -> Iterator[None]:
    """Start the fleet that the inventory defines, and remove it at the end, whatever happens in between."""
    script = REPO / "testbed" / "fleet.py"
    say(f"starting the fleet of {inventory.relative_to(REPO)}")
    try:
        run(sys.executable, script, "up", "--inventory", inventory)
        yield
    finally:
        if not keep:
            run(sys.executable, script, "down", "--inventory", inventory)
            shutil.rmtree(STATE, ignore_errors=True)


def on(host: str, script: str) -> str:
    """Run a script on a host of the fleet, past ssh and Ansible."""
    return run(*DOCKER, "exec", "-i", f"{NETWORK}-{host}", "sh", "-es", stdin=script)


def seconds(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def rounds(count: int, cases: dict[str, Callable[[], dict]]) -> dict[str, dict]:
    """Measure all cases in turn, several times over; return each figure's median, and under `rounds` what it is made of.

    In turn (A B C A B C): what slows this machine down for a while then slows all of them down. Every other round
    goes backwards, so that none always profits from what came before it.
    """
    measured: dict[str, list[dict]] = {name: [] for name in cases}
    for number in range(count):
        order = list(cases.items())
        for name, case in reversed(order) if number % 2 else order:
            measured[name].append(case())
            figures = ", ".join(f"{key} {value:.4g}" for key, value in measured[name][-1].items())
            say(f"round {number + 1} of {count}: {name}: {figures}")
    return {
        name: {
            **{key: statistics.median(result[key] for result in results) for key in results[0]},
            "rounds": [{key: round(value, 4) for key, value in result.items()} for result in results],
        }
        for name, results in measured.items()
    }


def beside(figures: dict, other: dict, key: str, compare: Callable[[float, float], float]) -> float:
    """The median of a comparison made in each round: what was measured within the same minute had the same machine."""
    pairs = zip(figures["rounds"], other["rounds"])
    return statistics.median(compare(one[key], two[key]) for one, two in pairs)


def table(columns: dict[str, str], rows: list[dict]) -> str:
    """Rows as an aligned table with the headings of `columns`; numbers stand at the right."""
    cells = [list(columns.values()), *([_cell(row[key]) for key in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    sides = [str.ljust if isinstance(rows[0][key], str) else str.rjust for key in columns]
    return "\n".join("  ".join(side(*c) for side, *c in zip(sides, row, widths)).rstrip() for row in cells)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.2f}"
    return str(value)


def machine() -> dict:
    """What the figures were measured on: they say nothing about another one."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":")[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release(),
        "load_at_begin": round(_LOAD, 2),
    }


_LOAD = os.getloadavg()[0]


def ansible_version() -> str:
    return run(BIN / "ansible", "--version").splitlines()[0]


def report(
    name: str, columns: dict[str, str], rows: list[dict], versions: dict, notes: list[str], headline: dict | None = None
) -> None:
    """Print the table and write .bench/<name>.json; what is in `headline` stands at the top of both."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, cwd=REPO, capture_output=True, text=True, check=False)
    result = {
        "bench": name,
        **(headline or {}),
        "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "machine": machine(),
        "versions": versions,
        "notes": notes,
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print()
    for key, value in (headline or {}).items():
        say(f"{key:<32} {value:g}")
    print(f"\n{table(columns, rows)}\n")
    for note in notes:
        say(note)
    say(f"written: {path.relative_to(REPO)}")


def main(bench: Callable[[], None]) -> int:
    try:
        bench()
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the fleet is removed", file=sys.stderr)
        return 130
    return 0
