# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The index of a flat repository, by which apt installs from a folder of .deb files. Pure: no I/O.

Takes what apt's programs print, in the C locale.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import unquote

INDEX, RELEASE = "Packages", "Release"
_URI = re.compile(r"^'([^']+)' (\S+) (\d+)", re.M)
_FIELD = re.compile(r"^([A-Za-z0-9-]+):[ \t]*(.*)$")


class Deb(NamedTuple):
    """One package as apt would fetch it."""

    name: str
    version: str
    architecture: str
    size: int

    @property
    def file(self) -> str:
        """Its file in the repository. Without the epoch, as in Debian's pool: apt would take %3a for a colon."""
        return f"{self.name}_{self.version.rpartition(':')[2]}_{self.architecture}.deb"

    @property
    def spec(self) -> str:
        return f"{self.name}={self.version}"


def parse_uris(printed: str) -> list[Deb]:
    """What `apt-get install --print-uris` would fetch, and nothing else that it says."""
    found = []
    for _uri, file, size in _URI.findall(printed):
        parts = unquote(file).removesuffix(".deb").split("_")
        if file.endswith(".deb") and len(parts) == 3:
            found.append(Deb(*parts, int(size)))
    return found


def fetched_name(deb: Deb) -> str:
    """What `apt-get download` calls the file."""
    return f"{deb.name}_{deb.version.replace(':', '%3a')}_{deb.architecture}.deb"


def index_entries(printed: str, debs: Iterable[Deb]) -> dict[Deb, str]:
    """The entries of the index, of what `apt-cache show` prints of these packages, with the files where they lie here."""
    wanted = {(deb.name, deb.version, deb.architecture): deb for deb in debs}
    entries: dict[Deb, str] = {}
    for stanza in re.split(r"\n[ \t]*\n", printed.strip()):
        fields = dict(match.groups() for line in stanza.splitlines() if (match := _FIELD.match(line)))
        deb = wanted.get((fields.get("Package"), fields.get("Version"), fields.get("Architecture")))
        # Two sources may have the same version. Built twice, they would differ: the size says which one was fetched.
        if deb and "SHA256" in fields and fields.get("Size") == str(deb.size):
            entries.setdefault(deb, re.sub(r"^Filename:.*$", lambda _found, deb=deb: f"Filename: ./{deb.file}", stanza, flags=re.M))
    return entries


def index_text(entries: dict[Deb, str]) -> str:
    """The index itself. The same packages always give the same bytes."""
    return "\n".join(f"{entries[deb]}\n" for deb in sorted(entries))


def index_bytes(index: str) -> bytes:
    """An index as it is on the disk. Old packages have names in it that are no UTF-8; those bytes stay as they are."""
    return index.encode(errors="surrogateescape")


def listed(index: str) -> dict[str, str]:
    """{file: sha256} of an index."""
    found = {}
    for stanza in re.split(r"\n[ \t]*\n", index.strip()):
        fields = dict(match.groups() for line in stanza.splitlines() if (match := _FIELD.match(line)))
        if "Filename" in fields and "SHA256" in fields:
            found[fields["Filename"].removeprefix("./")] = fields["SHA256"]
    return found


def release_text(index: str, label: str) -> str:
    """What apt wants beside an index: its digest. It is not signed; of a bundle, the manifest is."""
    content = index_bytes(index)
    # apt wants a date. The same packages give the same file, so it is none that means anything.
    head = f"Origin: localfirst.llm_fleet\nLabel: {label}\nDate: Thu, 01 Jan 1970 00:00:00 UTC\n"
    return f"{head}SHA256:\n {hashlib.sha256(content).hexdigest()} {len(content)} {INDEX}\n"
