# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The lockfile as text: sorted, one file of a model on each line, so that a diff shows what changed and nothing else.

The same data always give the same text. It is ASCII throughout: neither an editor nor a terminal can change it.
"""
from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import semver

FORMAT = 1
SIGNATURE = ("signer", "identity", "sha256", "left_out", "content")  # what is kept of who signed a version
CONTENT_LIMIT = 64 * 1024  # bytes of a small file that travels in the lockfile itself

_HEAD = """\
---
# Written by localfirst.llm_fleet.lock. Commit it, don't edit it: change the catalog and lock again.
# yamllint disable rule:line-length
"""
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
# In YAML 1.1 these are booleans and nothing.
_NO_TEXT = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def version_digest(files: Iterable[dict[str, Any]]) -> str:
    """One digest for all files of a model version: over what they are called, how long they are and what is in them."""
    lines = sorted(f"{file['sha256']}  {file['size']}  {file['path']}\n" for file in files)
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def render_lockfile(data: dict[str, Any]) -> str:
    """The text of a lockfile, of which parse_lockfile makes the same data again.

    `data` are as parse_lockfile returns them. The total and the digest of a version follow from its files, so
    they may be left out; what is None is left out of the text.
    """
    return _HEAD + "".join(f"{line}\n" for line in _lines(data))


def _lines(data: dict[str, Any]) -> Iterator[str]:
    yield f"lockfile: {FORMAT}"
    if data.get("tool"):
        yield f"tool: {_quoted(data['tool'])}"
    yield from _section("images", [_image(engine, image) for engine, image in sorted(data["images"].items())])
    if data.get("selected"):
        yield from _section("selected", [_selected(name, choice) for name, choice in sorted(data["selected"].items())])
    yield from _section("models", [_model(name, versions) for name, versions in sorted(data["models"].items())])
    # Last, and looked for first: a file that was cut off anywhere is a file without it.
    yield "end: true"


def _section(title: str, entries: list[str]) -> Iterator[str]:
    """A part of the file; one that is empty has to say so, or it would be no mapping."""
    yield f"{title}:" if entries else f"{title}: {{}}"
    yield from entries


def _image(engine: str, image: dict[str, Any]) -> str:
    return f"  {_word(engine)}: {_record(image, ('image', 'digest', 'asked', 'ids'))}"


def _selected(name: str, choice: dict[str, Any]) -> str:
    return f"  {_word(name)}: {{asked: {_quoted(choice['asked'])}, version: {_word(choice['version'])}}}"


def _model(name: str, versions: dict[str, dict]) -> str:
    """All versions of a model, the oldest first."""
    if not versions:
        return f"  {_word(name)}: {{}}"
    lines = [f"  {_word(name)}:"]
    for version in sorted(versions, key=semver.order):
        lines.append(f"    {_word(version)}:")
        lines += [f"      {line}" for line in _version(versions[version])]
    return "\n".join(lines)


def _version(entry: dict[str, Any]) -> Iterator[str]:
    files = sorted(entry["files"], key=lambda file: file["path"])
    if entry.get("asked") is not None:
        yield f"asked: {_quoted(entry['asked'])}"
    yield f"source: {_quoted(entry['source'])}"
    yield f"format: {_word(entry['format'])}"
    if entry.get("licence") is not None:
        yield f"licence: {_word(entry['licence'])}"
    yield f"size: {sum(file['size'] for file in files)}"
    yield f"digest: {_quoted(version_digest(files))}"
    if entry.get("shape") is not None:
        yield f"shape: {_flow(entry['shape'])}"
    if entry.get("signature") is not None:
        yield f"signature: {_flow({key: entry['signature'].get(key) for key in SIGNATURE})}"
    yield "files:"
    for file in files:
        yield f"  - {_record(file, ('path', 'size', 'sha256', 'from', 'content'))}"


def _record(entry: dict[str, Any], keys: Iterable[str]) -> str:
    """A mapping on one line."""
    shown = ((key, entry.get(key)) for key in keys)
    return f"{{{', '.join(f'{key}: {_value(value)}' for key, value in shown if value is not None)}}}"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_quoted(key)}: {_value(entry)}' for key, entry in sorted(value.items()))}}}"
    return _quoted(value) if isinstance(value, str) else str(value)


def _flow(value: Any) -> str:
    """Whatever the files' headers said, on one line."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_flow(entry)}' for key, entry in value.items() if entry is not None)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    return _quoted(value) if isinstance(value, str) else str(value)


def _word(text: str) -> str:
    """A name as people write it, where YAML takes that for text; otherwise in quotes."""
    plain = (_PLAIN.fullmatch(text) and text.lower() not in _NO_TEXT) or semver.is_version(text)
    return text if plain else _quoted(text)


def _quoted(text: str) -> str:
    """Text in quotes, by the rules of JSON; but YAML has no pairs of surrogates, and a longer escape instead."""
    plain = json.dumps(text, ensure_ascii=False)
    return re.sub(r"[^\x20-\x7e]", lambda found: _escape(ord(found[0])), plain)


def _escape(code: int) -> str:
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
