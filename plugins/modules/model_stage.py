#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: model_stage
short_description: Brings the files of several model versions into a host's store
version_added: 0.1.0
description:
  - Fetches what the host's store lacks of the given artifacts, verifies it, and links a tree for each version.
  - Contents come from hosts of the fleet that serve them by digest (O(suppliers)), or from the sources that the lockfile
    names (O(sources)). With both, suppliers are asked first. Where one place fails, the next one goes on where it stopped.
  - Whether the disk has room is checked for all artifacts together, before the first byte.
  - Nothing gets a name in the store before its size and SHA-256 are what the lockfile says. What the store has by digest
    is never fetched again, whichever version brought it.
  - A version that comes with its signature is taken only where that holds, verified on this host, and the signature is kept beside
    the contents. This needs the Python package C(cryptography), in every distribution C(python3-cryptography).
  - A run that was killed at any moment leaves only verified files; the next one goes on where it stopped. Several runs on
    one store share the work. What a run fetches, the others wait for.
  - Made for C(async) with C(poll=0). While it runs, M(localfirst.llm_fleet.model_stage_info) tells how far it is.
options:
  run:
    description:
      - A name for this run, letters, digits, V(-) and V(_). With it M(localfirst.llm_fleet.model_stage_info) tells this
        run's progress from that of others, and from that of an earlier one while this one has not begun.
    type: str
  peer:
    description:
      - Path of the socket of this host's peer program, as M(localfirst.llm_fleet.model_peer) starts it. Contents of which a supplier has
        a torrent are then brought by the hosts of the fleet that have them, and handed on to the others.
      - What peers do not bring comes from the suppliers. The digest decides, whoever brought what.
    type: path
  peer_patience:
    description: Seconds that peers may bring nothing before the rest is fetched from the suppliers; some hosts wait up to three times that.
    type: int
    default: 30
extends_documentation_fragment:
  - localfirst.llm_fleet.store
  - localfirst.llm_fleet.store.artifacts
  - localfirst.llm_fleet.store.transfer
author:
  - localfirst.llm_fleet contributors (@localfirst)
seealso:
  - module: localfirst.llm_fleet.model_stage_info
  - module: localfirst.llm_fleet.model_artifact
attributes:
  check_mode:
    description: Says what would be fetched, and how many bytes for each artifact, and changes nothing.
    support: full
  diff_mode:
    description: Lists the files of each version before and after.
    support: full
  idempotent:
    description: A second run finds everything in place and moves nothing.
    support: full
"""

EXAMPLES = r"""
- name: Fetch what a node lacks from the depots
  localfirst.llm_fleet.model_stage:
    artifacts:
      - model: tiny
        version: 1.0.0
        files:
          - path: tiny.gguf
            size: 6012345
            sha256: 1f0e3dad99908345f7439f8ffabdffc4b1f0e3dad99908345f7439f8ffabdffc
    suppliers:
      - https://10.0.0.5:8444
    client_cert: /etc/llm_fleet/tls/client.pem
    client_key: /etc/llm_fleet/tls/client.key
    ca_path: /etc/llm_fleet/tls/ca.pem
    owner: root
    group: llm-fleet
  async: 86400
  poll: 0

- name: Fetch from the sources into a depot, with at most 50 MB a second
  localfirst.llm_fleet.model_stage:
    store: /srv/depot
    artifacts: "{{ artifacts }}"
    sources: "{{ llm_fleet_sources | to_json }}"
    bandwidth: 50000000
    link: false
"""

RETURN = r"""
actions:
  description: What was or would be done.
  type: list
  elements: str
  returned: success
  sample:
    - "tiny 1.0.0: fetch tiny.gguf (5.7 MiB)"
    - "tiny 1.0.0: link into /var/lib/llm_fleet/store/models/tiny/1.0.0: tiny.gguf"
bytes_moved:
  description: Bytes that came to this host, or would. What an earlier, interrupted run brought is not counted.
  type: int
  returned: success
  sample: 6012345
bytes_from_peers:
  description: Bytes of these that peers brought.
  type: int
  returned: success
  sample: 0
peer_troubles:
  description: Why files came from the suppliers in spite of O(peer), a sentence each. They are warnings, too.
  type: list
  elements: str
  returned: success
  sample: ["tiny.gguf: 2 peers brought nothing for 30 seconds"]
artifacts:
  description: The same for each artifact. A content that several of them have is counted once, for the first.
  type: list
  elements: dict
  returned: success
  sample:
    - model: tiny
      version: 1.0.0
      path: /var/lib/llm_fleet/store/models/tiny/1.0.0
      bytes_moved: 6012345
      changed: true
diff:
  description: Files of each version before and after, a line each with path, size and digest.
  type: list
  elements: dict
  returned: success
fault:
  description: What is wrong, where, and what to do about it.
  type: dict
  returned: failure
  sample:
    what: no space left on device
    where: /var/lib/llm_fleet/store/incoming
    fix: free some space on that file system, then run again
