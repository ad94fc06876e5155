# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Why a task failed, in the words that an operator gets to read."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.filter.rollout import failure_text

SAID = "Unable to disable MIG Mode: In use\nTerminating early.\n\n"
PROGRAM = {"failed": True, "msg": "non-zero return code", "rc": 19, "stderr": "", "stdout": SAID}


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ({"msg": "no space left"}, "no space left"),
        ({}, "no reason given"),
        (PROGRAM, "non-zero return code: Unable to disable MIG Mode: In use / Terminating early."),
        ({"msg": "E: broken", "rc": 100, "stderr": "E: broken\n"}, "E: broken"),
        # Of a loop, the items that failed, and each reason once.
        ({"msg": "One or more items failed", "results": [PROGRAM, {"changed": True}, PROGRAM]},
         "non-zero return code: Unable to disable MIG Mode: In use / Terminating early."),
    ],
)
def test_the_reason_is_told_and_not_that_there_was_one(result, told):
    assert failure_text(result) == told
