# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The addresses of model files: where a model version comes from, each kind in one notation.

    hf://org/name[@revision][?files=globs]      a repository of the Hugging Face hub, or of a mirror
    oci://registry/repo[:tag|@sha256:digest]    an artifact in an OCI registry
    ollama://[registry/][ns/]model[:tag]        a model in a registry of Ollama's kind
    mlflow://name/version, mlflow://name@alias  a model version of an MLflow registry
    s3://bucket/prefix[?files=globs]            objects in any S3 storage
    https://..., http://...                     a file, or a folder with the files below it
    file:///path                                a file or a directory on the controller

No address holds a secret: catalog and lockfile are in git, and both have addresses in them. For the same
reason no message here repeats an address: somebody may have written a password into it all the same.
"""
from __future__ import annotations

import re
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault, suggestion
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.schema import show, wrong

OLLAMA_REGISTRY = "registry.ollama.ai"
LONGEST = 2048

_NO_URL = "this is not a URL"
_NO_SECRETS = "take it out, and give it in llm_fleet_sources: catalog and lockfile are kept in git"
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?"
_AUTHORITY = re.compile(rf"(?:{_HOST}|\[[0-9A-Fa-f:.]+\])(?::([0-9]{{1,5}}))?")
_PART = "[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_IMAGE_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HUB_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_GIT_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(?:/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_COMMIT = re.compile("[0-9a-f]{40}")
_OLLAMA_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_MODEL_ALIAS = re.compile(r"[A-Za-z0-9_-]{1,255}")
_NUMBER = re.compile("[1-9][0-9]{0,17}")
# What presigned URLs and careless ones carry.
_SECRET_KEY = re.compile(r"(?i)(?:x-(?:amz|goog)-(?:signature|credential|security-token)|sig(?:nature)?|"
                         r"(?:.*[_-])?(?:token|password|passwd|secret|api[_-]?key))")


class SourceUrl(NamedTuple):
    """The parts of an address. What a kind of source does not have is empty."""

    scheme: str
    host: str  # host, or host:port; the bucket of s3
    path: str
    revision: str  # branch, tag or commit; tag or sha256:...; version number or @alias
    options: dict[str, list[str]]
    text: str  # as it was written

    def at(self, revision: str) -> str:
        """The address of the same thing at another revision, with the same options."""
        if self.scheme == "hf":
            return self.text.partition("?")[0].partition("@")[0] + f"@{revision}" + self._query()
        if self.scheme in ("oci", "ollama"):
            mark = "@" if _IMAGE_DIGEST.fullmatch(revision) else ":"
            return f"{self.scheme}://{self.host}/{self.path}{mark}{revision}"
        if self.scheme == "mlflow":
            name = re.split("[/@]", self.text[len("mlflow://") :])[0]
            return f"mlflow://{name}{'' if revision.startswith('@') else '/'}{revision}"
        raise ValueError(f"{self.scheme}:// has no revisions")

    def _query(self) -> str:
        query = self.text.partition("?")[2]
        return f"?{query}" if query else ""


def parse_source(text: Any) -> SourceUrl:
    """The parts of an address. One that is wrong raises ValueError(what is wrong, what to do about it)."""
    found = re.fullmatch(r"([a-z][a-z0-9+.-]*)://([\x20-\x7e]+)", text) if isinstance(text, str) else None
    if not found or len(text) > LONGEST:
        raise ValueError(_NO_URL, f"write one that begins with {_kinds()}")
    scheme, rest = found.groups()
    if scheme not in _PARSERS:
        advice = suggestion(scheme, _PARSERS, "kinds")
        raise ValueError(f"{show(scheme)} is not a known kind of source", f"{advice} (use {_kinds()})")
    try:
        host, path, revision, options = _PARSERS[scheme](scheme, rest)
    except ValueError as error:
        if len(error.args) == 2:
            raise
        raise ValueError(_NO_URL, _USAGE[scheme]) from None
    return SourceUrl(scheme, host, path, revision, options, str(text))


def check(value: Any, where: str, faults: list[Fault]) -> str | None:
    """The schema's check of an address; what comes back is the text as it was written."""
    try:
        return parse_source(value).text
    except ValueError as error:
        return wrong(faults, error.args[0], where, error.args[1])


