#!/usr/bin/env python3
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A double: stands for Text Generation Inference 3.3 (text-generation-launcher), whose image cannot be had offline.

The answers come from a real llama-server behind it, out of the very weights in the directory. Like the original it
  * takes each option as a flag and as an environment variable; ends with 2 where the command line is wrong, with 1 where
    the model is not there, its weights are broken, or --num-shard does not divide its attention heads;
  * opens its port when the model is loaded, and not before;
  * answers /v1/chat/completions, /v1/completions, /generate, /generate_stream, / and /invocations, streaming and not, with
    its errors: 422 for what it cannot do, 429 beyond --max-concurrent-requests, 424 where the model fails, 413 beyond
    --payload-limit. A stream begins with 200 whatever is wrong, and tells it in an event; events are data:{…} without a
    space, the last one is "data: [DONE]";
  * takes any name in `model`, and gives it back;
  * wants --api-key in any letter case for what computes, and leaves /health, /ping, /info, /metrics and /v1/models open;
  * on SIGTERM accepts nobody, lets those in flight end, and is done after --graceful-termination-timeout at the latest.
It leaves out: GPUs and shards (--num-shard is checked and then nothing), quantizing, dtypes, LoRA, tools, grammars, images,
logprobs and token ids, best_of, /chat_tokenize, /vertex, /docs, kserve, downloads from a hub, most of the histograms.

    LLAMA_SERVER   the command that starts llama-server (default: llama-server)

Whoever has the real thing leaves this out: with LLM_FLEET_IMAGE_TGI=<image> the same scenarios run against it.
Standard library only.
"""
from __future__ import annotations

import ipaddress
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "llama_behind"))
from arguments import Invalid, UsageError, read_arguments
from model_dir import ModelDir, ModelError, NoWeights, read_config, read_model, weight_files
from runner import Runner
from server import VERSION, Router

SLOTS = 4  # how many compute at once, unless --max-batch-size says so
SHORTEST = 4096  # the original's default for --max-total-tokens, where the model allows it


class Failed(Exception):
    """How the original's launcher ends: the name of its error."""


def log(level: str, message: str) -> None:
    print(f"{level} text_generation_launcher: {message}", flush=True)


def find_model(args: SimpleNamespace) -> ModelDir:
    path = Path(args.model_id)
    log("INFO", f"Starting check and download process for {path}")
    try:
        if not path.is_dir():
            raise NoWeights(f"{path} is no directory, and this double downloads nothing")
        weight_files(path)
    except NoWeights as error:
        log("ERROR", f"Download encountered an error: \n{error}")
        raise Failed("DownloadError") from error
    log("INFO", f"Successfully downloaded weights for {path}")
    try:
        read_config(path)
        model = read_model(path)
    except ModelError as error:
        raise shard_failed(error) from error
    if not model.divides(args.num_shard):
        heads = model.config["num_attention_heads"]
        raise shard_failed(f"`num_heads` must be divisible by `num_shards` (got `num_heads`: {heads} and `num_shards`: {args.num_shard}")
    return model


def shard_failed(why: object) -> Failed:
    log("ERROR", f"Shard complete standard error output:\n\n{why}")
    log("ERROR", "Shard 0 failed to start")
    return Failed("ShardCannotStart")


def fill_in(args: SimpleNamespace, model: ModelDir) -> None:
    """What follows from the model where nobody said it; and the address, where HOSTNAME is a container's name."""
    try:
        ipaddress.ip_address(args.hostname)
    except ValueError:
        log("WARN", "Invalid hostname, defaulting to 0.0.0.0")
        args.hostname = "0.0.0.0"
    args.max_total_tokens = args.max_total_tokens or min(SHORTEST, model.context)
    args.max_input_tokens = args.max_input_tokens or args.max_total_tokens - 1
    if args.max_input_tokens >= args.max_total_tokens:
        log("ERROR", "`max_input_tokens` must be < `max_total_tokens`")
        raise Failed("WebserverFailed")


def serve(args: SimpleNamespace, told: threading.Event) -> None:
    model = find_model(args)
    fill_in(args, model)
    slots = min(args.max_batch_size or SLOTS, max(args.max_concurrent_requests, 1))
    try:
        runner = Runner(model, args.max_total_tokens, slots)
    except ModelError as error:
        raise shard_failed(error) from error
    try:
        if not runner.wait(told.is_set):
            return
        log("INFO", "Starting Webserver")
        router = Router(args, runner)
        router.start()
        log("INFO", f"Connected: text-generation-router {VERSION} on {args.hostname}:{args.port}")
        while not told.wait(0.1):
            if runner.process.poll() is not None:
                log("ERROR", "Shard 0 crashed")
                raise Failed("ShardFailed")
        log("INFO", "Terminating webserver")
        if router.drain(args.graceful_termination_timeout):
            log("INFO", "webserver terminated")
        else:
            log("INFO", "Killing webserver")
            router.cut()
    except ModelError as error:
        raise shard_failed(error) from error
    except OSError as error:
        log("ERROR", f"Failed to bind to {args.hostname}:{args.port}: {error}")
        raise Failed("WebserverFailed") from error
    finally:
        runner.stop()


def main(arguments: list[str]) -> int:
    told = threading.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda *_signal: told.set())
    if {"--version", "-V"} & set(arguments):
        print(f"text-generation-launcher {VERSION}")
        return 0
    try:
        serve(read_arguments(arguments), told)
    except UsageError as error:
        print(f"{error}\n\nFor more information, try '--help'.", file=sys.stderr)
        return 2
    except Invalid as error:
        print(f'Error: ArgumentValidation("{error}")', file=sys.stderr)
        return 1
    except Failed as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
