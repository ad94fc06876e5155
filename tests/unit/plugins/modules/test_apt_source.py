# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Sources on a system of its own, read by the real apt, beside those of others; the repository is the double of NVIDIA's."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.tests.unit.support.apt_root import AptRoot, build_repository, serve, usable

pytestmark = pytest.mark.skipif(not usable(), reason="needs apt, dpkg, gpg and root")

DRIVER, TOOLKIT = "llm-fleet-nvidia", "llm-fleet-nvidia-container"
# Nobody answers there.
NOWHERE = "http://127.0.0.1:9/cuda/"


class Host(AptRoot):
    """Its sources and keys, by the ends of their paths."""

    def source(self, name: str = DRIVER, /, **arguments) -> dict:
        return self.module("apt_source", name=name, **arguments)

    def twice(self, name: str = DRIVER, /, **arguments) -> dict:
        """A first call that changes something, and a second one that does not."""
        done, again = self.source(name, **arguments), self.source(name, **arguments)
        assert done["changed"] and done["actions"], done
        assert not again["changed"] and again["actions"] == [] and again["diff"] == [], again
        return done

    def write(self, name: str, text: str) -> str:
        path = self.root / "etc/apt" / ("" if name == "sources.list" else "sources.list.d") / name
        path.write_text(text)
        return str(path)

    def text(self, name: str = DRIVER) -> str:
        return (self.root / f"etc/apt/sources.list.d/{name}.sources").read_text()

    def key(self, name: str) -> Path:
        return self.root / "etc/apt/keyrings" / name

    def files(self) -> set[str]:
        return {path.name for folder in ("sources.list.d", "keyrings") for path in (self.root / "etc/apt" / folder).glob("*")}

    def reads(self) -> bool:
        """Whether apt can read its list of sources."""
        done = self.run("apt-get", "indextargets", check=False)
        assert done.returncode == 0 or "The list of sources could not be read" in done.stderr, done
        return done.returncode == 0

    def updates(self) -> bool:
        """Whether apt gets all lists, and their signatures fit."""
        done = self.run("apt-get", "update", check=False)
        return done.returncode == 0 and "Err:" not in done.stdout and "NO_PUBKEY" not in done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build_repository(tmp_path_factory.mktemp("double") / "repository")


@pytest.fixture
def asked():
    return []


@pytest.fixture
def repository(built, tmp_path):
    """A copy of the repository, which a test may change."""
    return Path(shutil.copytree(built, tmp_path / "repository"))


@pytest.fixture
def mirror(repository, asked):
    with serve(repository, asked) as address:
        yield address


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path / "root")


@pytest.fixture
def armoured(built):
    return (built / "nvidia-double.asc").read_text()


def rotate(repository: Path) -> None:
    """Its owner signs with a new key from now on, and puts it where the old one was."""
    build_repository(repository, "--sign-only", "--key", str(repository.parent / "new-key"))


def indented(text: str) -> str:
    return textwrap.indent("\n".join(line or "." for line in text.strip().splitlines()), " ")


# One source


def test_a_source_is_described_with_its_key_and_apt_reads_it(host, mirror, asked):
    done = host.twice(url=mirror, key=f"{mirror}nvidia-double.asc")
    key = host.key("llm-fleet-nvidia.asc")
    assert done["signed_by"] == str(key) and done["agrees_with"] == "" and done["path"].endswith("/llm-fleet-nvidia.sources")
    assert host.text().splitlines()[1:] == ["Types: deb", f"URIs: {mirror}", "Suites: /", f"Signed-By: {key}"]
    assert asked == ["/nvidia-double.asc"], "what is there is not fetched again"
    assert [oct(path.stat().st_mode & 0o777) for path in (key, key.parent, Path(done["path"]))] == ["0o644", "0o755", "0o644"]
    assert host.updates()
    assert "590.48.01-1" in host.run("apt-cache", "madison", "nvidia-driver-cuda").stdout


def test_the_key_may_be_text_or_a_file(host, mirror, repository, armoured):
    assert host.twice(url=mirror, key=f"\n{armoured}\n\n")["signed_by"] == str(host.key("llm-fleet-nvidia.asc"))
    assert host.key("llm-fleet-nvidia.asc").read_text() == armoured and host.updates()
    given = f"{repository}/nvidia-double.asc"
    assert host.twice(url=mirror, key=given)["signed_by"] == given and host.updates()
    assert host.files() == {"llm-fleet-nvidia.sources"}, "a key of its own is needed no longer"


