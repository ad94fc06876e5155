# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Runs on a store as processes of their own, garbage collections and readings of all of it among them. See staging_worker."""

from __future__ import annotations

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import Artifact
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_store import Store
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_gc import Collector
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_report import Known
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_verify import Verification
from ansible_collections.localfirst.llm_fleet.tests.unit.support import staging_worker


class Workers(staging_worker.Workers):
    """The waiting process, as the test sees it: it forks those of this file."""


staged = staging_worker.work


def work(job: dict) -> dict:
    """What one run does: what staging_worker knows, or `collect`, or `read`."""
    if job["do"] not in ("collect", "read"):
        return staged(job)
    store = Store(job["store"])
    known = [Known(Artifact.parse(*entry), ("named",)) for entry in job["artifacts"]]
    staging_worker.Fuse(job.get("kill_at"), job.get("naps", [])).light()
    if job["do"] == "read":
        return {"damaged": Verification(store, known, lock_timeout=20).run().damaged}
    # What a rival has open would be left alone. Without that, only claims and locks protect it.
    garbage = Collector(store, known, grace=job.get("grace", 3600), open_files=lambda _wanted: set()).run(20)
    return {"freed": garbage.size, "actions": garbage.actions}


if __name__ == "__main__":
    staging_worker.OURS = (*staging_worker.OURS, "store_gc", "store_report", "store_verify")
    staging_worker.work = work
    staging_worker.main()
