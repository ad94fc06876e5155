# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
from __future__ import annotations

import threading
import time

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.side_by_side import SideBySide, Stopped


@pytest.mark.parametrize("at_once", [1, 3])
def test_results_come_in_the_order_of_the_items(at_once):
    assert SideBySide(at_once).each(lambda item: item * 2, range(8)) == [0, 2, 4, 6, 8, 10, 12, 14]


def test_so_many_run_at_once_and_no_more():
    meeting, most, now, lock = threading.Barrier(3, timeout=20), [0], [0], threading.Lock()

    def work(_item: int) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        meeting.wait()  # breaks unless three come
        with lock:
            now[0] -= 1

    SideBySide(3).each(work, range(9))
    assert most[0] == 3


def test_one_at_a_time_runs_where_it_was_called():
    assert SideBySide(1).each(lambda _item: threading.get_ident(), [1]) == [threading.get_ident()]


def test_the_first_error_stops_what_runs_and_begins_nothing_more():
    workers, running, seen = SideBySide(2), threading.Event(), []

    def work(item: str) -> None:
        seen.append(item)
        if item == "fails":
            running.wait(20)
            raise ValueError(item)
        running.set()
        deadline = time.monotonic() + 20
        try:
            while time.monotonic() < deadline:
                workers.go_on()
        except Stopped:
            seen.append(f"{item} stopped")
            raise

    with pytest.raises(ValueError, match="fails"):
        workers.each(work, ["fails", "long", "never", "neither"])
    assert sorted(seen) == ["fails", "long", "long stopped"]
