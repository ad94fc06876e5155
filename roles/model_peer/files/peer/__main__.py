# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Brings model files from hosts of the fleet and hands them on, while a playbook stages. Not a daemon: it ends with the staging.

usage: python3 -I <this directory> <settings in JSON>
"""

from __future__ import annotations

import json
import os
import signal
import sys

from control import Control
from program import Program
from swarm import Swarm, Trouble

TICK = 0.25  # seconds


def main() -> int:
    with open(sys.argv[1], encoding="utf-8") as handle:
        config = json.load(handle)
    # The unit lays certificate, key and CA where nobody else comes; elsewhere this program could not read them.
    directory = os.environ.get("RUNTIME_DIRECTORY")
    if directory:
        config = {**config, "cert": f"{directory}/peer.pem", "key": f"{directory}/peer.key", "ca": f"{directory}/ca.pem"}
    try:
        program = Program(config, Swarm(config))
    except Trouble as trouble:
        print(trouble, flush=True)
        return 1

    def end(_signal, _frame) -> None:
        program.ended = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    control = Control(config["socket"], program.answer)
    try:
        while not program.ended:
            control.serve(TICK)
            program.tick()
    finally:
        control.close()
    # One that is started anew while runs need it takes up what it had.
    if not program.leases and config.get("state") and os.path.exists(config["state"]):
        os.unlink(config["state"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