def test_a_binary_key_is_known_by_its_contents(host, mirror, repository):
    host.run("gpg", "--dearmor", "--output", f"{repository}/key.bin", f"{repository}/nvidia-double.asc")
    assert host.twice(url=mirror, key=f"{mirror}key.bin")["signed_by"] == str(host.key("llm-fleet-nvidia.gpg"))
    assert host.updates()
    changed = host.source(url=mirror, key=f"{mirror}nvidia-double.asc", force=True)
    assert [action.rpartition("/")[2] for action in changed["actions"]] == [
        "llm-fleet-nvidia.asc", "llm-fleet-nvidia.sources", "llm-fleet-nvidia.gpg",
    ]
    assert host.files() == {"llm-fleet-nvidia.asc", "llm-fleet-nvidia.sources"} and host.updates()


def test_a_folder_is_taken_without_a_signature(host, repository):
    for name in ("InRelease", "Release", "Release.gpg"):
        (repository / name).unlink()
    done = host.twice(url=f"file:{repository}", trusted=True)
    assert done["signed_by"] == "" and "Trusted: yes" in host.text()
    host.run("apt-get", "update", "--error-on=any")


def test_a_suite_with_components(host):
    host.twice(url=NOWHERE, suite="bookworm", components=["main", "contrib"])
    assert "Suites: bookworm\nComponents: main contrib\n" in host.text() and host.reads()
    host.twice(url=NOWHERE, suite="a/", components=["main"])
    assert "Suites: a/\n" in host.text() and "Components" not in host.text() and host.reads()


def test_a_new_key_comes_when_asked_for(host, mirror, repository, asked):
    wanted = {"url": mirror, "key": f"{mirror}nvidia-double.asc"}
    host.source(**wanted)
    assert not host.source(**wanted, force=True)["changed"] and len(asked) == 2
    rotate(repository)
    assert not host.updates()
    assert not host.source(**wanted)["changed"] and len(set(asked)) > 1
    told = host.source(**wanted, force=True, check_mode=True)
    assert told["changed"] and not host.updates()
    done = host.source(**wanted, force=True)
    assert done["actions"] == told["actions"] == [f"write {host.key('llm-fleet-nvidia.asc')}"]
    assert done["diff"] == told["diff"] and done["diff"][0]["after"] == (repository / "nvidia-double.asc").read_text()
    assert host.updates()


def test_modes_are_put_right(host, armoured):
    host.source(url=NOWHERE, key=armoured)
    key = host.key("llm-fleet-nvidia.asc")
    key.chmod(0o600)
    key.parent.chmod(0o700)
    assert host.source(url=NOWHERE, key=armoured, check_mode=True)["changed"] and key.stat().st_mode & 0o777 == 0o600
    assert host.source(url=NOWHERE, key=armoured)["changed"]
    assert (key.stat().st_mode & 0o777, key.parent.stat().st_mode & 0o777) == (0o644, 0o755)


# Check mode


def test_on_a_bare_host_check_mode_needs_nothing_and_writes_nothing(host, mirror, asked):
    wanted = {"url": mirror, "key": f"{mirror}nvidia-double.asc"}
    (host.root / "etc/apt/sources.list.d").rmdir()
    told = host.source(**wanted, check_mode=True, force=True)
    assert told["changed"] and asked == [] and host.files() == set()
    done = host.source(**wanted)
    assert (told["actions"], told["signed_by"], told["path"]) == (done["actions"], done["signed_by"], done["path"])
    for wished in ({"url": NOWHERE, "key": "/to/come.asc"}, {"url": NOWHERE, "key": f"{NOWHERE}key.gpg"}):
        assert "failed" not in host.source(TOOLKIT, **wished, check_mode=True)
    assert not host.source(**wanted, check_mode=True)["changed"]


