#!/usr/bin/env python3
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Write a tiny llama-architecture model with random weights, as a directory that transformers, vLLM and others load.

It holds config.json, generation_config.json, model.safetensors (BF16), tokenizer.json and tokenizer_config.json with a chat
template. The vocabulary is byte-level BPE, so any text can be tokenised. It says nonsense, in words and always as long as
max_tokens asks for, and the same arguments always give the same bytes: see make_tiny_gguf.py, whose sister this is.

A broken one has the header of its weights and half of the weights: no engine loads it.

    make_tiny_safetensors.py tiny
    make_tiny_safetensors.py --seed 2 --idle-layers 60 slower
    make_tiny_safetensors.py --broken broken
"""

import argparse
import json
import struct
from pathlib import Path

import numpy as np

SPECIAL = ["<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
BOS, EOS = 0, 1
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
BIAS, NEVER = 8.0, -60.0


def byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary: itself where it can be seen, or one above 255."""
    seen = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return [chr(byte) if byte in seen else chr(256 + hidden.index(byte)) for byte in range(256)]


def build_vocab(words: int, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """The tokens (control, bytes, then words) and the merges that lead to the words."""
    letters = byte_letters()
    space = letters[ord(" ")]
    tokens, merges = [*SPECIAL, *letters], []
    seen = set(tokens)
    while len(merges) < words:
        word = space + "".join(rng.choice(SYLLABLES, rng.integers(1, 4)))
        # A word can only be merged if each of its beginnings is a token too.
        for end in range(2, len(word) + 1):
            if word[:end] not in seen:
                seen.add(word[:end])
                tokens.append(word[:end])
                merges.append(f"{word[: end - 1]} {word[end - 1]}")
    return tokens, merges


def tokenizer(tokens: list[str], merges: list[str]) -> dict:
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": token, **plain} for number, token in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": merges,
        },
    }


def bfloat16(data: np.ndarray) -> bytes:
    """The upper halves of 32-bit floats, rounded to even."""
    bits = np.ascontiguousarray(data, "<f4").view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def make_weights(a: argparse.Namespace, vocabulary: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Channel 0 carries the same value for each token, and no layer changes it: by it the output keeps control and byte
    tokens from being sampled."""
    head_dim, never = a.dim // a.heads, len(SPECIAL) + 256
    found: dict[str, np.ndarray] = {}

    def matrix(name: str, rows: int, cols: int, rng: np.random.Generator) -> np.ndarray:
        found[f"{name}.weight"] = rng.standard_normal((rows, cols), np.float32) / np.sqrt(cols, dtype=np.float32)
        return found[f"{name}.weight"]

    def norm(name: str) -> None:
        found[f"{name}.weight"] = np.ones(a.dim, np.float32)

    def layer(name: str, rng: np.random.Generator, idle: bool) -> None:
        norm(f"{name}.input_layernorm")
        matrix(f"{name}.self_attn.q_proj", a.dim, a.dim, rng)
        matrix(f"{name}.self_attn.k_proj", head_dim * a.kv_heads, a.dim, rng)
        matrix(f"{name}.self_attn.v_proj", head_dim * a.kv_heads, a.dim, rng)
        adding = [matrix(f"{name}.self_attn.o_proj", a.dim, a.dim, rng)]
        norm(f"{name}.post_attention_layernorm")
        matrix(f"{name}.mlp.gate_proj", a.ffn, a.dim, rng)
        matrix(f"{name}.mlp.up_proj", a.ffn, a.dim, rng)
        adding.append(matrix(f"{name}.mlp.down_proj", a.dim, a.ffn, rng))
        for data in adding:
            data[: a.dim if idle else 1] = 0

    embeddings = matrix("model.embed_tokens", vocabulary, a.dim, rng)
    embeddings[:, 0] = BIAS / np.sqrt(a.dim)
    for number in range(a.layers):
        layer(f"model.layers.{number}", rng, False)
    # Numbers of their own, or the output matrix would be another one.
    more = np.random.default_rng(a.seed + 1)
    for number in range(a.layers, a.layers + a.idle_layers):
        layer(f"model.layers.{number}", more, True)
    norm("model.norm")
    output = matrix("lm_head", vocabulary, a.dim, rng)
    output[:, 0] = 0
    output[:never] = 0
    output[:never, 0] = NEVER
    return found


def write_weights(path: Path, tensors: dict[str, np.ndarray], broken: bool) -> None:
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name in sorted(tensors):
        end = at + 2 * tensors[name].size
        header[name] = {"dtype": "BF16", "shape": list(tensors[name].shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(bfloat16(tensors[name]) for name in sorted(tensors))
    path.write_bytes(struct.pack("<Q", len(text)) + text + (data[: len(data) // 2] if broken else data))


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("output", type=Path, help="a directory, which is made where it is missing")
    cli.add_argument("--layers", type=int, default=4)
    cli.add_argument("--idle-layers", type=int, default=0, help="more layers, that change no answer")
    cli.add_argument("--dim", type=int, default=256)
    cli.add_argument("--ffn", type=int, default=512)
    cli.add_argument("--heads", type=int, default=4)
    cli.add_argument("--kv-heads", type=int, default=2)
    cli.add_argument("--context", type=int, default=4096)
    cli.add_argument("--words", type=int, default=1024)
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--broken", action="store_true", help="half of the weights are missing")
    a = cli.parse_args()
    if a.dim % a.heads or a.heads % a.kv_heads or a.dim % 32 or a.ffn % 32 or (a.dim // a.heads) % 2:
        cli.error("dim must divide by heads and 32, heads by kv-heads, ffn by 32, dim/heads by 2")

    rng = np.random.default_rng(a.seed)
    tokens, merges = build_vocab(a.words, rng)
    ids = {"bos_token_id": BOS, "eos_token_id": EOS}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **ids,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": a.dim // a.heads,
        "hidden_act": "silu",
        "hidden_size": a.dim,
        "initializer_range": 0.02,
        "intermediate_size": a.ffn,
        "max_position_embeddings": a.context,
        "mlp_bias": False,
        "num_attention_heads": a.heads,
        "num_hidden_layers": a.layers + a.idle_layers,
        "num_key_value_heads": a.kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": len(tokens),
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[BOS],
        "eos_token": SPECIAL[EOS],
        "add_bos_token": False,  # the chat template writes it
        "clean_up_tokenization_spaces": False,
        "model_max_length": a.context,
        "chat_template": CHAT_TEMPLATE,
    }
    a.output.mkdir(parents=True, exist_ok=True)
    files = {
        "config.json": config,
        "generation_config.json": ids,
        "tokenizer.json": tokenizer(tokens, merges),
        "tokenizer_config.json": settings,
    }
    for name, content in files.items():
        (a.output / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_weights(a.output / "model.safetensors", make_weights(a, len(tokens), rng), a.broken)


if __name__ == "__main__":
    main()
