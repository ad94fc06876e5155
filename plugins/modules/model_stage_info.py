#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: model_stage_info
short_description: Tells how far a staging is
version_added: 0.1.0
description:
  - Reads what a run of M(localfirst.llm_fleet.model_stage) on this host writes down every second.
  - Where there is no store, or nothing was ever staged, the state is V(none).
options:
  store:
    description: Directory of the store.
    type: path
    default: /var/lib/llm_fleet/store
  run:
    description:
      - The name that the run was given. As long as it has not begun, the state is V(none).
      - Without it, this is about the run that began last.
    type: str
  wait:
    description: Seconds to wait for the end of the run. Returns as soon as it has ended.
    type: int
    default: 0
author:
  - localfirst.llm_fleet contributors (@localfirst)
seealso:
  - module: localfirst.llm_fleet.model_stage
attributes:
  check_mode:
    description: It only reads.
    support: full
  diff_mode:
    description: It changes nothing.
    support: none
  idempotent:
    description: It only reads.
    support: full
"""

EXAMPLES = r"""
- name: See how far this host is
  localfirst.llm_fleet.model_stage_info:
    wait: 5
  register: staging

- name: Say so
  ansible.builtin.debug:
    msg: "{{ staging.done_bytes }} of {{ staging.total_bytes }} bytes, {{ staging.rate }} bytes/s"
"""

RETURN = r"""
state:
  description:
    - V(none) where nothing was staged, V(waiting) for another run, V(running), V(done), V(failed), or V(interrupted) where
      the process is gone without having said how it ended.
  type: str
  choices: [none, waiting, running, done, failed, interrupted]
  returned: success
  sample: running
run:
  description: The name of the run.
  type: str
  returned: where the run has one
  sample: "20261124-0712"
done_bytes:
  description: Bytes that have arrived.
  type: int
  returned: success
  sample: 4294967296
total_bytes:
  description: Bytes that the host lacked when the run began.
  type: int
  returned: success
  sample: 16060522240
rate:
  description: Bytes a second, of the last ten seconds, or of all of it once it has ended.
  type: int
  returned: success
  sample: 117440512
eta_s:
  description: Seconds that the rest will take at this rate. Null where that cannot be told.
  type: int
  returned: success
  sample: 101
file:
  description: What is being brought.
  type: str
  returned: success
  sample: "tiny 1.0.0: tiny.gguf"
fault:
  description: What is wrong, where, and what to do about it, where the run has failed.
  type: dict
  returned: success
  sample:
    what: no space left on device
    where: /var/lib/llm_fleet/store/incoming
    fix: free some space on that file system, then run again
started:
  description: When the run began, in seconds of the epoch.
  type: float
  returned: where anything was staged
  sample: 1795503121.25
updated:
  description: When it was last written down how far it is.
  type: float
  returned: where anything was staged
  sample: 1795503160.5
"""

import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.progress import (
    NONE,
    RUN,
    UNDER_WAY,
    eta,
    read_progress,
)

PAUSE = 0.2
SHOWN = ("state", "run", "done_bytes", "total_bytes", "rate", "file", "fault", "started", "updated")


def look(store: Path, run: str | None, wait: float) -> dict:
    """How far the run is, as soon as it has ended, at the latest after `wait` seconds."""
    deadline = time.monotonic() + wait
    while True:
        data = read_progress(store, run)
        # A named run that is not there yet is about to begin.
        under_way = data["state"] in UNDER_WAY or (run and data["state"] == NONE)
        if not under_way or time.monotonic() >= deadline:
            return {**{key: data[key] for key in SHOWN if key in data}, "eta_s": eta(data)}
        time.sleep(PAUSE)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "store": {"type": "path", "default": "/var/lib/llm_fleet/store"},
            "run": {"type": "str"},
            "wait": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    run = module.params["run"]
    if run and not RUN.fullmatch(run):
        module.fail_json(msg="run: this is no name for a run; write up to 64 letters, digits, '-' and '_'")
    module.exit_json(changed=False, **look(Path(module.params["store"]), run, module.params["wait"]))


if __name__ == "__main__":
    main()
