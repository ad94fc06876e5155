# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Packages with all that they depend on, as a machine would need them that has none: by apt, in a root of its own.

Nothing of this machine's own apt is changed: lists, cache and the state of packages are private, and no hooks run. What is taken over
is how things are fetched (proxies, certificates, credentials), and where nobody names others, the package sources.

A repository may come on top of them, with its own key, and packages may be bound to one version with all that comes along: as the roles
do it on hosts for what NVIDIA's repositories have.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import apt_key, apt_packages, apt_sources, whole_files
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.apt_index import Deb, fetched_name, index_entries, parse_uris
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError

AT_ONCE = 200  # packages that one command line names

Run = Callable[..., tuple]  # AnsibleModule.run_command


class Repository(NamedTuple):
    """One more package source. The key is its content, empty for none."""

    url: str
    suite: str
    components: list[str]
    key: bytes


class AptClosure:
    """apt in a directory. `run(command, environ_update=…, cwd=…)` returns (code, output, errors)."""

    def __init__(self, root: Path, architecture: str, sources: str, run: Run, repository: Repository | None = None) -> None:
        self.root = root
        self.architecture = architecture
        self.sources = sources
        self.repository = repository
        self._run = run

    def prepare(self, like: AptClosure | None = None) -> None:
        """Make the root and read the sources' lists. Those that another one has read are not fetched again."""
        for name in ("state/lists/partial", "cache/archives/partial", "log", "sources.d", "debs"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        if like:
            shutil.copytree(like.root / "state/lists", self.root / "state/lists", dirs_exist_ok=True)
        (self.root / "status").touch()
        code, dumped, errors = self._run(["apt-config", "dump"], environ_update={"LC_ALL": "C"})
        if code != 0:
            raise ArtifactError(f"apt-config failed: {errors.strip()}", "this machine", "write bundles on Debian or Ubuntu")
        transport = [line for line in dumped.splitlines() if line.startswith("Acquire::") and not line.startswith("Acquire::Languages")]
        (self.root / "apt.conf").write_text("\n".join([*self._settings(), *transport, ""]), encoding="utf-8")
        self._write_sources()
        self._apt("update", "--error-on=any")

    def _write_sources(self) -> None:
        folder = self.root / "sources.d"
        if self.sources:
            kind = "sources" if "URIs:" in self.sources else "list"
            (folder / f"bundle.{kind}").write_text(f"{self.sources.strip()}\n", encoding="utf-8")
        if self.repository is None:
            return
        if not self.sources:
            # This machine's own, beside which one more is to be read.
            main, parts = (Path(self._path(key)) for key in ("Dir::Etc::sourcelist/f", "Dir::Etc::sourceparts/d"))
            for path in [main, *(sorted(parts.iterdir()) if parts.is_dir() else [])]:
                if path.is_file() and path.suffix in (".list", ".sources"):
                    (folder / path.name).symlink_to(path)
        url, suite, components, key = self.repository
        place = apt_sources.place(url, suite, self.architecture)
        there = [entry for path in folder.iterdir() for entry in apt_sources.parse(path.name, path.read_text(encoding="utf-8"))]
        try:
            # apt reads no source at all where two of one place name different keys.
            giver, options = apt_sources.agree([each for each in there if each.enabled and place in each.places(self.architecture)], [])
        except apt_sources.Conflict as conflict:
            raise ArtifactError(f"{conflict} name different keys for {url}", "this machine's apt", "make both say the same") from None
        signed_by = self.root / f"key{apt_key.suffix(key)}"
        if key:
            signed_by.write_bytes(key)
        name = giver.signed_by if giver else str(signed_by) if key else ""
        (folder / "zz-more.sources").write_text(apt_sources.render(url, suite, components, name, options), encoding="utf-8")

    def _path(self, key: str) -> str:
        """A path of this machine's apt, wherever its configuration has it."""
        return self._run(["apt-config", "shell", "FOUND", key], environ_update={"LC_ALL": "C"})[1].partition("'")[2].rpartition("'")[0]

    def _settings(self) -> list[str]:
        root = self.root
        alone = self.sources or self.repository
        own = [f'Dir::Etc::sourceparts "{root}/sources.d";', 'Dir::Etc::sourcelist "/dev/null";'] if alone else []
        return [
            f'Dir::State "{root}/state";', f'Dir::State::status "{root}/status";', f'Dir::Cache "{root}/cache";', f'Dir::Log "{root}/log";',
            # Hooks and pins of this machine are not meant for others.
            'Dir::Etc::parts "/dev/null";', 'Dir::Etc::main "/dev/null";', f'Dir::Etc::preferences "{root}/preferences";',
            'Dir::Etc::preferencesparts "/dev/null";', *own,
            f'APT::Architecture "{self.architecture}";', f'APT::Architectures {{ "{self.architecture}"; }};',
            'APT::Sandbox::User "root";', 'APT::Install-Recommends "false";', 'Acquire::Languages "none";',
        ]

    def resolve(self, names: Iterable[str]) -> list[Deb]:
        """What apt would install for these names on a machine that has nothing."""
        return parse_uris(self._apt("install", "--print-uris", *sorted(set(names))))

    def bind(self, names: list[str], companions: list[str], version: str) -> list[str]:
        """These names at the newest version of the wanted ones that all have, as held_packages would choose it on a host.

        What comes along by the patterns is bound to it, too: apt takes the newest of what a dependency allows.
        """
        offered = self.offered(names)
        chosen = apt_packages.choose(names, offered, version)
        if not chosen:
            raise ArtifactError(apt_packages.missing_version(names, offered, version), "apt-cache madison", "name a version that is there")
        specs = {name: apt_packages.full_version(name, offered, chosen, version) for name in names}
        pin = apt_packages.pin_text("bundle", sorted({*names, *companions}), specs[names[0]])
        (self.root / "preferences").write_text(pin, encoding="utf-8")
        return [f"{name}={full}" for name, full in specs.items()]

    def offered(self, names: list[str]) -> dict[str, list[str]]:
        """The versions of those of these packages that the sources have."""
        return apt_packages.parse_versions(self._apt("madison", *names, program="apt-cache")) if names else {}

    def entries(self, debs: list[Deb]) -> dict[Deb, str]:
        """The entries of these packages in an index, by the sources' own lists."""
        found = index_entries("".join(self._each("apt-cache", "show", debs)), debs)
        if len(found) != len(debs):
            raise ArtifactError("the package sources do not tell all digests", "apt-cache show", "use a mirror whose lists have SHA256")
        return found

    def fetch(self, debs: list[Deb], folder: Path) -> None:
        """Fetch packages into a folder. apt compares each with the digest in the signed lists."""
        for _output in self._each("apt-get", "download", debs, cwd=str(self.root / "debs")):
            pass
        folder.mkdir(parents=True, exist_ok=True)
        for deb in debs:
            # Copied, and not moved: the folder may be on a disk that goes across.
            fetched = self.root / "debs" / fetched_name(deb)
            with whole_files.draft_of(folder / deb.file) as draft:
                shutil.copyfile(fetched, draft)
                os.replace(draft, folder / deb.file)
            fetched.unlink()

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