def test_check_mode_agrees_too_and_removes_nothing(host):
    theirs = host.write("cuda.list", f"deb [signed-by=/etc/hostname] {NOWHERE} /\n")
    told = host.source(url=NOWHERE, key=f"{NOWHERE}key.asc", check_mode=True)
    assert told["agrees_with"] == theirs and told["actions"] == [f"write {told['path']}"]
    host.source(url=NOWHERE, key=f"{NOWHERE}key.asc")
    gone = host.source(state="absent", check_mode=True)
    assert gone["changed"] and gone["diff"][0]["after"] == "" and "llm-fleet-nvidia.sources" in host.files()


def test_the_difference_is_shown(host, armoured):
    done = host.source(url=NOWHERE, key=armoured)
    assert [(shown["before"], shown["after"]) for shown in done["diff"]] == [("", armoured), ("", host.text())]


# Beside sources of others. Each is in apt's way with a key of our own, and is not any more with theirs.

ARMOURED = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmDMEZQ==\n=abcd\n-----END PGP PUBLIC KEY BLOCK-----\n"
STANZA = f"Types: deb\nURIs: {NOWHERE}\nSuites: /\n"
OTHERS = {
    "a list": ("cuda.list", f"# NVIDIA's, café\ndeb [arch=amd64 signed-by=/k.gpg] {NOWHERE} /\n", "/k.gpg"),
    "the main list": ("sources.list", f"deb [signed-by=/k.gpg] {NOWHERE} /\n", "/k.gpg"),
    "without a slash": ("cuda.list", f"deb [signed-by=/k.gpg] {NOWHERE.rstrip('/')} /\n", "/k.gpg"),
    "over TLS": ("cuda.list", f"deb [signed-by=/k.gpg] {NOWHERE.replace('http', 'https')} /\n", "/k.gpg"),
    "as somebody": ("cuda.list", f"deb [signed-by=/k.gpg] {NOWHERE.replace('//', '//me:word@')} /\n", "/k.gpg"),
    "sources of packages": ("cuda.list", f"deb-src [signed-by=/k.gpg] {NOWHERE} /\n", "/k.gpg"),
    "two keys": ("cuda.list", f"deb [signed-by=/k.gpg,/l.gpg] {NOWHERE} /\n", "/k.gpg,/l.gpg"),
    "a fingerprint": ("cuda.sources", f"{STANZA}Signed-By: {'0123456789ABCDEF' * 2}01234567!\n", f"{'0123456789ABCDEF' * 2}01234567!"),
    "an embedded key": ("cuda.sources", f"{STANZA}Signed-By:\n{indented(ARMOURED)}\n", f"\n{indented(ARMOURED)}"),
    "among others": ("cuda.sources", f"types: deb\nuris: http://o.example {NOWHERE}\nsuites: a/ /\nsigned-by: /k.gpg\n", "/k.gpg"),
    "in the second stanza": ("cuda.sources", f"Types: deb\nURIs: http://o.example\nSuites: /\n\n{STANZA}Signed-By: /k.gpg\n", "/k.gpg"),
    "no key, and later": ("nvidia.list", f"deb {NOWHERE} /\n", ""),
    "trusted": ("cuda.list", f"deb [trusted=yes signed-by=/k.gpg] {NOWHERE} /\n", "/k.gpg"),
    "however old": ("nvidia.sources", f"{STANZA}Check-Valid-Until: no\nCheck-Date: no\nValid-Until-Max: 5\nDate-Max-Future: 5\n", ""),
}


@pytest.mark.parametrize("which", OTHERS)
def test_it_agrees_with_what_others_say(host, which):
    name, text, signed_by = OTHERS[which]
    key = host.key("llm-fleet-nvidia.asc")
    key.parent.mkdir()
    key.write_text(ARMOURED)
    host.write("llm-fleet-nvidia.sources", f"{STANZA}Signed-By: {key}\n")
    text, signed_by = (one.replace("/k.gpg", f"{host.root}/k.gpg") for one in (text, signed_by))
    (host.root / "k.gpg").touch()
    path = host.write(name, "")
    Path(path).write_bytes(text.encode("latin-1"))
    assert not host.reads(), "this is what it is about"
    done = host.twice(url=NOWHERE, key=ARMOURED)
    assert (done["agrees_with"], done["signed_by"]) == (path, signed_by)
    assert host.reads() and done["actions"] == [f"write {done['path']}", f"remove {key}"]
    Path(path).unlink()
    alone = host.source(url=NOWHERE, key=ARMOURED)
    assert (alone["agrees_with"], alone["signed_by"]) == ("", str(key)) and host.reads()


