# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What apt's sources describe, and what a file of ours has to say so that it agrees with the others.

apt reads either all sources or none. Two that describe one place, and differ in the key or in one of a few other options, are an
error for it ("Conflicting values set for option Signed-By"), and nothing can be installed any more until somebody changes one.

Pure: no I/O.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

PREFIX = "llm-fleet-"
"""How the names of this collection's own sources and keys begin."""

SHARED = ("Trusted", "Check-Valid-Until", "Valid-Until-Max", "Valid-Until-Min", "Check-Date", "Date-Max-Future")
"""What apt wants to be the same for one place, besides Signed-By."""

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_LINE = re.compile(r"(?:deb|deb-src)\s+(?:\[([^]]*)\]\s+)?([^[\s]\S*)\s+(\S+)")
_OFF = ("no", "false", "without", "off", "disable", "0")


class Entry(NamedTuple):
    """One line of a .list file, or one stanza of a .sources file."""

    file: str
    uris: list[str]
    suites: list[str]
    options: dict[str, str]  # by their names in lower case, as they stand there
    enabled: bool = True

    @property
    def signed_by(self) -> str:
        return self.options.get("signed-by", "")

    @property
    def ours(self) -> bool:
        return Path(self.file).name.startswith(PREFIX)

    def places(self, architecture: str) -> set[str]:
        return {place(uri, suite, architecture) for uri in self.uris for suite in self.suites}


class Conflict(Exception):
    """Others disagree among themselves."""


def is_name(name: str) -> bool:
    """Whether apt reads a file of that name: it passes over others without a word."""
    return bool(_NAME.fullmatch(name))


def place(uri: str, suite: str, architecture: str) -> str:
    """Where the index of a source is, as apt tells places apart: how it is reached, and as whom, makes no difference."""
    uri, suite = (text.replace("$(ARCH)", architecture) for text in (uri, suite))
    host, path = "", uri.partition(":")[2]
    if path.startswith("//"):
        host, _slash, path = path[2:].partition("/")
        path = f"/{path}"
    below = "" if suite == "/" else suite if suite.endswith("/") else f"dists/{suite}/"
    return f"{host.rpartition('@')[2]}{path.removesuffix('/')}/{below}"


def parse(file: str, text: str) -> list[Entry]:
    """The entries of a file. What apt could not read either is left out."""
    return _stanzas_as_entries(file, text) if file.endswith(".sources") else _lines_as_entries(file, text)


def _lines_as_entries(file: str, text: str) -> list[Entry]:
    entries = []
    for line in text.split("\n"):
        if found := _LINE.match(line.partition("#")[0].strip()):
            # apt knows the names of options in lower case only here.
            options = [word.partition("=") for word in (found[1] or "").split()]
            entries.append(
                Entry(file, [found[2].strip('"')], [found[3]], {name: value.strip('"') for name, _equals, value in options})
            )
    return entries


def _stanzas_as_entries(file: str, text: str) -> list[Entry]:
    return [
        Entry(
            file, fields["uris"].split(), fields["suites"].split(), fields,
            enabled=fields.get("enabled", "yes").strip().lower() not in _OFF,
        )
        for fields in stanzas(text)
        if "uris" in fields and "suites" in fields
    ]


def stanzas(text: str) -> list[dict[str, str]]:
    """The fields of each stanza by their names in lower case. Values keep their line breaks, and an embedded key is one."""
    found: list[dict[str, str]] = []
    fields: dict[str, str] = {}
    name = ""
    for line in [*text.replace("\r\n", "\n").split("\n"), ""]:
        if line.startswith("#"):
            continue
        if not line:
            if fields:
                found.append(fields)
            fields, name = {}, ""
        elif line[0] in " \t":
            if name:
                fields[name] += f"\n{line}"
        else:
            name, _colon, value = line.partition(":")
            name = name.lower()
            fields[name] = value.strip()
    return found


def words(value: str) -> list[str]:
    """A value as apt compares it: commas, spaces and line breaks are one."""
    return re.split(r"[\s,]+", value.strip())


def key_files(entries: list[Entry]) -> set[str]:
    """Files that entries name as their keys, those that are turned off too."""
    return {word for entry in entries for word in words(entry.signed_by) if word.startswith("/")}


def agree(before: list[Entry], after: list[Entry]) -> tuple[Entry | None, dict[str, str]]:
    """(the entry whose Signed-By has to be taken, the other options to take), of entries that describe the same place.

    `before` and `after` are those that apt reads before and after the file in question. An entry without Signed-By puts up
    with one that comes later, and with none that has come before. Where nobody has a say there is no entry.
    """
    foreign, ours = ([entry for entry in [*before, *after] if entry.ours is mine] for mine in (False, True))
    with_key = [entry for entry in foreign if entry.signed_by]
    for entry in with_key[1:]:
        if words(entry.signed_by) != words(with_key[0].signed_by):
            raise Conflict(f"{with_key[0].file} and {entry.file}")
    # Ours come last: each of them is brought into line with the others when its turn comes.
    speakers = []
    for group in (foreign, ours):
        speakers += [entry for entry in group if entry.signed_by]
        speakers += [entry for entry in group if not entry.signed_by and entry in after]
    options = {
        name: value
        for name in SHARED
        if (value := next((entry.options[name.lower()] for entry in foreign or ours if entry.options.get(name.lower())), ""))
    }
    return speakers[0] if speakers else None, options


def render(url: str, suite: str, components: list[str], signed_by: str, options: dict[str, str]) -> str:
    """A stanza for a .sources file. A suite that ends in a slash is a path, and has no components."""
    fields = {"Types": "deb", "URIs": url, "Suites": suite}
    if not suite.endswith("/"):
        fields["Components"] = " ".join(components)
    fields |= options
    if signed_by:
        fields["Signed-By"] = signed_by
    # An embedded key begins on the next line.
    return "".join(f"{name}:{value}\n" if value.startswith("\n") else f"{name}: {value}\n" for name, value in fields.items())


def says_the_same(text: str, other: str) -> bool:
    """Whether two files mean the same to apt, whatever their comments, the order of their fields and their notes (X-…)."""
    first, second = (
        [{name: words(value) for name, value in fields.items() if not name.startswith("x-")} for fields in stanzas(one)]
        for one in (text, other)
    )
    return first == second
