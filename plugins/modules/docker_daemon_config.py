#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_daemon_config
short_description: Merges settings into Docker's daemon.json and takes them out again
version_added: 0.1.0
description:
  - Objects are merged key by key, lists are united, any other value in O(config) wins. Every other key of the file
    stays as it is.
  - Keeps a record of what it set and of what was there before, so that O(state=absent) gives the operator's file back,
    to the byte where nobody has edited it meanwhile. What has been edited stays as edited.
  - Never restarts or reloads Docker. It says which changed keys Docker takes up on a reload and which need a restart,
    and leaves that in O(state_dir) as the markers C(docker-reload-pending) and C(docker-restart-pending), one key a
    line, for whoever reloads or restarts Docker to remove.
  - A file that is not a JSON object is an error and is not touched. Where C(dockerd) is installed and knows
    C(--validate) (version 23 and later), it has to accept the merged file before that is put in place.
options:
  state:
    description: Whether the settings are merged into the file or taken out of it.
    type: str
    choices: [present, absent]
    default: present
  config:
    description:
      - Settings that must hold, as daemon.json has them.
      - They appear in task results and in the file's diff; passwords do not belong here.
    type: dict
    default: {}
  defaults:
    description:
      - Settings that hold only where neither O(config) nor the operator's file has a value.
      - C(log-opts) is left out where another C(log-driver) than the default one is chosen, because options of one
        driver keep Docker from starting with another.
    type: dict
    default: {}
  path:
    description: The daemon's configuration file. Made, with its directory, where it is missing.
    type: path
    default: /etc/docker/daemon.json
  state_dir:
    description: Directory for the record C(docker-daemon.json) and the markers.
    type: path
    default: /var/lib/llm_fleet
  pidfile:
    description: Where a running C(dockerd) keeps its process id. Nothing is pending where none runs.
    type: path
    default: /run/docker.pid
author:
  - localfirst.llm_fleet contributors (@localfirst)
attributes:
  check_mode:
    description: Says what would be done, and does none of it.
    support: full
  diff_mode:
    description: Shows the file before and after, without passwords in URLs and values whose key names a secret.
    support: full
  idempotent:
    description: Calling it twice has the effect of calling it once.
    support: full
"""

EXAMPLES = r"""
- name: Keep containers alive while Docker restarts, rotate logs unless the operator chose otherwise
  localfirst.llm_fleet.docker_daemon_config:
    config:
      live-restore: true
      registry-mirrors: ["https://mirror.example"]
    defaults:
      log-driver: json-file
      log-opts: {max-size: 50m, max-file: "3"}
  become: true
  register: daemon

- name: Give the operator's file back
  localfirst.llm_fleet.docker_daemon_config:
    state: absent
  become: true
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode.
  type: list
  elements: str
  returned: success
  sample: ["/etc/docker/daemon.json: set live-restore", "/etc/docker/daemon.json: set log-opts"]
changed_keys:
  description: Top-level keys of the file that changed.
  type: list
  elements: str
  returned: success
  sample: [live-restore, log-opts]
reload_pending:
  description: Keys that a running Docker takes up when it is reloaded, those of earlier calls included.
  type: list
  elements: str
  returned: success
  sample: [live-restore]
restart_pending:
  description: Keys that a running Docker takes up only when it is restarted, those of earlier calls included.
  type: list
  elements: str
  returned: success
  sample: [log-opts]
docker_running:
  description: Whether a C(dockerd) runs, by O(pidfile).
  type: bool
  returned: success
  sample: true
