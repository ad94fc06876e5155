# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What came between two looks at HAProxy's counters, over reloads and on several gateways."""

from __future__ import annotations

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import traffic


def rows(requests: int, failed: int = 0, cut: int = 0, rtime: int = 100) -> list:
    """`show stat` of a worker that had `requests` requests, of which some got a 5xx of HAProxy's own and some were cut."""
    zeros = dict.fromkeys([*traffic.COUNTERS.values(), *traffic.ANSWERS], "0")
    total = {"req_tot": str(requests), "hrsp_5xx": str(failed), "srv_abrt": str(cut), "rtime": "7"}
    return [
        {**zeros, "pxname": "be", "svname": "s", "type": "2", "hrsp_2xx": str(requests - failed), "rtime": str(rtime)},
        {**zeros, "pxname": "be", "svname": "BACKEND", "type": "1", **total},
        {**zeros, "pxname": "other", "svname": "BACKEND", "type": "1", "req_tot": "9", "rtime": ""},
    ]


def between(before: dict, after: dict) -> dict:
    return traffic.traffic_between(traffic.snapshot(before, ["be"]), traffic.snapshot(after, ["be"]))["be"]


def test_a_snapshot_adds_up_the_workers():
    seen = traffic.snapshot({"1": rows(10, failed=1), "2": rows(30, cut=2, rtime=500)}, ["be", "other", "none"])
    assert (seen["be"]["requests"], seen["be"]["responses_5xx"], seen["be"]["aborted_by_server"]) == (40, 1, 2)
    assert seen["be"]["latency_ms"] == round((9 * 100 + 30 * 500) / 39, 1)
    assert set(seen["be"]["workers"]) == {"1", "2"} and seen["be"]["workers"]["2"]["requests"] == 30
    assert (seen["other"]["requests"], seen["other"]["latency_ms"]) == (18, None)
    assert (seen["none"]["requests"], seen["none"]["workers"]) == (0, {})


def test_only_what_is_new_counts():
    new = between({"1": rows(10, failed=4)}, {"1": rows(30, failed=5, cut=1)})
    assert (new["requests"], new["errors"], new["error_rate"]) == (20, 2, 0.1)


def test_nothing_new_has_neither_rate_nor_latency():
    assert between({"1": rows(10, failed=4)}, {"1": rows(10, failed=4)}) == {
        "requests": 0, "answers": 0, "errors": 0, "error_rate": None, "latency_ms": None,
    }


def test_a_reload_in_between():
    """One worker has ended, one goes on beside the new one, and one number is used again."""
    new = between({"1": rows(10), "2": rows(50), "3": rows(70, failed=7)}, {"2": rows(52), "3": rows(5, failed=1), "4": rows(8)})
    assert (new["requests"], new["errors"]) == (2 + 5 + 8, 1)


def test_a_backend_that_came_in_between_counts_from_zero():
    assert traffic.traffic_between({}, traffic.snapshot({"1": rows(6)}, ["be"]))["be"]["requests"] == 6


def test_the_latency_is_that_of_the_workers_that_had_requests():
    assert between({"1": rows(10, rtime=900)}, {"1": rows(10, rtime=900), "2": rows(4, rtime=50)})["latency_ms"] == 50


def test_several_gateways_are_one():
    here, there = ({"be": between({}, {"1": rows(*counts)})} for counts in ((10, 1, 0, 100), (29, 0, 2, 400)))
    total = traffic.traffic_sum([here, there, {"other": here["be"]}])
    assert (total["be"]["requests"], total["be"]["errors"]) == (39, 3)
    assert total["be"]["error_rate"] == round(3 / 39, 4)
    assert total["be"]["latency_ms"] == round((9 * 100 + 29 * 400) / 38, 1)
    assert total["other"] == here["be"] and traffic.traffic_sum([]) == {}
