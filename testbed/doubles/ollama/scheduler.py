# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Loads models into llama-server processes, hands out their slots, and unloads them when their time is up."""
from __future__ import annotations

import contextlib
import http.client
import math
import os
import re
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

from store import Model, Store, StoreError

UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
STEP = 0.05


class Busy(StoreError):
    def __init__(self) -> None:
        super().__init__("server busy, please try again.  maximum pending requests exceeded", 503)


class Cancelled(StoreError):
    def __init__(self) -> None:
        super().__init__("request canceled", 499)


def number(name: str, default: int) -> int:
    """An environment variable as the original reads numbers: one that is none counts as left out."""
    text = variable(name)
    return int(text) if text.isdigit() else default


def variable(name: str) -> str:
    return os.environ.get(name, "").strip().strip("\"'")


def seconds(value: object, default: float) -> float:
    """A duration, as in -1, 300, "5m" or "1h30m"; a negative one never ends."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return math.inf if value < 0 else float(value)
    text = str(value or "").strip()
    if re.fullmatch(r"[+-]?\d+", text):
        return seconds(int(text), default)
    if not re.fullmatch(r"-?(?:\d+(?:\.\d+)?(?:ms|s|m|h))+", text):
        return default
    total = sum(float(count) * UNITS[unit] for count, unit in re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text))
    return math.inf if text.startswith("-") else total


class Runner:
    """One llama-server with one model. `num_ctx` is of each of its slots."""

    def __init__(self, model: Model, paths: tuple, num_ctx: int, parallel: int) -> None:
        self.model, self.num_ctx, self.parallel = model, num_ctx, parallel
        self.in_use, self.keep_alive, self.expires = 0, math.inf, math.inf
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        weights, projectors = paths
        command = shlex.split(os.environ.get("LLAMA_SERVER", "llama-server"))
        command += ["--model", str(weights), "--host", "127.0.0.1", "--port", str(self.port), "--alias", model.name.model]
        # Several threads would wait for each other in a loop, and on a busy machine for seconds.
        command += ["--ctx-size", str(num_ctx * parallel), "--parallel", str(parallel), "--no-slots", "--threads", "1"]
        command += [word for path in projectors for word in ("--mmproj", str(path))]
        quiet = {"LLAMA_ARG_OFFLINE": "1", "LLAMA_ARG_UI": "0", "LLAMA_ARG_WEBUI": "0", "LLAMA_CACHE": "/tmp"}
        self.process = subprocess.Popen(command, env={**os.environ, **quiet}, stdin=subprocess.DEVNULL)

    def ready(self) -> bool:
        if self.process.poll() is not None:
            raise StoreError(f"llama runner process has terminated: exit status {self.process.returncode}")
        try:
            status, _body = self.ask("GET", "/health")
        except (OSError, http.client.HTTPException):
            return False
        return status == 200

    def ask(self, method: str, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        with contextlib.closing(connection):
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


class Scheduler:
    """Who may compute, and which models are in memory."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.parallel = max(number("OLLAMA_NUM_PARALLEL", 1), 1)
        self.max_queue = number("OLLAMA_MAX_QUEUE", 512)
        self.most = number("OLLAMA_MAX_LOADED_MODELS", 0) or 3
        self.num_ctx = number("OLLAMA_CONTEXT_LENGTH", 0) or 4096  # the original's default where there is no GPU
        self.keep_alive = seconds(variable("OLLAMA_KEEP_ALIVE") or None, 300)
        self.load_timeout = seconds(variable("OLLAMA_LOAD_TIMEOUT") or None, 300) or math.inf
        self.loaded: dict[str, Runner] = {}
        self.waiting = 0
        self.changed = threading.Condition()
        self.loading = threading.Lock()
        threading.Thread(target=self._expire, daemon=True).start()

    @contextlib.contextmanager
    def use(self, model: Model, options: dict, keep_alive: object, gone: Callable[[], bool]) -> Iterator[Runner]:
        """A slot of the model's runner; the model is loaded first where it is not, or not with these options."""
        merged = {**self.store.options(model), **options}
        num_ctx = max(int(merged.get("num_ctx") or self.num_ctx), 4)
        runner = self._take(model, num_ctx)
        if runner is None:
            runner = self._wait(model, num_ctx, gone)
        if keep_alive is not None:
            runner.keep_alive = seconds(keep_alive, self.keep_alive)
        try:
            yield runner
        finally:
            with self.changed:
                runner.in_use -= 1
                runner.expires = time.time() + runner.keep_alive
                self.changed.notify_all()

    def unload(self, model: Model) -> None:
        """Unload it as soon as nobody uses it any more."""
        with self.changed:
            runner = self.loaded.get(model.digest)
            if runner:
                runner.keep_alive, runner.expires = 0, 0

    def close(self) -> None:
        for runner in list(self.loaded.values()):
            runner.stop()

    def _take(self, model: Model, num_ctx: int) -> Runner | None:
        """A free slot of what is loaded already."""
        with self.changed:
            runner = self.loaded.get(model.digest)
            if runner is None or runner.num_ctx != num_ctx or runner.process.poll() is not None:
                return None
            if runner.in_use >= runner.parallel:
                return None
            runner.in_use += 1
            return runner

    def _wait(self, model: Model, num_ctx: int, gone: Callable[[], bool]) -> Runner:
        with self.changed:
            if self.waiting >= self.max_queue:
                raise Busy
            self.waiting += 1
        try:
            while not (runner := self._take(model, num_ctx)):
                if gone():
                    raise Cancelled
                with self.changed:
                    current = self.loaded.get(model.digest)
                    here = current is not None and current.num_ctx == num_ctx and current.process.poll() is None
                if here or not self.loading.acquire(timeout=STEP):
                    time.sleep(STEP)
                    continue
                try:
                    self._load(model, num_ctx, gone)
                finally:
                    self.loading.release()
            return runner
        finally:
            with self.changed:
                self.waiting -= 1

    def _load(self, model: Model, num_ctx: int, gone: Callable[[], bool]) -> None:
        current = self.loaded.get(model.digest)
        if current is not None and current.num_ctx == num_ctx and current.process.poll() is None:
            return
        if current is not None:
            self._evict(current, gone)
        while len(self.loaded) >= self.most:
            self._evict(min(self.loaded.values(), key=lambda runner: runner.expires), gone)
        self.store.verify(model)
        runner = Runner(model, self.store.weights(model), num_ctx, self.parallel)
        deadline = time.monotonic() + self.load_timeout
        try:
            while not runner.ready():
                # Whoever leaves while a model loads ends its loading, as with the original.
                if gone():
                    raise Cancelled
                if time.monotonic() > deadline:
                    raise StoreError("timed out waiting for llama runner to start")
                time.sleep(STEP)
        except StoreError:
            runner.stop()
            raise
        runner.keep_alive = self.keep_alive
        runner.expires = time.time() + runner.keep_alive
        with self.changed:
            self.loaded[model.digest] = runner

    def _evict(self, runner: Runner, gone: Callable[[], bool]) -> None:
        """Unload a model to make room, when those who use it are done."""
        while True:
            with self.changed:
                if runner.in_use == 0 or runner.process.poll() is not None:
                    self.loaded.pop(runner.model.digest, None)
                    break
            if gone():
                raise Cancelled
            time.sleep(STEP)
        runner.stop()

    def _expire(self) -> None:
        while True:
            time.sleep(STEP)
            with self.changed:
                over = [it for it in self.loaded.values() if it.in_use == 0 and time.time() >= it.expires]
                for runner in over:
                    del self.loaded[runner.model.digest]
            for runner in over:
                runner.stop()
