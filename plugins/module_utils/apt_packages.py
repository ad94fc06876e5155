# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Packages that are kept at one version: which one that is, how apt is bound to it, and what apt meant when it refused.

Pure: no I/O. Takes what apt's and dpkg's programs print, in the C locale.
"""

from __future__ import annotations

import fnmatch
import re
from typing import NamedTuple

PIN_PRIORITY = 1001
"""Above 1000 apt goes back to an older version too."""

_UNMET = re.compile(r"^ (\S+) : (?:Pre-)?(?:Depends|Breaks|Conflicts): (.+)$|^ {2,}(?:Pre-)?(?:Depends|Breaks|Conflicts): (.+)$", re.M)
_KEY = re.compile(r"(NO_PUBKEY|EXPKEYSIG|REVKEYSIG|BADSIG|KEYEXPIRED) ?([0-9A-F]{8,40})?")
_UNSIGNED = re.compile(r"The repository '([^']+)' is (?:no longer|not) signed")
_DPKG = re.compile(r"dpkg: error processing (?:package|archive) (\S+) \(--(\w+)\)")
_LOCK = re.compile(r"(?:Could not get lock|Unable to acquire the dpkg frontend lock) ?(\S*)")


class Installed(NamedTuple):
    """One package as dpkg knows it."""

    version: str
    complete: bool  # unpacked and configured
    held: bool


def parse_installed(listed: str) -> dict[str, Installed]:
    """What `dpkg-query --show --showformat '${db:Status-Abbrev}\\t${Package}\\t${Version}\\n'` prints, by name.

    Packages of which only configuration files are left count as not installed.
    """
    found = {}
    for line in listed.splitlines():
        status, _tab, rest = line.partition("\t")
        name, _tab, version = rest.partition("\t")
        # The second letter is the state: i installed; U, F, W, t between unpacked and configured.
        if len(status) >= 2 and status[1] in "iUFWtH" and version:
            found[name] = Installed(version, status[1] in "it" and status[2:3] in ("", " "), status[0] == "h")
    return found


def parse_versions(listed: str) -> dict[str, list[str]]:
    """What `apt-cache madison` prints: the versions on offer by name, in apt's order, each once."""
    found: dict[str, list[str]] = {}
    for line in listed.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) == 3 and fields[1] and "Sources" not in fields[2]:
            versions = found.setdefault(fields[0], [])
            if fields[1] not in versions:
                versions.append(fields[1])
    return found


def upstream(version: str) -> str:
    """A version without epoch and the distribution's revision: `1:580.95.05-0ubuntu1` to `580.95.05`."""
    return version.split(":", 1)[-1].rsplit("-", 1)[0] if "-" in version else version.split(":", 1)[-1]


def matches(version: str, wanted: str) -> bool:
    """Whether a package's version is the wanted one: a branch (`580`), an upstream version, a pattern or the whole."""
    if not wanted or version == wanted:
        return True
    if "*" in wanted:
        return fnmatch.fnmatchcase(version, wanted)
    number = upstream(version)
    return number == wanted or number.startswith(f"{wanted}.")


def order(version: str) -> list:
    """A key that sorts upstream versions by their numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"[.+~-]", upstream(version))]


def choose(packages: list[str], offered: dict[str, list[str]], wanted: str) -> str:
    """The newest upstream version that all packages have and that is the wanted one; an empty text for none."""
    common: set[str] | None = None
    for name in packages:
        versions = {upstream(version) for version in offered.get(name, []) if matches(version, wanted)}
        common = versions if common is None else common & versions
    return max(common or [""], key=order)


def full_version(name: str, offered: dict[str, list[str]], chosen: str, wanted: str = "") -> str:
    """The first on offer of a package's versions that is the chosen upstream version."""
    fitting = [version for version in offered.get(name, []) if upstream(version) == chosen]
    return next((version for version in fitting if version == wanted), fitting[0] if fitting else "")


def release(status: str, names: list[str]) -> str:
    """dpkg's status file as it would be without holds on these packages, to simulate with."""
    paragraphs = status.split("\n\n")
    for number, paragraph in enumerate(paragraphs):
        name = re.search(r"^Package: (\S+)$", paragraph, re.M)
        if name and name[1] in names:
            paragraphs[number] = re.sub(r"^Status: hold ", "Status: install ", paragraph, flags=re.M)
    return "\n\n".join(paragraphs)


def companions(installed: dict[str, Installed], patterns: list[str], chosen: str) -> list[str]:
    """Installed packages of the chosen version that came along: libraries and so on, by the patterns of their names."""
    return sorted(
        name
        for name, package in installed.items()
        if upstream(package.version) == chosen and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    )


