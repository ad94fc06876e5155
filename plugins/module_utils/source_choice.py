# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Which files of a source make up a version, by their names alone. Pure: no I/O.

Sources choose by these rules when they are asked. A version's signature is held against the same rules later, when nobody
asks the source any more: what the version lacks of the signed files has to be what the rules leave out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from urllib.parse import unquote

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.source_url import SourceUrl

SUMS = "SHA256SUMS"  # a web server's list of a folder's files
NO_PART_OF_A_MODEL = (".md", ".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg")
# The same weights once more, for other frameworks.
OTHER_FORMATS = (".bin", ".h5", ".msgpack", ".onnx", ".onnx_data", ".pt", ".pth", ".ckpt", ".ot", ".tflite", ".gguf")


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a `?files=` asks for a file. As on the hub, '*' stands for any characters, '/' among them."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def is_hidden(name: str) -> bool:
    """Whether it is what tools keep for themselves: .git, .cache, .DS_Store."""
    return any(part.startswith(".") for part in name.split("/"))


def is_folder(url: SourceUrl) -> bool:
    """Whether the address of a web server is that of a folder."""
    return url.path == "" or url.path.endswith("/")


def folder_passes_over(name: str) -> bool:
    """Whether a folder of a web server may have this file, and it is no part of the model."""
    return name == SUMS or is_hidden(name)


def engines_read(names: Iterable[str]) -> list[str]:
    """What an engine loads of a repository of the hub: one format of the weights, nothing for people's eyes."""
    named = [name for name in names if not name.lower().endswith(NO_PART_OF_A_MODEL) and not is_hidden(name)]
    if any(name.endswith(".safetensors") for name in named):
        return [name for name in named if not name.lower().endswith(OTHER_FORMATS)]
    return named


def passed_over(url: SourceUrl, name: str, taken: Collection[str]) -> bool:
    """Whether a version that consists of the files `taken` may be without this one, although the source has it."""
    patterns = url.options.get("files")
    if patterns:
        return not matches(name, patterns)
    if url.scheme == "hf":
        return name not in engines_read([*taken, name])
    if url.scheme in ("http", "https"):
        return folder_passes_over(name) if is_folder(url) else set(taken) == {unquote(PurePosixPath(url.path).name)}
    # Whether the path is that of a file, only its host knows. Where it is, the version has that file and no other.
    if url.scheme in ("file", "s3") and set(taken) == {PurePosixPath(url.path).name}:
        return True
    return url.scheme == "file" and is_hidden(name)
