# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""How much memory one replica of a model takes on each of its GPUs: an estimate, made of what is known before it runs. Pure.

    weights    the tensors' bytes, in equal parts on the GPUs. All experts of a mixture are loaded.
    kv_cache   what every token of every sequence keeps in every attention layer: heads x (key + value) numbers, in the cache's
               number format (Pope et al., "Efficiently Scaling Transformer Inference", 2022, section 2). Fewer heads for keys and values
               than for queries: Ainslie et al., "GQA", 2023. Layers with a window keep the window and the batch that is being
               read (llama.cpp, llama-kv-cache-iswa.cpp, in cells of 256; vLLM, SlidingWindowSpec). Multi-head latent attention keeps one
               vector for all heads (DeepSeek-V2, 2024, section 2.1). Recurrent layers keep a state that does not grow (Gu and Dao,
               "Mamba", 2023).
    buffers    what one batch of tokens needs while it is computed: the largest of the logits and the widest layer, and the
               attention's mask. As llama.cpp's "compute buffer size" has it; without flash attention, the scores as well.
    overhead   what the engine's process takes on a GPU whatever the model (CUDA's context, libraries): the profile says how much.

With tensor parallelism (Shoeybi et al., "Megatron-LM", 2019) every GPU has its part of each layer; heads of keys and values that
are fewer than the GPUs are copied. Otherwise (llama.cpp's split by layers) every GPU has some of the layers.

What fragments, graphs and workspaces add is not counted one by one: that is what MARGIN is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# How far the estimate may be off, as a part of the memory that there is: with less left over, the plan warns.
MARGIN = 0.10
CELLS = 256  # llama.cpp rounds a windowed cache up to so many tokens
LOGIT_ROWS = 256  # engines with a paged cache compute logits for the sequences, not for every token of a batch

# (bytes, numbers in them): llama.cpp's blocks have 32 numbers and what scales them.
CACHE_TYPES = {
    "f32": (4, 1),
    "f16": (2, 1),
    "bf16": (2, 1),
    "auto": (2, 1),  # the model's own, and engines load models in 16 bits
    "fp8": (1, 1),
    "fp8_e4m3": (1, 1),
    "fp8_e4m3fn": (1, 1),
    "fp8_e5m2": (1, 1),
    "q8_0": (34, 32),
    "q5_1": (24, 32),
    "q5_0": (22, 32),
    "q4_1": (20, 32),
    "q4_0": (18, 32),
    "iq4_nl": (18, 32),
}


@dataclass(frozen=True)
class Load:
    """How a model is run."""

    context: int  # tokens of one sequence
    sequences: int = 1  # that have to have room at the same time
    key_type: str = "f16"
    value_type: str = "f16"
    gpus: int = 1
    tensor_parallel: bool = False
    batch: int = 512  # tokens that are computed at once
    flash: bool = True
    paged: bool = False  # blocks of the cache are given out on demand, and batches have no mask
    gpu_layers: int | None = None  # the others stay in the machine's memory
    overhead: int = 0  # bytes


@dataclass(frozen=True)
class Estimate:
    """Bytes on each GPU."""

    weights: int
    kv_cache: int
    buffers: int
    overhead: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.buffers + self.overhead


def estimate(shape: dict[str, Any], load: Load) -> Estimate:
    """What a model of this shape takes on each GPU, or in the machine's memory where it runs on none."""
    return Estimate(_weights(shape, load), _kv_cache(shape, load), _buffers(shape, load), load.overhead)


def cache_bytes(numbers: int, kind: str) -> int:
    """Bytes of so many numbers in a number format of the cache; one that is not known counts as 16 bits."""
    size, count = CACHE_TYPES.get(kind, CACHE_TYPES["f16"])
    return _up(numbers * size, count)


def token_bytes(shape: dict[str, Any], kind: str = "f16") -> int:
    """Bytes that one more token of a sequence takes in the cache, as long as no window is full."""
    return sum(
        group["layers"] * (cache_bytes(group["heads"] * group["key"], kind) + cache_bytes(group["heads"] * group["value"], kind))
        for group in shape["cache"]
    )


def tensor_parallel_sizes(shape: dict[str, Any], most: int) -> list[int]:
    """Numbers of GPUs that can share the heads evenly."""
    heads = [group["heads"] for group in shape["cache"]]
    return [
        size
        for size in range(1, most + 1)
        if shape["heads"] % size == 0 and all(count % size == 0 or size % count == 0 for count in heads)
    ]


def _up(number: int, parts: int) -> int:
    """A division that rounds up."""
    return -(-number // parts)


def _weights(shape: dict[str, Any], load: Load) -> int:
    if load.tensor_parallel:
        return _up(shape["weights"], load.gpus)
    # What is behind the last layer counts as one more of them, as llama.cpp counts.
    layers = shape["layers"] + 1
    held = layers if load.gpu_layers is None else min(layers, load.gpu_layers)
    return _up(shape["weights"] * _up(held, load.gpus), layers)


def _kv_cache(shape: dict[str, Any], load: Load) -> int:
    total = 0
    for group in shape["cache"]:
        heads, layers = group["heads"], group["layers"]
        if load.tensor_parallel:
            heads = _up(heads, load.gpus)
        else:
            if load.gpu_layers is not None:
                layers = min(layers, _up(layers * load.gpu_layers, shape["layers"]))
            layers = _up(layers, load.gpus)
        tokens = layers * load.sequences * _kept(group, load)
        total += cache_bytes(tokens * heads * group["key"], load.key_type) + cache_bytes(tokens * heads * group["value"], load.value_type)
    # Recurrent layers count in 32 bits; divided like the rest, but never by more than there are.
    return total + _up(4 * (shape.get("state") or 0) * load.sequences, load.gpus)


def _kept(group: dict[str, Any], load: Load) -> int:
    """Tokens of one sequence that a layer keeps."""
    if not group.get("window"):
        return load.context
    return min(load.context, _up(group["window"] + load.batch, CELLS) * CELLS)


def _buffers(shape: dict[str, Any], load: Load) -> int:
    batch = min(load.batch, load.context * load.sequences)
    rows = min(batch, LOGIT_ROWS) if load.paged else batch
    logits = 4 * rows * shape["vocab"]
    layer = 4 * batch * (2 * shape["ffn"] + 2 * shape["hidden"])
    mask = 0
    if shape["cache"] and not load.paged:
        mask = 4 * batch * load.context  # builds of 2026 take half of it
        if not load.flash:
            layer += 4 * batch * load.context * shape["heads"]
    return max(logits, layer) + mask + 4 * batch * shape["hidden"]
