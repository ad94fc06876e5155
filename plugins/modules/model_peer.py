#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: model_peer
short_description: Starts a host's peer program for a run, and ends it after the last one
version_added: 0.1.0
description:
  - The peer program brings contents from hosts of the fleet and hands them on. It is there only while a playbook needs it.
  - Each run has a lease on it. With the first one its unit is written below C(/run/systemd/system) and started. A later one with another
    unit, other settings or other O(reads) has it started anew, and it goes on for the earlier ones. With the last one it
    ends, and unit and settings are removed. A program that nobody asks for anything, and in which nothing moves, ends by itself.
options:
  state:
    description: V(joined) has the program there for this run. V(left) gives the lease back.
    type: str
    choices: [joined, left]
    default: joined
  lease:
    description: A name for this run.
    type: str
    required: true
  peers:
    description: Addresses of the hosts to dial.
    type: list
    elements: str
    default: []
  port:
    description: Port at which all of them listen.
    type: int
    default: 8446
  unit:
    description: Name of the unit.
    type: str
    default: llm-fleet-peer.service
  unit_text:
    description: The unit.
    type: str
  reads:
    description: Files that the unit reads when it starts, such as a certificate that may be renewed.
    type: list
    elements: path
    default: []
  unit_dir:
    description: Where the unit lies.
    type: path
    default: /run/systemd/system
  settings:
    description: Settings of the program.
    type: dict
    default: {}
  settings_path:
    description: Where the program reads them.
    type: path
    default: /run/llm-fleet-peer.json
  socket:
    description: Path of the program's socket.
    type: path
    default: /run/llm_fleet_peer/control
author:
  - localfirst.llm_fleet contributors (@localfirst)
seealso:
  - module: localfirst.llm_fleet.model_offer
  - module: localfirst.llm_fleet.model_stage
attributes:
  check_mode:
    description: Changes nothing, and says that nothing would be changed, because nothing of the program stays.
    support: full
  diff_mode:
    description: There is nothing to show.
    support: none
  idempotent:
    description: A program that runs as it is wanted goes on. A second lease of the same name is the first one.
    support: full
"""

EXAMPLES = r"""
- name: Have the peer program
  localfirst.llm_fleet.model_peer:
    lease: stage-4711
    peers: [10.0.0.5, 10.0.0.22]
    unit_text: "{{ lookup('ansible.builtin.template', 'llm-fleet-peer.service.j2') }}"
    settings: {address: 10.0.0.21, port: 8446, socket: /run/llm_fleet_peer/control}

- name: Give it back
  localfirst.llm_fleet.model_peer:
    lease: stage-4711
    state: left
"""

RETURN = r"""
fault:
  description: What is wrong, where, and what to do about it.
  type: dict
  returned: failure
  sample:
    what: "the peer program does not run: /run/llm_fleet_peer/control: No such file or directory"
    where: llm-fleet-peer.service
    fix: look at journalctl -u llm-fleet-peer.service, then run again
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_files import digest_of
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.swarm_client import Peer
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.swarm_unit import PeerUnit


def unit_text(params: dict) -> str:
    """The unit, and what it reads at this moment: another certificate makes it another unit."""
    return params["unit_text"] + "".join(f"# {path} {digest_of(Path(path))}\n" for path in params["reads"])


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["joined", "left"], "default": "joined"},
            "lease": {"type": "str", "required": True},
            "peers": {"type": "list", "elements": "str", "default": []},
            "port": {"type": "int", "default": 8446},
            "unit": {"type": "str", "default": "llm-fleet-peer.service"},
            "unit_text": {"type": "str"},
            "reads": {"type": "list", "elements": "path", "default": []},
            "unit_dir": {"type": "path", "default": "/run/systemd/system"},
            "settings": {"type": "dict", "default": {}},
            "settings_path": {"type": "path", "default": "/run/llm-fleet-peer.json"},
            "socket": {"type": "path", "default": "/run/llm_fleet_peer/control"},
        },
        required_if=[("state", "joined", ["unit_text"])],
        supports_check_mode=True,
    )
    params = module.params
    if module.check_mode:
        module.exit_json(changed=False)
    settings = Path(params["settings_path"])
    lock = settings.with_suffix(".lock")
    unit = PeerUnit(Path(params["unit_dir"], params["unit"]), settings, Peer(params["socket"]), module.run_command, lock)
    try:
        if params["state"] == "joined":
            peers = [(address, params["port"]) for address in params["peers"]]
            changed = unit.join(params["lease"], peers, unit_text(params), params["settings"])
        else:
            changed = unit.leave(params["lease"])
    except ArtifactError as error:
        module.fail_json(msg=str(error), fault=error.fault.as_dict())
    except OSError as error:
        error = ArtifactError.from_os_error(error, params["unit_dir"])
        module.fail_json(msg=str(error), fault=error.fault.as_dict())
    module.exit_json(changed=changed)


if __name__ == "__main__":
    main()
