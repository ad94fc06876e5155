# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""A tiny transformers directory is sound, and what llama-server gets of it is the same model."""

from __future__ import annotations

import json
import string
import sys

import gguf
import numpy as np
import pytest

from ansible_collections.localfirst.llm_fleet.tests.unit.support.engine_double import DOUBLES, make_model

sys.path.insert(0, str(DOUBLES / "llama_behind"))
import gguf_file
import model_dir


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def converted(folder):
    path = folder.parent / "model.gguf"
    gguf_file.write_gguf(model_dir.read_model(folder), path)
    return gguf.GGUFReader(path)


def floats(folder) -> dict[str, np.ndarray]:
    """The weights, read by numpy."""
    found = {}
    for name, tensor in model_dir.read_model(folder).tensors.items():
        bits = np.frombuffer(tensor.read(), "<u2").astype("<u4") << 16
        found[name] = bits.view("<f4").reshape(tensor.shape)
    return found


def rotated(vector: np.ndarray, position: int, halves: bool) -> np.ndarray:
    """A head's vector at a position: as transformers turns it, in halves, or as llama.cpp does, in pairs."""
    half = len(vector) // 2
    angles = position * 10000.0 ** (-np.arange(half) / half)
    one, two = (vector[:half], vector[half:]) if halves else (vector[0::2], vector[1::2])
    return np.concatenate([one * np.cos(angles) - two * np.sin(angles), one * np.sin(angles) + two * np.cos(angles)])


def test_the_same_options_give_the_same_bytes(folder, tmp_path):
    again, other = make_model(tmp_path / "again"), make_model(tmp_path / "other", "--seed=1")
    names = sorted(path.name for path in folder.iterdir())
    assert all((again / name).read_bytes() == (folder / name).read_bytes() for name in names)
    assert (other / "model.safetensors").read_bytes() != (folder / "model.safetensors").read_bytes()


def test_the_shapes_are_those_that_the_configuration_says(folder):
    model = model_dir.read_model(folder)
    config, shapes = model.config, {name: tensor.shape for name, tensor in model.tensors.items()}
    dim, narrow = config["hidden_size"], config["head_dim"] * config["num_key_value_heads"]
    assert shapes["lm_head.weight"] == shapes["model.embed_tokens.weight"] == (config["vocab_size"], dim)
    assert shapes["model.layers.0.self_attn.k_proj.weight"] == (narrow, dim)
    assert shapes["model.layers.0.mlp.down_proj.weight"] == (dim, config["intermediate_size"])
    assert len(shapes) == 3 + 9 * config["num_hidden_layers"]


def test_every_text_has_tokens(folder):
    whole = json.loads((folder / "tokenizer.json").read_text())
    vocabulary, merges = whole["model"]["vocab"], whole["model"]["merges"]
    config = json.loads((folder / "config.json").read_text())
    assert sorted(vocabulary.values()) == list(range(config["vocab_size"]))
    assert all(letter in vocabulary for letter in string.printable if letter.isprintable() and letter != " ")
    assert all("".join(pair.split(" ")) in vocabulary and set(pair.split(" ")) <= set(vocabulary) for pair in merges)
    assert {token["content"]: token["id"] for token in whole["added_tokens"]}.items() <= vocabulary.items()


def test_only_words_are_likely(folder):
    weights = floats(folder)
    words = [number for token, number in json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"].items() if "Ġ" in token[:1]]
    # What each token writes to channel 0 is all that speaks for or against a token that is no word.
    assert (weights["model.embed_tokens.weight"][:, 0] > 0).all()
    never = weights["lm_head.weight"][: min(set(words) - {words[0]})]
    assert (never[:, 0] < 0).all() and not never[:, 1:].any()


def test_idle_layers_leave_the_model_as_it_is(folder, tmp_path):
    weights, slow = floats(folder), floats(make_model(tmp_path / "slow", "--idle-layers=2"))
    assert all(np.array_equal(slow[name], weights[name]) for name in weights)
    adding = [data for name, data in slow.items() if name not in weights and name.endswith(("o_proj.weight", "down_proj.weight"))]
    assert len(adding) == 4 and not any(data.any() for data in adding)


def test_a_broken_one_has_a_header_and_cannot_be_read(tmp_path):
    folder = make_model(tmp_path / "broken", "--broken")
    with pytest.raises(model_dir.BadWeights, match="MetadataIncompleteBuffer"):
        model_dir.read_model(folder)


def test_llama_server_gets_the_same_weights(folder, converted):
    weights = floats(folder)
    found = {tensor.name: np.array(tensor.data).reshape(tensor.shape[::-1]) for tensor in converted.tensors}
    assert len(found) == len(weights)
    layer = "model.layers.0"
    pairs = {"blk.0.ffn_up": f"{layer}.mlp.up_proj", "blk.0.attn_norm": f"{layer}.input_layernorm", "output": "lm_head"}
    for theirs, ours in pairs.items():
        assert np.array_equal(found[f"{theirs}.weight"], weights[f"{ours}.weight"])


@pytest.mark.parametrize(("part", "heads"), [("q", "num_attention_heads"), ("k", "num_key_value_heads")])
def test_positions_turn_both_alike(folder, converted, part, heads):
    model = model_dir.read_model(folder)
    ours = floats(folder)[f"model.layers.0.self_attn.{part}_proj.weight"]
    theirs = next(np.array(tensor.data) for tensor in converted.tensors if tensor.name == f"blk.0.attn_{part}.weight")
    state = np.random.default_rng(1).standard_normal(ours.shape[1])
    size = model.config["head_dim"]
    for head in range(model.config[heads]):
        rows = slice(head * size, (head + 1) * size)
        assert np.allclose(rotated(ours[rows] @ state, 5, True), rotated(theirs[rows] @ state, 5, False))


def test_llama_server_gets_the_same_vocabulary(folder, converted):
    whole = json.loads((folder / "tokenizer.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())

    def field(name: str):
        return converted.get_field(name).contents()

    assert {token: number for number, token in enumerate(field("tokenizer.ggml.tokens"))} == whole["model"]["vocab"]
    assert field("tokenizer.ggml.merges") == whole["model"]["merges"]
    assert field("tokenizer.chat_template") == settings["chat_template"]
    assert field("tokenizer.ggml.tokens")[field("tokenizer.ggml.eos_token_id")] == settings["eos_token"]


@pytest.mark.parametrize("change", [{"architectures": ["GPT2LMHeadModel"]}, {"rope_scaling": {"factor": 2}}])
def test_other_models_are_refused(folder, tmp_path, change):
    model = model_dir.read_model(folder)
    with pytest.raises(model_dir.NoConfig):
        gguf_file.write_gguf(model._replace(config={**model.config, **change}), tmp_path / "model.gguf")


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_other_numbers_are_read_as_well(dtype):
    values = np.array([1.5, -2.25, 0.0], "<f2" if dtype == "F16" else "<f4")
    assert np.array_equal(np.frombuffer(gguf_file.widened(values.tobytes(), dtype), "<f4"), values)
