# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""For how long peers are waited for. What they bring is tested with real ones: modules/test_model_stage_peers.py."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import swarm_fetch
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_fetch import Limiter
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.swarm_client import Peer
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.swarm_fetch import SwarmFetcher

PATIENCE = 60.0
LONGEST = PATIENCE * swarm_fetch.TURNS + 1


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    sleep = None


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(swarm_fetch, "time", clock)
    return clock


def fetcher(host: str = "gpu1") -> SwarmFetcher:
    return SwarmFetcher([], Limiter(), Peer("/nowhere"), ca=b"", patience=PATIENCE, host=host)


def test_hosts_turn_to_the_depot_one_after_the_other(clock):
    hosts = [fetcher(f"gpu{number}") for number in range(50)]
    clock.now += PATIENCE
    assert not any(host.silence() for host in hosts)
    turns = []
    for _second in range(int(PATIENCE * swarm_fetch.TURNS)):
        clock.now += 1
        turns.append(sum(host.silence() > 0 for host in hosts))
    assert turns[-1] == 50 and len(set(turns)) > 20


def test_whoever_has_all_of_it_among_themselves_is_given_longer(clock):
    waiting = fetcher()
    clock.now += LONGEST
    assert waiting.silence() and not waiting.silence(times=4)


def test_peers_that_were_silent_once_are_given_less_time_with_the_next_file(clock):
    waiting = fetcher()
    clock.now += LONGEST
    assert waiting.silence()
    waiting.give_up()
    waiting.begin_to_wait()
    assert not waiting.silence()
    clock.now += LONGEST / swarm_fetch.SILENT
    assert waiting.silence()
    # They are there again.
    waiting.came()
    clock.now += LONGEST / swarm_fetch.SILENT
    assert not waiting.silence()
