# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What package sources have, asked of real repositories with the real apt, before one of them is configured."""

from __future__ import annotations

import os
import subprocess

import pytest

from ansible_collections.localfirst.llm_fleet.tests.unit.support.apt_root import AptRoot, build_repository, serve, usable

pytestmark = pytest.mark.skipif(not usable(), reason="needs apt, dpkg, gpg and root")

WANTED = ["nvidia-driver-cuda", "nvidia-fabricmanager", "linux-headers-6.1.0-99-amd64", "nobody-has-it"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return build_repository(tmp_path_factory.mktemp("double") / "repository")


@pytest.fixture(scope="module")
def served(repository):
    with serve(repository) as address:
        yield address


@pytest.fixture
def host(tmp_path):
    return AptRoot(tmp_path / "root")


def snapshot(host: AptRoot) -> list[str]:
    return sorted(str(path) for folder in ("etc/apt", "var/lib/apt") for path in (host.root / folder).rglob("*"))


def test_a_repository_is_asked_before_it_is_configured(host, served):
    before = snapshot(host)
    answer = host.module("package_offer", packages=WANTED, url=served, key=f"{served}nvidia-double.asc")
    assert answer["trouble"] == "" and answer["changed"] is False, answer
    assert answer["offered"]["nvidia-driver-cuda"][0] == "590.48.01-1" and "580.95.05-1" in answer["offered"]["nvidia-driver-cuda"]
    assert "nobody-has-it" not in answer["offered"] and answer["offered"]["linux-headers-6.1.0-99-amd64"]
    assert snapshot(host) == before, "nothing of the host's has changed"


def test_the_key_may_be_a_file_or_the_text_itself(host, served, repository):
    armoured = (repository / "nvidia-double.asc").read_text()
    for key in (f"{repository}/nvidia-double.asc", armoured):
        assert host.module("package_offer", packages=WANTED, url=served, key=key)["trouble"] == ""


def test_what_the_host_knows_already_counts_too(host, repository):
    assert host.module("package_offer", packages=WANTED)["offered"] == {}
    host.use(repository)
    assert "590.48.01-1" in host.module("package_offer", packages=WANTED)["offered"]["nvidia-driver-cuda"]


def test_a_changed_key_is_told_in_plain_words(host, served, tmp_path):
    other = build_repository(tmp_path / "other")
    answer = host.module("package_offer", packages=WANTED, url=served, key=f"{other}/nvidia-double.asc")
    assert "a key that this host does not have (NO_PUBKEY" in answer["trouble"] and served.rstrip("/") in answer["trouble"], answer
    assert answer["offered"] == {}


@pytest.mark.parametrize(
    ("url", "key", "told"),
    [
        ("http://127.0.0.1:9/", "", "127.0.0.1"),
        ("{served}", "{served}no-such-key.asc", "no-such-key.asc cannot be had"),
        ("{served}", "/no/such/key.asc", "/no/such/key.asc is not on the host"),
        ("{served}", "", "NO_PUBKEY"),
        ("{served}", "{served}Packages", "no public OpenPGP key: it begins with 'Package:"),
        ("{served}", "mirror.asc", "`key` is 'mirror.asc'. Set it to an address"),
        ("{served}no-such-place/", "{served}nvidia-double.asc", "no-such-place"),
    ],
)
def test_trouble_says_what_and_where(host, served, url, key, told):
    answer = host.module("package_offer", packages=WANTED, url=url.format(served=served), key=key.format(served=served))
    assert told in answer["trouble"] and "failed" not in answer, answer


def test_a_folder_of_packages_becomes_a_repository(host, tmp_path, repository):
    folder = tmp_path / "folder"
    folder.mkdir()
    refused = host.module("package_folder", path=str(folder))
    assert refused["failed"] and str(folder) in refused["msg"]
    for package in repository.glob("*_580.95.05-1_all.deb"):
        (folder / package.name).write_bytes(package.read_bytes())
    assert host.module("package_folder", path=str(folder), check_mode=True)["changed"] and not (folder / "Packages").exists()
    made = host.module("package_folder", path=str(folder))
    assert made["changed"] and "nvidia-driver-cuda 580.95.05-1" in made["packages"]
    assert not host.module("package_folder", path=str(folder))["changed"]
    answer = host.module("package_offer", packages=WANTED, url=f"file:{folder}", trusted=True)
    assert answer["trouble"] == "" and answer["offered"]["nvidia-driver-cuda"] == ["580.95.05-1"], answer
    (host.root / "etc/apt/sources.list.d/folder.sources").write_text(f"Types: deb\nURIs: file:{folder}\nSuites: /\nTrusted: yes\n")
    host.run("apt-get", "update", "--error-on=any")
    host.run("apt-get", "install", "-y", "nvidia-driver-cuda")
    assert host.packages()["nvidia-driver-cuda"] == "580.95.05-1"


@pytest.fixture
def folder(tmp_path, repository):
    """A folder with one package, and a maintainer who is no UTF-8."""
    made = tmp_path / "folder"
    made.mkdir()
    control = tmp_path / "old" / "DEBIAN" / "control"
    control.parent.mkdir(parents=True)
    control.write_bytes(b"Package: old\nVersion: 1\nArchitecture: all\nMaintainer: J\xf6rg <joerg@example.com>\nDescription: old\n")
    subprocess.run(["dpkg-deb", "--build", str(control.parent.parent), str(made / "old_1_all.deb")], check=True, capture_output=True)
    return made


@pytest.mark.parametrize("left", ["nothing", "half", "older"])
def test_a_run_that_broke_off_between_the_index_and_its_digest_is_made_good(host, folder, left):
    assert host.module("package_folder", path=str(folder))["packages"] == ["old 1"]
    release = folder / "Release"
    sound = release.read_bytes()
    release.unlink()
    if left != "nothing":
        release.write_bytes(sound[:40] if left == "half" else sound.replace(b"SHA256:\n ", b"SHA256:\n 0"))
    assert host.module("package_folder", path=str(folder))["changed"] and release.read_bytes() == sound
    assert not host.module("package_folder", path=str(folder))["changed"]
    assert sorted(path.name for path in folder.iterdir()) == ["Packages", "Release", "old_1_all.deb"]
    (host.root / "etc/apt/sources.list.d/folder.sources").write_text(f"Types: deb\nURIs: file:{folder}\nSuites: /\nTrusted: yes\n")
    host.run("apt-get", "update", "--error-on=any")


def test_a_pipe_among_the_packages_is_named_and_not_waited_for(host, folder):
    os.mkfifo(folder / "x.deb")
    assert "x.deb is no regular file" in host.module("package_folder", path=str(folder))["msg"]
    (folder / "x.deb").unlink()
    os.mkfifo(folder / "Packages")
    refused = host.module("package_folder", path=str(folder))
    assert refused["fault"]["where"] == str(folder / "Packages") and "no regular file" in refused["msg"]


def test_a_signed_folder_and_a_broken_file(host, tmp_path, repository):
    assert not host.module("package_folder", path=str(repository))["changed"]
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "cut.deb").write_bytes(b"!<arch>\n")
    broken = host.module("package_folder", path=str(folder))
    assert broken["failed"] and "cut.deb is no package" in broken["msg"]
