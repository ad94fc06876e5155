# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Shapes out of GGUF files. Key-values are those that llama.cpp's converter writes for these families."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.gguf_header import Gguf, read_gguf
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.header_bytes import BytesReader, HeaderError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.memory import Load, estimate, token_bytes
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.shape_config import shape_of_config
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.shape_gguf import shape_of_gguf
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gguf_builder import gguf, model
from ansible_collections.localfirst.llm_fleet.tests.unit.support.known_models import CONFIGS


def shape(architecture: str = "llama", tensors: dict | None = None, **values) -> dict:
    return shape_of_gguf(read_gguf(BytesReader(gguf(model(architecture, **values), tensors))), 1000)


def test_shared_heads():
    assert shape()["cache"] == [{"layers": 4, "heads": 2, "key": 64, "value": 64}]


def test_heads_may_have_a_width_of_their_own():
    assert shape(attention__key_length=128, attention__value_length=96)["cache"] == [{"layers": 4, "heads": 2, "key": 128, "value": 96}]


def test_the_vocabulary_is_what_the_output_has():
    assert shape(tensors={"token_embd.weight": (256, 1024)})["vocab"] == 1024
    assert shape(vocab_size=None)["vocab"] == 3  # the words of the tokenizer


@pytest.mark.parametrize(
    ("architecture", "values", "windowed"),
    [
        ("gemma2", {}, 3),
        ("gemma3", {}, 5),
        ("gpt-oss", {}, 3),
        ("cohere2", {}, 5),
        ("odd", {"attention__sliding_window_pattern": [True, True, False]}, 4),
        ("odd", {"attention__sliding_window_pattern": 2}, 3),
        # The larger figure, where llama.cpp takes no notice of the window or nobody knows.
        ("phi3", {}, 0),
        ("odd", {}, 0),
    ],
)
def test_windows_alternate_as_llama_cpp_has_it(architecture, values, windowed):
    found = shape(architecture, block_count=6, attention__sliding_window=128, **values)["cache"]
    assert {group.get("window"): group["layers"] for group in found} == {
        key: count for key, count in ((128, windowed), (None, 6 - windowed)) if count
    }


def test_latent_attention_keeps_one_vector_for_all_heads():
    """DeepSeek-V3 as llama.cpp converts it since 2025; before that, all heads were kept."""
    values = {"attention__kv_lora_rank": 512, "rope__dimension_count": 64, "attention__head_count": 128, "block_count": 61}
    latent = shape("deepseek2", attention__head_count_kv=1, attention__key_length_mla=192, **values)
    assert token_bytes(latent) == token_bytes(shape_of_config(CONFIGS["DeepSeek-V3"], 1)) == 70_272
    older = shape("deepseek2", attention__head_count_kv=128, attention__key_length=192, attention__value_length=128, **values)
    assert token_bytes(older) > 50 * token_bytes(latent)


def test_layers_that_have_no_heads_for_keys_keep_a_state_instead():
    hybrid = shape(
        "jamba", attention__head_count_kv=[0, 0, 2, 0], ssm__inner_size=512, ssm__state_size=16, ssm__conv_kernel=4
    )
    assert hybrid["cache"] == [{"layers": 1, "heads": 2, "key": 64, "value": 64}]
    assert hybrid["state"] == 3 * (512 * 16 + 3 * 512)


def test_qwen3_5_as_its_converter_writes_it_is_what_its_config_says():
    found = shape(
        "qwen35", block_count=32, embedding_length=4096, attention__head_count=16, attention__head_count_kv=4, attention__key_length=256,
        attention__value_length=256, full_attention_interval=4, ssm__inner_size=4096, ssm__state_size=128, ssm__group_count=16,
        ssm__conv_kernel=4,
    )
    known = shape_of_config(CONFIGS["Qwen3.5-9B"], 1)
    assert (found["cache"], found["state"]) == (known["cache"], known["state"])


@pytest.mark.parametrize(("architecture", "values"), [("bert", {"attention__causal": False}), ("nomic-bert", {}), ("mamba", {})])
def test_encoders_and_recurrent_models_keep_no_tokens(architecture, values):
    found = shape(architecture, **values)
    assert found["cache"] == [] and found["layers"] == 4


def test_a_recurrent_model_has_a_state():
    found = shape("mamba", attention__head_count=0, ssm__inner_size=512, ssm__state_size=16, ssm__conv_kernel=4)
    assert estimate(found, Load(4096)).kv_cache == estimate(found, Load(8192)).kv_cache > 0


def test_experts_count_as_many_as_a_token_goes_through():
    assert shape("qwen3moe", expert_used_count=8, expert_feed_forward_length=768)["ffn"] == 8 * 768


@pytest.mark.parametrize(
    "values",
    [
        {"block_count": None},
        {"block_count": 0},
        {"block_count": 2**40},
        {"embedding_length": 2**63},
        {"attention__head_count_kv": [2, 2]},
        {"attention__head_count_kv": [True] * 4},
        {"attention__head_count_kv": "two"},
    ],
)
def test_what_makes_no_sense_is_said(values):
    with pytest.raises(HeaderError) as caught:
        shape(**values)
    assert str(caught.value)


anything = st.integers(-5, 2**70) | st.floats() | st.booleans() | st.text(max_size=5) | st.lists(st.integers(-2, 300), max_size=6)
keys = st.sampled_from([*(key.removeprefix("llama.") for key in model()), "attention.sliding_window", "attention.kv_lora_rank",
                        "attention.key_length", "attention.key_length_mla", "rope.dimension_count", "full_attention_interval",
                        "attention.sliding_window_pattern", "attention.shared_kv_layers", "ssm.inner_size", "wkv.head_size"])


@given(st.dictionaries(keys, anything), st.sampled_from(["llama", "gemma3", "mamba", "bert"]), st.integers(-1, 2**50))
def test_whatever_a_file_says_there_is_a_shape_or_an_error(values, architecture, weights):
    said = {**model(architecture), **{f"{architecture}.{key}": value for key, value in values.items()}}
    try:
        found = shape_of_gguf(Gguf(said, {}, {}, 0), weights)
    except HeaderError as error:
        assert str(error)
    else:
        assert estimate(found, Load(4096)).total > 0