@pytest.mark.parametrize(("name", "text"), [
    ("cuda.sources", f"{STANZA}Enabled: no\nSigned-By: /k.gpg\n"),
    ("cuda.list", f"# deb [signed-by=/k.gpg] {NOWHERE} /\n"),
    ("cuda.list", f"deb [signed-by=/k.gpg] {NOWHERE}other /\n"),
    ("cuda.list", f"deb [signed-by=/k.gpg] {NOWHERE} bookworm main\n"),
    ("cuda.list.save", f"deb [signed-by=/k.gpg] {NOWHERE} /\n"),
    ("cuda~.list", f"deb [signed-by=/k.gpg] {NOWHERE} /\n"),
    # apt puts up with one that has no key and comes first.
    ("cuda.list", f"deb {NOWHERE} /\n"),
    ("sources.list", f"deb {NOWHERE} /\n"),
])
def test_what_does_not_count(host, name, text):
    host.write(name, text)
    done = host.twice(url=NOWHERE, key=ARMOURED)
    assert done["agrees_with"] == "" and done["signed_by"] == str(host.key("llm-fleet-nvidia.asc")) and host.reads()


def test_the_architecture_may_be_spelled_out(host):
    theirs = host.root / "k.gpg"
    theirs.touch()
    host.write("toolkit.list", f"deb [signed-by={theirs}] {NOWHERE}amd64 /\n")
    assert host.twice(url=f"{NOWHERE}$(ARCH)", key=ARMOURED)["signed_by"] == str(theirs)
    assert f"URIs: {NOWHERE}$(ARCH)\n" in host.text() and host.reads()


def test_others_that_are_at_odds_are_named_and_nothing_is_changed(host):
    for name in "ab":
        host.write(f"{name}.list", f"deb [signed-by=/{name}.gpg] {NOWHERE} /\n")
    refused = host.source(url=NOWHERE, key=ARMOURED)
    assert refused["failed"] and "a.list and " in refused["msg"] and "b.list describe" in refused["msg"], refused
    assert host.files() == {"a.list", "b.list"}


def test_with_their_key_apt_gets_the_lists(host, mirror, armoured):
    host.write("mirror.sources", f"Types: deb\nURIs: {mirror}\nSuites: /\nSigned-By:\n{indented(armoured)}\n")
    assert host.updates()
    done = host.twice(url=mirror, key=f"{mirror}nvidia-double.asc")
    assert done["signed_by"] == f"\n{indented(armoured)}" and host.updates()


def test_a_key_that_has_gone_is_not_taken_from_one_another_for_ever(host):
    theirs, key = host.write("cuda.list", f"deb [signed-by={host.root}/k.gpg] {NOWHERE} /\n"), host.root / "k.gpg"
    key.touch()
    for name in (DRIVER, TOOLKIT):
        assert host.source(name, url=NOWHERE, key=ARMOURED)["signed_by"] == str(key)
    Path(theirs).unlink()
    for name in (DRIVER, TOOLKIT):
        assert not host.source(name, url=NOWHERE, key=ARMOURED)["changed"], "as long as there is the key, it does"
    key.unlink()
    refused = host.source(url=NOWHERE, key=ARMOURED)
    assert refused["failed"] and f"{TOOLKIT}.sources describes the same repository and names {key}, which is not" in refused["msg"]
    host.source(TOOLKIT, state="absent")
    assert host.source(url=NOWHERE, key=ARMOURED)["signed_by"] == str(host.key("llm-fleet-nvidia.asc"))


# Two of ours at one place


@pytest.fixture
def both(host, mirror):
    """Calls the module for one of two roles, each with its own key, as they are at one mirror."""
    keys = {DRIVER: "nvidia-double.asc", TOOLKIT: "gpgkey"}
    shutil.copy(Path(host.root).parent / "repository/nvidia-double.asc", Path(host.root).parent / "repository/gpgkey")

    def call(name: str, **arguments) -> dict:
        wanted = {} if arguments.get("state") == "absent" else {"url": mirror, "key": f"{mirror}{keys[name]}"}
        return host.source(name, **wanted, **arguments)

    return call


