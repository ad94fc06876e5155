# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Runs on a store as processes of their own, which end at any line of our code as a SIGKILL would end them.

One process with everything imported waits for jobs on its standard input and forks a child for each one: a child costs
milliseconds that way, and a test can afford thousands of them.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import Artifact, ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_fetch import Fetcher
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_staging import Staging
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_store import Store
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import Places

OURS = ("artifact", "progress", "store_marks", "origins")
KILLED, FAULT, BROKEN = 9, 3, 4


class Workers:
    """The waiting process, as the test sees it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", type(self).__module__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            text=True,
        )

    def run(self, *jobs: dict) -> list[dict]:
        """Run jobs at once, and wait for all of them; what each one returned, with the status it ended with."""
        self.process.stdin.write(json.dumps(jobs) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@functools.cache
def is_ours(path: str) -> bool:
    return Path(path).name.startswith(OURS)


class Fuse:
    """Ends the process at the n-th line of our code, or of one function of it; takes naps at others, to let a rival in."""

    def __init__(self, kill_at: int | list | None, naps: list[int]) -> None:
        self.function, self.left = kill_at if isinstance(kill_at, list) else ("", kill_at or 0)
        self.naps = set(naps)
        self.lines = 0

    def trace(self, frame, event, _argument):
        if event == "call":
            looked_into = self.naps or self.function in ("", frame.f_code.co_name)
            return self.trace if looked_into and is_ours(frame.f_code.co_filename) else None
        if event == "line":
            self.lines += 1
            if self.function in ("", frame.f_code.co_name):
                self.left -= 1
                if self.left == 0:
                    os._exit(KILLED)
            if self.lines in self.naps:
                time.sleep(0.01)
        return self.trace

    def light(self) -> None:
        if not self.left and not self.naps:
            return  # looking at every line is most of what a process takes
        threading.settrace(self.trace)
        sys.settrace(self.trace)


def work(job: dict) -> dict:
    """What one run does: bring some versions, or remove one, or verify one."""
    store = Store(job["store"])
    artifacts = [Artifact.parse(*entry) for entry in job["artifacts"]]
    Fuse(job.get("kill_at"), job.get("naps", [])).light()
    if job["do"] == "remove":
        with store.locked(20):
            store.remove(artifacts[0])
        return {}
    if job["do"] == "verify":
        return {"damaged": store.verify(artifacts[0], set_aside=True, lock_timeout=20)}
    staging = Staging(store, artifacts, link=job.get("link", True), lock_timeout=20)
    surveys = staging.run(Fetcher([Places(retries=3)]))
    return {"moved": sum(found.bytes_moved for found in surveys), "actions": [action for found in surveys for action in found.actions]}


def child(job: dict, output: int) -> None:
    status = BROKEN
    try:
        result, status = work(job), 0
    except ArtifactError as error:
        result, status = {"error": str(error)}, FAULT
    except BaseException as error:
        result = {"error": repr(error)}
    sys.settrace(None)
    os.write(output, json.dumps(result).encode())
    os._exit(status)


def main() -> None:
    # A child that looked through all that is imported for garbage would first have to copy it.
    gc.freeze()
    for line in sys.stdin:
        children = []
        for job in json.loads(line):
            reading, writing = os.pipe()
            process = os.fork()
            if process == 0:
                child(job, writing)
            os.close(writing)
            children.append((process, reading))
        results = []
        for process, reading in children:
            with open(reading, "rb") as pipe:
                text = pipe.read()
            status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            results.append({"status": status, **(json.loads(text) if text else {})})
        print(json.dumps(results), flush=True)


if __name__ == "__main__":
    main()
