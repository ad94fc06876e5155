# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Parts with holes, as peers leave them, and what becomes of them over HTTP."""

from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import artifact_part
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_part import Part
from ansible_collections.localfirst.llm_fleet.tests.unit.support.download import FILE, Download
from ansible_collections.localfirst.llm_fleet.tests.unit.support.range_server import RangeServer
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import BODY


@pytest.fixture
def server():
    with RangeServer() as running:
        yield running


@pytest.fixture
def download(server, tmp_path):
    return Download(server, tmp_path)


def test_of_a_part_with_holes_only_the_holes_are_asked_for(server, download):
    """Peers have brought some of it, in their own order."""
    server.add("/f", BODY)
    third, end = len(BODY) // 3, len(BODY)
    present = [(third, 2 * third)]
    content = bytearray(end)
    content[third : 2 * third] = BODY[third : 2 * third]
    download.part.write_bytes(content)
    download.part.with_suffix(".have").write_text(json.dumps(present))
    moved = download.run()
    assert moved == end - third and download.counted == end - third
    assert download.server.ranges_asked() == [f"bytes=0-{third - 1}", f"bytes={2 * third}-"]
    assert download.left_behind() == [download.part.name] and download.part.read_bytes() == BODY


def test_holes_at_the_end_and_a_server_without_ranges(server, download):
    server.add("/f", BODY, ranges=False)
    download.part.write_bytes(BODY)
    download.part.with_suffix(".have").write_text(json.dumps([[1000, 2000]]))
    assert download.run() == len(BODY)
    assert download.part.read_bytes() == BODY


def test_what_a_part_claims_to_have_and_has_not_is_brought_again(server, download):
    server.add("/f", BODY)
    content = bytearray(BODY)
    content[5000] ^= 1
    download.part.write_bytes(content)
    download.part.with_suffix(".have").write_text(json.dumps([[0, len(BODY)]]))
    assert download.run() == len(BODY) and download.part.read_bytes() == BODY


@pytest.mark.parametrize(
    "note",
    ["", "{", "[1]", "[[5, 2]]", "[[0, 99999999]]", '[["a", 2]]', "[[0, 10], [5, 20]]", "[[0, 1e999]]",
     pytest.param("[" * 100_000, id="deep")],
)
def test_a_note_that_makes_no_sense_claims_nothing_wrong(server, download, note):
    server.add("/f", BODY)
    download.part.write_bytes(bytes(len(BODY)))
    download.part.with_suffix(".have").write_text(note)
    download.run()
    assert download.part.read_bytes() == BODY


def test_what_peers_brought_stays_where_no_server_has_the_rest(server, download):
    download.part.write_bytes(BODY)
    note = download.part.with_suffix(".have")
    note.write_text(json.dumps([[1000, 2000]]))
    download.fails(retries=0)
    assert download.part.exists() and json.loads(note.read_text()) == [[1000, 2000]]
    server.add("/f", BODY)
    assert download.run() == len(BODY) - 1000


@pytest.mark.parametrize("behind", [[], [[2_000_000, 2_001_000]]])
def test_what_comes_into_holes_before_the_line_breaks_is_there_for_the_next_run(server, download, behind):
    """Peers were silent from some moment on, or brought nothing at all."""
    download.part.write_bytes(BODY)
    note = download.part.with_suffix(".have")
    note.write_text(json.dumps(behind))
    server.add("/f", BODY, cuts=[70000, 0])
    assert "run again: it goes on" in download.fails(retries=0).fault.fix
    # Without anything behind holes it is a part as any other, whose size says how far it is.
    assert note.exists() == bool(behind) and (behind or download.part.stat().st_size == 70000)
    del server.requests[:]
    assert download.run() == len(BODY) - 70000 - (1000 if behind else 0)
    assert server.ranges_asked()[0] == (f"bytes=70000-{behind[0][0] - 1}" if behind else "bytes=70000-")
    assert download.part.read_bytes() == BODY


def test_what_comes_into_holes_is_known_to_others_meanwhile(server, download, monkeypatch):
    monkeypatch.setattr(artifact_part, "NOTE", 0)
    going_on = threading.Event()
    server.add("/f", BODY, hold=going_on, pause_at=1 << 20)
    download.part.write_bytes(BODY)
    note = download.part.with_suffix(".have")
    note.write_text(json.dumps([[2_000_000, 2_001_000]]))
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(download.run)
        try:
            deadline = time.monotonic() + 10
            while json.loads(note.read_text())[0] != [0, 1 << 20]:
                assert time.monotonic() < deadline, note.read_text()
                time.sleep(0.01)
        finally:
            going_on.set()
        run.result()
    assert download.part.read_bytes() == BODY and not note.exists()


def test_whoever_has_finished_leaves_the_next_ones_note_alone(download):
    with Part.take(download.part, FILE) as part, ThreadPoolExecutor(1) as pool:
        part.begin(pool, lambda _count: None)
        part.write(memoryview(BODY))
        part.finish()
        download.part.rename(download.part.with_name("named"))
        note = download.part.with_suffix(".have")
        note.write_text("[]")
    assert note.exists()


def test_wrong_bytes_behind_a_hole_are_no_fault_of_the_server(server, download):
    server.add("/f", BODY)
    download.part.write_bytes(bytes(len(BODY)))
    download.part.with_suffix(".have").write_text(json.dumps([[1000, 2000]]))
    assert download.run() == 2 * len(BODY) - 1000
    assert download.part.read_bytes() == BODY


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to somebody else")
def test_a_part_that_the_peer_program_may_still_write_to_is_left_to_it(server, download):
    """The run that had given it the part was killed, and this one brings files over HTTP."""
    server.add("/f", BODY)
    download.part.write_bytes(bytes(1000) + BODY[1000:2000])
    os.chown(download.part, 65534, -1)
    download.part.with_suffix(".have").write_text(json.dumps([[1000, 2000]]))
    with download.part.open("r+b") as program:
        assert download.run() == len(BODY) - 1000  # nothing that was here is lost by that
        program.write(bytes(4096))
    assert download.part.read_bytes() == BODY and download.part.stat().st_uid == 0
    assert download.left_behind() == [download.part.name]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to somebody else")
def test_a_part_that_was_taken_back_is_gone_on_with(server, download):
    server.add("/f", BODY)
    download.part.write_bytes(BODY[:2000])
    os.chown(download.part, 65534, -1)
    with Part.take(download.part, FILE) as part:
        part.take_back()
    inode = download.part.stat().st_ino
    assert download.run() == len(BODY) - 2000 and download.part.stat().st_ino == inode
