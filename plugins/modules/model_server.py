#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: model_server
short_description: Serves model files to the fleet from the controller
version_added: 0.1.0
description:
  - Runs on the controller. Stands in for a depot, at C(https://<address>:<port>/blobs/sha256/<hex>), for as long as hosts fetch.
  - Only who holds a certificate of the fleet's CA is answered. Methods are GET and HEAD; ranges are supported.
  - The server outlives the module and its playbook, and ends by itself when nobody has asked for O(idle_timeout) seconds.
  - A second start finds the server of the first and adds its files. Only the last of those who started it stops it.
options:
  state:
    description:
      - V(started) has such a server running.
      - V(stopped) ends it, unless another run that started it has not stopped it yet.
    type: str
    choices: [started, stopped]
    default: started
  run_dir:
    description: Directory of the server's own files. It is made with mode 0700.
    type: path
    required: true
  address:
    description:
      - The address by which hosts reach the controller, as the certificate has it.
      - If the machine itself does not have it (NAT), the server listens on all its addresses.
    type: str
  port:
    description: The port, V(0) for any that is free.
    type: int
    default: 0
  store:
    description: A store whose blobs are served.
    type: path
  files:
    description: Further files to serve, paths by SHA-256 digest. They are served as they are, without a look at their contents.
    type: dict
    default: {}
  certificate:
    description: The server's certificate (PEM).
    type: path
  key:
    description: The key of O(certificate) (PEM).
    type: path
  ca:
    description: The CA (PEM) that has to have signed the certificates of clients.
    type: path
  idle_timeout:
    description: Seconds without a request after which the server ends by itself.
    type: int
    default: 900
  lease:
    description: What an earlier call returned as RV(lease). Without it, O(state=stopped) ends the server in any case.
    type: str
author:
  - localfirst.llm_fleet contributors (@localfirst)
attributes:
  check_mode:
    description: Says what would be done.
    support: full
  diff_mode:
    description: There are no contents to compare.
    support: none
  idempotent:
    description: A second call finds the server running, or gone, and changes nothing.
    support: full
"""

EXAMPLES = r"""
- name: Serve model files while hosts fetch them
  localfirst.llm_fleet.model_server:
    run_dir: /srv/llm_fleet/serving
    address: 10.0.0.5
    store: /srv/llm_fleet/store
    files:
      1f0e3dad99908345f7439f8ffabdffc4b1f0e3dad99908345f7439f8ffabdffc: /srv/models/tiny.gguf
    certificate: /srv/llm_fleet/serving/server.pem
    key: /srv/llm_fleet/serving/server.key
    ca: /srv/llm_fleet/ca/ca.pem
  delegate_to: localhost
  register: server

- name: Stop serving
  localfirst.llm_fleet.model_server:
    state: stopped
    run_dir: /srv/llm_fleet/serving
    lease: "{{ server.lease }}"
  delegate_to: localhost
"""

RETURN = r"""
url:
  description: Where hosts reach the server; blobs are below C(/blobs/sha256/). Empty where no server runs.
  type: str
  returned: success
  sample: https://10.0.0.5:40123
port:
  description: The port that it listens on.
  type: int
  returned: while a server runs
  sample: 40123
pid:
  description: Its process.
  type: int
  returned: while a server runs
  sample: 4711
lease:
  description: What to give back with O(state=stopped).
  type: str
  returned: with O(state=started)
  sample: 9f86d081884c7d65
actions:
  description: What was or would be done.
  type: list
  elements: str
  returned: success
  sample: ["serve /srv/llm_fleet/store at https://10.0.0.5:40123"]
fault:
  description: What is wrong, where, and what to do about it.
  type: dict
  returned: failure
"""

import re

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import DIGEST, ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.blob_server import Tls
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.blob_service import BlobService, Wanted

LEASE = re.compile(r"[A-Za-z0-9]{1,64}")


class ModelServer:
    """One call of the module."""

    def __init__(self, params: dict, check_mode: bool) -> None:
        self.params = params
        self.check_mode = check_mode
        self.service = BlobService(params["run_dir"])
        if params["lease"] is not None and not LEASE.fullmatch(params["lease"]):
            raise ArtifactError("the lease is no name of letters and digits", "lease", "pass on what state: started returned")

    def run(self) -> dict:
        act = getattr(self, self.params["state"])
        if self.check_mode or (act == self.stopped and not self.service.run_dir.is_dir()):
            return act()
        with self.service.alone():
            return act()

    def started(self) -> dict:
        params = self.params
        tls = Tls(params["certificate"], params["key"], params["ca"])
        wanted = Wanted(params["address"], params["port"], params["store"], tls, params["idle_timeout"])
        for digest, path in params["files"].items():
            if not DIGEST.fullmatch(digest) or not str(path).startswith("/"):
                raise ArtifactError(f"{digest}: {path} is no digest with an absolute path", "files", "write <sha256>: /path")
        note = None if self.check_mode and not self._certified(tls) else self.service.running()
        actions = []
        if note is None or not self.service.same(note, wanted):
            actions = [f"serve {params['store'] or 'files'} at {self._place(params)}"]
        actions += [f"serve {path}" for path in sorted(self.service.lacking(params["files"] if not actions else {}).values())]
        if self.check_mode:
            return {**_public(note), "changed": bool(actions), "actions": actions, "lease": params["lease"] or ""}
        note = self.service.start(wanted, params["files"])
        return {**_public(note), "changed": bool(actions), "actions": actions, "lease": self.service.lease(params["lease"])}

    def stopped(self) -> dict:
        note = self.service.running()
        if note is None:
            return {"changed": False, "actions": [], "url": ""}
        others = [lease for lease in self.service.held() if lease != self.params["lease"]]
        if self.params["lease"] is not None and others:
            if not self.check_mode:
                self.service.give_back(self.params["lease"])
            return {**_public(note), "changed": False, "actions": ["leave the server to another run, which still needs it"]}
        if not self.check_mode:
            self.service.kill(note)
            self.service.give_back(None)
        return {"changed": True, "actions": [f"stop serving at {note['url'] or self.service.run_dir}"], "url": ""}

    @staticmethod
    def _place(params: dict) -> str:
        return f"{params['address']}, port {params['port'] or 'any'}"

    @staticmethod
    def _certified(tls: Tls) -> bool:
        """In check mode the certificate may be one that an earlier task would have made."""
        try:
            for path in tls:
                open(path, "rb").close()
        except OSError:
            return False
        return True


def _public(note: dict | None) -> dict:
    return {key: note[key] for key in ("url", "port", "pid")} if note else {"url": ""}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["started", "stopped"], "default": "started"},
            "run_dir": {"type": "path", "required": True},
            "address": {"type": "str"},
            "port": {"type": "int", "default": 0},
            "store": {"type": "path"},
            "files": {"type": "dict", "default": {}},
            "certificate": {"type": "path"},
            # A path, and no secret.
            "key": {"type": "path", "no_log": False},
            "ca": {"type": "path"},
            "idle_timeout": {"type": "int", "default": 900},
            "lease": {"type": "str"},
        },
        required_if=[("state", "started", ["address", "certificate", "key", "ca"])],
        supports_check_mode=True,
    )
    try:
        result = ModelServer(module.params, module.check_mode).run()
    except ArtifactError as error:
        module.fail_json(msg=str(error), fault=error.fault.as_dict())
    except OSError as error:
        error = ArtifactError.from_os_error(error, module.params["run_dir"])
        module.fail_json(msg=str(error), fault=error.fault.as_dict())
    module.exit_json(**result)


if __name__ == "__main__":
    main()
