# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What sources describe and how they are brought into line; where it says so, as the real apt has it."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import apt_sources
from ansible_collections.localfirst.llm_fleet.tests.unit.support.apt_root import AptRoot, usable

KEY = "/etc/apt/keyrings/one.asc"
EMBEDDED = "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQabc\n =abcd\n -----END PGP PUBLIC KEY BLOCK-----"
SOME = "http://m.example/x"

# (one address and suite, another, whether they are one place)
PLACES = [
    ((SOME, "/"), (f"{SOME}/", "/"), True),
    ((SOME, "/"), (f"{SOME}//", "/"), False),
    ((SOME, "/"), (SOME, "./"), False),
    ((SOME, "/"), (f"{SOME.replace('http', 'https')}", "/"), True),
    ((SOME, "/"), (f"mirror+{SOME}", "/"), True),
    ((SOME, "/"), ("http://user:word@m.example/x", "/"), True),
    ((SOME, "/"), ("http://M.example/x", "/"), False),
    ((SOME, "/"), ("http://m.example:80/x", "/"), False),
    (("http://m.example", "/"), ("http://m.example/", "/"), True),
    ((SOME, "a/"), (f"{SOME}/a", "/"), True),
    ((SOME, "a"), (SOME, "b"), False),
    ((SOME, "a"), (SOME, "a/"), False),
    ((f"{SOME}/$(ARCH)", "/"), (f"{SOME}/amd64", "/"), True),
    ((f"{SOME}/$(ARCH)", "/"), (f"{SOME}/arm64", "/"), False),
    ((SOME, "$(ARCH)/"), (SOME, "amd64/"), True),
    (("file:/srv/x", "/"), ("file:///srv/x", "/"), True),
    (("file:/srv/x", "/"), ("copy:/srv/x/", "/"), True),
]


@pytest.mark.parametrize(("one", "other", "same"), PLACES)
def test_what_is_one_place(one, other, same):
    assert (apt_sources.place(*one, "amd64") == apt_sources.place(*other, "amd64")) is same


@pytest.mark.skipif(not usable(), reason="needs apt, dpkg, gpg and root")
def test_places_are_told_apart_as_apt_does(tmp_path):
    host = AptRoot(tmp_path / "root")
    for one, other, same in PLACES:
        for number, (uri, suite) in enumerate((one, other)):
            components = [] if suite.endswith("/") else ["main"]
            text = apt_sources.render(uri, suite, components, f"/etc/apt/keyrings/{number}.asc", {})
            (host.root / f"etc/apt/sources.list.d/{number}.sources").write_text(text)
        said = host.run("apt-get", "indextargets", check=False).stderr
        assert ("Conflicting values set for option Signed-By" in said) is same, (one, other, said)


@pytest.mark.parametrize(
    ("line", "uri", "suite", "options"),
    [
        (f"deb {SOME} /", SOME, "/", {}),
        (f"deb\t[ arch=amd64 signed-by={KEY} ]\t{SOME} bookworm main contrib # ours", SOME, "bookworm",
         {"arch": "amd64", "signed-by": KEY}),
        (f"  deb-src [trusted=yes] {SOME} bookworm main", SOME, "bookworm", {"trusted": "yes"}),
        (f'deb [signed-by="{KEY}"] "{SOME}" /', SOME, "/", {"signed-by": KEY}),
    ],
)
def test_lines(line, uri, suite, options):
    (entry,) = apt_sources.parse("/etc/apt/sources.list", f"# a list\n\n{line}\n")
    assert (entry.uris, entry.suites, entry.options, entry.enabled) == ([uri], [suite], options, True)


@pytest.mark.parametrize("line", ["", f"#deb {SOME} /", f"rpm {SOME} /", "deb", f"deb [arch=amd64 {SOME} /"])
def test_lines_that_describe_nothing(line):
    assert apt_sources.parse("/etc/apt/sources.list", f"{line}\n") == []


