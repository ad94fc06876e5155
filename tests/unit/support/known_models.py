# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What config.json of well-known models says, as far as memory goes. Taken from their repositories on the hub."""

from __future__ import annotations

from typing import Any


def _config(model_type: str, layers: int, hidden: int, heads: int, kv_heads: int, ffn: int, vocab: int, **other: Any) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        **other,
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "Llama-2-7B": _config("llama", 32, 4096, 32, 32, 11008, 32000),
    "Llama-3.1-8B": _config("llama", 32, 4096, 32, 8, 14336, 128256),
    "Llama-3.1-70B": _config("llama", 80, 8192, 64, 8, 28672, 128256),
    "Llama-3.1-405B": _config("llama", 126, 16384, 128, 8, 53248, 128256),
    "Mistral-7B": _config("mistral", 32, 4096, 32, 8, 14336, 32000, sliding_window=4096),
    "Mixtral-8x7B": _config("mixtral", 32, 4096, 32, 8, 14336, 32000, sliding_window=None, num_local_experts=8, num_experts_per_tok=2),
    "Qwen2.5-7B": _config("qwen2", 28, 3584, 28, 4, 18944, 152064, use_sliding_window=False, sliding_window=131072),
    "Qwen2.5-72B": _config("qwen2", 80, 8192, 64, 8, 29568, 152064, use_sliding_window=False, sliding_window=131072),
    "Gemma-2-9B": _config("gemma2", 42, 3584, 16, 8, 14336, 256000, head_dim=256, sliding_window=4096),
    # One that can see: the text model is a part of it.
    "Gemma-3-12B": {
        "model_type": "gemma3",
        "text_config": _config("gemma3_text", 48, 3840, 16, 8, 15360, 262208, head_dim=256, sliding_window=1024),
        "vision_config": {"model_type": "siglip_vision_model", "num_hidden_layers": 27, "hidden_size": 1152},
    },
    "Phi-3-mini": _config("phi3", 32, 3072, 32, 32, 8192, 32064, sliding_window=2047),
    "gpt-oss-20b": _config(
        "gpt_oss", 24, 2880, 64, 8, 2880, 201088, head_dim=64, sliding_window=128,
        layer_types=["sliding_attention", "full_attention"] * 12, num_local_experts=32, num_experts_per_tok=4,
    ),
    "DeepSeek-V3": _config(
        "deepseek_v3", 61, 7168, 128, 128, 18432, 129280, kv_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=128,
        v_head_dim=128, moe_intermediate_size=2048, n_routed_experts=256, num_experts_per_tok=8,
    ),
    "Qwen3-Next-80B": _config(
        "qwen3_next", 48, 2048, 16, 2, 5120, 151936, head_dim=256, full_attention_interval=4, moe_intermediate_size=512,
        num_experts_per_tok=10, linear_num_key_heads=16, linear_num_value_heads=32, linear_key_head_dim=128, linear_value_head_dim=128,
        linear_conv_kernel_dim=4,
    ),
    "Qwen3.5-9B": {
        "model_type": "qwen3_5",
        "text_config": _config(
            "qwen3_5_text", 32, 4096, 16, 4, 12288, 248320, head_dim=256, layer_types=(["linear_attention"] * 3 + ["full_attention"]) * 8,
            linear_num_key_heads=16, linear_num_value_heads=32, linear_key_head_dim=128, linear_value_head_dim=128,
            linear_conv_kernel_dim=4,
        ),
    },
    "Jamba-v0.1": _config(
        "jamba", 32, 4096, 32, 8, 14336, 65536, attn_layer_period=8, attn_layer_offset=4, mamba_expand=2, mamba_d_state=16,
        mamba_d_conv=4, num_experts=16, num_experts_per_tok=2,
    ),
    "OPT-13B": {"model_type": "opt", "num_hidden_layers": 40, "hidden_size": 5120, "num_attention_heads": 40, "ffn_dim": 20480,
                "vocab_size": 50272},
    "bge-large": {"model_type": "bert", "num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16,
                  "intermediate_size": 4096, "vocab_size": 30522},
}
