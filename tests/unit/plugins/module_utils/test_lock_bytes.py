# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Digests of files whose source tells none: what is downloaded, kept, gone on with and noticed."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.tests.unit.support.lock_builders import lock, locked, model
from ansible_collections.localfirst.llm_fleet.tests.unit.support.range_server import RangeServer
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import BODY, digest


@pytest.fixture
def server():
    with RangeServer() as running:
        yield running


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def test_a_file_without_a_digest_is_downloaded_once_and_kept(store, server):
    server.add("/tiny.gguf", BODY)
    wanted = [model("tiny", {"1.0.0": f"{server.url}/tiny.gguf"})]
    first = lock(wanted, store=store)
    assert first.faults == [] and first.downloaded == len(BODY)
    assert (store / "blobs/sha256" / digest(BODY)).read_bytes() == BODY
    again = lock(wanted, first.text, store=store)
    assert again.downloaded == 0 and again.text == first.text and again.actions == []


def test_what_one_fault_stopped_is_not_downloaded_again(store, server):
    server.add("/tiny.gguf", BODY)
    sources = {"1.0.0": f"{server.url}/tiny.gguf", "1.1.0": f"{server.url}/late.gguf"}
    failed = lock([model("tiny", sources)], store=store)
    assert len(failed.faults) == 1 and failed.downloaded == len(BODY)
    server.add("/late.gguf", b"late")
    mended = lock([model("tiny", sources)], store=store)
    assert mended.faults == [] and mended.downloaded == len(b"late")


def half_locked(server, store) -> tuple:
    """A lock that broke off half-way, and the same one again."""
    # Whether a request for the size alone counts as one that breaks off is the server's business.
    server.add("/tiny.gguf", BODY, cuts=[len(BODY) // 2] * 2)
    once_only = {"http://": {"retries": 0}}
    wanted = [model("tiny", {"1.0.0": f"{server.url}/tiny.gguf"})]

    def again():
        return lock(wanted, store=store, settings=once_only)

    broken = again()
    assert len(broken.faults) == 1 and "broke off" in broken.faults[0].what and broken.text == ""
    server.resources["/tiny.gguf"].cuts.clear()
    return broken, again


def test_a_download_that_breaks_off_is_continued(store, server):
    broken, again = half_locked(server, store)
    mended = again()
    assert locked(mended.text)["tiny", "1.0.0"]["files"][0]["sha256"] == digest(BODY)
    assert 0 < mended.downloaded < len(BODY) and broken.downloaded > 0


def test_a_download_is_not_continued_with_another_file(store, server):
    _broken, again = half_locked(server, store)
    server.add("/tiny.gguf", BODY[::-1])
    assert locked(again().text)["tiny", "1.0.0"]["files"][0]["sha256"] == digest(BODY[::-1])


@pytest.mark.parametrize("options", [{"etag": ""}, {"etag": 'W/"weak"'}, {"ranges": False}, {"chunked": True}])
def test_servers_of_all_kinds_are_read_to_the_end(store, server, options):
    server.add("/tiny.gguf", BODY, cuts=[1 << 20], **options)
    found = lock([model("tiny", {"1.0.0": f"{server.url}/tiny.gguf"})], store=store, settings={"http://": {"retries": 1}})
    assert found.faults == []
    assert locked(found.text)["tiny", "1.0.0"]["files"][0]["sha256"] == digest(BODY)


def test_two_versions_with_the_same_file_share_it(store, server):
    server.add("/a/tiny.gguf", BODY)
    server.add("/b/tiny.gguf", BODY)
    found = lock([model("tiny", {"1.0.0": f"{server.url}/a/tiny.gguf", "1.1.0": f"{server.url}/b/tiny.gguf"})], store=store)
    assert found.faults == []
    assert [path.name for path in (store / "blobs/sha256").iterdir()] == [digest(BODY)]
    assert not list((store / "incoming").glob("*.part"))


def test_a_file_that_a_web_server_replaced_by_one_of_the_same_size_is_noticed(store, server):
    server.add("/tiny.gguf", BODY)
    wanted = [model("tiny", {"1.0.0": f"{server.url}/tiny.gguf"})]
    first = lock(wanted, store=store)
    server.add("/tiny.gguf", BODY[::-1])
    told = lock(wanted, first.text, store=store)
    assert [drift["changes"] for drift in told.drift] == ["1 changed (tiny.gguf)"]
    assert told.downloaded == 0 and told.text == first.text


def test_in_check_mode_large_files_are_left_for_later(store, server, monkeypatch):
    server.add("/small.gguf", b"small")
    server.add("/large.gguf", BODY)
    monkeypatch.setattr("ansible_collections.localfirst.llm_fleet.plugins.module_utils.lock_bytes.SMALL", 1 << 20)
    wanted = [model("a", {"1.0.0": f"{server.url}/small.gguf"}), model("b", {"1.0.0": f"{server.url}/large.gguf"})]
    found = lock(wanted, store=store, keep=False)
    assert found.faults == [] and list(locked(found.text)) == [("a", "1.0.0")]
    assert "b 1.0.0: download 2.0 MiB to learn its digests, and lock it" in found.actions
    assert not store.exists()


def test_a_file_that_cannot_fit_is_refused_before_its_first_byte(store, server):
    server.add("/tiny.gguf", b"little", declared=2**60)
    found = lock([model("tiny", {"1.0.0": f"{server.url}/tiny.gguf"})], store=store)
    assert len(found.faults) == 1 and "llm_fleet_store_dir" in found.faults[0].fix and found.downloaded == 0


def test_a_disk_that_fills_up_gets_its_room_back(small_disk, server):
    server.add("/tiny.gguf", BODY * 4, chunked=True)  # of which nobody knows the size before
    found = lock([model("tiny", {"1.0.0": f"{server.url}/tiny.gguf"})], store=small_disk / "store")
    assert len(found.faults) == 1 and "no space left" in found.faults[0].what
    assert not [path for path in (small_disk / "store").rglob("*") if path.is_file()]


def test_without_a_store_a_large_file_is_a_fault(server, monkeypatch):
    server.add("/large.gguf", BODY)
    monkeypatch.setattr("ansible_collections.localfirst.llm_fleet.plugins.module_utils.lock_bytes.SMALL", 1 << 20)
    found = lock([model("b", {"1.0.0": f"{server.url}/large.gguf"})])
    assert len(found.faults) == 1 and "llm_fleet_store_dir" in found.faults[0].text()
