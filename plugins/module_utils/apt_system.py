# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""apt and dpkg of the host that a module runs on, by their programs: C locale, no questions, and the same paths as apt has."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import apt_packages

QUERY = ["dpkg-query", "--show", "--showformat", "${db:Status-Abbrev}\t${Package}\t${Version}\n"]
ENVIRONMENT = {
    "LC_ALL": "C", "LANG": "C", "DEBIAN_FRONTEND": "noninteractive", "APT_LISTCHANGES_FRONTEND": "none", "NEEDRESTART_MODE": "l",
}


class AptSystem:
    """Runs the programs. `fail` is called with a sentence and does not come back."""

    def __init__(self, module, lock_timeout: int, fail: Callable[[str], None]) -> None:
        self.module, self.lock_timeout, self.fail = module, lock_timeout, fail

    def run(self, command: list[str]) -> tuple[int, str, str]:
        path = self.module.get_bin_path(command[0])
        if path is None:
            self.fail(f"{command[0]} is not installed: this module is for Debian and Ubuntu")
        return self.module.run_command([path, *command[1:]], environ_update=ENVIRONMENT)

    def get(self, verb: str, *arguments: str) -> tuple[int, str, str]:
        options = ["--yes", "--quiet", "--option=Dpkg::Options::=--force-confold", f"--option=DPkg::Lock::Timeout={self.lock_timeout}"]
        if verb == "install":
            options += ["--no-install-recommends", "--allow-downgrades"]
        return self.run(["apt-get", *options, verb, *arguments])

    def simulate(self, specs: list[str], pin: str, released: list[str]) -> tuple[int, str, str]:
        """What an installation would do with one more pin and without holds on some packages, while both are as they are."""
        main = Path(self.path("Dir::Etc::preferences/f"))
        pins = "\n".join([main.read_text() if main.is_file() else "", pin])
        status = apt_packages.release(Path(self.path("Dir::State::status/f")).read_text(), released)
        with self._file(pins) as preferences, self._file(status) as state:
            options = [f"--option=Dir::Etc::preferences={preferences}", f"--option=Dir::State::status={state}"]
            return self.get("install", "--simulate", *options, *specs)

    def installed(self) -> dict[str, apt_packages.Installed]:
        code, output, errors = self.run(QUERY)
        if code != 0 and "no packages found" not in errors:
            self.fail(f"dpkg-query failed: {errors.strip()}")
        return apt_packages.parse_installed(output)

    def offered(self, names: list[str]) -> dict[str, list[str]]:
        """Versions in the package lists, those that are only installed left out."""
        return apt_packages.parse_versions(self.run(["apt-cache", "madison", *names])[1]) if names else {}

    def path(self, key: str) -> str:
        """A path of apt's, wherever its configuration has it."""
        code, output, errors = self.run(["apt-config", "shell", "FOUND", key])
        if code != 0:
            self.fail(f"apt-config failed: {errors.strip()}")
        return output.partition("'")[2].rpartition("'")[0]

    @contextlib.contextmanager
    def _file(self, text: str) -> Iterator[str]:
        descriptor, name = tempfile.mkstemp(dir=self.module.tmpdir)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
            yield name
        finally:
            os.unlink(name)
