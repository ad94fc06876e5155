#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: model_offer
short_description: Offers contents of a store to hosts that bring them to each other
version_added: 0.1.0
description:
  - Makes a torrent beside each content of the given artifacts, and has the host's peer program hand the content out.
  - Only what the store knows to be right is offered. What changed since it was verified is read again first.
  - A content gets its torrent once. It names the fleet's CA, and is made anew where that is another one. All of the content is read for it.
  - Contents of less than a mebibyte, and those that the lockfile holds, have no torrent. They come over HTTP sooner.
options:
  ca_path:
    description: Certificate of the fleet's CA in PEM, whose certificates hosts show each other.
    type: path
    required: true
  peer:
    description: Path of the socket of the host's peer program, from M(localfirst.llm_fleet.model_peer). Without it, only torrents are made.
    type: path
  owner:
    description: Owner of the torrents. By default whoever runs this.
    type: str
  group:
    description: Group of the torrents, which may read them.
    type: str
extends_documentation_fragment:
  - localfirst.llm_fleet.store
  - localfirst.llm_fleet.store.artifacts
author:
  - localfirst.llm_fleet contributors (@localfirst)
seealso:
  - module: localfirst.llm_fleet.model_peer
  - module: localfirst.llm_fleet.model_stage
attributes:
  check_mode:
    description: Says which torrents would be made, and changes nothing.
    support: full
  diff_mode:
    description: Lists the torrents that are made.
    support: full
  idempotent:
    description: A content that has its torrent keeps it.
    support: full
"""

EXAMPLES = r"""
- name: Offer what a depot has
  localfirst.llm_fleet.model_offer:
    artifacts: "{{ artifacts }}"
    ca_path: /etc/llm_fleet/tls/ca.pem
    peer: /run/llm_fleet_peer/control
    group: llm-fleet
"""

RETURN = r"""
actions:
  description: What was or would be done.
  type: list
  elements: str
  returned: success
  sample: ["tiny 1.0.0: describe tiny.gguf to peers"]
offered:
  description: What this host hands out.
  type: list
  elements: str
  returned: success
  sample: ["tiny 1.0.0: tiny.gguf"]
left_out:
  description: What it does not, because the store lacks it, or has other bytes under its name.
  type: list
  elements: str
  returned: success
  sample: []
diff:
  description: The torrents that are made.
  type: dict
  returned: success
fault:
  description: What is wrong, where, and what to do about it.
  type: dict
  returned: failure
  sample:
    what: the peer program does not answer
    where: /run/llm_fleet_peer/control
    fix: look at journalctl -u llm-fleet-peer on this host, then run again
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import Artifact, ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_store import Store
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_arguments import ARTIFACTS, STORE, answer
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.swarm_client import Peer, PeerGone, PeerRefused
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.swarm_offer import Offer


def offer(params: dict, check_mode: bool) -> dict:
    """One call of the module."""
    artifacts = [Artifact.parse(each["model"], each["version"], each["source"], each["files"]) for each in params["artifacts"]]
    ca = Path(params["ca_path"])
    # On a bare host, in check mode, there is no certificate yet.
    pem = None if check_mode and not ca.exists() else ca.read_bytes()
    offering = Offer(Store(params["store"], params["owner"], params["group"]), artifacts, pem)
    if check_mode:
        done = {"actions": offering.look(), "offered": [], "left_out": []}
    else:
        try:
            done = offering.run(Peer(params["peer"]) if params["peer"] else None)
        except (PeerGone, PeerRefused) as error:
            what = "the peer program does not answer" if isinstance(error, PeerGone) else f"the peer program refused: {error}"
            fix = "look at journalctl -u llm-fleet-peer on this host, then run again"
            raise ArtifactError(what, params["peer"], fix) from error
    after = "".join(f"{action}\n" for action in done["actions"])
    return {"changed": bool(done["actions"]), **done, "diff": {"before": "", "after": after}}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **STORE,
            **ARTIFACTS,
            "ca_path": {"type": "path", "required": True},
            "peer": {"type": "path"},
            "owner": {"type": "str"},
            "group": {"type": "str"},
        },
        supports_check_mode=True,
    )
    answer(module, lambda: offer(module.params, module.check_mode))


if __name__ == "__main__":
    main()
