# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The command line of text-generation-launcher, and the environment variables beside it, as clap reads them."""
from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace


class UsageError(Exception):
    """What clap says, before it ends with 2."""


class Invalid(Exception):
    """What the launcher itself says, before it ends with 1."""


def whole(most: int = 2**64 - 1) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isascii() or not text.isdigit():
            raise ValueError("invalid digit found in string")
        if int(text) > most:
            raise ValueError(f"{text} is not in 0..={most}")
        return int(text)

    return read


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("invalid float literal") from None


def one_of(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"\n  [possible values: {', '.join(choices)}]")
        return text

    return read


def words(text: str) -> str:
    return text


def counts(text: str) -> list[int]:
    return [whole()(part) for part in text.split(",")]


U16, U32, USIZE = whole(2**16 - 1), whole(2**32 - 1), whole()
# Each option is an environment variable, too: --max-total-tokens is MAX_TOTAL_TOKENS.
OPTIONS: dict[str, tuple[Callable, object]] = {
    "model-id": (words, "bigscience/bloom-560m"),
    "revision": (words, None),
    "validation-workers": (USIZE, 2),
    "sharded": (lambda text: one_of("true", "false")(text) == "true", None),
    "num-shard": (USIZE, None),
    "quantize": (
        one_of(
            "awq", "compressed-tensors", "eetq", "exl2", "gptq", "marlin", "bitsandbytes", "bitsandbytes-nf4", "bitsandbytes-fp4", "fp8"
        ),
        None,
    ),
    "speculate": (USIZE, None),
    "dtype": (one_of("float16", "bfloat16"), None),
    "kv-cache-dtype": (one_of("fp8_e4m3fn", "fp8_e5m2"), None),
    "max-concurrent-requests": (USIZE, 128),
    "max-best-of": (USIZE, 2),
    "max-stop-sequences": (USIZE, 4),
    "max-top-n-tokens": (U32, 5),
    "max-input-tokens": (USIZE, None),
    "max-input-length": (USIZE, None),
    "max-total-tokens": (USIZE, None),
    "waiting-served-ratio": (number, 0.3),
    "max-batch-prefill-tokens": (U32, None),
    "max-batch-total-tokens": (U32, None),
    "max-waiting-tokens": (USIZE, 20),
    "max-batch-size": (USIZE, None),
    "cuda-graphs": (counts, None),
    "hostname": (words, "0.0.0.0"),
    "port": (U16, 3000),
    "prometheus-port": (U16, 9000),
    "shard-uds-path": (words, "/tmp/text-generation-server"),
    "master-addr": (words, "localhost"),
    "master-port": (USIZE, 29500),
    "huggingface-hub-cache": (words, None),
    "weights-cache-override": (words, None),
    "cuda-memory-fraction": (number, 1.0),
    "rope-scaling": (one_of("linear", "dynamic"), None),
    "rope-factor": (number, None),
    "otlp-endpoint": (words, None),
    "otlp-service-name": (words, "text-generation-inference.router"),
    "cors-allow-origin": (words, None),
    "api-key": (words, None),
    "watermark-gamma": (number, None),
    "watermark-delta": (number, None),
    "tokenizer-config-path": (words, None),
    "max-client-batch-size": (USIZE, 4),
    "lora-adapters": (words, None),
    "usage-stats": (one_of("on", "off", "no-stack"), "on"),
    "payload-limit": (USIZE, 2_000_000),
    "graceful-termination-timeout": (USIZE, 90),
}
SWITCHES = ("trust-remote-code", "disable-custom-kernels", "json-output", "ngrok", "disable-grammar-support", "enable-prefill-logprobs")
SHORT = {"-p": "--port", "-g": "--graceful-termination-timeout"}


def read(option: str, text: str) -> object:
    try:
        return OPTIONS[option][0](text)
    except ValueError as error:
        why = str(error)
        tail = why if why.startswith("\n") else f": {why}"
        raise UsageError(f"error: invalid value '{text}' for '--{option} <{variable(option)}>'{tail}") from None


def variable(option: str) -> str:
    return option.replace("-", "_").upper()


def read_arguments(arguments: list[str]) -> SimpleNamespace:
    found: dict[str, object] = {}
    waiting = list(arguments)
    while waiting:
        name, given, value = waiting.pop(0).partition("=")
        option = SHORT.get(name, name)[2:]
        if option in SWITCHES and name.startswith("--") and not given:
            found[option] = True
            continue
        if option not in OPTIONS or not name.startswith("-"):
            raise UsageError(f"error: unexpected argument '{name}' found\n\nUsage: text-generation-launcher [OPTIONS]")
        if option in found and option != "cors-allow-origin":
            raise UsageError(f"error: the argument '--{option} <{variable(option)}>' cannot be used multiple times")
        if not given:
            if not waiting or waiting[0].startswith("--"):
                raise UsageError(f"error: a value is required for '--{option} <{variable(option)}>' but none was supplied")
            value = waiting.pop(0)
        found[option] = read(option, value)
    for option in [*OPTIONS, *SWITCHES]:
        text = os.environ.get(variable(option))
        if option not in found and text is not None:
            found[option] = truth(option, text) if option in SWITCHES else read(option, text)
    defaults = {**{option: default for option, (_read, default) in OPTIONS.items()}, **dict.fromkeys(SWITCHES, False)}
    return check(SimpleNamespace(**{option.replace("-", "_"): found.get(option, default) for option, default in defaults.items()}))


def truth(option: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise UsageError(f"error: invalid value '{text}' for '--{option}'\n  [possible values: true, false]")
    return text == "true"


def check(args: SimpleNamespace) -> SimpleNamespace:
    """What the launcher looks at before it starts anything."""
    if args.sharded and (args.num_shard is None or args.num_shard <= 1):
        raise Invalid("`sharded` is true but `num_shard` <= 1")
    args.num_shard = 1 if args.num_shard is None else args.num_shard
    if args.num_shard < 1:
        raise Invalid("`num_shard` cannot be < 1")
    if args.max_input_tokens is not None and args.max_input_length is not None:
        raise Invalid(
            f"Both `max_input_tokens` ({args.max_input_tokens}) and `max_input_length` ({args.max_input_length}) are set. "
            "Please define only `max_input_tokens` as `max_input_length is deprecated for naming consistency."
        )
    args.max_input_tokens = args.max_input_length if args.max_input_tokens is None else args.max_input_tokens
    total = args.max_total_tokens
    if None not in (args.max_input_tokens, total) and args.max_input_tokens >= total:
        raise Invalid(f"`max_input_tokens`({args.max_input_tokens}) must be < `max_total_tokens`({total})")
    if args.validation_workers == 0:
        raise Invalid("`validation_workers` must be > 0")
    if None not in (args.max_batch_total_tokens, total) and total > args.max_batch_total_tokens:
        raise Invalid(
            f"`max_total_tokens` must be <= `max_batch_total_tokens`. Given: {total} and {args.max_batch_total_tokens}"
        )
    return args
