# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A double: stands for SGLang 0.5 (python3 -m sglang.launch_server), whose image cannot be had offline.

The answers come from a real llama-server behind it, out of the very weights in the directory. Like the original it
  * opens its port when the model is loaded, answers /health with 503 until it has answered itself once, and then after a second,
    in which it computes a token unless it is busy anyway;
  * answers /v1/chat/completions, /v1/completions, /generate and, with --is-embedding, /v1/embeddings, with its errors: 400 for
    what it cannot do, 503 beyond --max-queued-requests; a stream begins with 200 and tells in an event what is wrong;
  * takes any name in `model`, and gives it back;
  * wants --api-key for all but /health…, /ready… and /metrics…, in Authorization or x-api-key;
  * shows /metrics only with --enable-metrics;
  * does what its admin paths say: swaps the model, takes it out of memory, stops all answers, aborts them (see admin.py);
  * on SIGTERM says 503 to health checks, goes on accepting requests, looks every 5 seconds whether any is in flight, and kills
    itself when there is none, however long that takes. With SGL_FORCE_SHUTDOWN=true it does not wait;
  * ends with 2 where the command line is wrong, with 1 where there is no config.json, and kills itself where there are no
    weights, where they are broken, or where --tp-size does not divide its attention heads.
It leaves out: GPUs and parallelism (--tp-size is checked and then nothing), quantizing, dtypes, LoRA, images, logprobs, several
prompts or answers in one request, options that no server of one model on one host needs, most metrics, and the paths in
LEFT_OUT of admin.py. As a process of its own it is killed with SIGKILL; as the first of a container, where that does nothing,
it ends with 0.

    LLAMA_SERVER   the command that starts llama-server (default: llama-server)
    DOUBLE_WATCH   seconds between two looks whether any request is in flight after SIGTERM (default: the original's 5)

Whoever has the real thing leaves this out: with LLM_FLEET_IMAGE_SGLANG=<image> the same scenarios run against it.
Standard library only.
"""
from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "llama_behind"))
from model_dir import ModelDir, ModelError, read_config, read_model
from runner import Refused, Runner

from sglang.arguments import read_arguments
from sglang.server import Sglang, compute

SLOTS = 4  # how many compute at once, unless --max-running-requests says so
WATCH = float(os.environ.get("DOUBLE_WATCH", "5"))  # how often it looks whether it may end
TRUE = ("true", "1")


class Crashed(Exception):
    """A process of the engine has died, and takes the others with it."""


def log(message: str) -> None:
    print(f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] {message}", flush=True)


def find_model(args: argparse.Namespace) -> ModelDir:
    path = Path(args.model_path)
    longest = int(read_config(path).get("max_position_embeddings") or 2048)
    if (args.context_length or 0) > longest:
        what = (
            f"Warning: User-specified context_length ({args.context_length}) is greater than the derived context_length ({longest}). "
            "This may lead to incorrect model outputs or CUDA errors."
        )
        if os.environ.get("SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN", "").lower() not in TRUE:
            raise ValueError(f"{what} To allow overriding this maximum, set the env var SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1")
        log(what)
    args.context_length = args.context_length or longest
    try:
        model = read_model(path)
    except ModelError as error:
        raise Crashed(f"Cannot find any model weights with `{path}`: {error}") from error
    if not model.divides(args.tp_size):
        raise Crashed(f"AssertionError: {model.config['num_attention_heads']} attention heads are not divisible by tp_size {args.tp_size}")
    return model


def load(args: argparse.Namespace, model: ModelDir, told: threading.Event) -> Runner | None:
    try:
        runner = Runner(model, args.context_length, args.max_running_requests or SLOTS, args.is_embedding)
        if runner.wait(told.is_set):
            return runner
    except ModelError as error:
        raise Crashed(str(error)) from error
    runner.stop()
    return None


def warm_up(server: Sglang) -> None:
    if not server.args.skip_server_warmup:
        compute(server.model.runner, server.args.is_embedding)
    server.starting = False
    log("The server is fired up and ready to roll!")


def end_when_idle(server: Sglang) -> None:
    """What the original's watchdog does, which looks around only now and then."""
    log("SIGTERM received. Draining requests and shutting down...")
    time.sleep(WATCH)
    while server.in_flight and os.environ.get("SGL_FORCE_SHUTDOWN", "").lower() not in TRUE:
        log(f"Gracefully exiting... Remaining number of requests {server.in_flight}.")
        time.sleep(WATCH)


def kill_all(server: Sglang | None = None) -> None:
    """The original's end in every case: it kills its children and itself."""
    if server is not None:
        server.cut()
        server.model.runner.stop()
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)
    os._exit(0)


def main(arguments: list[str]) -> int:
    told = threading.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda *_signal: told.set())
    runner = None
    try:
        args = read_arguments(arguments)
        model = find_model(args)
        runner = load(args, model, told)
        if runner is None:
            return 128 + signal.SIGTERM
        server = Sglang(args, runner)
    except (ValueError, ModelError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"[Errno {error.errno}] error while attempting to bind on address: {error.strerror}", file=sys.stderr)
        runner.stop()
        return 1
    except Crashed as error:
        log(f"Scheduler hit an exception: {error}")
        log("Received sigquit from a child process. It usually means the child failed.")
        kill_all()
    log(f"Uvicorn running on http://{args.host}:{args.port}")
    server.start()
    try:
        warm_up(server)
    except Refused as error:
        log(f"Initialization failed. warmup error: {error}")
        kill_all(server)
    while not told.wait(0.1):
        if server.model.crashed:
            log("Received sigquit from a child process. It usually means the child failed.")
            kill_all(server)
    server.exiting = True
    end_when_idle(server)
    kill_all(server)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