def is_pinned(url: SourceUrl) -> bool:
    """Whether the address itself says which bytes it means. All others are pinned by the digests of their files."""
    if url.scheme == "hf":
        return _COMMIT.fullmatch(url.revision) is not None
    if url.scheme == "oci":
        return _IMAGE_DIGEST.fullmatch(url.revision) is not None
    return url.scheme == "mlflow" and _NUMBER.fullmatch(url.revision) is not None


def _file(scheme: str, rest: str) -> tuple:
    # A path is taken as it is written: neither %20 nor '?' nor '#' means anything in it.
    _want(rest.startswith("/"), "the path is not absolute", "write three slashes, as in file:///srv/models/tiny.gguf")
    return "", rest, "", {}


def _web(scheme: str, rest: str) -> tuple:
    parts = urlsplit(f"{scheme}://{rest}")
    _no_password(parts.netloc)
    _want(bool(parts.hostname) and parts.port != 0, "the URL names no host that can be asked", _USAGE[scheme])
    _want(" " not in rest and "#" not in rest, "the URL has a space or a '#' in it", "write them as %20 and %23")
    for key, _value in parse_qsl(parts.query, keep_blank_values=True):
        _want(not _SECRET_KEY.fullmatch(key), f"the URL's {show(key)} looks like a secret", _NO_SECRETS)
    return parts.netloc, parts.path, "", {}


def _hub(scheme: str, rest: str) -> tuple:
    rest, options = _options(scheme, rest)
    repository, at, revision = rest.partition("@")
    names = repository.split("/")
    usual = len(names) == 2 and all(_HUB_NAME.fullmatch(name) and ".." not in name for name in names)
    _want(usual, "the repository is not named by organisation and name", _USAGE[scheme])
    sound = _GIT_REVISION.fullmatch(revision) and ".." not in revision
    _want(not at or bool(sound), "the revision is no branch, tag or commit", _USAGE[scheme])
    return "", repository, revision, options


def _oci(scheme: str, rest: str) -> tuple:
    host, _slash, name = rest.partition("/")
    _no_password(host)
    _authority(scheme, host)
    name, at, digest = name.partition("@")
    name, colon, tag = name.partition(":")
    _want(not (at and colon), "there are a tag and a digest", "keep one of them: the digest says exactly what is meant")
    fine = _REPOSITORY.fullmatch(name)
    _want(bool(fine), "the repository's name is not in small letters with '/' between its parts", _USAGE[scheme])
    _want(not at or bool(_IMAGE_DIGEST.fullmatch(digest)), "the digest is not sha256: and 64 digits 0-9, a-f", _USAGE[scheme])
    _want(not colon or bool(_TAG.fullmatch(tag)), "this is not a tag", _USAGE[scheme])
    return host, name, digest or tag or "latest", {}


def _ollama(scheme: str, rest: str) -> tuple:
    _want("@" not in rest, "there is an '@' in the URL", "name a tag; passwords are given in llm_fleet_sources")
    parts = rest.split("/")
    host = OLLAMA_REGISTRY
    if len(parts) == 3 or (len(parts) == 2 and re.search("[.:]", parts[0])):
        host, *parts = parts
        _authority(scheme, host)
    parts[-1], colon, tag = parts[-1].partition(":")
    _want(not colon or bool(_TAG.fullmatch(tag)), "this is not a tag", _USAGE[scheme])
    if len(parts) == 1:
        parts.insert(0, "library")
    named = len(parts) == 2 and all(_OLLAMA_NAME.fullmatch(part) for part in parts)
    _want(named, "this does not name a model", _USAGE[scheme])
    return host, "/".join(parts), tag or "latest", {}


