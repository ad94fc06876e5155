# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Writes a transformers directory as the GGUF file that llama-server reads: the same weights, the same vocabulary.

Only for what testbed/make_tiny_safetensors.py makes, and models built like it: LlamaForCausalLM without scaled positions,
weights in F32, F16 or BF16, and a byte-level BPE tokenizer that splits as GPT-2's does.
"""
from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from model_dir import BadWeights, ModelDir, NoConfig, Tensor

ALIGNMENT = 32
U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9  # types of metadata
GGML_F32, GGML_F16 = 0, 1  # types of tensors
NORMAL, CONTROL = 1, 3  # types of tokens
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
INNER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(model: ModelDir, path: Path) -> None:
    metadata = {**architecture(model.config), **tokenizer(model.path)}
    names = {name: renamed(name) for name in sorted(model.tensors)}
    kinds = {name: GGML_F16 if tensor.dtype == "F16" and len(tensor.shape) > 1 else GGML_F32 for name, tensor in model.tensors.items()}
    with path.open("wb") as file:
        file.write(struct.pack("<4sIQQ", b"GGUF", 3, len(names), len(metadata)))
        for key, (kind, value) in metadata.items():
            file.write(string(key) + struct.pack("<I", kind) + packed(kind, value))
        offset = 0
        for name, new in names.items():
            shape = model.tensors[name].shape[::-1]
            file.write(string(new) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kinds[name], offset))
            elements = 1
            for length in shape:
                elements *= length
            offset += padded(elements * (2 if kinds[name] == GGML_F16 else 4))
        fill(file)
        for name in names:
            file.write(weights(model, name, kinds[name]))
            fill(file)


def architecture(config: dict) -> dict:
    if config["architectures"] != ["LlamaForCausalLM"] or config.get("rope_scaling"):
        raise NoConfig(f"this double computes only LlamaForCausalLM without rope_scaling, not {config['architectures']}")
    heads = config["num_attention_heads"]
    theta = config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta") or 10000.0
    return {
        "general.architecture": (STRING, "llama"),
        "general.alignment": (U32, ALIGNMENT),
        "llama.vocab_size": (U32, config["vocab_size"]),
        "llama.context_length": (U32, config["max_position_embeddings"]),
        "llama.embedding_length": (U32, config["hidden_size"]),
        "llama.block_count": (U32, config["num_hidden_layers"]),
        "llama.feed_forward_length": (U32, config["intermediate_size"]),
        "llama.attention.head_count": (U32, heads),
        "llama.attention.head_count_kv": (U32, config.get("num_key_value_heads") or heads),
        "llama.attention.layer_norm_rms_epsilon": (F32, config["rms_norm_eps"]),
        "llama.rope.dimension_count": (U32, config.get("head_dim") or config["hidden_size"] // heads),
        "llama.rope.freq_base": (F32, theta),
    }


def tokenizer(path: Path) -> dict:
    try:
        whole = json.loads((path / "tokenizer.json").read_bytes())
        settings = json.loads((path / "tokenizer_config.json").read_bytes())
        vocabulary, merges = whole["model"]["vocab"], whole["model"]["merges"]
        special = {token["content"]: token["id"] for token in whole["added_tokens"]}
        tokens = [token for token, _id in sorted({**vocabulary, **special}.items(), key=lambda pair: pair[1])]
        found = {
            "tokenizer.ggml.model": (STRING, "gpt2"),
            "tokenizer.ggml.pre": (STRING, "gpt-2"),
            "tokenizer.ggml.tokens": (ARRAY, (STRING, tokens)),
            "tokenizer.ggml.token_type": (ARRAY, (I32, [CONTROL if token in special else NORMAL for token in tokens])),
            "tokenizer.ggml.merges": (ARRAY, (STRING, [pair if isinstance(pair, str) else " ".join(pair) for pair in merges])),
            "tokenizer.ggml.add_bos_token": (BOOL, bool(settings.get("add_bos_token"))),
        }
        for key in ("bos", "eos"):
            token = settings.get(f"{key}_token")
            token = token["content"] if isinstance(token, dict) else token
            if token is not None:
                found[f"tokenizer.ggml.{key}_token_id"] = (U32, special.get(token, vocabulary.get(token)))
        if settings.get("chat_template"):
            found["tokenizer.chat_template"] = (STRING, settings["chat_template"])
    except OSError as error:
        raise NoConfig(f"Can't load tokenizer for '{path}': {Path(error.filename).name} is missing") from error
    except (ValueError, KeyError, TypeError) as error:
        raise NoConfig(f"Can't load tokenizer for '{path}': this double knows byte-level BPE only ({error!r})") from error
    return found


def renamed(name: str) -> str:
    stem, _, end = name.rpartition(".")
    if stem in OUTER:
        return f"{OUTER[stem]}.{end}"
    head, _, rest = stem.removeprefix("model.layers.").partition(".")
    if head.isdigit() and rest in INNER:
        return f"blk.{head}.{INNER[rest]}.{end}"
    raise BadWeights(f"this double knows no tensor {name}")


def weights(model: ModelDir, name: str, kind: int) -> bytes:
    tensor = model.tensors[name]
    data = tensor.read()
    for part, key in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
        if name.endswith(f"{part}.weight"):
            heads = model.config.get(key) or model.config["num_attention_heads"]
            data = b"".join(interleaved(data, tensor, heads))
    return data if kind == GGML_F16 else widened(data, tensor.dtype)


def interleaved(data: bytes, tensor: Tensor, heads: int) -> Iterator[bytes]:
    """Rows in another order: transformers rotates the halves of a head against each other, llama.cpp neighbours."""
    rows, wide = tensor.shape[0], len(data) // tensor.shape[0]
    size = rows // heads
    for head in range(heads):
        for row in range(size):
            old = head * size + (row % 2) * (size // 2) + row // 2
            yield data[old * wide : (old + 1) * wide]


def widened(data: bytes, dtype: str) -> bytes:
    """As 32-bit floats."""
    if dtype == "BF16":
        wide = bytearray(2 * len(data))
        wide[2::4], wide[3::4] = data[0::2], data[1::2]
        return bytes(wide)
    if dtype == "F16":
        return struct.pack(f"<{len(data) // 2}f", *struct.unpack(f"<{len(data) // 2}e", data))
    if dtype != "F32":
        raise BadWeights(f"this double computes no weights in {dtype}")
    return data


def string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def packed(kind: int, value) -> bytes:
    if kind == STRING:
        return string(value)
    if kind == ARRAY:
        inner, values = value
        return struct.pack("<IQ", inner, len(values)) + b"".join(packed(inner, one) for one in values)
    return struct.pack({U32: "<I", I32: "<i", F32: "<f", BOOL: "<?"}[kind], value)


def padded(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT


def fill(file: BinaryIO) -> None:
    file.write(bytes(padded(file.tell()) - file.tell()))
