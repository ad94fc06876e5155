# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Headers of GGUF and safetensors files as their specifications have them, written by hand: libraries refuse to write wrong ones."""

from __future__ import annotations

import json
import struct
from typing import Any


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value(item: Any) -> bytes:
    """A typed value: Python's types stand for the format's."""
    if isinstance(item, bool):
        return struct.pack("<I?", 7, item)
    if isinstance(item, int):
        return struct.pack("<IQ", 10, item) if item > 0xFFFFFFFF else struct.pack("<II", 4, item)
    if isinstance(item, float):
        return struct.pack("<If", 6, item)
    if isinstance(item, str):
        return struct.pack("<I", 8) + text(item)
    inner = [value(entry) for entry in item] or [value(0)]
    return struct.pack("<I", 9) + inner[0][:4] + struct.pack("<Q", len(item)) + b"".join(one[4:] for one in inner[: len(item)])


def gguf(values: dict[str, Any], tensors: dict[str, tuple[int, ...]] | None = None, version: int = 3, data: bytes = b"") -> bytes:
    tensors = tensors or {}
    parts = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(values))]
    parts += [text(key) + value(item) for key, item in values.items()]
    for name, shape in tensors.items():
        parts.append(text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + struct.pack("<IQ", 1, 0))
    header = b"".join(parts)
    return header + bytes(-len(header) % 32) + data


def model(architecture: str = "llama", **values: Any) -> dict[str, Any]:
    """Key-values of a small model; `values` are those of its architecture, with '__' for dots."""
    usual = {
        "block_count": 4,
        "embedding_length": 256,
        "feed_forward_length": 512,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "vocab_size": 1000,
        **{key.replace("__", "."): item for key, item in values.items()},
    }
    return {
        "general.architecture": architecture,
        **{f"{architecture}.{key}": item for key, item in usual.items() if item is not None},
        "tokenizer.ggml.tokens": ["a", "bc", "def"],
    }


def safetensors(tensors: dict[str, tuple[str, int]]) -> bytes:
    """A file with tensors of so many bytes: {name: (number format, bytes)}."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, (form, size) in tensors.items():
        header[name] = {"dtype": form, "shape": [size], "data_offsets": [offset, offset + size]}
        offset += size
    data = json.dumps(header).encode()
    return struct.pack("<Q", len(data)) + data + bytes(offset)
