# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Stores: what is damaged is found and brought again, what nobody needs goes, and several runs share the work."""

from __future__ import annotations

import time

import pytest

from ansible_collections.localfirst.llm_fleet.molecule.models.tests.conftest import Operator, model, said
from ansible_collections.localfirst.llm_fleet.molecule.models.tests.outside import digest


@pytest.fixture
def sharded(operator, outside, bare) -> dict:
    """A model of two files on gpu1 and on the depot."""
    outside.oras("models/sharded:1.0", *outside.shards(301))
    wanted = model("sharded", f"oci://{outside.registry}/models/sharded:1.0")
    operator.lock([wanted])
    operator.stage([wanted])
    return wanted


def test_a_flipped_byte_is_found_and_only_that_file_comes_again(operator, stores, fleet, sharded, outside):
    first, second = outside.shards(301)
    (damaged, whole), began = (digest(first), digest(second)), time.time()
    for host in ("gpu1", "depot1"):
        stores.flip(host, damaged)
    actual = stores.trees("gpu1")[f"sharded/1.0.0/{first.name}"]
    assert actual != damaged

    done = operator.run("verify", [sharded], check=False)
    output = said(done)
    assert done.returncode != 0
    for host in ("gpu1", "depot1"):
        assert f"{host}: sharded 1.0.0 {first.name}" in output, output[-3000:]
    assert damaged in output and actual in output and second.name not in output
    for running in ("tiny", "private"):
        assert f"{running} 1.0.0" not in output.partition("Damaged:")[2]

    operator.stage([sharded])
    assert stores.trees("gpu1")[f"sharded/1.0.0/{first.name}"] == damaged
    assert [each["bytes"] for each in stores.served(damaged, "gpu1", began)] == [first.stat().st_size]
    assert stores.served(whole, "gpu1", began) == []
    operator.run("verify", [sharded])


def test_what_nobody_needs_is_named_and_then_freed(operator, stores, fleet, gateway, tokens, sharded, outside):
    contents, no_grace = set(operator.digests("sharded")), ("-e", "grace=0")
    before = stores.blobs("gpu1")

    kept = operator.run("gc", [sharded], *no_grace)
    assert contents <= stores.blobs("gpu1") & stores.blobs("depot1"), kept.stdout[-3000:]

    operator.lock([])
    told = operator.run("gc", [], *no_grace, "--check")
    assert "sharded" in told.stdout and contents <= stores.blobs("gpu1") & stores.blobs("depot1")
    done = operator.run("gc", [], *no_grace)
    assert "sharded" in done.stdout
    for host in ("gpu1", "depot1"):
        assert not contents & stores.blobs(host)
    assert "sharded" not in stores.models("gpu1")
    # What runs has all that it had, and answers.
    assert before - contents == stores.blobs("gpu1")
    assert {"tiny"} <= stores.models("gpu1")
    assert gateway.chat(tokens["alice"]).status == 200


@pytest.mark.long
def test_two_stagings_at_once_share_the_work(operator, stores, fleet, outside, bare, tmp_path):
    shared = outside.gguf(302, small=False)
    url = outside.web(shared, "stage/shared.gguf")
    other = Operator(fleet, outside, tmp_path)
    mine = [model("mine", url), model("own", outside.web(outside.gguf(303), "stage/own.gguf"))]
    theirs = [model("theirs", url), model("another", outside.web(outside.gguf(304), "stage/another.gguf"))]
    operator.lock(mine)
    other.lock(theirs)
    began, before = time.time(), outside.fetched("/stage/shared.gguf", by="depot1")
    slow = ("-e", "llm_fleet_stage_bandwidth=2000000")
    runs = [operator.start("stage", mine, *slow), other.start("stage", theirs, *slow)]
    for run, output in runs:
        assert run.wait(timeout=240) == 0, output.read_text()[-3000:]
    trees = stores.trees("gpu1")
    assert trees["mine/1.0.0/shared.gguf"] == trees["theirs/1.0.0/shared.gguf"] == digest(shared)
    assert {"own", "another"} <= stores.models("gpu1")
    assert sum(each["bytes"] for each in stores.served(digest(shared), "gpu1", began)) == shared.stat().st_size
    assert outside.fetched("/stage/shared.gguf", by="depot1") in (before, [*before, 200])
