# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What the memory of a model depends on, as a small mapping that the lockfile keeps: its shape.

    architecture  the model's kind, as its own files call it
    weights       bytes of its tensors
    layers, hidden, heads, ffn, vocab   as usual; `ffn` counts the experts that one token goes through
    cache         for each kind of attention layer: how many there are, and what one token keeps in one of them:
                  `heads` times `key` and `value` numbers; with `window`, no more than so many tokens are kept
    state         numbers that recurrent layers keep for each sequence, whatever its length

Layers that remember nothing (recurrent ones, all of an encoder's) are in no group of `cache`. Where the files leave
a doubt the larger figure is taken. shape_config.py and shape_gguf.py make shapes out of the two kinds of headers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.header_bytes import HeaderError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.schema import list_of, optional, record, required, text, whole

MOST_LAYERS = 4096
LARGEST = 2**24  # of every dimension of a model


class Attention(NamedTuple):
    """What one token keeps in one layer. Without a window the layer sees the whole context."""

    heads: int
    key: int
    value: int
    window: int = 0


GROUP = record({
    "layers": required(whole(1, MOST_LAYERS)),
    "heads": required(whole(1, LARGEST)),
    "key": required(whole(0, LARGEST)),
    "value": required(whole(0, LARGEST)),
    "window": optional(whole(1, 2**32)),
})

# As the lockfile keeps it.
SHAPE = record({
    "architecture": required(text(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "the name of an architecture", "letters, digits, '.', '_' and '-'")),
    "weights": required(whole(1)),
    "layers": required(whole(1, MOST_LAYERS)),
    "hidden": required(whole(1, LARGEST)),
    "heads": required(whole(1, LARGEST)),
    "ffn": required(whole(0, LARGEST)),
    "vocab": required(whole(0, LARGEST)),
    "cache": required(list_of(GROUP)),
    "state": optional(whole(1, 2**40)),
})


def make_shape(
    architecture: str,
    weights: int,
    attention: Iterable[Attention | None],
    *,
    hidden: int,
    heads: int,
    ffn: int,
    vocab: int,
    state: int = 0,
) -> dict[str, Any]:
    """The shape of a model whose layers remember `attention`, one after the other; HeaderError where it cannot be."""
    layers = list(attention)
    groups = Counter(layer for layer in layers if layer is not None)
    shape = {
        "architecture": architecture,
        "weights": weights,
        "layers": len(layers),
        "hidden": hidden,
        "heads": heads,
        "ffn": ffn,
        "vocab": vocab,
        "cache": [
            {"layers": count, "heads": one.heads, "key": one.key, "value": one.value, **({"window": one.window} if one.window else {})}
            for one, count in groups.items()
        ],
        **({"state": state} if state else {}),
    }
    faults: list = []
    SHAPE(shape, "shape", faults)
    if faults:
        raise HeaderError(f"{faults[0].where}: {faults[0].what}")
    return shape


def number(values: dict[str, Any], *names: str, default: int | None = None) -> int:
    """The first of these keys that holds a whole number; HeaderError where there is none and no default."""
    for name in names:
        value = values.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            if not 0 <= value <= LARGEST:
                raise HeaderError(f"{name} is {value}")
            return value
    if default is None:
        raise HeaderError(f"it does not say {names[0]}")
    return default


def layer_count(values: dict[str, Any], *names: str) -> int:
    """How many layers there are; checked before anything is made for each of them."""
    count = number(values, *names)
    if not 1 <= count <= MOST_LAYERS:
        raise HeaderError(f"{names[0]} is {count}")
    return count


def recurrent_state(inner: int, state: int, groups: int, kernel: int) -> int:
    """Numbers that one layer of Mamba's kind keeps for a sequence: its state, and the inputs that its convolution goes back to."""
    return inner * state + max(0, kernel - 1) * (inner + 2 * groups * state)
