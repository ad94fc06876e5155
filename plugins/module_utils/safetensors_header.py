# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The header of a safetensors file: eight bytes with the length of the JSON that follows them, then the tensors.

The format is that of the library safetensors, which allows 100 MB for the JSON. Of it only the number formats are kept.
"""

from __future__ import annotations

import json
import struct
from collections import Counter

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.header_bytes import LARGEST, HeaderError, Reader

PREFIX = 8


def read_safetensors(reader: Reader) -> dict[str, int]:
    """Bytes of tensors by their number format ("BF16", "F32", ...); HeaderError for whatever is no such file."""
    start = reader.read(0, PREFIX)
    if len(start) < PREFIX:
        raise HeaderError("the file ends within its header")
    [length] = struct.unpack("<Q", start)
    if not 2 <= length <= LARGEST:
        raise HeaderError(f"the header promises {length} bytes")
    text = reader.read(PREFIX, length)
    if len(text) < length:
        raise HeaderError("the file ends within its header")
    formats: Counter = Counter()
    for name, tensor in parse_json(text).items():
        if name != "__metadata__":
            form, size = _tensor(tensor)
            formats[form] += size
    return dict(formats)


def parse_json(text: bytes) -> dict:
    """A JSON object; HeaderError for anything else, such as lists that are nested until Python gives up."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HeaderError("the header is no JSON that can be read") from error
    if not isinstance(data, dict):
        raise HeaderError("the header is no JSON object")
    return data


def _tensor(tensor: object) -> tuple[str, int]:
    if isinstance(tensor, dict) and isinstance(tensor.get("dtype"), str):
        span = tensor.get("data_offsets")
        # True and False are whole numbers to Python.
        whole = isinstance(span, list) and all(isinstance(end, int) and not isinstance(end, bool) for end in span)
        if whole and len(span) == 2 and 0 <= span[0] <= span[1]:
            return tensor["dtype"], span[1] - span[0]
    raise HeaderError("a tensor has no sound format or place")
