# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""A gateway that misbehaves on demand, and loads on it."""

from __future__ import annotations

import asyncio

import pytest

from ansible_collections.localfirst.llm_fleet.tests.load.clients import Load
from ansible_collections.localfirst.llm_fleet.tests.load.report import Report
from ansible_collections.localfirst.llm_fleet.tests.load.settings import Settings
from ansible_collections.localfirst.llm_fleet.tests.unit.load.misbehaving_gateway import Gateway

TOKEN = "llmf_a-token-of-alice"


@pytest.fixture
def gateway(tmp_path):
    gateway = Gateway(tmp_path)
    yield gateway
    gateway.stop()


@pytest.fixture
def settings(gateway):
    """`settings(requests=3)`: of a load on that gateway which hardly waits between its requests."""

    def make(**options) -> Settings:
        quick = {"pause": 0.01, "retry": 0.01, "clients": 1, "tokens": (12, 12), "unstreamed": 0, "seconds": 30, "timeout": 20}
        known = {"gateways": (gateway.address,), "ca": gateway.authority.pem, "token": TOKEN, "models": ("tiny",)}
        return Settings(**{**known, **quick, **options})

    return make


@pytest.fixture
def load(settings):
    """`load(requests=3)` runs it, in this process, and returns its report."""

    def run(**options) -> Report:
        async def body() -> Report:
            clients = Load(settings(**options))
            await clients.run()
            return clients.tally.report()

        return asyncio.run(body())

    return run
