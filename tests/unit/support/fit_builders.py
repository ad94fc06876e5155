# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Records of releases whose memory is known, without files and profiles around them."""

from __future__ import annotations

from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.shape_config import shape_of_config
from ansible_collections.localfirst.llm_fleet.tests.unit.plugins.module_utils.fleet_builders import host, record
from ansible_collections.localfirst.llm_fleet.tests.unit.support.known_models import CONFIGS

GIB, MIB = 2**30, 2**20


def facts(weights: int, model: str = "Llama-3.1-8B", **other: Any) -> dict[str, Any]:
    """What a record has under `fit`: of llama.cpp, unless `other` says otherwise."""
    return {
        "shape": shape_of_config(CONFIGS[model], weights),
        "sequences": "parallel",
        "key_type": "f16",
        "value_type": "f16",
        "types": {"settings": ["cache_type_k", "cache_type_v"], "choices": ["f16", "q4_0", "q8_0"]},
        "batch": 512,
        "flash": True,
        "tensor_parallel": False,
        "overhead": 640 * MIB,
        "cpu_overhead": 256 * MIB,
        **other,
    }


def known(name: str, weights: int, context: int = 8192, parallel: int = 1, **other: Any) -> dict[str, Any]:
    """The record of a release whose memory is known."""
    return record(name, context=context, parallel=parallel, size=weights, fit=facts(weights, **other))


def node(name: str, *sizes: int, memory: int | None = None, **other: Any) -> dict[str, Any]:
    """A GPU node whose GPUs have so many GiB each, nothing of it kept for a driver."""
    plain = host(name, len(sizes), **other)
    return {**plain, "gpu_memory": {gpu: size * GIB for gpu, size in zip(plain["gpus"], sizes)}, "memory": memory}
