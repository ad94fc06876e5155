# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What the locks of several gateways amount to, as filters for playbooks."""

from __future__ import annotations

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import lease


def lock_held(results: list) -> bool:
    """Whether a majority of all gateways have given it."""
    return lease.decide(results)["held"]


def lock_gone(results: list, here: dict) -> list:
    """The other holders whose runs have ended on this controller."""
    return lease.decide(results, here)["gone"]


def lock_refusal(results: list, here: dict | None = None) -> str:
    """Who holds it and what to do; nothing where it is held."""
    return lease.refusal(results, here)


class FilterModule:
    """Filters of the playbooks that take a lock."""

    def filters(self):
        public = (lock_gone, lock_held, lock_refusal)
        return {function.__name__: function for function in public}
