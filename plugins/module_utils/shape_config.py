# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The shape of a model out of its config.json, as transformers writes it.

Families call the same thing by different names, and say in different ways which of their layers look back how far. A way
that is not known here counts as a look back over the whole context: the larger figure.
"""

from __future__ import annotations

from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.header_bytes import HeaderError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.model_shape import (
    Attention,
    layer_count,
    make_shape,
    number,
    recurrent_state,
)

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HIDDEN = ("hidden_size", "n_embd", "d_model", "dim")
HEADS = ("num_attention_heads", "n_head", "n_heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads", "multi_query_group_num")
FFN = ("intermediate_size", "ffn_hidden_size", "n_inner", "d_ff", "ffn_dim")
# Where models that see or hear keep what is said about their text part.
TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")

ENCODERS = {
    "bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "mpnet", "albert", "nomic_bert", "modernbert",
    "deberta-v2", "new", "gte", "neobert", "eurobert",
}
RECURRENT = {"mamba", "mamba2", "falcon_mamba", "rwkv", "rwkv5", "rwkv6", "rwkv7"}
# Every n-th layer sees the whole context, where the file does not say so itself.
PERIODS = {"gemma2": 2, "gemma3_text": 6, "gemma3": 6, "cohere2": 4, "gpt_oss": 2}
# All layers have the window that the file names.
ALL_WINDOWED = {"mistral", "mixtral", "phi3", "phimoe", "starcoder2"}

FULL, WINDOW, NONE = "full", "window", "none"


def shape_of_config(config: dict[str, Any], weights: int) -> dict[str, Any]:
    """The shape of a model whose tensors have `weights` bytes; HeaderError where the file does not say enough."""
    text = _text_part(config)
    kind = str(text.get("model_type") or config.get("model_type") or "")
    if not kind:
        raise HeaderError("it does not say model_type")
    if text.get("is_encoder_decoder") or config.get("is_encoder_decoder"):
        raise HeaderError("models with an encoder and a decoder are not known here")
    if text.get("block_configs"):
        raise HeaderError("its layers differ from each other in ways that are not known here")
    layers = layer_count(text, *LAYERS)
    kinds = _kinds(kind, text, layers)
    hidden = number(text, *HIDDEN)
    heads = max(1, number(text, *HEADS, default=1))
    state = 0 if kind in ENCODERS else kinds.count(NONE) * _state(text, hidden)
    return make_shape(
        kind,
        weights,
        [None if one == NONE else _attention(text, one == WINDOW, hidden, heads) for one in kinds],
        hidden=hidden,
        heads=heads,
        ffn=_ffn(text, hidden),
        vocab=number(text, "vocab_size", "padded_vocab_size", default=number(config, "vocab_size", default=0)),
        state=state,
    )


def _text_part(config: dict[str, Any]) -> dict[str, Any]:
    for _depth in range(3):
        inner = next((config[name] for name in TEXT_PARTS if isinstance(config.get(name), dict)), None)
        if inner is None or any(name in config for name in LAYERS):
            return config
        config = inner
    return config


# Attention


def _attention(text: dict[str, Any], windowed: bool, hidden: int, heads: int) -> Attention:
    latent = number(text, "kv_lora_rank", default=0)
    if latent:
        # Multi-head latent attention (DeepSeek-V2): one vector for all heads, and the part of the key that has the position.
        return Attention(1, latent + number(text, "qk_rope_head_dim", default=0) + number(text, "index_head_dim", default=0), 0)
    width = number(text, "head_dim", "attention_head_dim", default=hidden // heads) or hidden // heads
    kv_heads = _kv_heads(text, heads)
    if windowed:
        return Attention(kv_heads, width, number(text, "v_head_dim", default=width), _window(text))
    # Gemma 4 gives the layers that see everything heads of their own.
    width = number(text, "global_head_dim", default=width)
    return Attention(number(text, "num_global_key_value_heads", default=kv_heads), width, number(text, "v_head_dim", default=width))


def _kv_heads(text: dict[str, Any], heads: int) -> int:
    inner = text.get("attn_config")
    if isinstance(inner, dict):
        text = {**inner, **text}
    if isinstance(text.get("num_key_value_heads"), list):
        return max(number({"num_key_value_heads": entry}, "num_key_value_heads") for entry in text["num_key_value_heads"] or [heads])
    if text.get("multi_query") is True and not text.get("new_decoder_architecture") and "multi_query_group_num" not in text:
        return 1  # Falcon's first models, which name a number of heads as well
    return number(text, *KV_HEADS, default=heads) or heads


def _window(text: dict[str, Any]) -> int:
    return number(text, "sliding_window", "attention_chunk_size", "attention_window_size", "sliding_window_size", default=0)


# Which layer is of which kind


def _kinds(kind: str, text: dict[str, Any], layers: int) -> list[str]:
    if kind in ENCODERS or kind in RECURRENT:
        return [NONE] * layers
    named = _named_kinds(text, layers)
    if named is None:
        named = _windowed_kinds(kind, text, layers)
    if not _window(text):
        named = [FULL if one == WINDOW else one for one in named]
    return named


def _named_kinds(text: dict[str, Any], layers: int) -> list[str] | None:
    """What the file says of each layer by itself."""
    for key in ("layer_types", "layers_block_type", "block_types", "_block_types"):
        names = text.get(key)
        if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
            return [_kind_of(names[layer % len(names)]) for layer in range(layers)]
    pattern = text.get("hybrid_override_pattern")
    if isinstance(pattern, str) and len(pattern) >= layers:  # Nemotron-H: '*' is attention
        return [FULL if letter == "*" else NONE for letter in pattern[:layers]]
    flags = text.get("attn_type_list")
    if isinstance(flags, list) and len(flags) >= layers:
        return [FULL if flag else NONE for flag in flags[:layers]]
    for key in ("attn_layer_indices", "full_attn_idxs"):
        if isinstance(text.get(key), list):
            return [FULL if layer in text[key] else NONE for layer in range(layers)]
    period = number(text, "attn_layer_period", default=0)
    if period:  # Jamba
        return [FULL if layer % period == number(text, "attn_layer_offset", default=0) else NONE for layer in range(layers)]
    interval = number(text, "full_attention_interval", default=0)
    if interval:  # Qwen3-Next
        return [NONE if (layer + 1) % interval else FULL for layer in range(layers)]
    return None


def _kind_of(name: str) -> str:
    if any(word in name for word in ("sliding", "chunked", "local")):
        return WINDOW
    if any(word in name for word in ("linear", "mamba", "conv", "recurrent")):
        return NONE
    return FULL


def _windowed_kinds(kind: str, text: dict[str, Any], layers: int) -> list[str]:
    if text.get("use_sliding_window") is False:
        return [FULL] * layers
    pattern = text.get("sliding_window_pattern", PERIODS.get(kind))
    if isinstance(pattern, str) and pattern:  # EXAONE 4: "LLLG"
        return [WINDOW if pattern[layer % len(pattern)] == "L" else FULL for layer in range(layers)]
    if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern > 0:
        return [WINDOW if (layer + 1) % pattern else FULL for layer in range(layers)]
    if kind in ALL_WINDOWED:
        return [WINDOW] * layers
    if text.get("use_sliding_window") is True:  # Qwen2: from some layer on
        first = number(text, "max_window_layers", default=layers)
        return [WINDOW if layer >= first else FULL for layer in range(layers)]
    return [FULL] * layers


# The rest


def _ffn(text: dict[str, Any], hidden: int) -> int:
    dense = number(text, *FFN, default=4 * hidden)
    active = number(text, "num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts", default=1)
    return max(dense, max(1, active) * number(text, "moe_intermediate_size", default=dense))


def _state(text: dict[str, Any], hidden: int) -> int:
    """What one recurrent layer keeps for a sequence; 0 where nothing says so."""
    heads = number(text, "linear_num_value_heads", default=0)
    if heads:
        keys = number(text, "linear_num_key_heads", default=heads) * number(text, "linear_key_head_dim")
        inner = heads * number(text, "linear_value_head_dim")
        kernel = number(text, "linear_conv_kernel_dim", default=4)
        return inner * number(text, "linear_key_head_dim") + (kernel - 1) * (inner + 2 * keys)
    expand = number(text, "mamba_expand", "expand", default=2)
    mamba_heads = number(text, "mamba_num_heads", "mamba_n_heads", default=0)
    inner = mamba_heads * number(text, "mamba_head_dim", "mamba_d_head", default=0) or expand * hidden
    return recurrent_state(
        inner,
        number(text, "mamba_d_state", "ssm_state_size", "state_size", default=0),
        number(text, "mamba_n_groups", "n_groups", default=0),
        number(text, "mamba_d_conv", "conv_kernel", default=0),
    )
