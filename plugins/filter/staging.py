# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What staging says while it runs, as filters for playbooks."""

from __future__ import annotations

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import stage_report


class FilterModule:
    """Filters of the tasks that bring model files."""

    def filters(self):
        public = (stage_report.progress_lines, stage_report.staged, stage_report.staged_lines)
        return {report.__name__: report for report in public}