def test_two_share_one_key(host, both):
    both(DRIVER)
    second = both(TOOLKIT)
    assert second["signed_by"] == str(host.key("llm-fleet-nvidia.asc")) and second["agrees_with"].endswith("/llm-fleet-nvidia.sources")
    assert host.files() == {"llm-fleet-nvidia.sources", "llm-fleet-nvidia-container.sources", "llm-fleet-nvidia.asc"}
    for name in (DRIVER, TOOLKIT, DRIVER):
        assert not both(name)["changed"]
    assert host.updates()


@pytest.mark.parametrize("first", [DRIVER, TOOLKIT])
def test_a_host_that_was_broken_is_whole_again(host, mirror, both, armoured, first):
    host.key("").mkdir()
    for name in (DRIVER, TOOLKIT):
        host.key(f"{name}.asc").write_text(armoured)
        host.write(f"{name}.sources", f"Types: deb\nURIs: {mirror}\nSuites: /\nSigned-By: {host.key(f'{name}.asc')}\n")
    assert not host.reads()
    second = TOOLKIT if first == DRIVER else DRIVER
    assert both(first)["changed"] and host.updates()
    assert not both(second)["changed"] and not both(first)["changed"]
    assert host.files() == {f"{DRIVER}.sources", f"{TOOLKIT}.sources", f"{second}.asc"}


@pytest.mark.parametrize("order", [(DRIVER, TOOLKIT), (TOOLKIT, DRIVER)])
def test_the_key_stays_until_the_last_of_them_is_gone(host, both, asked, order):
    both(DRIVER)
    both(TOOLKIT)
    gone, left = order
    removed = both(gone, state="absent")
    assert removed["actions"] == [f"remove {removed['path']}"] and not both(gone, state="absent")["changed"]
    asked.clear()
    assert host.updates()
    assert not both(left)["changed"] and "/gpgkey" not in asked
    assert both(left, state="absent")["changed"] and host.files() == set()
    assert not both(left, state="absent")["changed"]


@pytest.mark.parametrize("who", [DRIVER, TOOLKIT])
def test_either_of_them_renews_the_key(host, both, repository, who):
    both(DRIVER)
    both(TOOLKIT)
    rotate(repository)
    shutil.copy(repository / "nvidia-double.asc", repository / "gpgkey")
    assert not host.updates() and not both(who)["changed"]
    assert both(who, force=True)["actions"] == [f"write {host.key('llm-fleet-nvidia.asc')}"]
    assert host.updates() and not both(who, force=True)["changed"]


def test_the_one_that_is_left_gets_a_key_of_its_own_with_the_next_new_one(host, both, repository):
    both(DRIVER)
    both(TOOLKIT)
    both(DRIVER, state="absent")
    assert both(TOOLKIT, force=True)["signed_by"] == str(host.key("llm-fleet-nvidia-container.asc"))
    assert host.files() == {"llm-fleet-nvidia-container.sources", "llm-fleet-nvidia-container.asc"} and host.updates()


def test_one_that_moves_away_leaves_the_other_its_key(host, both, armoured):
    both(DRIVER)
    both(TOOLKIT)
    moved = host.source(url=NOWHERE, key="/srv/other.asc", check_mode=True)
    assert f"remove {host.key('llm-fleet-nvidia.asc')}" not in moved["actions"]
    assert both(TOOLKIT)["changed"] is False


def test_a_shared_key_keeps_its_form(host, both, mirror, repository):
    both(DRIVER)
    both(TOOLKIT)
    host.run("gpg", "--dearmor", "--output", f"{repository}/key.bin", f"{repository}/nvidia-double.asc")
    refused = host.source(url=mirror, key=f"{mirror}key.bin", force=True)
    assert refused["failed"] and "a binary one now, and another source names" in refused["msg"], refused
    assert host.updates()


def test_a_shared_key_that_was_lost_comes_back(host, both):
    both(DRIVER)
    both(TOOLKIT)
    host.key("llm-fleet-nvidia.asc").unlink()
    assert both(TOOLKIT, check_mode=True)["changed"]
    assert both(TOOLKIT)["changed"] and host.updates()


