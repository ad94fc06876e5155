# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Packages with all that they depend on, as a machine would need them that has none: by apt, in a root of its own.

Nothing of this machine's own apt is changed: lists, cache and the state of packages are private, and no hooks run. What is taken over
is how things are fetched (proxies, certificates, credentials), and where nobody names others, the package sources.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import apt_packages
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.apt_index import Deb, fetched_name, index_text, parse_uris
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError

AT_ONCE = 200  # packages that one command line names

Run = Callable[..., tuple]  # AnsibleModule.run_command


class AptClosure:
    """apt in a directory. `run(command, environ_update=…, cwd=…)` returns (code, output, errors)."""

    def __init__(self, root: Path, architecture: str, sources: str, run: Run) -> None:
        self.root = root
        self.architecture = architecture
        self.sources = sources
        self._run = run

    def prepare(self) -> None:
        """Make the root and read the sources' lists."""
        for name in ("state/lists/partial", "cache/archives/partial", "log", "sources.d", "debs"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        (self.root / "status").touch()
        if self.sources:
            kind = "sources" if "URIs:" in self.sources else "list"
            (self.root / "sources.d" / f"bundle.{kind}").write_text(f"{self.sources.strip()}\n", encoding="utf-8")
        code, dumped, errors = self._run(["apt-config", "dump"], environ_update={"LC_ALL": "C"})
        if code != 0:
            raise ArtifactError(f"apt-config failed: {errors.strip()}", "this machine", "write bundles on Debian or Ubuntu")
        transport = [line for line in dumped.splitlines() if line.startswith("Acquire::") and not line.startswith("Acquire::Languages")]
        (self.root / "apt.conf").write_text("\n".join([*self._settings(), *transport, ""]), encoding="utf-8")
        self._apt("update", "--error-on=any")

    def _settings(self) -> list[str]:
        root = self.root
        own = [f'Dir::Etc::sourceparts "{root}/sources.d";', 'Dir::Etc::sourcelist "/dev/null";'] if self.sources else []
        return [
            f'Dir::State "{root}/state";', f'Dir::State::status "{root}/status";', f'Dir::Cache "{root}/cache";', f'Dir::Log "{root}/log";',
            # Hooks and pins of this machine are not meant for others.
            'Dir::Etc::parts "/dev/null";', 'Dir::Etc::main "/dev/null";', 'Dir::Etc::preferences "/dev/null";',
            'Dir::Etc::preferencesparts "/dev/null";', *own,
            f'APT::Architecture "{self.architecture}";', f'APT::Architectures {{ "{self.architecture}"; }};',
            'APT::Sandbox::User "root";', 'APT::Install-Recommends "false";', 'Acquire::Languages "none";',
        ]

    def resolve(self, names: Iterable[str]) -> list[Deb]:
        """What apt would install for these names on a machine that has nothing."""
        return parse_uris(self._apt("install", "--print-uris", *sorted(set(names))))

    def index(self, debs: list[Deb]) -> str:
        """The index of these packages, by the sources' own lists."""
        text = index_text("".join(self._each("apt-cache", "show", debs)), debs)
        if text.count("\nFilename: ") != len(debs):
            raise ArtifactError("the package sources do not tell all digests", "apt-cache show", "use a mirror whose lists have SHA256")
        return text

    def fetch(self, debs: list[Deb], folder: Path) -> None:
        """Fetch packages into a folder. apt compares each with the digest in the signed lists."""
        for _output in self._each("apt-get", "download", debs, cwd=str(self.root / "debs")):
            pass
        folder.mkdir(parents=True, exist_ok=True)
        for deb in debs:
            os.replace(self.root / "debs" / fetched_name(deb), folder / deb.file)

    def _each(self, program: str, verb: str, debs: list[Deb], **options) -> Iterable[str]:
        for start in range(0, len(debs), AT_ONCE):
            yield self._apt(verb, *(deb.spec for deb in debs[start : start + AT_ONCE]), program=program, **options)

    def _apt(self, verb: str, *arguments: str, program: str = "apt-get", **options) -> str:
        quiet = ["--yes", "--quiet=2"] if program == "apt-get" else []
        environment = {"APT_CONFIG": f"{self.root}/apt.conf", "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        code, output, errors = self._run([program, *quiet, verb, *arguments], environ_update=environment, **options)
        if code != 0:
            fix = "check the names, and that the package sources are those of this distribution"
            raise ArtifactError(apt_packages.explain(output + errors), f"{program} {verb}", fix)
        return output
