# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A model's directory as transformers writes it: config.json, *.safetensors and tokenizer.json."""
from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import NamedTuple

SIZES = {"F32": 4, "F16": 2, "BF16": 2}
LONGEST_HEADER = 100_000_000  # what the safetensors library allows


class ModelError(Exception):
    """A directory that holds no model that can be served."""


class NoConfig(ModelError):
    """There is no config.json, or it says nothing."""


class NoWeights(ModelError):
    """There is no *.safetensors file."""


class BadWeights(ModelError):
    """What should be weights is none."""


class Tensor(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int

    def read(self) -> bytes:
        with self.file.open("rb") as file:
            file.seek(self.start)
            return file.read(self.end - self.start)


class ModelDir(NamedTuple):
    path: Path
    config: dict
    tensors: dict[str, Tensor]

    @property
    def context(self) -> int:
        return int(self.config.get("max_position_embeddings") or 2048)

    def divides(self, parts: int) -> bool:
        """Whether the attention heads can be shared out evenly."""
        heads = int(self.config.get("num_attention_heads") or 1)
        return heads % parts == 0


def read_config(path: Path) -> dict:
    try:
        config = json.loads((path / "config.json").read_bytes())
    except OSError as error:
        raise NoConfig(f"{path} does not appear to have a file named config.json") from error
    except ValueError as error:
        raise NoConfig(f"It looks like the config file at '{path}/config.json' is not a valid JSON file.") from error
    if not isinstance(config, dict) or not config.get("architectures"):
        raise NoConfig(f"{path}/config.json names no architectures")
    return config


def weight_files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise NoWeights(f"No local weights found in {path} with extension .safetensors")
    return files


def read_header(file: Path) -> dict[str, Tensor]:
    """The tensors of one file. As the library does, refuse a file that is not exactly as long as its header says."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        first = opened.read(8)
        if len(first) < 8:
            raise BadWeights(f"{file.name}: Error while deserializing header: HeaderTooSmall")
        length = struct.unpack("<Q", first)[0]
        if length > min(LONGEST_HEADER, size - 8):
            raise BadWeights(f"{file.name}: Error while deserializing header: HeaderTooLarge")
        text = opened.read(length)
    try:
        header = {name: entry for name, entry in json.loads(text).items() if name != "__metadata__"}
        found = {}
        for name, entry in header.items():
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            found[name] = Tensor(entry["dtype"], tuple(entry["shape"]), file, start, end)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadWeights(f"{file.name}: Error while deserializing header: InvalidHeaderDeserialization") from error
    for name, tensor in found.items():
        if tensor.dtype in SIZES and tensor.end - tensor.start != math.prod(tensor.shape) * SIZES[tensor.dtype]:
            raise BadWeights(f"{file.name}: Error while deserializing header: TensorInvalidInfo ({name})")
    if max((tensor.end for tensor in found.values()), default=0) != size:
        raise BadWeights(f"{file.name}: Error while deserializing header: MetadataIncompleteBuffer")
    return found


def read_model(path: Path) -> ModelDir:
    config = read_config(path)
    tensors: dict[str, Tensor] = {}
    for file in weight_files(path):
        tensors.update(read_header(file))
    return ModelDir(path, config, tensors)