def pin_text(name: str, names: list[str], version: str, priority: int = PIN_PRIORITY) -> str:
    """A file for /etc/apt/preferences.d. The pattern binds only what has that version, so it can name many packages."""
    revision = "-*" if "-" in version else ""
    return (
        f"# Managed by localfirst.llm_fleet.held_packages ({name}): changes here are overwritten.\n"
        f"Package: {' '.join(names)}\n"
        f"Pin: version {version.rsplit('-', 1)[0]}{revision}\n"
        f"Pin-Priority: {priority}\n"
    )


def parse_simulated(printed: str) -> tuple[list[str], list[str]]:
    """What `apt-get --simulate` would do: ("name version" of what is installed, names of what is removed)."""
    installs = re.findall(r"^Inst (\S+) (?:\[[^]]*\] )?\((\S+)", printed, re.M)
    removals = re.findall(r"^(?:Remv|Purg) (\S+)", printed, re.M)
    return [f"{name} {version}" for name, version in installs], removals


def missing_version(packages: list[str], offered: dict[str, list[str]], wanted: str) -> str:
    """Why no version could be chosen, with what there is."""
    unknown = [name for name in packages if not offered.get(name)]
    if unknown:
        return (
            f"no package source has {', '.join(unknown)}. Check that the repository is the one for this distribution,"
            " that it carries this branch, and that `apt-get update` read it"
        )
    lines = [f"{name}: {', '.join(offered[name])}" for name in packages]
    return f"{wanted or 'one version'} is not on offer for all of {', '.join(packages)}. On offer are: {'; '.join(lines)}"


def explain(printed: str, holds: list[str] | None = None) -> str:
    """What apt or dpkg printed, as a sentence that says what was wrong and what to do; its last lines where it is unknown."""
    if key := _KEY.search(printed):
        return _explain_key(printed, key)
    if unsigned := _UNSIGNED.search(printed):
        return (
            f"the repository {unsigned[1].strip()} is not signed. Point the role to a signed mirror;"
            " a copy needs InRelease, or Release and Release.gpg, too"
        )
    if lock := _LOCK.search(printed):
        return f"another program uses apt at the moment ({lock[1] or 'the lock of dpkg'}). Wait until it is done and run again"
    if broken := _DPKG.findall(printed):
        names = ", ".join(dict.fromkeys(name for name, _step in broken))
        return (
            f"the package's own script failed for {names}: {_last_words(printed)}. What was there before is not running any"
            " worse: the loaded kernel module stays until the next reboot. Set the version that was there and run again to go"
            " back, or another one to go on"
        )
    unmet = _UNMET.findall(printed)
    if "held broken packages" in printed or "Held packages were changed" in printed or unmet:
        return _explain_unmet(unmet, holds or [])
    return _last_words(printed) or "apt failed and said nothing"


def _explain_key(printed: str, key: re.Match) -> str:
    where = re.search(r"(?:GPG error: |repository ')(\S+)", printed)
    repository = where[1].rstrip(":'") if where else "the repository"
    what = {
        "NO_PUBKEY": "signed with a key that this host does not have",
        "EXPKEYSIG": "signed with a key that has expired",
        "KEYEXPIRED": "signed with a key that has expired",
        "REVKEYSIG": "signed with a key that was revoked",
    }.get(key[1], "signed with a key whose signature does not fit its contents")
    return (
        f"{repository} is {what} ({key[1]} {key[2] or ''})".rstrip(" )") + "). Its owner has probably changed the key: get the new"
        " one from its owner, compare the fingerprint, and set it as the repository's `key`"
    )


def _explain_unmet(unmet: list[tuple[str, str, str]], holds: list[str]) -> str:
    package, parts = "", []
    for name, first, more in unmet:
        package = name or package
        parts.append(f"{package} needs {first or more}")
    text = "apt finds no set of packages that fits together"
    if parts:
        text += ": " + "; ".join(parts)
    if holds:
        text += f". Held on this host: {', '.join(holds)}"
    return (
        f"{text}. Release what holds it back (apt-mark unhold), take away pins of other origin in /etc/apt/preferences.d"
        " (nvidia-driver-pinning-* brings one), or set a version that goes with them"
    )


def _last_words(printed: str) -> str:
    """The last lines that tell something; errors before other output."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E:", "W:", "Err:", "Error!", "dpkg: error"))]
    return " / ".join((errors or lines)[-4:])
