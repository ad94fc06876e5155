# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The command line of sglang.launch_server: those of its options that a server of one model on one host may need."""
from __future__ import annotations

import argparse
from pathlib import Path

QUANTIZATIONS = (
    "awq", "fp8", "gptq", "marlin", "gptq_marlin", "awq_marlin", "bitsandbytes", "gguf", "modelopt", "modelopt_fp8", "modelopt_fp4",
    "petit_nvfp4", "w8a8_int8", "w8a8_fp8", "moe_wna16", "qoq", "w4afp8", "mxfp4", "mxfp8", "auto-round", "compressed-tensors",
    "modelslim", "quark_int4fp8_moe",
)
CHOICES = {
    "--dtype": ("auto", ("auto", "half", "float16", "bfloat16", "float", "float32")),
    "--quantization": (None, QUANTIZATIONS),
    "--kv-cache-dtype": ("auto", ("auto", "fp8_e5m2", "fp8_e4m3", "bf16", "bfloat16", "fp4_e2m1")),
    "--load-format": ("auto", (
        "auto", "pt", "safetensors", "npcache", "dummy", "sharded_state", "gguf", "bitsandbytes", "layered", "flash_rl", "remote",
        "remote_instance", "fastsafetensors", "private", "runai_streamer",
    )),
    "--tokenizer-mode": ("auto", ("auto", "slow")),
    "--schedule-policy": ("fcfs", ("lpm", "random", "fcfs", "dfs-weight", "lof", "priority", "routing-key")),
}
WORDS = {
    "--tokenizer-path": None, "--revision": None, "--model-impl": "auto", "--model-loader-extra-config": "{}", "--api-key": None,
    "--admin-api-key": None, "--served-model-name": None, "--chat-template": None, "--log-level": "info", "--log-level-http": None,
    "--attention-backend": None, "--sampling-backend": None, "--grammar-backend": None, "--tool-call-parser": None,
    "--reasoning-parser": None, "--device": None, "--download-dir": None, "--host": "127.0.0.1", "--weight-version": "default",
}
NUMBERS = {
    "--port": 30000, "--context-length": None, "--max-running-requests": None, "--max-queued-requests": None, "--max-total-tokens": None,
    "--chunked-prefill-size": None, "--max-prefill-tokens": 16384, "--page-size": 1, "--random-seed": None, "--watchdog-timeout": 300,
    "--base-gpu-id": 0, "--gpu-id-step": 1, "--nnodes": 1, "--node-rank": 0, "--tokenizer-worker-num": 1, "--stream-interval": 1,
    "--cuda-graph-max-bs": None, "--nccl-port": None, "--media-url-max-file-size-mb": 64,
}
FRACTIONS = {"--mem-fraction-static": None, "--schedule-conservativeness": 1.0, "--cpu-offload-gb": 0}
SWITCHES = (
    "--trust-remote-code", "--is-embedding", "--enable-metrics", "--enable-metrics-for-all-schedulers", "--skip-server-warmup",
    "--disable-radix-cache", "--disable-cuda-graph", "--disable-custom-all-reduce", "--enable-torch-compile", "--enable-p2p-check",
    "--enable-deterministic-inference", "--enable-cache-report", "--enable-multimodal", "--log-requests", "--skip-tokenizer-init",
    "--enable-memory-saver", "--disable-overlap-schedule",
)


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(prog="launch_server.py")
    cli.add_argument("--model-path", "--model", required=True)
    cli.add_argument("--tensor-parallel-size", "--tp-size", "--tp", dest="tp_size", type=int, default=1)
    cli.add_argument("--data-parallel-size", "--dp-size", "--dp", dest="dp_size", type=int, default=1)
    cli.add_argument("--pipeline-parallel-size", "--pp-size", dest="pp_size", type=int, default=1)
    cli.add_argument("--allowed-media-domains", nargs="+", default=[])
    for name, (default, choices) in CHOICES.items():
        cli.add_argument(name, default=default, choices=choices)
    for kind, options in ((str, WORDS), (int, NUMBERS), (float, FRACTIONS)):
        for name, default in options.items():
            cli.add_argument(name, type=kind, default=default)
    for name in SWITCHES:
        cli.add_argument(name, action="store_true")
    return cli


def configured(path: str) -> list[str]:
    """A file of settings as words of a command line. Of YAML it takes what that needs: `key: value`, quotes, comments."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"Config file not found: {path}") from error
    words = []
    for line in lines:
        key, colon, value = (part.strip() for part in line.partition(":"))
        if not key or key.startswith("#"):
            continue
        if not colon:
            raise ValueError("Config file must contain a dictionary at root level")
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        if value in ("true", "True", "false", "False"):
            words += [f"--{key}"] if value.lower() == "true" else []
        else:
            words += [f"--{key}", value[1:-1] if quoted else value]
    return words


def with_config(arguments: list[str]) -> list[str]:
    """The words of the file that --config names, and after them those of the command line, which win."""
    if "--config" not in arguments:
        return arguments
    at = arguments.index("--config")
    if at + 1 == len(arguments):
        raise ValueError("No config file specified after --config flag!")
    return [*configured(arguments[at + 1]), *arguments[:at], *arguments[at + 2 :]]


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    args = parser().parse_args(with_config(arguments))
    args.tokenizer_path = args.tokenizer_path or args.model_path
    args.served_model_name = args.served_model_name or args.model_path
    # The original takes a colon for the start of an adapter's name.
    if ":" in args.served_model_name:
        raise ValueError("served_model_name cannot contain a colon (':') character.")
    if args.mem_fraction_static is not None and not 0 < args.mem_fraction_static < 1:
        raise ValueError(f"mem_fraction_static must be between 0 and 1, got {args.mem_fraction_static}")
    if args.media_url_max_file_size_mb < 0 or any("/" in domain for domain in args.allowed_media_domains):
        raise ValueError("allowed_media_domains must be host names, media_url_max_file_size_mb at least 0")
    for name in ("tp_size", "dp_size", "pp_size"):
        if getattr(args, name) < 1:
            raise ValueError(f"{name} must be at least 1")
    return args
