# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The shape of a model out of the header of its GGUF file. Names of keys are those of llama.cpp (gguf-py, constants.py)."""

from __future__ import annotations

from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.gguf_header import Gguf
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.header_bytes import HeaderError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.model_shape import (
    Attention,
    layer_count,
    make_shape,
    number,
    recurrent_state,
)

# Every n-th layer sees the whole context, the others a window: what llama.cpp takes where the file says no pattern. For
# architectures that are not here it takes no notice of a window (phi3, for one), unless the file has a pattern.
PERIODS = {
    "gemma2": 2, "gemma3": 6, "gemma3n": 5, "cohere2": 4, "gpt-oss": 2, "exaone4": 4, "smallthinker": 4, "olmo2": 4, "plamo3": 8,
    "afmoe": 4,
}
# They look at a text once, and keep nothing of it.
ENCODERS = {
    "bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert", "t5encoder",
    "gemma-embedding",
}
RECURRENT = ("mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7")


def shape_of_gguf(header: Gguf, weights: int) -> dict[str, Any]:
    """The shape of the model in a GGUF file whose tensors have `weights` bytes; HeaderError where it does not say enough."""
    architecture = header.values.get("general.architecture")
    if not isinstance(architecture, str):
        raise HeaderError("the file does not say general.architecture")
    prefix = f"{architecture}."
    values = {key[len(prefix) :]: value for key, value in header.values.items() if key.startswith(prefix)}
    layers = layer_count(values, "block_count")
    heads = _each(values, "attention.head_count", layers, 0)
    attention = [] if architecture in RECURRENT else _attention(architecture, values, layers, heads)
    remembers = any(layer is not None for layer in attention)
    recurrent = layers if architecture in RECURRENT or _side_by_side(attention) else attention.count(None)
    return make_shape(
        architecture,
        weights,
        attention or [None] * layers,
        hidden=number(values, "embedding_length"),
        heads=max(1, *heads),
        ffn=_ffn(values, layers),
        vocab=_vocab(values, header),
        state=0 if architecture in ENCODERS or (remembers and not recurrent) else recurrent * _state(values),
    )


def _attention(architecture: str, values: dict[str, Any], layers: int, heads: list[int]) -> list[Attention | None]:
    if architecture in ENCODERS or values.get("attention.causal") is False:
        return [None] * layers
    kv_heads = _each(values, "attention.head_count_kv", layers, heads)
    width = number(values, "embedding_length") // max(1, *heads)
    key = number(values, "attention.key_length", default=width)
    value = number(values, "attention.value_length", default=width)
    latent = number(values, "attention.kv_lora_rank", default=0)
    if latent and "attention.key_length_mla" in values:
        # Multi-head latent attention: one vector for all heads, from which keys and values are made.
        return [Attention(1, latent + number(values, "rope.dimension_count"), 0)] * layers
    window = number(values, "attention.sliding_window", default=0)
    windowed = _windowed(architecture, values, layers) if window else [False] * layers
    small_key = number(values, "attention.key_length_swa", default=key)
    small_value = number(values, "attention.value_length_swa", default=value)
    interval = number(values, "full_attention_interval", default=0)
    shared = number(values, "attention.shared_kv_layers", default=0)
    found: list[Attention | None] = []
    for layer, count in enumerate(kv_heads):
        if count == 0 or (interval and (layer + 1) % interval) or layer >= layers - shared:
            found.append(None)
        elif windowed[layer]:
            found.append(Attention(count, small_key, small_value, window))
        else:
            found.append(Attention(count, key, value))
    return found


def _windowed(architecture: str, values: dict[str, Any], layers: int) -> list[bool]:
    """Of each layer, whether it looks back no further than the window."""
    pattern = values.get("attention.sliding_window_pattern", PERIODS.get(architecture))
    if isinstance(pattern, list) and pattern:
        return [bool(pattern[layer % len(pattern)]) for layer in range(layers)]
    if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern > 0:
        return [layer % pattern < pattern - 1 for layer in range(layers)]
    return [False] * layers


def _each(values: dict[str, Any], key: str, layers: int, default: int | list[int]) -> list[int]:
    """A number for each layer: the file has one for all, or a list."""
    value = values.get(key, default)
    if isinstance(value, list):
        if len(value) < layers:
            raise HeaderError(f"{key} has {len(value)} numbers for {layers} layers")
        return [number({key: entry}, key) for entry in value[:layers]]
    return [number({key: value}, key)] * layers


def _ffn(values: dict[str, Any], layers: int) -> int:
    dense = max(_each(values, "feed_forward_length", layers, 0))
    active = number(values, "expert_used_count", default=1)
    return max(dense, max(1, active) * number(values, "expert_feed_forward_length", default=dense))


def _vocab(values: dict[str, Any], header: Gguf) -> int:
    """What the output matrix has, or the vocabulary."""
    for name in ("output.weight", "token_embd.weight"):
        shape = header.shapes.get(name, ())
        if len(shape) > 1:
            return shape[1]
    return number(values, "vocab_size", default=header.lengths.get("tokenizer.ggml.tokens", 0))


def _side_by_side(attention: list[Attention | None]) -> bool:
    """Whether every layer has attention: where there is a state too, each has both (Falcon-H1)."""
    return bool(attention) and None not in attention


def _state(values: dict[str, Any]) -> int:
    """What one recurrent layer keeps for a sequence; 0 where nothing says so."""
    if "wkv.head_size" in values:
        hidden = number(values, "embedding_length")
        return hidden * number(values, "wkv.head_size") + 2 * hidden
    return recurrent_state(
        number(values, "ssm.inner_size", default=0),
        number(values, "ssm.state_size", default=0),
        number(values, "ssm.group_count", default=0),
        number(values, "ssm.conv_kernel", default=0),
    )