"""

import json
import os
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import docker_daemon

UNTOUCHED = "Correct it by hand; nothing was changed."


class DaemonConfig:
    """The file, our record of it, and the markers."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        # Through a symbolic link: replacing the link itself would cut it from what manages its target.
        self.path = Path(os.path.realpath(module.params["path"]))
        self.state_dir = Path(module.params["state_dir"])
        self.record_file = self.state_dir / "docker-daemon.json"

    def apply(self) -> dict:
        text, saved = self.read(self.path), self.saved()
        wish = {"config": {}, "defaults": {}}
        if self.module.params["state"] == "present":
            wish = {name: self.module.params[name] for name in wish}
        try:
            outcome = docker_daemon.decide(text, saved["original"], saved["record"], **wish)
        except docker_daemon.BrokenDocument as error:
            self.fail(f"{self.path} is broken: {error}", UNTOUCHED)
        reload_keys, restart_keys = docker_daemon.changed_keys(outcome.before, outcome.after)
        keys = sorted(reload_keys + restart_keys)
        actions = [f"{self.path}: {'set' if key in outcome.after else 'remove'} {key}" for key in keys]
        if outcome.text is None and text is not None:
            actions.append(f"{self.path}: remove the file")
        if outcome.text != text and outcome.record:
            self.validate(outcome.text)
        running = self.docker_runs()
        pending = {
            "docker-reload-pending": self.pending("docker-reload-pending", reload_keys, running),
            "docker-restart-pending": self.pending("docker-restart-pending", restart_keys, running),
        }
        if not self.module.check_mode:
            self.carry_out(outcome, saved, pending)
        return {
            "changed": outcome.text != text,
            "actions": actions,
            "changed_keys": keys,
            "reload_pending": pending["docker-reload-pending"],
            "restart_pending": pending["docker-restart-pending"],
            "docker_running": running,
            "diff": {
                "before_header": str(self.path), "before": self.shown(text, outcome.before),
                "after_header": str(self.path), "after": self.shown(outcome.text, outcome.after),
            },
        }

    def carry_out(self, outcome: docker_daemon.Outcome, saved: dict, pending: dict) -> None:
        """Record, markers, file, in this order: whoever is interrupted in between can still undo and still reload."""
        made_directory = saved["made_directory"] or not self.path.parent.is_dir()
        if outcome.record:
            record = {"format": 1, "path": str(self.path), "made_directory": made_directory}
            record.update(original=outcome.original, record=outcome.record)
            self.write(self.record_file, json.dumps(record, indent=1) + "\n", 0o600)
        for marker, keys in pending.items():
            if keys:
                self.write(self.state_dir / marker, "".join(f"{key}\n" for key in keys), 0o644)
        if outcome.text is None:
            self.path.unlink(missing_ok=True)
        else:
            self.write(self.path, outcome.text, 0o644)
        if not outcome.record:
            self.record_file.unlink(missing_ok=True)
            if saved["made_directory"] and self.path.parent.is_dir() and not any(self.path.parent.iterdir()):
                self.path.parent.rmdir()

    def saved(self) -> dict:
        """The record of the last merge; empty where there is none."""
        text = self.read(self.record_file)
        if text is None:
            return {"original": None, "record": [], "made_directory": False}
        try:
            saved = json.loads(text)
        except ValueError as error:
            fix = f"Restore it from a backup, or remove it if {self.path} may stay as it is."
            self.fail(f"{self.record_file} is not JSON: {error}", fix)
        if saved["path"] != str(self.path):
            self.fail(
                f"{self.record_file} is the record of {saved['path']}, not of {self.path}",
                f"Call the module with state=absent and path={saved['path']} first.",
            )
        return saved

    def read(self, path: Path) -> str | None:
        try:
            return path.read_bytes().decode()
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            self.fail(f"{path} is broken: byte {error.start + 1} is not UTF-8", UNTOUCHED)

    def validate(self, text: str) -> None:
        """Let dockerd read the new file, where it is installed and can."""
        dockerd = self.module.get_bin_path("dockerd")
        if dockerd is None or "--validate" not in self.module.run_command([dockerd, "--help"])[1]:
            return
        with tempfile.NamedTemporaryFile("w", dir=self.module.tmpdir, suffix=".json") as trial:
            trial.write(text)
            trial.flush()
            code, output, errors = self.module.run_command([dockerd, "--validate", f"--config-file={trial.name}"])
        if code != 0:
            said = (errors or output).strip().replace(trial.name, str(self.path))
            self.fail(f"dockerd does not accept the merged {self.path}: {said}", UNTOUCHED)

    def docker_runs(self) -> bool:
        text = (self.read(Path(self.module.params["pidfile"])) or "").strip()
        return text.isdigit() and Path("/proc", text).is_dir()

    def pending(self, marker: str, keys: list, running: bool) -> list:
        """Keys that wait for a reload or restart. A Docker that does not run reads the file when it starts."""
        earlier = (self.read(self.state_dir / marker) or "").split() if running else []
        return sorted({*earlier, *keys}) if running else []

    def write(self, path: Path, text: str, mode: int) -> None:
        """Replace a file in one step if its content differs; one that exists keeps its owner and mode."""
        if self.read(path) == text:
            return
        path.parent.mkdir(mode=0o750 if path.parent == self.state_dir else 0o755, parents=True, exist_ok=True)
        descriptor, fresh = tempfile.mkstemp(dir=self.module.tmpdir)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        is_new = not path.exists()
        self.module.atomic_move(fresh, str(path))
        if is_new:
            path.chmod(mode)

    @staticmethod
    def shown(text: str | None, document: dict) -> str:
        return "" if text is None else docker_daemon.render(docker_daemon.redact(document))

    def fail(self, what: str, fix: str) -> None:
        self.module.fail_json(msg=f"{what}. {fix}", path=str(self.path))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "config": {"type": "dict", "default": {}},
            "defaults": {"type": "dict", "default": {}},
            "path": {"type": "path", "default": "/etc/docker/daemon.json"},
            "state_dir": {"type": "path", "default": "/var/lib/llm_fleet"},
            "pidfile": {"type": "path", "default": "/run/docker.pid"},
        },
        supports_check_mode=True,
    )
    module.exit_json(**DaemonConfig(module).apply())


if __name__ == "__main__":
    main()
