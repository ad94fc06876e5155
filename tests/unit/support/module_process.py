# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Modules as Ansible runs them: a process of its own for each call, arguments as JSON in, one JSON document out.

Most of the time of such a process would go into imports. So one process has imported what modules need, and stays; each call is a
fork of it, with a program, an environment and a folder of its own. That a module imports all it needs by itself is tested by
`ansible-test sanity`.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

REPO = Path(__file__).resolve().parents[3]
COLLECTIONS = REPO / ".venv" / "collections"
MODULES = REPO / "plugins" / "modules"


def call(name: str, arguments: dict, environment: dict) -> dict:
    """What a module of the collection prints."""
    done = run(MODULES / f"{name}.py", json.dumps({"ANSIBLE_MODULE_ARGS": arguments}), environment)
    assert done.stdout.strip(), done.stderr
    return json.loads(done.stdout)


def run(program: Path, text: str, environment: dict) -> subprocess.CompletedProcess:
    """Run a file as `subprocess.run([sys.executable, program], input=text, …)` does, until it and all that writes to its output ended."""
    about = {"program": str(program), "environment": {**environment, "PYTHONPATH": str(COLLECTIONS)}, "folder": os.getcwd()}
    said, output = os.pipe()
    status, ended = os.pipe()
    with tempfile.TemporaryFile("w+") as given, tempfile.TemporaryFile("w+") as errors:
        given.write(text)
        given.seek(0)
        _forks().ask(about, [given.fileno(), output, errors.fileno(), ended])
        os.close(output)
        os.close(ended)
        with open(said) as stream:
            stdout = stream.read()
        with open(status) as stream:
            code = int(stream.read())
        errors.seek(0)
        return subprocess.CompletedProcess([str(program)], code, stdout, errors.read())


class _Forks:
    """The process that stays, for as long as this one lives."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno())]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])

    def close(self) -> None:
        self._socket.close()
        self._process.wait()

    def ask(self, about: dict, descriptors: list[int]) -> None:
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(about).encode()], descriptors)


@functools.cache
def _forks() -> _Forks:
    return _Forks()


def _serve(requests: socket.socket) -> dict | None:
    """Fork for each request. Returns what is to be run in the fork, and None in this process when nobody asks any more."""
    # This process ends when there is nobody left who asks; a fork gets back what was inherited, such as by a run in the background.
    inherited = {sign: signal.signal(sign, signal.SIG_IGN) for sign in (signal.SIGINT, signal.SIGCHLD)}
    while True:
        message, descriptors, _flags, _address = socket.recv_fds(requests, 2**20, 4)
        if not message:
            return None
        if os.fork() == 0:
            for sign, handler in inherited.items():
                signal.signal(sign, handler)
            requests.close()
            *streams, ended = descriptors
            _tell_how_it_ends(ended, streams)
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            return json.loads(message)
        for descriptor in descriptors:
            os.close(descriptor)


def _tell_how_it_ends(ended: int, streams: list[int]) -> None:
    """Go on in a fork of this process, whose exit status this process then tells."""
    child = os.fork()
    if child == 0:
        os.close(ended)
        return
    for stream in streams:
        os.close(stream)
    _child, status = os.waitpid(child, 0)
    os.write(ended, str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _become(program: str, environment: dict, folder: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [program]
    sys.path[0] = str(Path(program).parent)
    runpy.run_path(program, run_name="__main__")


def _import_all() -> None:
    sys.path.insert(1, str(COLLECTIONS))
    importlib.import_module("ansible.module_utils.basic")
    package = "ansible_collections.localfirst.llm_fleet.plugins.module_utils"
    folder = REPO / "plugins" / "module_utils"
    for path in sorted(folder.rglob("*.py")):
        importlib.import_module(".".join([package, *path.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__"))
    # A fork that looked through all of this for garbage would first have to copy it.
    gc.freeze()


if __name__ == "__main__":
    _import_all()
    if asked := _serve(socket.socket(fileno=int(sys.argv[1]))):
        _become(**asked)
