# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Shapes out of config.json. Figures of well-known models are in test_memory.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.header_bytes import HeaderError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.memory import Load, estimate
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.shape_config import shape_of_config
from ansible_collections.localfirst.llm_fleet.tests.unit.support.known_models import CONFIGS

LLAMA = CONFIGS["Llama-3.1-8B"]


def windows(config: dict) -> dict:
    return {group.get("window"): group["layers"] for group in shape_of_config(config, 1)["cache"]}


def test_the_text_part_is_found_inside():
    assert shape_of_config({"model_type": "mllama", "text_config": LLAMA}, 1) == shape_of_config(LLAMA, 1)
    deep = {"model_type": "omni", "thinker_config": {"model_type": "thinker", "text_config": LLAMA}}
    assert shape_of_config(deep, 1) == shape_of_config(LLAMA, 1)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model_type": "mistral", "sliding_window": 4096}, {4096: 32}),
        ({"model_type": "mistral", "sliding_window": None}, {None: 32}),
        ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False}, {None: 32}),
        ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 20}, {None: 20, 4096: 12}),
        ({"model_type": "cohere2", "sliding_window": 4096}, {4096: 24, None: 8}),
        ({"model_type": "exaone4", "sliding_window": 4096, "sliding_window_pattern": "LLLG"}, {4096: 24, None: 8}),
        ({"model_type": "new-one", "sliding_window": 4096}, {None: 32}),  # the larger figure
        (
            {"model_type": "llama4_text", "attention_chunk_size": 8192, "layer_types": ["chunked_attention", "full_attention"] * 16},
            {8192: 16, None: 16},
        ),
        ({"model_type": "lfm2", "full_attn_idxs": [2, 5]}, {None: 2}),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "M-*-" * 8}, {None: 8}),
        ({"model_type": "minimax", "attn_type_list": [0, 0, 0, 1] * 8}, {None: 8}),
        (
            {"model_type": "recurrent_gemma", "block_types": ["recurrent", "recurrent", "attention"], "attention_window_size": 2048},
            {None: 10},
        ),
        ({"model_type": "mamba2"}, {}),
    ],
)
def test_families_say_in_their_own_ways_which_layers_look_back_how_far(change, expected):
    assert windows({**LLAMA, **change}) == expected


def test_falcons_first_models_have_one_head_for_keys():
    falcon = {"model_type": "falcon", "num_hidden_layers": 32, "hidden_size": 4544, "num_attention_heads": 71, "multi_query": True,
              "num_kv_heads": 71, "new_decoder_architecture": False, "vocab_size": 65024}
    assert [group["heads"] for group in shape_of_config(falcon, 1)["cache"]] == [1]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "llama"},
        {**LLAMA, "model_type": None},
        {**LLAMA, "num_hidden_layers": 10**9},
        {**LLAMA, "num_hidden_layers": "32"},
        {**LLAMA, "hidden_size": -1},
        {**LLAMA, "is_encoder_decoder": True},
        {**LLAMA, "block_configs": [{}]},
        {**LLAMA, "model_type": "../../etc"},
    ],
)
def test_what_makes_no_sense_is_said(config):
    with pytest.raises(HeaderError) as caught:
        shape_of_config(config, 1)
    assert str(caught.value)


fields = st.sampled_from(sorted({key for config in CONFIGS.values() for key in config} | {"attn_layer_period", "layers_block_type"}))
anything = st.none() | st.integers(-5, 2**70) | st.floats() | st.booleans() | st.text(max_size=5) | st.lists(
    st.integers(-2, 300) | st.text(max_size=9), max_size=6
)


@given(st.sampled_from(sorted(CONFIGS)), st.dictionaries(fields, anything, max_size=6), st.integers(-1, 2**50))
def test_whatever_a_file_says_there_is_a_shape_or_an_error(name, changes, weights):
    try:
        found = shape_of_config({**CONFIGS[name], **changes}, weights)
    except HeaderError as error:
        assert str(error)
    else:
        assert estimate(found, Load(4096)).total > 0
