#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: exporter_web_config
short_description: Writes the web configuration of a Prometheus exporter
version_added: 0.1.0
description:
  - TLS with a certificate and one user of basic authentication, in the format that all exporters built on C(exporter-toolkit)
    read.
  - The password is hashed with bcrypt by the host's C library. A hash in the file that fits the password stays, so that a
    second call changes nothing.
  - Exporters read the file at every request, so nobody has to be restarted.
  - The certificate has to be there and to belong to the key, except in check mode on a host that has none yet. Where
    C(promtool) is installed, it has to accept the file before that is put in place.
options:
  dest:
    description: The file. Its directory has to be there.
    type: path
    required: true
  cert_file:
    description: The certificate, absolute or relative to the directory of O(dest).
    type: str
    required: true
  key_file:
    description: Its key, absolute or relative to the directory of O(dest).
    type: str
    required: true
  username:
    description: Who may ask.
    type: str
    required: true
  password:
    description: That user's password, at most 72 bytes. Either this or O(password_hash).
    type: str
  password_hash:
    description: The password's bcrypt hash, as C(htpasswd -nBC 10 "") makes it, where the host is not to learn the password.
    type: str
  cost:
    description: How costly it is to try a password, for a hash that is made anew. Each step doubles the time.
    type: int
    default: 10
extends_documentation_fragment:
  - ansible.builtin.files
author:
  - localfirst.llm_fleet contributors (@localfirst)
attributes:
  check_mode:
    description: Says what would be done, and does none of it.
    support: full
  diff_mode:
    description: Shows the file before and after, without hashes.
    support: full
  idempotent:
    description: Calling it twice has the effect of calling it once.
    support: full
"""

EXAMPLES = r"""
- name: Let the exporter answer over TLS, and only who knows the password
  localfirst.llm_fleet.exporter_web_config:
    dest: /etc/llm_fleet/node_exporter/web.yml
    cert_file: server.pem
    key_file: server.key
    username: monitor
    password: "{{ vault_monitor_password }}"
    group: llm-fleet-exporter
    mode: "0640"
  become: true
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode.
  type: list
  elements: str
  returned: success
  sample: ["/etc/llm_fleet/node_exporter/web.yml: a new password for monitor"]
"""

import os
import ssl
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import web_config

HEADING = """Ansible managed
Read at every request. See exporter-toolkit's docs/web-configuration.md."""


class WebConfig:
    """The file, and the hash in it."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.path = Path(module.params["dest"])

    def apply(self) -> dict:
        params = self.module.params
        before = self.read()
        known = web_config.users_of(before or "")
        try:
            web_config.check_user(params["username"])
            text = self.hash(known.get(params["username"], ""))
        except web_config.Refused as error:
            self.module.fail_json(msg=f"{self.path}: {error}.")
        after = web_config.render(HEADING, params["cert_file"], params["key_file"], {params["username"]: text})
        self.check_pair()
        actions = self.actions(before, after, known, text)
        if before != after:
            self.validate(after)
            if not self.module.check_mode:
                self.write(after)
        attributes = self.module.load_file_common_arguments(params, str(self.path))
        changed = before != after
        if self.path.exists():
            changed = self.module.set_fs_attributes_if_different(attributes, changed)
        return {
            "changed": changed,
            "actions": actions,
            "diff": {
                "before_header": str(self.path), "before": web_config.masked(before or ""),
                "after_header": str(self.path), "after": web_config.masked(after),
            },
        }

    def actions(self, before: str | None, after: str, known: dict, text: str) -> list:
        user, found = self.module.params["username"], []
        if before is None:
            found.append(f"{self.path}: write it")
        elif before != after:
            if known.get(user) != text:
                found.append(f"{self.path}: a new password for {user}")
            found += [f"{self.path}: {other} may no longer ask" for other in sorted(known) if other != user]
            if not found:
                found.append(f"{self.path}: change it")
        return found

    def hash(self, known: str) -> str:
        """The hash that the file is to hold: the one passed, the one it has, or a new one."""
        params = self.module.params
        if params["password_hash"]:
            web_config.check_hash(params["password_hash"])
            return params["password_hash"]
        web_config.check_password(params["password"])
        if params["cost"] not in web_config.COSTS:
            costs = web_config.COSTS
            raise web_config.Refused(f"cost is {params['cost']}; use {costs[0]} to {costs[-1]}, 10 where in doubt")
        crypt = web_config.system_crypt()
        if crypt is None:
            raise web_config.Refused("this host has no libcrypt; make a hash with `htpasswd -nBC 10 \"\"` and pass it as password_hash")
        if web_config.fits(params["password"], known, crypt):
            return known
        return web_config.new_hash(params["password"], params["cost"], crypt)

    def check_pair(self) -> None:
        """Stop where an exporter would: a certificate or key that is not there, or two that do not belong together."""
        cert, key = (self.path.parent / self.module.params[name] for name in ("cert_file", "key_file"))
        missing = [str(one) for one in (cert, key) if not one.exists()]
        if missing:
            if not self.module.check_mode:
                self.module.fail_json(msg=f"{self.path}: there is no {', no '.join(missing)}. Get a certificate of the fleet's CA first.")
            return
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)
        except (ssl.SSLError, OSError) as error:
            self.module.fail_json(
                msg=f"{self.path}: {cert} is not a certificate for the key {key} ({error}). Remove both and get a new certificate."
            )

    def validate(self, text: str) -> None:
        promtool = self.module.get_bin_path("promtool")
        if promtool is None:
            return
        # Beside the file, because paths in it are relative to it.
        folder = self.path.parent if self.path.parent.is_dir() and os.access(self.path.parent, os.W_OK) else None
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=folder, prefix=".web-", suffix=".yml") as trial:
            trial.write(text)
            trial.flush()
            code, output, errors = self.module.run_command([promtool, "check", "web-config", trial.name])
        if code != 0:
            said = (errors or output).strip().replace(trial.name, str(self.path))
            self.module.fail_json(msg=f"promtool does not accept {self.path}: {said}. Nothing was changed.")

    def read(self) -> str | None:
        try:
            return self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            self.module.fail_json(msg=f"{self.path}: byte {error.start + 1} is not UTF-8. Remove the file, and run again.")

    def write(self, text: str) -> None:
        """Replace the file in one step. A new one is nobody else's until owner and mode are set."""
        descriptor, fresh = tempfile.mkstemp(dir=self.module.tmpdir)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        is_new = not self.path.exists()
        self.module.atomic_move(fresh, str(self.path))
        if is_new:
            self.path.chmod(0o600)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "dest": {"type": "path", "required": True},
            "cert_file": {"type": "str", "required": True},
            "key_file": {"type": "str", "required": True},
            "username": {"type": "str", "required": True},
            "password": {"type": "str", "no_log": True},
            "password_hash": {"type": "str", "no_log": True},
            "cost": {"type": "int", "default": 10},
        },
        mutually_exclusive=[("password", "password_hash")],
        required_one_of=[("password", "password_hash")],
        add_file_common_args=True,
        supports_check_mode=True,
    )
    module.exit_json(**WebConfig(module).apply())


if __name__ == "__main__":
    main()
