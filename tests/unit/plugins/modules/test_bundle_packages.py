# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Packages for hosts: by this machine's own apt, from a repository of the test's, and back into a host's apt."""

from __future__ import annotations

import hashlib
import os
import subprocess
import urllib.request
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.apt_index import Deb, index_entries, index_text, listed, parse_uris
from ansible_collections.localfirst.llm_fleet.tests.unit.support import apt_root

pytestmark = pytest.mark.skipif(not apt_root.usable(), reason="apt of this machine, and root, are needed")

PLACE = "packages/debian-12-amd64"


def build(folder: Path, name: str, version: str, depends: str = "") -> None:
    """A package without files."""
    root = folder.parent / "build" / name
    (root / "DEBIAN").mkdir(parents=True, exist_ok=True)
    needs = f"Depends: {depends}\n" if depends else ""
    (root / "DEBIAN" / "control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: nobody\n{needs}Description: of a test\n"
    )
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", root, folder], check=True, capture_output=True)


class Side:
    """A repository, and bundles that are made of it."""

    def __init__(self, folder: Path, run_module) -> None:
        self.folder, self.run_module = folder, run_module
        self.repository, self.bundle = folder / "repository", folder / "bundle"
        self.repository.mkdir()

    def offer(self, *packages: tuple) -> None:
        for package in packages:
            build(self.repository, *package)
        assert self._index()["packages"]

    def _index(self) -> dict:
        return apt_root.module_process.call(
            "package_folder", {"path": str(self.repository), "_ansible_remote_tmp": str(self.folder)}, {**os.environ, "LC_ALL": "C"}
        )

    def bring(self, *sets: list[str], **arguments) -> dict:
        sources = f"deb [trusted=yes] file:{self.repository} ./"
        return self.run_module(
            "bundle_packages", bundle=str(self.bundle), distribution="debian-12-amd64", sets=list(sets), sources=sources, **arguments
        )


@pytest.fixture
def side(tmp_path, run_module):
    made = Side(tmp_path, run_module)
    made.offer(("server", "1:2.0-1", "library (>= 1)"), ("library", "1.5+x"), ("tool", "3"), ("unwanted", "1"))
    return made


def test_packages_come_with_all_that_they_need_and_an_index_that_fits(side):
    brought = side.bring(["server"], ["tool"])
    names = {path.rpartition("/")[2] for path in brought["paths"]}
    # No epoch in a file's name: apt would read %3a as a colon.
    assert names == {"Packages", "Release", "server_2.0-1_amd64.deb", "library_1.5+x_amd64.deb", "tool_3_amd64.deb"}
    index = (side.bundle / PLACE / "Packages").read_text()
    for file, sha256 in listed(index).items():
        assert hashlib.sha256((side.bundle / PLACE / file).read_bytes()).hexdigest() == sha256
    assert {path.name for path in (side.bundle / PLACE).iterdir()} == names


def test_a_bundle_may_be_on_a_disk_of_its_own(side, small_disk):
    side.bundle = small_disk / "bundle"
    assert f"{PLACE}/tool_3_amd64.deb" in side.bring(["tool"])["paths"]
    assert {path.name for path in (side.bundle / PLACE).iterdir()} == {"Packages", "Release", "tool_3_amd64.deb"}


def test_a_host_installs_from_it_with_no_other_source(side, tmp_path):
    side.bring(["server"])
    host = apt_root.AptRoot(tmp_path / "host")
    (host.root / "etc/apt/sources.list").write_text(f"deb [trusted=yes] file:{side.bundle / PLACE} ./\n")
    host.run("apt-get", "update", "--error-on=any")
    host.run("apt-get", "install", "--yes", "server")
    assert host.packages() == {"server": "1:2.0-1", "library": "1.5+x"}


def test_a_second_run_fetches_nothing_and_a_newer_package_comes(side):
    side.bring(["server"])
    assert side.bring(["server"])["changed"] is False
    (side.bundle / PLACE / "library_1.5+x_amd64.deb").write_bytes(b"half of it")
    assert side.bring(["server"])["actions"] == ["fetch 1 packages for debian-12-amd64"]
    side.offer(("library", "1.6"))
    brought = side.bring(["server"])
    assert brought["actions"][0] == "fetch 1 packages for debian-12-amd64"
    assert f"{PLACE}/library_1.6_amd64.deb" in brought["paths"] and f"{PLACE}/library_1.5+x_amd64.deb" not in brought["paths"]


