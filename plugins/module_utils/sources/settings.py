# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""How sources are asked: `llm_fleet_sources`, a mapping from the beginning of a source's URL to settings.

The longest beginning that fits wins, and it fits whole names only: what is meant for `oci://registry.example` is
not meant for `oci://registry.example.net`. Most of the values are secrets, so no message here ever shows one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.schema import (
    flag,
    inside,
    number,
    optional,
    record,
    show,
    whole,
    wrong,
)

WHERE = "llm_fleet_sources"
PREFIX = re.compile(r"(?:hf|oci|ollama|mlflow|s3|https?|file)://[\x21-\x7e]*")
ONE_LINE = re.compile(r"[\x20-\x7e\xa0-\xff]+")
HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
DIRECT = "direct"
SECRET_FILE_LIMIT = 64 * 1024
SECRETS = ("token", "password", "secret_key", "session_token")
FROM_FILES = {"token_file": "token", "password_file": "password", "secret_key_file": "secret_key"}


@dataclass(frozen=True)
class Settings:
    """How one source is asked. What nobody set is empty; secrets are filled in, wherever they were kept."""

    endpoint: str = ""
    token: str = ""
    token_file: str = ""
    username: str = ""
    password: str = ""
    password_file: str = ""
    access_key: str = ""
    secret_key: str = ""
    secret_key_file: str = ""
    session_token: str = ""
    region: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    proxy: str = ""  # empty: what the environment says; "direct": none
    ca_path: str = ""
    validate_certs: bool = True
    plain_http: bool = False
    timeout: float = 30
    retries: int = 5

    def secrets(self) -> list[str]:
        """The values that no output may show."""
        proxy = urlsplit(self.proxy).password if "@" in self.proxy else None
        values = [getattr(self, name) for name in SECRETS] + list(self.headers.values())
        values += [proxy, unquote(proxy)] if proxy else []
        return list(dict.fromkeys(value for value in values if value))

    def __repr__(self) -> str:
        shown = {
            key.name: getattr(self, key.name)
            for key in fields(self)
            if key.name not in (*SECRETS, "headers", "proxy", "access_key") and getattr(self, key.name) != key.default
        }
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def check_settings(value: Any, where: str, faults: list[Fault]) -> dict[str, dict] | None:
    """The schema's check of `llm_fleet_sources`: the clean mapping, in which only what is set remains."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return wrong(faults, "this is not a mapping", where, 'write "beginning of a URL": {token: …} lines below it')
    clean = {}
    for prefix, entry in value.items():
        if not isinstance(prefix, str) or not PREFIX.fullmatch(prefix) or "@" in prefix.split("/")[2]:
            wrong(
                faults,
                "a key is not the beginning of a source's URL, or has a password in it",
                where,
                'write keys such as "hf://" or "oci://registry.example:5000/"',
            )
            continue
        if not isinstance(entry, Mapping):
            wrong(faults, "this is not a mapping", inside(where, prefix), f"known keys: {', '.join(sorted(_FIELDS))}")
            continue
        given = {key: item for key, item in entry.items() if item is not None and item != "" and item != {}}
        found = _RECORD(given, inside(where, prefix), faults)
        clean[str(prefix)] = {key: item for key, item in found.items() if item is not None}
    return clean


def settings_for(all_settings: Mapping[str, Any] | None, source: str) -> Settings:
    """The settings that hold for a source, read on the host that asks it: here the files with secrets are opened."""
    faults: list[Fault] = []
    clean = check_settings(all_settings, WHERE, faults)
    if faults:
        raise ArtifactError(*_as_error(faults))
    fitting = [prefix for prefix in clean or {} if _fits(prefix, source)]
    if not fitting:
        return Settings()
    prefix = max(fitting, key=len)
    settings = Settings(**clean[prefix])
    for key, secret in FROM_FILES.items():
        path = getattr(settings, key)
        if path and not getattr(settings, secret):
            settings = replace(settings, **{secret: _read_secret(path, f"{WHERE}.{prefix}.{key}")})
    return settings


def all_secrets(all_settings: Mapping[str, Any] | None) -> list[str]:
    """Every secret that is written in `llm_fleet_sources` itself, for Ansible to mask."""
    clean = check_settings(all_settings, WHERE, []) or {}
    return list(dict.fromkeys(secret for entry in clean.values() for secret in Settings(**entry).secrets()))


def _fits(prefix: str, source: str) -> bool:
    if not source.startswith(prefix):
        return False
    scheme, _mark, rest = prefix.partition("://")
    following = source[len(prefix) : len(prefix) + 1]
    if not rest or prefix.endswith("/") or not following:
        return True
    # A port makes another server; behind a path, ':' begins a tag.
    names_a_server = scheme in ("oci", "ollama", "http", "https") and "/" not in rest
    return following in ("/" if names_a_server else "/:@?")


def _read_secret(path: str, where: str) -> str:
    try:
        with Path(path).open("rb") as handle:
            content = handle.read(SECRET_FILE_LIMIT + 1)
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read ({(error.strerror or str(error)).lower()})",
            where,
            "put the file on the host that asks the source, readable for the user that does it",
        ) from error
    try:
        secret = content.decode().strip()
    except UnicodeDecodeError:
        secret = ""
    if not ONE_LINE.fullmatch(secret) or len(content) > SECRET_FILE_LIMIT:
        raise ArtifactError(f"{path} does not hold one line of text", where, "write the secret alone into the file")
    return secret


def _as_error(faults: list[Fault]) -> tuple[str, str, str]:
    first = faults[0]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{first.what}{more}", first.where, first.fix


def _line(value: Any, where: str, faults: list[Fault]) -> str | None:
    """One line of text, and never a word of it in a message."""
    if isinstance(value, str) and ONE_LINE.fullmatch(value) and value == value.strip():
        return str(value)
    return wrong(faults, "this is not one line of text", where, "write one line, in quotes, without spaces around it")


def _address(value: Any, where: str, faults: list[Fault], schemes: tuple[str, ...] = ("https", "http"), user: bool = False) -> str | None:
    try:
        parts = urlsplit(value) if isinstance(value, str) and re.fullmatch(r"[\x21-\x7e]+", value) else urlsplit("")
        sound = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0 and not parts.query and not parts.fragment
    except ValueError:
        sound = False
    if not sound:
        return wrong(faults, "this is not an address", where, f"write {schemes[-1]}://host:port")
    if parts.username is not None and not user:
        return wrong(faults, "the address has a user or password in it", where, "give them as username and password, or as token")
    return value.rstrip("/")


def _proxy(value: Any, where: str, faults: list[Fault]) -> str | None:
    if value == DIRECT:
        return DIRECT
    mine: list[Fault] = []
    found = _address(value, where, mine, ("http",), user=True)
    faults += [fault._replace(fix=f"{fault.fix} of an HTTP proxy, or '{DIRECT}' for none") for fault in mine]
    return found


def _path(value: Any, where: str, faults: list[Fault]) -> str | None:
    if isinstance(value, str) and value.startswith("/") and ONE_LINE.fullmatch(value):
        return str(value)
    return wrong(faults, "this is not an absolute path", where, "write the path of a file on the host that asks the source")


def _headers(value: Any, where: str, faults: list[Fault]) -> dict[str, str] | None:
    if not isinstance(value, Mapping):
        return wrong(faults, "this is not a mapping", where, "write 'Name: value' lines below it")
    clean = {}
    for name, content in value.items():
        if not isinstance(name, str) or not HEADER_NAME.fullmatch(name):
            wrong(faults, f"{show(name)} is no name of a header", where, "write one such as X-Api-Key")
        elif _line(content, inside(where, name), faults) is not None:
            clean[str(name)] = str(content)
    return clean


_TEXTS = ("token", "username", "password", "access_key", "secret_key", "session_token", "region")
_FIELDS = {
    "endpoint": optional(_address),
    **{name: optional(_line) for name in _TEXTS},
    **{name: optional(_path) for name in (*FROM_FILES, "ca_path")},
    "headers": optional(_headers),
    "proxy": optional(_proxy),
    "validate_certs": optional(flag),
    "plain_http": optional(flag),
    "timeout": optional(number(1, 3600)),
    "retries": optional(whole(0, 100)),
}
_RECORD = record(_FIELDS)
