# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What the role nvidia_driver has to decide, from what it has found."""

from __future__ import annotations

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.apt_packages import explain
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import listing
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.nvidia_bundle import bundle_driver
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.nvidia_check import check_after, reboot_reasons
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.nvidia_mig import gpu_users, mig_changes
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.nvidia_preflight import plan


def nvidia_faults_after(after: dict, before: dict, host: str, version: str = "") -> str:
    """All that is wrong after a change or a reboot, as a numbered list; an empty text where nothing is."""
    return listing(check_after(before, after, host, version))


def nvidia_mig_changes(gpus: list, wish: list, host: str, apps: str = "", engines: list | None = None) -> dict:
    """Steps and faults on the way to a MIG layout."""
    return mig_changes(gpus, wish, gpu_users(apps, engines or [], gpus), host)


class FilterModule:
    """Filters of M(localfirst.llm_fleet)."""

    def filters(self):
        return {
            "apt_trouble": explain,
            "nvidia_bundle": bundle_driver,
            "nvidia_faults_after": nvidia_faults_after,
            "nvidia_mig_changes": nvidia_mig_changes,
            "nvidia_plan": plan,
            "nvidia_reboot_reasons": reboot_reasons,
        }