def test_stanzas():
    text = (
        f"# two of them\r\n\nTypes: deb\nURIs: {SOME}\n  http://n.example\nSUITES: a/ b/\n# in between\nSigned-By:{EMBEDDED}\n\n\n"
        f"Types: deb\r\nURIs: {SOME}\r\nSuites: /\r\nEnabled: No\r\nSigned-By: {KEY}\r\n"
    )
    first, second = apt_sources.parse("a.sources", text)
    assert (first.uris, first.suites, first.signed_by, first.enabled) == ([SOME, "http://n.example"], ["a/", "b/"], EMBEDDED, True)
    assert first.places("amd64") == {"m.example/x/a/", "m.example/x/b/", "n.example/a/", "n.example/b/"}
    assert (second.uris, second.signed_by, second.enabled) == ([SOME], KEY, False)
    assert apt_sources.key_files([first, second]) == {KEY}
    assert apt_sources.parse("a.sources", "nonsense\n\nTypes: deb\n") == []


def test_a_key_s_files_are_found_among_several():
    entry = apt_sources.Entry("a.list", [SOME], ["/"], {"signed-by": f"{KEY},/two.gpg ABCDEF"})
    assert apt_sources.key_files([entry]) == {KEY, "/two.gpg"}


def test_what_is_written_is_read_back():
    text = apt_sources.render(SOME, "bookworm", ["main", "contrib"], EMBEDDED, {"Check-Valid-Until": "no"})
    (fields,) = apt_sources.stanzas(text)
    assert fields["signed-by"] == EMBEDDED and fields["components"] == "main contrib" and fields["check-valid-until"] == "no"
    assert "Components" not in apt_sources.render(SOME, "a/", ["main"], "", {})


def test_order_comments_and_notes_make_no_difference():
    text = apt_sources.render(SOME, "/", [], KEY, {})
    other = f"X-Repolib-Name: x\nSigned-By: {KEY}\nSuites: /\nTypes: deb\nURIs: {SOME}\n"
    assert apt_sources.says_the_same(f"# Ansible managed\n{text}", other)
    for changed in ("", text + "Enabled: no\n", text.replace("one", "two"), f"{text}\n{text}"):
        assert not apt_sources.says_the_same(changed, text)


def entry(file: str, key: str = "", **options: str) -> apt_sources.Entry:
    return apt_sources.Entry(f"/etc/apt/sources.list.d/{file}", [SOME], ["/"], {**({"signed-by": key} if key else {}), **options})


OURS, THEIRS = entry("llm-fleet-b.sources", "/b.asc"), entry("cuda.list", "/cuda.gpg")


@pytest.mark.parametrize(
    ("before", "after", "giver"),
    [
        ([], [], None),
        ([THEIRS], [], THEIRS),
        ([], [entry("z.list", "/z")], entry("z.list", "/z")),
        ([OURS], [entry("z.list", "/z")], entry("z.list", "/z")),  # others before ours
        ([], [OURS], OURS),
        # apt puts up with one that has no key and comes first, and not with one that comes later.
        ([entry("cuda.list")], [], None),
        ([entry("cuda.list")], [OURS], OURS),
        ([], [entry("z.list")], entry("z.list")),
        ([OURS], [entry("z.list")], entry("z.list")),
        ([entry("cuda.list")], [entry("z.list", "/z")], entry("z.list", "/z")),
        ([THEIRS, entry("d.list", "/cuda.gpg")], [], THEIRS),
    ],
)
def test_who_has_a_say(before, after, giver):
    assert apt_sources.agree(before, after)[0] == giver


def test_others_that_disagree_are_named():
    with pytest.raises(apt_sources.Conflict, match=r"cuda\.list and .*z\.list"):
        apt_sources.agree([THEIRS], [entry("z.list", "/z")])


def test_other_options_are_theirs_too():
    theirs = entry("cuda.list", trusted="no", **{"check-date": "no", "arch": "amd64", "by-hash": "no"})
    assert apt_sources.agree([theirs], [entry("llm-fleet-b.sources", trusted="yes")])[1] == {"Trusted": "no", "Check-Date": "no"}
    assert apt_sources.agree([entry("cuda.list")], [entry("llm-fleet-b.sources", trusted="yes")])[1] == {}
    assert apt_sources.agree([], [entry("llm-fleet-b.sources", trusted="yes")])[1] == {"Trusted": "yes"}


@pytest.mark.parametrize(("name", "read"), [
    ("llm-fleet-nvidia", True), ("a.b_c-D9", True),
    ("", False), (".hidden", False), ("a b", False), ("a/b", False), ("a~", False), ("ä", False),
])
def test_names_that_apt_reads(name, read):
    assert apt_sources.is_name(name) is read
