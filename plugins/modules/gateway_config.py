#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: gateway_config
short_description: Replaces HAProxy's configuration and maps as one, after HAProxy has checked them together
version_added: 0.1.0
description:
  - Writes configuration and maps to a place aside and lets C(haproxy -c) load them there, all that they refer to included.
    Where HAProxy refuses them nothing is replaced.
  - Puts the maps in place first and the configuration last, so that HAProxy never finds one that refers to what is not there yet.
  - Where only maps differ, they are exchanged in the memory of the running HAProxy, one by one and each as a whole, without a reload.
  - Says whether HAProxy has to be reloaded, which it also does when an earlier run was broken off before that.
options:
  config:
    description: Text of the configuration.
    type: str
    required: true
  config_file:
    description: Where the configuration is.
    type: path
    default: /etc/haproxy/haproxy.cfg
  maps:
    description: Text of each map by the name of its file without C(.map).
    type: dict
    default: {}
  engine_keys:
    description: Text of C(keys.map), the engines' API keys.
    type: str
    default: ""
  maps_dir:
    description: Directory of the maps. The configuration refers to them by their full path.
    type: path
    default: /etc/haproxy/llm_fleet
  loaded:
    description:
      - Other files that HAProxy loads when it starts, such as its certificate.
      - One that is newer than the running HAProxy needs a reload.
    type: list
    elements: path
    default: []
  haproxy:
    description: HAProxy's program.
    type: path
    default: /usr/sbin/haproxy
  socket:
    description: HAProxy's runtime socket.
    type: path
    default: /run/haproxy/admin.sock
author:
  - localfirst.llm_fleet contributors (@localfirst)
attributes:
  check_mode:
    description: Says what would be done, and does none of it. HAProxy does not check the files then.
    support: full
  diff_mode:
    description: Shows configuration and maps before and after, the engines' keys excepted.
    support: full
  idempotent:
    description: Calling it twice, with the reload that it asks for in between, has the effect of calling it once.
    support: full
"""

EXAMPLES = r"""
- name: Write what HAProxy loads
  localfirst.llm_fleet.gateway_config:
    config: "{{ lookup('ansible.builtin.template', 'haproxy.cfg.j2') }}"
    maps:
      models: "{{ lookup('ansible.builtin.template', 'maps/models.map.j2') }}"
  register: written

- name: Reload HAProxy
  ansible.builtin.systemd_service:
    name: haproxy
    state: reloaded
  when: written.reload
"""

RETURN = r"""
actions:
  description: What was done or would be done.
  type: list
  elements: str
  returned: always
  sample: ["write /etc/haproxy/llm_fleet/access.map", "exchange access.map in HAProxy's memory"]
reload:
  description: Whether HAProxy has to be reloaded.
  type: bool
  returned: always
"""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import haproxy_maps, whole_files
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.haproxy_runtime import (
    HAProxyRuntime,
    RuntimeFailure,
)

SECRET = "keys"


class GatewayConfig:
    """What one HAProxy loads."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.path = Path(module.params["config_file"])
        self.maps_dir = Path(module.params["maps_dir"])
        self.config = module.params["config"]
        self.maps = {**module.params["maps"], SECRET: module.params["engine_keys"]}
        self.runtime = HAProxyRuntime(module.params["socket"])
        self.actions: list = []

    def map_path(self, name: str) -> Path:
        return self.maps_dir / f"{name}.map"

    def run(self) -> dict:
        before = {name: whole_files.read(self.map_path(name)) for name in self.maps}
        config_before = whole_files.read(self.path)
        changed = [name for name, text in self.maps.items() if before[name] != text or not self.map_path(name).exists()]
        new_config = config_before != self.config
        if (changed or new_config) and not self.module.check_mode:
            self.check()
        for name in changed:
            self.do(f"write {self.map_path(name)}", whole_files.write, self.map_path(name), self.maps[name], 0o600)
        if new_config:
            self.do(f"write {self.path}", whole_files.write, self.path, self.config, 0o644)
        reload = new_config or self.outdated()
        if reload:
            self.actions.append("reload HAProxy")
        else:
            self.commit()
        diff = [
            {
                "before_header": str(self.path),
                "after_header": str(self.path),
                "before": config_before,
                "after": self.config,
            }
        ]
        for name in sorted({*changed} - {SECRET}):
            path = str(self.map_path(name))
            diff.append({"before_header": path, "after_header": path, "before": before[name], "after": self.maps[name]})
        return {"changed": bool(self.actions), "actions": self.actions, "reload": reload, "diff": diff}

    def do(self, action: str, function, *args) -> None:
        self.actions.append(action)
        if not self.module.check_mode:
            function(*args)

    def check(self) -> None:
        """Let HAProxy load it all from a place aside."""
        with tempfile.TemporaryDirectory(dir=self.module.tmpdir) as aside:
            if self.maps_dir.is_dir():
                # Also what is not ours to write: HAProxy's maps of tokens and routes.
                for file in self.maps_dir.glob("*.map"):
                    shutil.copy(file, aside)
            for name, text in self.maps.items():
                whole_files.write(Path(aside) / f"{name}.map", text, 0o600)
            for name in ("tokens.map", "routes.map"):
                (Path(aside) / name).touch()
            config = Path(aside) / "haproxy.cfg"
            whole_files.write(config, self.moved(aside), 0o600)
            done = subprocess.run(
                [self.module.params["haproxy"], "-c", "-f", str(config)], capture_output=True, text=True, check=False
            )
        if done.returncode != 0:
            self.module.fail_json(
                msg="HAProxy refuses the new configuration; the old one is untouched. It says:\n"
                + done.stderr.replace(aside, "…"),
            )

    def moved(self, aside: str) -> str:
        """The configuration with its maps in another place."""
        return re.sub(rf"{re.escape(str(self.maps_dir))}/(\w+\.map)\b", rf"{aside}/\1", self.config)

    def outdated(self) -> bool:
        """Whether the running HAProxy is older than a file that it loads only when it starts."""
        started = self.runtime.started()
        files = [self.path, *map(Path, self.module.params["loaded"])]
        return started is not None and any(file.stat().st_mtime > started for file in files if file.exists())

    def commit(self) -> None:
        """Bring the maps in HAProxy's memory in line with the files."""
        if not self.runtime.runs():
            return
        for name, text in self.maps.items():
            path, entries = str(self.map_path(name)), haproxy_maps.entries_of(text)
            if self.runtime.outdated(path, entries):
                self.do(f"exchange {name}.map in HAProxy's memory", self.runtime.replace_map, path, entries)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "config": {"type": "str", "required": True},
            "config_file": {"type": "path", "default": "/etc/haproxy/haproxy.cfg"},
            "maps": {"type": "dict", "default": {}},
            "engine_keys": {"type": "str", "default": "", "no_log": True},
            "maps_dir": {"type": "path", "default": "/etc/haproxy/llm_fleet"},
            "loaded": {"type": "list", "elements": "path", "default": []},
            "haproxy": {"type": "path", "default": "/usr/sbin/haproxy"},
            "socket": {"type": "path", "default": "/run/haproxy/admin.sock"},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**GatewayConfig(module).run())
    except RuntimeFailure as failure:
        module.fail_json(
            msg=f"The files are written, but the running HAProxy did not take them over: {failure}. Reload HAProxy."
        )


if __name__ == "__main__":
    main()