def test_what_the_base_has_is_not_fetched(side, tmp_path):
    paths = side.bring(["server"])["paths"]
    assert side.run_module("bundle_seal", bundle=str(side.bundle), wanted=paths)["changed"]
    base, side.bundle = side.bundle, tmp_path / "second"
    brought = side.bring(["server", "tool"], base=str(base))
    assert {path.name for path in (side.bundle / PLACE).iterdir()} == {"Packages", "Release", "tool_3_amd64.deb"}
    # The index is for all of it.
    assert set(listed((side.bundle / PLACE / "Packages").read_text())) == {
        "server_2.0-1_amd64.deb", "library_1.5+x_amd64.deb", "tool_3_amd64.deb",
    }
    assert len(brought["paths"]) == 5


def test_sets_need_not_fit_together(side):
    build(side.repository, "other-server", "1")
    control = side.folder / "build/other-server/DEBIAN/control"
    control.write_text(control.read_text().replace("Description", "Conflicts: server\nDescription"))
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", control.parents[1], side.repository], check=True, capture_output=True)
    side._index()
    paths = side.bring(["server"], ["other-server"])["paths"]
    assert {f"{PLACE}/server_2.0-1_amd64.deb", f"{PLACE}/other-server_1_amd64.deb"} <= set(paths)


def test_a_pinned_version_is_the_one_that_comes(side):
    side.offer(("tool", "4"))
    (path,) = [path for path in side.bring(["tool=3*"])["paths"] if path.endswith(".deb")]
    assert path.endswith("tool_3_amd64.deb")


def test_faults_say_what_to_do_and_this_machine_is_left_alone(side):
    before = sorted(Path("/var/lib/apt/lists").glob("*"))
    assert "nosuch" in side.bring(["nosuch"])["msg"]
    refused = side.run_module("bundle_packages", bundle=str(side.bundle), distribution="../debian", sets=[["tool"]])
    assert refused["failed"] and "debian-12-amd64" in refused["msg"]
    told = side.bring(["server"], check_mode=True)
    assert told["changed"] and not side.bundle.exists()
    assert sorted(Path("/var/lib/apt/lists").glob("*")) == before


@pytest.fixture(scope="module")
def nvidia(tmp_path_factory):
    """The double of NVIDIA's repository, signed, over HTTP."""
    folder = apt_root.build_repository(tmp_path_factory.mktemp("nvidia") / "repository")
    with apt_root.serve(folder) as url:
        yield {"url": url, "suite": "/", "components": [], "key": f"{url}nvidia-double.asc"}


def versions(paths: list[str], *names: str) -> set[str]:
    return {path.rpartition("/")[2].removesuffix("_all.deb") for path in paths if path.rpartition("/")[2].partition("_")[0] in names}


TOOLKIT = ["libnvidia-container1", "libnvidia-container-tools", "nvidia-container-toolkit-base", "nvidia-container-toolkit"]


def test_packages_from_elsewhere_come_beside_the_others_and_in_one_version(side, nvidia):
    side.offer(("python3", "3.11"))
    toolkit = {"packages": TOOLKIT, "version": "1.17.8-1", "repository": nvidia}
    brought = side.bring(["server"], elsewhere=[toolkit])
    assert versions(brought["paths"], *TOOLKIT) == {f"{name}_1.17.8-1" for name in TOOLKIT}
    assert f"{PLACE}/server_2.0-1_amd64.deb" in brought["paths"] and f"{PLACE}/python3_3.11_amd64.deb" in brought["paths"]
    assert set(listed((side.bundle / PLACE / "Packages").read_text())) == {path.rpartition("/")[2] for path in brought["paths"][2:]}
    again = side.bring(["server"], elsewhere=[toolkit])
    assert again["changed"] is False and again["paths"] == brought["paths"]
    newest = side.bring(["server"], elsewhere=[{**toolkit, "version": ""}])
    assert versions(newest["paths"], *TOOLKIT) == {f"{name}_1.18.0-1" for name in TOOLKIT}


