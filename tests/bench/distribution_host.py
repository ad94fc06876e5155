#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""One host of the bench distribution.py: the code of module model_stage, imported beforehand and started by a line on its input.

Each real host has a processor of its own to start Python with; here they share one, and that is not what is measured.
"""

from __future__ import annotations

import json
import sys
import time

from ansible_collections.localfirst.llm_fleet.plugins.modules.model_stage import ModelStage

params = json.loads(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
begun = time.monotonic()
result = ModelStage(params, None, False).run()
print(json.dumps({"seconds": time.monotonic() - begun, "ended": time.time(), "from_peers": result["bytes_from_peers"]}), flush=True)
