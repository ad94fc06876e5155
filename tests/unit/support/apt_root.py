# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A Debian system in a directory, for apt and dpkg of this machine: sources, pins, holds and installed packages of its own.

Packages are really unpacked and configured, below the directory. Maintainer scripts run without chroot and find the directory
in DPKG_ROOT.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from ansible_collections.localfirst.llm_fleet.tests.unit.support import module_process

REPO = Path(__file__).resolve().parents[3]
DOUBLE = REPO / "testbed/doubles/nvidia_repo"
NEEDED = ("apt-get", "apt-cache", "dpkg", "dpkg-deb", "gpg")
SMI = '#!/usr/bin/env python3\nprint("GPU 0: NVIDIA L4 (UUID: GPU-0)")\n'


def usable() -> bool:
    return os.geteuid() == 0 and all(shutil.which(program) for program in NEEDED)


def build_repository(folder: Path, *arguments: str) -> Path:
    """The double of NVIDIA's repository, with a stand-in for the double of nvidia-smi."""
    smi = folder.parent / "smi"
    smi.mkdir(exist_ok=True)
    (smi / "nvidia_smi.py").write_text(SMI)
    command = [sys.executable, str(DOUBLE / "build.py"), str(folder), "--smi", str(smi), "--kernel", "6.1.0-99-amd64", *arguments]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@contextlib.contextmanager
def serve(folder: Path, asked: list[str] | None = None) -> Iterator[str]:
    """A folder over HTTP, as a mirror has it. `asked` gets the path of each request."""
    class Mirror(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            if asked is not None:
                asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Mirror, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


class AptRoot:
    """The system. `run("apt-get", …)` runs a program on it; `module(…)` one of the collection's modules."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("etc/apt/preferences.d", "etc/apt/sources.list.d", "etc/apt/apt.conf.d", "etc/apt/trusted.gpg.d",
                     "var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "var/lib/dpkg/info", "var/lib/dpkg/updates",
                     "var/lib/dpkg/triggers", "var/log/apt", "usr/bin", "state", "tmp"):
            (root / name).mkdir(parents=True, exist_ok=True)
        for name in ("status", "available", "diversions", "statoverride"):
            (root / "var/lib/dpkg" / name).touch()
        self.own("base-files", "python3")
        (root / "apt.conf").write_text(
            f'Dir "{root}";\nDir::State::status "{root}/var/lib/dpkg/status";\nDir::Bin::dpkg "/usr/bin/dpkg";\n'
            f'Dir::Bin::methods "/usr/lib/apt/methods";\nAPT::Architecture "amd64";\nAPT::Sandbox::User "root";\n'
            f'DPkg::Options {{ "--root={root}"; "--force-script-chrootless"; "--log={root}/var/log/dpkg.log"; }};\n'
            'APT::Install-Recommends "false";\nDPkg::Use-Pty "false";\nAcquire::Languages "none";\n'
        )
        self.environment = {
            **os.environ, "APT_CONFIG": str(root / "apt.conf"), "DPKG_ADMINDIR": str(root / "var/lib/dpkg"), "LC_ALL": "C",
            "PYTHONPATH": str(REPO / ".venv/collections"), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive",
        }

    def own(self, *names: str) -> None:
        """Packages that the system has already, by word only."""
        with (self.root / "var/lib/dpkg/status").open("a") as status:
            for name in names:
                status.write(
                    f"Package: {name}\nStatus: install ok installed\nVersion: 12\nArchitecture: amd64\nMaintainer: nobody\n"
                    "Description: there already\n\n"
                )
                (self.root / f"var/lib/dpkg/info/{name}.list").write_text("/.\n")

    def use(self, repository: Path) -> None:
        (self.root / "etc/apt/sources.list.d/nvidia.sources").write_text(
            f"Types: deb\nURIs: file:{repository}\nSuites: /\nSigned-By: {repository}/nvidia-double.asc\n"
        )
        self.run("apt-get", "update", "--error-on=any")

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess:
        done = subprocess.run(command, env=self.environment, text=True, capture_output=True, check=False)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def module(self, name: str, /, check_mode: bool = False, **arguments) -> dict:
        arguments |= {"_ansible_remote_tmp": str(self.root / "tmp"), "_ansible_check_mode": check_mode, "_ansible_diff": True}
        return module_process.call(name, arguments, self.environment)

    def packages(self) -> dict[str, str]:
        """What is installed and configured, without what `own` put there."""
        shown = self.run("dpkg-query", "-W", "-f", "${db:Status-Status} ${Package} ${Version}\n").stdout
        rows = [line.split() for line in shown.splitlines()]
        return {name: version for state, name, version in rows if state == "installed" and version != "12"}

    def holds(self) -> set[str]:
        return set(self.run("apt-mark", "showhold").stdout.split())
