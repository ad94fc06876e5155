#!/usr/bin/env python3
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Write a tiny llama-architecture GGUF model with random weights.

The file is a complete model for llama.cpp's llama-server: it has a vocabulary
(SentencePiece style, with byte fallback, so any text can be tokenised), a chat
template and F16 weights.  It says nonsense, but it loads in milliseconds, and
the same arguments always give the same bytes, so its digest can be pinned.

Embedding channel 0 is a bias channel: every token writes the same value to it
and no layer may change it, so the output matrix can use it to keep control and
byte tokens from being sampled.  An answer is then always words, and always as
long as max_tokens asks for: a load test sees the lengths that it ordered.

Idle layers compute and add nothing: the same answers as without them, later.
A broken file has a model's header and garbage after it: no engine loads it.

    pip install gguf
    make_tiny_gguf.py tiny.gguf
    make_tiny_gguf.py --idle-layers 60 slower.gguf
    make_tiny_gguf.py --broken broken.gguf
"""

import argparse
import string
import struct
from pathlib import Path

import gguf
import numpy as np

SPECIAL = ["<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]
UNK, BOS, EOS = 0, 1, 2
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
SPACE = "\u2581"  # how SentencePiece writes a space
BIAS, NEVER = 8.0, -60.0
GARBAGE = 2**20  # bytes


def build_vocab(words: int, rng: np.random.Generator):
    """Return (tokens, scores, types): control, bytes, characters, then words."""
    vocab = [(t, 0.0, gguf.TokenType.CONTROL) for t in SPECIAL]
    vocab[UNK] = (SPECIAL[UNK], 0.0, gguf.TokenType.UNKNOWN)
    vocab += [(f"<0x{b:02X}>", 0.0, gguf.TokenType.BYTE) for b in range(256)]
    pieces = [SPACE, *string.ascii_letters, *string.digits, *string.punctuation]
    seen = set(pieces)
    while len(pieces) < words:
        word = SPACE + "".join(rng.choice(SYLLABLES, rng.integers(1, 4)))
        # A word can only be merged if each of its beginnings is a token too.
        for end in range(2, len(word) + 1):
            if word[:end] not in seen:
                seen.add(word[:end])
                pieces.append(word[:end])
    vocab += [(p, -float(i), gguf.TokenType.NORMAL) for i, p in enumerate(pieces)]
    return tuple(zip(*vocab, strict=True))


def write_broken(path: str, tensors: int, rng: np.random.Generator) -> None:
    """A header that promises metadata and tensors, and no such thing."""
    header = struct.pack("<4sIQQ", b"GGUF", gguf.GGUF_VERSION, tensors, 24)
    Path(path).write_bytes(header + rng.bytes(GARBAGE))


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("output")
    cli.add_argument("--name", default="tiny-random-llama")
    cli.add_argument("--layers", type=int, default=4)
    cli.add_argument("--idle-layers", type=int, default=0, help="more layers, that change no answer")
    cli.add_argument("--dim", type=int, default=256)
    cli.add_argument("--ffn", type=int, default=512)
    cli.add_argument("--heads", type=int, default=4)
    cli.add_argument("--kv-heads", type=int, default=2)
    cli.add_argument("--context", type=int, default=4096)
    cli.add_argument("--words", type=int, default=1024)
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--broken", action="store_true", help="only the header of a model, then garbage")
    a = cli.parse_args()
    if a.dim % a.heads or a.heads % a.kv_heads or a.dim % 32 or a.ffn % 32:
        cli.error("dim must divide by heads and 32, heads by kv-heads, ffn by 32")

    rng = np.random.default_rng(a.seed)
    if a.broken:
        write_broken(a.output, 3 + 9 * a.layers, rng)
        return
    tokens, scores, types = build_vocab(a.words, rng)
    head_dim, never = a.dim // a.heads, len(SPECIAL) + 256

    w = gguf.GGUFWriter(a.output, "llama")
    w.add_name(a.name)
    w.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    w.add_vocab_size(len(tokens))
    w.add_context_length(a.context)
    w.add_embedding_length(a.dim)
    w.add_block_count(a.layers + a.idle_layers)
    w.add_feed_forward_length(a.ffn)
    w.add_head_count(a.heads)
    w.add_head_count_kv(a.kv_heads)
    w.add_rope_dimension_count(head_dim)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_tokenizer_model("llama")
    w.add_tokenizer_pre("default")
    w.add_token_list(tokens)
    w.add_token_scores(scores)
    w.add_token_types(types)
    w.add_unk_token_id(UNK)
    w.add_bos_token_id(BOS)
    w.add_eos_token_id(EOS)
    w.add_add_bos_token(False)  # the chat template writes it
    w.add_chat_template(CHAT_TEMPLATE)

    def matrix(name: str, rows: int, cols: int, change=None, rng=rng) -> None:
        data = rng.standard_normal((rows, cols), np.float32) / np.sqrt(cols)
        if change:
            change(data)
        w.add_tensor(f"{name}.weight", data.astype(np.float16))

    def norm(name: str) -> None:
        w.add_tensor(f"{name}.weight", np.ones(a.dim, np.float32))

    def set_bias(m):  # token embeddings
        m[:, 0] = BIAS / np.sqrt(a.dim)

    def keep_bias(m):  # what a layer adds to the residual stream
        m[0, :] = 0

    def forbid(m):  # output: channel 0 is positive whatever was read
        m[:, 0] = 0
        m[:never] = 0
        m[:never, 0] = NEVER

    def keep_all(m):  # an idle layer adds nothing
        m[:] = 0

    def layer(blk: str, keep, rng) -> None:
        norm(f"{blk}.attn_norm")
        matrix(f"{blk}.attn_q", a.dim, a.dim, rng=rng)
        matrix(f"{blk}.attn_k", head_dim * a.kv_heads, a.dim, rng=rng)
        matrix(f"{blk}.attn_v", head_dim * a.kv_heads, a.dim, rng=rng)
        matrix(f"{blk}.attn_output", a.dim, a.dim, keep, rng=rng)
        norm(f"{blk}.ffn_norm")
        matrix(f"{blk}.ffn_gate", a.ffn, a.dim, rng=rng)
        matrix(f"{blk}.ffn_up", a.ffn, a.dim, rng=rng)
        matrix(f"{blk}.ffn_down", a.dim, a.ffn, keep, rng=rng)

    matrix("token_embd", len(tokens), a.dim, set_bias)
    for i in range(a.layers):
        layer(f"blk.{i}", keep_bias, rng)
    # Numbers of their own, or the output matrix would be another one.
    idle = np.random.default_rng(a.seed + 1)
    for i in range(a.idle_layers):
        layer(f"blk.{a.layers + i}", keep_all, idle)
    norm("output_norm")
    matrix("output", len(tokens), a.dim, forbid)

    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


if __name__ == "__main__":
    main()
