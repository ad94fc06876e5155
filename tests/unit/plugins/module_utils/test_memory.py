# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The estimate against what others have published or measured of well-known models."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.memory import (
    CACHE_TYPES,
    MARGIN,
    Load,
    cache_bytes,
    estimate,
    tensor_parallel_sizes,
    token_bytes,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.shape_config import shape_of_config
from ansible_collections.localfirst.llm_fleet.tests.unit.support.known_models import CONFIGS

KIB, MIB, GIB = 2**10, 2**20, 2**30


def shape(name: str, weights: int = GIB) -> dict:
    return shape_of_config(CONFIGS[name], weights)


# One token's part of the cache, in 16 bits


@pytest.mark.parametrize(
    ("name", "published"),
    [
        # "Insights into DeepSeek-V3" (ISCA 2025), table 1, in KB of 1000 bytes.
        ("DeepSeek-V3", 70_272),
        ("Qwen2.5-72B", 327_680),
        ("Llama-3.1-405B", 516_096),
        # Hugging Face's article on Llama 3.1: 0.125 GiB for 1024 tokens of 8B; 39.06 GiB for 128 000 tokens of 70B.
        ("Llama-3.1-8B", GIB // 8 // 1024),
        ("Llama-3.1-70B", 320 * KIB),
        # llama.cpp's log of Llama 2 7B: "KV self size = 2048.00 MiB" at 4096 tokens.
        ("Llama-2-7B", 2 * GIB // 4096),
        # The PagedAttention paper (SOSP 2023), section 3: 800 KB for a token of OPT-13B.
        ("OPT-13B", 800 * KIB),
    ],
)
def test_one_token_takes_what_was_published(name, published):
    assert token_bytes(shape(name)) == published


@pytest.mark.parametrize(
    ("name", "tokens", "published"),
    [
        ("Llama-3.1-8B", 16_000, 1.95),
        ("Llama-3.1-8B", 128_000, 15.62),
        ("Llama-3.1-70B", 16_000, 4.88),
        ("Llama-3.1-70B", 128_000, 39.06),
    ],
)
def test_long_contexts_of_llama_3_1(name, tokens, published):
    """Hugging Face's article on Llama 3.1, its table of the cache's size in GiB."""
    assert estimate(shape(name), Load(tokens)).kv_cache / GIB == pytest.approx(published, abs=0.01)


def test_a_window_on_all_layers_saves_what_the_paper_says():
    """Mistral 7B (2023), section 2: with a rolling buffer, the cache of 32 k tokens is 8 times smaller. One batch more is kept here."""
    full = {**shape("Mistral-7B"), "cache": [{**group, "window": None} for group in shape("Mistral-7B")["cache"]]}
    load = Load(32_768)
    assert 7 < estimate(full, load).kv_cache / estimate(shape("Mistral-7B"), load).kv_cache < 8


def test_one_layer_in_six_of_gemma_3_sees_everything():
    """Gemma 3 (2025), section 2: five local layers, with a window of 1024 tokens, to each global one."""
    groups = shape("Gemma-3-12B")["cache"]
    assert {group.get("window"): group["layers"] for group in groups} == {1024: 40, None: 8}


def test_every_second_layer_of_gemma_2_has_a_window():
    """Gemma 2 (2024), section 2: local layers see 4096 tokens, global ones 8192, alternately."""
    groups = shape("Gemma-2-9B")["cache"]
    assert {group.get("window"): group["layers"] for group in groups} == {4096: 21, None: 21}


def test_gpt_oss_alternates_too():
    """Its model card (2025), section 2: layers alternate between a window of 128 tokens and all of them; 8 heads for keys, of 64."""
    assert {group.get("window"): (group["layers"], group["heads"], group["key"]) for group in shape("gpt-oss-20b")["cache"]} == {
        128: (12, 8, 64),
        None: (12, 8, 64),
    }


# The whole


@pytest.mark.parametrize(
    ("name", "parameters", "published"),
    [
        # Hugging Face's article on Llama 3.1, memory for weights in 16 bits, in GB.
        ("Llama-3.1-8B", 8.03e9, 16),
        ("Llama-3.1-70B", 70.6e9, 140),
        # Mistral's own documentation: GPU RAM in 16 bits, in GB.
        ("Mistral-7B", 7.3e9, 16),
        ("Mixtral-8x7B", 46.7e9, 100),
    ],
)
def test_weights_and_a_short_context_are_what_publishers_ask_for(name, parameters, published):
    total = estimate(shape(name, int(2 * parameters)), Load(4096, batch=512)).total
    assert total / 1e9 == pytest.approx(published, rel=MARGIN)


@pytest.mark.parametrize(
    ("name", "context", "flash", "measured"),
    [
        ("Llama-3.1-8B", 512, False, 258.5),
        ("Llama-3.1-8B", 8192, False, 560.0),
        ("Qwen3.5-9B", 262_144, True, 808.02),
    ],
)
def test_llama_cpps_buffers(name, context, flash, measured):
    """ "CUDA0 compute buffer size" in logs that people have published, with batches of 512. Never less, and not much more."""
    buffers = estimate(shape(name), Load(context, flash=flash)).buffers / MIB
    assert measured <= buffers < 1.3 * measured


@pytest.mark.parametrize(("context", "tensors", "buffers"), [(512, 4403.49, 258.5), (8192, 4156.0, 560.0)])
def test_llama_3_8b_as_llama_cpp_measured_it(context, tensors, buffers):
    """Published logs of quantized Llama 3 8B: what is on the GPU, of tensors that have 281.81 MiB more, which stay on the CPU."""
    measured = tensors + context / 8 + buffers
    found = estimate(shape("Llama-3.1-8B", int((tensors + 281.81) * MIB)), Load(context, flash=False)).total / MIB
    assert measured <= found < (1 + MARGIN) * measured


def test_a_hybrid_as_llama_cpp_measured_it():
    """A published log of Qwen3.5-9B in Q4_K_M, 262 144 tokens in q8_0: 5607 MiB of tensors, "KV buffer size = 4352.00 MiB",
    "RS buffer size = 100.50 MiB" for two sequences, "compute buffer size = 808.02 MiB"."""
    qwen = shape("Qwen3.5-9B", int(5606.5 * MIB))
    load = Load(262_144, key_type="q8_0", value_type="q8_0")
    assert estimate({**qwen, "state": None}, load).kv_cache == 4352 * MIB
    assert estimate({**qwen, "cache": []}, replace(load, sequences=2)).kv_cache == 100.5 * MIB
    measured = 5606.5 + 4352 + 100.5 / 2 + 808.02
    assert measured <= estimate(qwen, load).total / MIB < (1 + MARGIN) * measured


def test_a_mixture_of_experts_loads_all_of_them():
    assert estimate(shape("Mixtral-8x7B", 93 * GIB), Load(4096)).weights == 93 * GIB


def test_phi_3_has_no_shared_heads():
    """Phi-3 (2024), section 2: 32 heads, 32 layers, a width of 3072."""
    assert token_bytes(shape("Phi-3-mini")) == 2 * 2 * 32 * 3072


def test_an_encoder_keeps_nothing():
    found = estimate(shape("bge-large"), Load(512, sequences=64))
    assert found.kv_cache == 0 and found.buffers > 0


def test_only_the_attention_layers_of_a_hybrid_grow():
    """Jamba (2024), table 1: 4 GB of cache at 256 k tokens, where Mixtral has 32 GB and Mistral 32 GB."""
    jamba = shape("Jamba-v0.1")
    assert token_bytes(jamba) * 256 * KIB == 4 * GIB
    assert token_bytes(shape("Mixtral-8x7B")) * 256 * KIB == 32 * GIB
    assert estimate(jamba, Load(1)).kv_cache > token_bytes(jamba)  # the others have a state


def test_qwen3_next_has_attention_in_one_layer_of_four():
    [group] = shape("Qwen3-Next-80B")["cache"]
    assert group["layers"] * 4 == shape("Qwen3-Next-80B")["layers"]


# Number formats


@pytest.mark.parametrize(("kind", "bits"), [("f32", 32), ("f16", 16), ("fp8", 8), ("q8_0", 8.5), ("q4_0", 4.5)])
def test_bits_of_the_caches_number_formats(kind, bits):
    """ggml-common.h: blocks of 32 numbers with a scale of 16 bits."""
    assert cache_bytes(3200, kind) * 8 == 3200 * bits


def test_a_number_format_that_nobody_knows_counts_as_the_usual_one():
    assert cache_bytes(1000, "odd") == cache_bytes(1000, "f16")


# Several GPUs


def test_heads_that_cannot_be_divided_any_further_are_copied():
    """vLLM replicates keys and values where there are more GPUs than heads for them."""
    two, four, eight = (estimate(shape("Qwen2.5-7B"), Load(4096, gpus=gpus, tensor_parallel=True)).kv_cache for gpus in (2, 4, 8))
    assert two == 2 * four and four == eight


def test_latents_are_copied_to_every_gpu():
    one, many = (estimate(shape("DeepSeek-V3"), Load(4096, gpus=gpus, tensor_parallel=True)) for gpus in (1, 8))
    assert one.kv_cache == many.kv_cache and one.weights == 8 * many.weights


def test_sizes_that_share_the_heads():
    """Llama 3.1 70B has 64 heads and 8 for keys; Qwen2.5 7B 28 and 4, so that 7 GPUs would have to cut heads of keys."""
    assert tensor_parallel_sizes(shape("Llama-3.1-70B"), 16) == [1, 2, 4, 8, 16]
    assert tensor_parallel_sizes(shape("Qwen2.5-7B"), 8) == [1, 2, 4]


def test_layers_that_stay_in_the_machine_take_nothing_of_a_gpu():
    whole, half, none = (estimate(shape("Llama-2-7B"), Load(4096, gpu_layers=layers)) for layers in (None, 16, 0))
    assert none.weights == none.kv_cache == 0 < half.weights < whole.weights
    assert estimate(shape("Llama-2-7B"), Load(4096, gpu_layers=999)) == whole


# Whatever the model

names = st.sampled_from(sorted(CONFIGS))
loads = st.builds(
    Load,
    context=st.integers(1, 2**20),
    sequences=st.integers(1, 64),
    key_type=st.sampled_from(sorted(CACHE_TYPES)),
    value_type=st.sampled_from(sorted(CACHE_TYPES)),
    gpus=st.integers(1, 16),
    tensor_parallel=st.booleans(),
    batch=st.integers(1, 4096),
    flash=st.booleans(),
    paged=st.booleans(),
    gpu_layers=st.none() | st.integers(0, 100),
    overhead=st.integers(0, GIB),
)


@given(names, loads, st.integers(1, 2**20), st.integers(1, 64))
def test_more_context_and_more_sequences_never_take_less(name, load, context, sequences):
    more = replace(load, context=load.context + context, sequences=load.sequences + sequences)
    for larger in (replace(load, context=more.context), replace(load, sequences=more.sequences), more):
        before, after = estimate(shape(name), load), estimate(shape(name), larger)
        assert after.total >= before.total and after.kv_cache >= before.kv_cache


@given(names, loads, st.sampled_from(sorted(CACHE_TYPES)), st.sampled_from(sorted(CACHE_TYPES)))
def test_wider_numbers_never_take_less(name, load, one, other):
    narrow, wide = sorted((one, other), key=lambda kind: CACHE_TYPES[kind][0] / CACHE_TYPES[kind][1])
    small, large = (estimate(shape(name), replace(load, key_type=kind, value_type=kind)) for kind in (narrow, wide))
    assert large.kv_cache >= small.kv_cache


@given(names, loads)
def test_the_parts_on_all_gpus_are_never_less_than_the_whole(name, load):
    whole, part = estimate(shape(name), replace(load, gpus=1)), estimate(shape(name), load)
    for field in ("weights", "kv_cache", "buffers"):
        assert load.gpus * getattr(part, field) >= getattr(whole, field) >= getattr(part, field)
    assert part.total == part.weights + part.kv_cache + part.buffers + part.overhead