def test_the_key_of_an_operator_s_file_is_never_removed(host, mirror, armoured):
    theirs = host.root / "cuda.asc"
    theirs.write_text(armoured)
    host.write("cuda.list", f"deb [signed-by={theirs}] {mirror} /\n")
    host.source(url=mirror, key=armoured)
    assert host.source(state="absent")["changed"] and theirs.exists() and host.updates()


def test_our_key_stays_where_an_operator_s_file_names_it(host, mirror, armoured):
    host.source(url=mirror, key=armoured)
    key = host.key("llm-fleet-nvidia.asc")
    host.write("own.sources", f"Enabled: no\nTypes: deb\nURIs: {mirror}\nSuites: /\nSigned-By: {key}\n")
    assert host.source(url=mirror, key=armoured)["agrees_with"] == ""
    host.source(state="absent")
    assert key.exists() and "llm-fleet-nvidia.sources" not in host.files()


# What earlier versions of the roles have left


def test_files_of_earlier_versions_stay_as_they_are(host, mirror, armoured, asked):
    host.key("").mkdir()
    key = host.key("llm-fleet-nvidia.asc")
    key.write_text(armoured)
    old = f"# Ansible managed\nTypes: deb\nURIs: {mirror}\nSuites: /\nSigned-By: {key}\n"
    host.write("llm-fleet-nvidia.sources", old)
    assert not host.source(url=mirror, key=f"{mirror}nvidia-double.asc")["changed"] and host.text() == old and asked == []
    key = host.key("llm-fleet-docker.asc")
    key.write_text(armoured)
    old = f"Components: stable\nX-Repolib-Name: llm-fleet-docker\nSigned-By: {key}\nSuites: bookworm\nTypes: deb\nURIs: {NOWHERE}\n"
    host.write("llm-fleet-docker.sources", old)
    wanted = {"url": NOWHERE, "suite": "bookworm", "components": ["stable"], "key": f"{NOWHERE}gpg"}
    assert not host.source("llm-fleet-docker", **wanted)["changed"] and host.text("llm-fleet-docker") == old


def test_a_source_that_somebody_has_turned_off_is_turned_on(host):
    host.source(url=NOWHERE)
    host.write("llm-fleet-nvidia.sources", host.text() + "Enabled: no\n")
    assert host.source(url=NOWHERE)["changed"] and "Enabled" not in host.text()


# Refusals


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"name": "a b"}, "a b: apt passes over files of that name"),
        ({"name": "../a"}, "apt passes over files of that name"),
        ({"url": ""}, "`url` is ''"),
        ({"url": "mirror.example/cuda"}, "`url` is 'mirror.example/cuda', which is no address"),
        ({"url": f"{NOWHERE} x"}, "which is no address"),
        ({"suite": ""}, "`suite` is ''"),
        ({"suite": "a b/"}, "Set it to one word"),
        ({"suite": "bookworm"}, "the suite bookworm needs `components`"),
        ({"suite": "bookworm", "components": ["main\nTrusted: yes"]}, "is not one word"),
        ({"key": "mirror.asc"}, "`key` is 'mirror.asc'. Set it to an address"),
        ({"key": "/no/such.asc"}, "the repository's key /no/such.asc is not on the host. Put it there"),
        ({"key": "/etc"}, "the repository's key /etc cannot be read: Is a directory"),
        ({"key": "/etc/hostname"}, "/etc/hostname is no public OpenPGP key: it begins with"),
        ({"key": "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nx"}, "the text in `key` is no public OpenPGP key"),
        ({"key": f"{NOWHERE}key.asc"}, f"the repository's key {NOWHERE}key.asc cannot be had"),
        ({"key": "{mirror}no-such.asc"}, "no-such.asc cannot be had: HTTP Error 404"),
        ({"key": "{mirror}Packages"}, "Packages is no public OpenPGP key: it begins with 'Package:"),
    ],
)
def test_refusals_say_what_and_where_and_nothing_is_written(host, mirror, wrong, told):
    wanted = {"name": DRIVER, "url": NOWHERE, **wrong}
    wanted["key"] = wanted.get("key", "").replace("{mirror}", mirror)
    refused = host.source(wanted.pop("name"), **wanted)
    assert refused.get("failed") and told in refused["msg"], refused
    assert host.files() == set()


def test_what_was_never_there_is_absent(host):
    assert host.source(state="absent")["changed"] is False
