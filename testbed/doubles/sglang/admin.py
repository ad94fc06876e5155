# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What whoever reaches SGLang's port can do to it: stop all answers, swap the model, throw the caches away.

No client may ever get here. What they do is done, so that a gateway that lets one through is found out.
"""
from __future__ import annotations

import threading
from pathlib import Path

from model_dir import ModelError, read_model
from runner import Runner

SAID = {
    "/flush_cache": "Cache flushed.\nPlease check backend logs for more details. "
    "(When there are running or waiting requests, the operation will not be performed.)\n",
    "/clear_hicache_storage_backend": "Hierarchical cache storage backend cleared.\n",
    "/start_profile": "Start profiling.\n",
    "/stop_profile": "Stop profiling. This will take some time.\n",
    "/freeze_gc": "Garbage collection frozen.\n",
    "/start_expert_distribution_record": "Start recording the expert distribution.\n",
    "/stop_expert_distribution_record": "Stop recording the expert distribution.\n",
    "/dump_expert_distribution_record": "Dump expert distribution record.\n",
    "/configure_logging": "",
}
LEFT_OUT = (
    "/generate_from_file", "/encode", "/classify", "/v1/classify", "/v1/score", "/v1/rerank", "/v1/responses", "/v1/tokenize", "/tokenize",
    "/v1/detokenize", "/detokenize", "/v1/messages", "/vertex_generate", "/get_load", "/set_internal_state", "/get_weights_by_name",
    "/init_weights_update_group", "/destroy_weights_update_group", "/update_weights_from_tensor", "/update_weights_from_distributed",
    "/update_weights_from_ipc", "/init_weights_send_group_for_remote_instance", "/send_weights_to_remote_instance",
    "/load_lora_adapter", "/unload_lora_adapter", "/open_session", "/close_session", "/slow_down", "/parse_function_call",
    "/separate_reasoning", "/api/chat", "/api/generate", "/api/tags", "/api/show", "/docs", "/openapi.json",
)


class Model:
    """The model that answers, which can be swapped or taken out of the memory."""

    def __init__(self, runner: Runner, version: str) -> None:
        self.runner, self.version = runner, version
        self.path = str(runner.model.path)
        self.released = False
        self.lock = threading.Lock()

    @property
    def crashed(self) -> bool:
        return not self.released and self.runner.process.poll() is not None

    def swap(self, path: str, version: str | None) -> tuple[bool, str]:
        """Serve the model of another directory from now on; the old one stays where that is none."""
        with self.lock:
            old = self.runner
            try:
                new = Runner(read_model(Path(path)), old.context, old.slots)
                new.wait(lambda: False)
            except ModelError as error:
                return False, f"Failed to get weights iterator: {path} (repository not found or config error): {error}."
            self.runner, self.path, self.version = new, path, version or self.version
            old.stop()
            return True, "Succeeded to update model weights."

    def release(self) -> None:
        with self.lock:
            self.released = True
            self.runner.process.kill()

    def resume(self) -> None:
        with self.lock:
            old, self.runner = self.runner, Runner(self.runner.model, self.runner.context, self.runner.slots)
            self.runner.wait(lambda: False)
            self.released = False
            old.stop()
