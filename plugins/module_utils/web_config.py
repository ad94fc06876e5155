# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The web configuration of Prometheus' exporters: TLS, and the users of basic authentication.

Passwords are hashed with bcrypt by the C library that checks logins, because nothing else that every host has can do it. A hash that is
there and fits its password stays: each new one would have another salt, and differ.
"""

from __future__ import annotations

import base64
import ctypes
import ctypes.util
import hmac
import json
import re
import secrets
from typing import Callable

# What exporters accept, from any of the programs that make such hashes.
HASH = re.compile(r"\$2[aby]\$(?P<cost>\d\d)\$[./A-Za-z0-9]{53}")
COSTS = range(4, 18)
# bcrypt looks no further; exporters refuse to compare more.
LONGEST_PASSWORD = 72

_USER_LINE = re.compile(r'^  (?P<user>"(?:[^"\\]|\\.)*"): (?P<hash>"[^"]*")$')
_LIBRARIES = ("libcrypt.so.1", "libcrypt.so.2")


class Refused(ValueError):
    """A user or password that cannot be used; the message says why and what to do, without the password."""


def check_user(name: str) -> None:
    if not name or ":" in name or not name.isprintable():
        raise Refused(f"the user name {name!r} is empty or has a colon or a control character in it; choose another")


def check_password(password: str) -> None:
    if not password or "\0" in password:
        raise Refused("the password is empty or has a null byte in it; choose another")
    if len(password.encode()) > LONGEST_PASSWORD:
        raise Refused(f"the password is longer than {LONGEST_PASSWORD} bytes, which is all that bcrypt looks at; choose a shorter one")


def check_hash(text: str) -> None:
    match = HASH.fullmatch(text)
    if match is None or int(match["cost"]) not in COSTS:
        raise Refused(
            f"the password's hash is none of bcrypt's, with a cost of {COSTS[0]} to {COSTS[-1]}; make one with `htpasswd -nBC 10 \"\"`"
        )


def system_crypt() -> Callable[[str, str], str] | None:
    """crypt(3) of the host; None where there is none."""
    for name in (*_LIBRARIES, ctypes.util.find_library("crypt")):
        try:
            function = ctypes.CDLL(name).crypt if name else None
        except (OSError, AttributeError):
            continue
        if function is not None:
            function.argtypes, function.restype = [ctypes.c_char_p, ctypes.c_char_p], ctypes.c_char_p
            return lambda key, setting, crypt=function: (crypt(key.encode(), setting.encode()) or b"").decode()
    return None


def fits(password: str, text: str, crypt: Callable[[str, str], str]) -> bool:
    """Whether the hash is that of the password."""
    return HASH.fullmatch(text) is not None and hmac.compare_digest(crypt(password, text), text)


def new_hash(password: str, cost: int, crypt: Callable[[str, str], str]) -> str:
    """A hash with a salt of its own."""
    # bcrypt's alphabet; its 22nd digit holds only two bits, and these are the four digits that have no other.
    salt = base64.b64encode(secrets.token_bytes(18), b"./").decode()[:21] + secrets.choice(".Oeu")
    made = crypt(password, f"$2b${cost:02d}${salt}")
    if HASH.fullmatch(made) is None:
        raise Refused(
            "the C library of this host cannot make bcrypt hashes; make one elsewhere with `htpasswd -nBC 10 \"\"` and pass it"
        )
    return made


def users_of(text: str) -> dict[str, str]:
    """Users with their hashes in a file that `render` wrote. What somebody else wrote has none."""
    found = {}
    for line in text.splitlines():
        match = _USER_LINE.match(line)
        if match:
            found[json.loads(match["user"])] = json.loads(match["hash"])
    return found


def render(heading: str, cert_file: str, key_file: str, users: dict[str, str]) -> str:
    """The file. Strings of JSON are strings of YAML too, and hosts need no YAML for it."""
    lines = [f"# {line}".rstrip() for line in heading.splitlines()]
    lines += ["tls_server_config:", f"  cert_file: {_quoted(cert_file)}", f"  key_file: {_quoted(key_file)}", "  min_version: TLS12"]
    lines += ["basic_auth_users:", *(f"  {_quoted(user)}: {_quoted(text)}" for user, text in sorted(users.items()))]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    # JSON's pairs of \\u would be two characters in YAML.
    return json.dumps(text, ensure_ascii=False)


def masked(text: str) -> str:
    """The file fit to be shown."""
    return HASH.sub("********", text)