faults:
  description: All faults, where there are several.
  type: list
  elements: dict
  returned: failure with several faults
file:
  description: Path of the file that is at fault.
  type: str
  returned: when one file is at fault
expected:
  description: The digest that the lockfile asks for.
  type: str
  returned: when a digest is wrong
actual:
  description: The digest that was found.
  type: str
  returned: when a digest is wrong
needed:
  description: Bytes that are needed.
  type: int
  returned: when the disk has too little room
free:
  description: Bytes that are free.
  type: int
  returned: when the disk has too little room
"""

import socket
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import Artifact, ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_fetch import Fetcher, Limiter
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_staging import Staging
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_store import Store
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.origins import origins_of, read_sources
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.progress import RUN, Progress
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_trust import HAS_CRYPTOGRAPHY
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_arguments import ARTIFACTS, STORE, TRANSFER, answer
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_signatures import StoreSignatures, check_handed
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.swarm_client import Peer
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.swarm_fetch import SwarmFetcher


class ModelStage:
    """One call of the module."""

    def __init__(self, params: dict, sources: dict | None, check_mode: bool) -> None:
        self.params = params
        self.sources = sources
        self.check_mode = check_mode
        if params["run"] and not RUN.fullmatch(params["run"]):
            raise ArtifactError("this is no name for a run", "run", "write up to 64 letters, digits, '-' and '_'")
        self.artifacts = [
            Artifact.parse(each["model"], each["version"], each["source"], each["files"]) for each in params["artifacts"]
        ]
        store = Store(params["store"], params["owner"], params["group"])
        self.signed = [(artifact, each) for artifact, each in zip(self.artifacts, params["artifacts"]) if each["signature"]]
        self.signatures = StoreSignatures(store)
        self.staging = Staging(
            store,
            self.artifacts,
            link=params["link"],
            reserve=params["reserve"],
            lock_timeout=params["lock_timeout"],
            progress=Progress(store.incoming, params["run"]),
        )

    def run(self) -> dict:
        """Bring everything and return the result."""
        self.verify()
        from_peers, troubles = 0, []
        if self.check_mode:
            surveys = self.staging.look()
        else:
            fetcher = self.fetcher()
            surveys = self.staging.run(fetcher)
            from_peers, troubles = fetcher.from_peers, fetcher.troubles
        done = list(zip(self.artifacts, surveys))
        kept = self.keep_signatures()
        return {
            "changed": any(found.actions for found in surveys) or bool(kept),
            "actions": [f"{artifact.title}: {action}" for artifact, found in done for action in found.actions] + kept,
            "bytes_moved": sum(found.bytes_moved for found in surveys),
            "bytes_from_peers": from_peers,
            "peer_troubles": troubles,
            "artifacts": [
                {
                    "model": artifact.model,
                    "version": artifact.version,
                    "path": found.path,
                    "bytes_moved": found.bytes_moved,
                    "changed": bool(found.actions),
                }
                for artifact, found in done
            ],
            "diff": [
                {"before_header": artifact.title, "after_header": artifact.title, **found.diff} for artifact, found in done
            ],
        }

    def fetcher(self) -> Fetcher:
        """Who brings what the store lacks. A bare host, in check mode, has neither certificates nor peers yet."""
        origins, limiter = origins_of(self.params, self.sources), Limiter(self.params["bandwidth"])
        if not self.params["peer"]:
            return Fetcher(origins, limiter)
        ca = Path(self.params["ca_path"]).read_bytes()
        patience, host = self.params["peer_patience"], socket.gethostname()
        return SwarmFetcher(origins, limiter, Peer(self.params["peer"]), ca=ca, patience=patience, host=host)

    def verify(self) -> None:
        """Nothing of a version is brought whose signature does not hold for the files that the lockfile names."""
        if self.check_mode and not HAS_CRYPTOGRAPHY:
            return  # on a bare host it is still to be installed
        for artifact, each in self.signed:
            check_handed(artifact.title, artifact, each["files"], each["signature"])

    def keep_signatures(self) -> list[str]:
        """Put the signatures beside the contents; returns what was or would be done."""
        actions = []
        for artifact, each in self.signed:
            text = each["signature"]["content"]
            if self.signatures.keeps(artifact, text):
                continue
            actions.append(f"{artifact.title}: keep its signature")
            if not self.check_mode:
                self.signatures.keep(artifact, text)
        return actions


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **STORE,
            **ARTIFACTS,
            **TRANSFER,
            "run": {"type": "str"},
            "peer": {"type": "path"},
            "peer_patience": {"type": "int", "default": 30},
        },
        required_by={"peer": ["ca_path"]},
        supports_check_mode=True,
    )

    def bring() -> dict:
        result = ModelStage(module.params, read_sources(module), module.check_mode).run()
        for trouble in result["peer_troubles"]:
            module.warn(f"From the suppliers instead of peers: {trouble}")
        return result

    answer(module, bring)


if __name__ == "__main__":
    main()
