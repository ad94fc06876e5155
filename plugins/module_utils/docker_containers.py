# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Containers that exist already, through Docker's command line: looked at, started, stopped. The engine role makes them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.engine_probe import Container

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

LOG_LINES = "15"
LABEL = "llm_fleet."


class ContainerFailure(Exception):
    """Docker did not do what it was told."""


class Containers:
    """The containers of one host."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.docker = module.get_bin_path("docker", required=True)

    def look(self, names: list[str]) -> dict[str, Container]:
        """The state of each; one that is not there is `absent`."""
        found = {entry["Name"].lstrip("/"): self.container(entry) for entry in self.inspect(names)}
        return {name: found.get(name, Container("absent")) for name in names}

    def inspect(self, names: list[str]) -> list[dict]:
        # It fails for a container that is gone, and still prints the others.
        _code, output, _errors = self.module.run_command([self.docker, "inspect", "--type", "container", *names])
        return json.loads(output or "[]")

    @staticmethod
    def container(entry: dict) -> Container:
        state = entry["State"]
        health = (state.get("Health") or {}).get("Status", "none")
        return Container(state["Status"], health, entry["RestartCount"], state["ExitCode"], state["OOMKilled"])

    def label(self, name: str, label: str) -> str:
        """One of the fleet's labels of a container; empty where there is none of both."""
        return next((entry["Config"]["Labels"].get(LABEL + label, "") for entry in self.inspect([name])), "")

    def start(self, name: str) -> None:
        self._tell("start", name)

    def stop(self, name: str) -> None:
        """Stop it with its own signal, and kill it after its own timeout."""
        self._tell("stop", name)

    def log(self, name: str) -> str:
        _code, output, errors = self.module.run_command([self.docker, "logs", "--tail", LOG_LINES, name])
        lines = (output + errors).strip() or "(nothing)"
        return f"The end of its log (docker logs {name}):\n{lines}"

    def _tell(self, verb: str, name: str) -> None:
        code, _output, errors = self.module.run_command([self.docker, verb, name])
        if code != 0:
            raise ContainerFailure(f"docker {verb} {name}: {errors.strip()}")