def test_a_driver_comes_with_all_of_its_version_though_there_are_newer_ones(side, nvidia):
    side.offer(("python3", "3.11"))
    driver = {
        "packages": ["nvidia-driver-cuda", "nvidia-kernel-open-dkms"], "companions": ["libcuda1", "libnvidia-[!c]*", "nvidia-*"],
        "beside": ["dkms"], "optional": ["linux-headers-6.1.0-99-amd64", "nvlsm"], "repository": nvidia,
    }
    libraries = ("nvidia-driver-cuda", "nvidia-kernel-open-dkms", "libcuda1", "libnvidia-ml1", "nvidia-persistenced", "nvidia-modprobe")
    for version, got in (("580", "580.105.08-1"), ("580.95.05", "580.95.05-1"), ("590.*", "590.48.01-1")):
        paths = side.bring(["server"], elsewhere=[{**driver, "version": version}])["paths"]
        assert versions(paths, *libraries) == {f"{name}_{got}" for name in libraries}
        assert versions(paths, "dkms", "linux-headers-6.1.0-99-amd64") == {"dkms_99-1", "linux-headers-6.1.0-99-amd64_1.0-1"}


def test_two_versions_from_elsewhere_lie_side_by_side_and_others_do_not_see_them(side, nvidia, tmp_path):
    side.offer(("python3", "3.11"), ("dkms", "3.0.10"))
    sets = [{"packages": TOOLKIT, "version": version, "repository": nvidia} for version in ("1.17.8", "1.18.0")]
    paths = side.bring(["server", "dkms"], elsewhere=sets)["paths"]
    assert len(versions(paths, *TOOLKIT)) == 8
    # The repository has a newer dkms, which nobody asked it for.
    assert f"{PLACE}/dkms_3.0.10_amd64.deb" in paths and versions(paths, "dkms") == {"dkms_3.0.10_amd64.deb"}


def test_a_repository_that_cannot_be_had_is_told_with_its_address(side, nvidia):
    wish = {"packages": TOOLKIT, "repository": {**nvidia, "url": "http://127.0.0.1:1/gone/"}}
    said = side.bring(["server"], elsewhere=[wish])["msg"]
    assert "http://127.0.0.1:1/gone/" in said and "llm_fleet_bundle_nvidia" in said
    said = side.bring(["server"], elsewhere=[{"packages": TOOLKIT, "version": "9.9", "repository": nvidia}])["msg"]
    assert "9.9 is not on offer" in said and "1.18.0-1" in said
    other = side.bring(["server"], elsewhere=[{"packages": TOOLKIT, "repository": {**nvidia, "key": "/nowhere.asc"}}])["msg"]
    assert "/nowhere.asc" in other


def test_a_repository_that_the_sources_have_already_goes_by_the_key_that_they_name(side, nvidia, tmp_path):
    """As in bundles whose operator named it among the sources, with a key of their own."""
    side.offer(("python3", "3.11"))
    key = tmp_path / "key.asc"
    with urllib.request.urlopen(nvidia["key"]) as answer:
        key.write_bytes(answer.read())
    sources = f"deb [trusted=yes] file:{side.repository} ./\ndeb [signed-by={key}] {nvidia['url']} /"
    brought = side.run_module(
        "bundle_packages", bundle=str(side.bundle), distribution="debian-12-amd64", sets=[["server"]], sources=sources,
        elsewhere=[{"packages": TOOLKIT, "repository": nvidia}],
    )
    assert versions(brought["paths"], *TOOLKIT) == {f"{name}_1.18.0-1" for name in TOOLKIT}


def test_what_apt_prints_is_read_whatever_else_it_says():
    printed = "W: something\n'http://x/y/libc6_2.36-9%2bdeb12u1_amd64.deb' libc6_2.36-9+deb12u1_amd64.deb 5 SHA256:00\n'x' nothing 3 \n"
    epoch = "'file:/r/./a_1%3a2_all.deb' a_1%3a2_all.deb 7 MD5Sum:11\n"
    assert parse_uris(printed + epoch) == [Deb("libc6", "2.36-9+deb12u1", "amd64", 5), Deb("a", "1:2", "all", 7)]
    stanza = "Package: a\nVersion: 1:2\nArchitecture: all\nFilename: pool/a_2_all.deb\nSize: {size}\nSHA256: {sha256}\n"
    both = "\n".join(stanza.format(size=size, sha256=str(size) * 64) for size in (6, 7))
    # Two sources with one version: the one that was fetched.
    assert listed(index_text(index_entries(both, [Deb("a", "1:2", "all", 7)]))) == {"a_2_all.deb": "7" * 64}