def _mlflow(scheme: str, rest: str) -> tuple:
    found = re.fullmatch(r"([^/@:?#\x20]+)(?:/([^/@]*)|@([^/@]*))", rest)
    _want(bool(found), "this names no version of a model", _USAGE[scheme])
    name, version, alias = found.groups()
    name = unquote(name, errors="strict")
    _want(not re.search(r"[/:\x00-\x1f\x7f]", name), "this is no name of a registered model", _USAGE[scheme])
    if version is not None:
        _want(bool(_NUMBER.fullmatch(version)), f"{show(version)} is not the number of a version", _USAGE[scheme])
        return "", name, version, {}
    _want(bool(_MODEL_ALIAS.fullmatch(alias)), "this is not an alias", _USAGE[scheme])
    return "", name, f"@{alias}", {}


def _s3(scheme: str, rest: str) -> tuple:
    rest, options = _options(scheme, rest)
    bucket, _slash, prefix = rest.partition("/")
    _no_password(bucket)
    _want(bool(_BUCKET.fullmatch(bucket)), "this is not the name of a bucket", _USAGE[scheme])
    _want(" " not in prefix and "#" not in prefix, "the URL has a space or a '#' in it", "write them as %20 and %23")
    prefix = unquote(prefix, errors="strict")
    _want(not re.search(r"[\x00-\x1f\x7f]", prefix), "the prefix has a control character in it", _USAGE[scheme])
    return bucket, prefix, "", options


def _options(scheme: str, rest: str) -> tuple:
    """What stands before the '?', and the options after it as lists."""
    rest, _mark, query = rest.partition("?")
    options: dict[str, list[str]] = {}
    for option in query.split("&") if query else []:
        key, _equals, value = option.partition("=")
        _want(key == "files", f"{show(key[:20])} is not an option of {scheme}://", "the one there is: ?files=*.safetensors,config.json")
        _want(key not in options, f"the option '{key}' is there twice", "write all patterns in one, with commas between")
        options[key] = [unquote(item, errors="strict") for item in value.split(",")]
        for pattern in options[key]:
            sound = pattern and not pattern.startswith("/") and ".." not in pattern.split("/")
            fine = sound and not re.search(r"[\x00-\x1f\x7f\\]", pattern)
            _want(bool(fine), f"{show(pattern)} is not a pattern of file names", "write relative ones, as in ?files=*.gguf,config.json")
    return rest, options


def _authority(scheme: str, host: str) -> None:
    found = _AUTHORITY.fullmatch(host)
    _want(bool(found), "the URL names no host that can be asked", _USAGE[scheme])
    port = found.group(1)
    _want(port is None or 0 < int(port) < 65536, "the port is not one from 1 to 65535", _USAGE[scheme])


def _no_password(authority: str) -> None:
    _want("@" not in authority, "the URL holds a user name or password", _NO_SECRETS)


def _want(holds: bool, problem: str, fix: str) -> None:
    if not holds:
        raise ValueError(problem, fix)


def _kinds() -> str:
    *most, last = (f"{scheme}://" for scheme in _PARSERS)
    return f"{', '.join(most)} or {last}"


_PARSERS = {
    "hf": _hub,
    "oci": _oci,
    "ollama": _ollama,
    "mlflow": _mlflow,
    "s3": _s3,
    "https": _web,
    "http": _web,
    "file": _file,
}

_USAGE = {
    "hf": "write hf://org/name@revision, with ?files=*.safetensors,config.json where not all files are wanted",
    "oci": "write oci://registry:port/repo:tag or oci://registry:port/repo@sha256:digest",
    "ollama": "write ollama://model:tag, ollama://namespace/model:tag or ollama://registry:port/namespace/model:tag",
    "mlflow": "write mlflow://name/3 or mlflow://name@alias",
    "s3": "write s3://bucket/prefix, with ?files=*.gguf where not all objects are wanted",
    "https": "write https://host:port/path",
    "http": "write http://host:port/path",
    "file": "write file:///path",
}
