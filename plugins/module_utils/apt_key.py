# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The key of a package repository, wherever it is given: by its address, as a file on the host, or as its text."""

from __future__ import annotations

import re
from http.client import HTTPException
from pathlib import Path

from ansible.module_utils.urls import fetch_url

_BEGIN = b"-----BEGIN PGP PUBLIC KEY BLOCK-----"
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*:/")


class KeyTrouble(Exception):
    """Why there is no key and what to do, as a sentence without its full stop."""


def is_path(key: str) -> bool:
    return key.startswith("/")


def is_text(key: str) -> bool:
    return key.startswith("-----BEGIN")


def read(module, key: str, timeout: int) -> bytes:
    """The key itself."""
    if is_path(key):
        what, content = f"the repository's key {key}", _read_file(key)
    elif is_text(key):
        what, content = "the text in `key`", f"{key.strip()}\n".encode()
    elif _ADDRESS.match(key):
        what, content = f"the repository's key {key}", _fetch(module, key, timeout)
    else:
        raise KeyTrouble(f"`key` is {key[:60]!r}. Set it to an address, to an absolute path on the host, or to the armoured key itself")
    # The first bit of a binary key is always set.
    if _BEGIN not in content and not content[:1] > b"\x7f":
        raise KeyTrouble(f"{what} is no public OpenPGP key: it begins with {content[:40].decode(errors='replace')!r}")
    return content


def suffix(content: bytes) -> str:
    """What the name of the key's file ends with: apt tells the two kinds of key by that."""
    return ".asc" if _BEGIN in content else ".gpg"


def _read_file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise KeyTrouble(f"the repository's key {path} is not on the host. Put it there, or set `key` to an address") from None
    except OSError as error:
        raise KeyTrouble(f"the repository's key {path} cannot be read: {error.strerror}") from None


def _fetch(module, address: str, timeout: int) -> bytes:
    advice = "Check the address, or set `key` to a file on the host or to the armoured key itself"
    response, told = fetch_url(module, address, timeout=timeout)
    if told["status"] != 200:
        raise KeyTrouble(f"the repository's key {address} cannot be had: {told['msg']}. {advice}")
    try:
        return response.read()
    except (OSError, HTTPException) as error:
        raise KeyTrouble(f"the repository's key {address} cannot be had: {error}. {advice}") from None
