# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The header of a GGUF file (versions 2 and 3): what it says of the model, and where its tensors begin.

The format is the specification's (ggml, docs/gguf.md): magic, version, number of tensors, number of key-values; then the
key-values, then name, dimensions, type and offset of each tensor, then the tensors themselves, aligned. Tokenizers are most
of it: arrays are gone through and not kept, short ones of numbers excepted (some models say a number for each layer).
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.header_bytes import Cursor, HeaderError, Reader

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_KEYS = 4096
MOST_TENSORS = 200_000
LONGEST_NAME = 1024
LONGEST_TEXT = 64 * 1024  # of a text that is kept; chat templates are longer, and of no use here
LONGEST_LIST = 4096  # of an array that is kept; layers are counted in hundreds
MOST_ITEMS = 4_000_000  # of an array that has to be gone through item by item
ALIGNMENT = 32

# The specification's numbers for types of values.
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
TEXT, ARRAY = 8, 9


class Gguf(NamedTuple):
    """What a header says. `lengths` has the length of each array, kept or not; `shapes` the dimensions of each tensor."""

    values: dict[str, Any]
    lengths: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    data_start: int


def read_gguf(reader: Reader) -> Gguf:
    """The header; HeaderError for whatever is none."""
    cursor = Cursor(reader)
    if cursor.take(4) != MAGIC:
        raise HeaderError("the file is no GGUF")
    [version] = cursor.unpack("<I")
    if version not in VERSIONS:
        raise HeaderError(f"GGUF version {version} is unknown")
    tensors, keys = cursor.unpack("<QQ")
    if tensors > MOST_TENSORS or keys > MOST_KEYS:
        raise HeaderError(f"the header promises {tensors} tensors and {keys} keys")
    values: dict[str, Any] = {}
    lengths: dict[str, int] = {}
    for _number in range(keys):
        key = _text(cursor, LONGEST_NAME)
        if key is None:
            raise HeaderError(f"a key is longer than {LONGEST_NAME} bytes")
        _value(cursor, key, values, lengths)
    shapes = dict(_tensor(cursor) for _number in range(tensors))
    alignment = values.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or isinstance(alignment, bool) or not 0 < alignment <= 2**20:
        raise HeaderError("the alignment makes no sense")
    return Gguf(values, lengths, shapes, -(-cursor.position // alignment) * alignment)


def _text(cursor: Cursor, longest: int) -> str | None:
    """The next text, or None where it is longer than what is kept."""
    [length] = cursor.unpack("<Q")
    if length > longest:
        cursor.skip(length)
        return None
    return cursor.take(length).decode("utf-8", errors="replace")


def _value(cursor: Cursor, key: str, values: dict[str, Any], lengths: dict[str, int]) -> None:
    [kind] = cursor.unpack("<I")
    if kind == ARRAY:
        _array(cursor, key, values, lengths)
    elif kind == TEXT:
        found = _text(cursor, LONGEST_TEXT)
        if found is not None:
            values[key] = found
    else:
        [values[key]] = cursor.unpack(_form(kind))


def _array(cursor: Cursor, key: str, values: dict[str, Any], lengths: dict[str, int]) -> None:
    kind, count = cursor.unpack("<IQ")
    lengths[key] = count
    if kind == TEXT:
        if count > MOST_ITEMS:
            raise HeaderError(f"{key} promises {count} texts")
        for _number in range(count):
            [length] = cursor.unpack("<Q")
            cursor.skip(length)
        return
    form = _form(kind)  # arrays of arrays are allowed by the specification, and written by nobody
    size = struct.calcsize(form)
    if count > LONGEST_LIST:
        cursor.skip(count * size)
    else:
        values[key] = list(struct.unpack(f"<{count}{form[1:]}", cursor.take(count * size)))


def _tensor(cursor: Cursor) -> tuple[str, tuple[int, ...]]:
    name = _text(cursor, LONGEST_NAME)
    [dimensions] = cursor.unpack("<I")
    if name is None or dimensions > 8:
        raise HeaderError("a tensor has no sound name or dimensions")
    shape = cursor.unpack(f"<{dimensions}Q")
    cursor.unpack("<IQ")  # its type, and where it is among the data
    return name, shape


def _form(kind: int) -> str:
    if kind not in SCALARS:
        raise HeaderError(f"the header has a value of the unknown type {kind}")
    return SCALARS[kind]
