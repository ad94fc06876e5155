# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What the module host_info tells of a host on which nothing was done yet, for tests of what is made of it."""

from __future__ import annotations

BARE_HOST = {
    "distribution": {"id": "debian", "version": "12", "codename": "bookworm"},
    "clock_skew": 0.0,
    "call_seconds": 0.0,
    "haproxy_version": "2.6.12-1",
    "store": {"path": "/var/lib/llm_fleet/store", "total_bytes": 2**40, "free_bytes": 2**39},
    "fleet_ca": "",
    "plan": None,
    "plan_error": "",
    "instances": [],
    "blobs": {},
}
