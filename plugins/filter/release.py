# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What runs of which release, as filters for status.yml."""

from __future__ import annotations

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import release_report


class FilterModule:
    """Filters of status.yml."""

    def filters(self):
        public = (release_report.rollout_rows, release_report.gateway_drift)
        return {report.__name__: report for report in public}
