# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Downloads from a real web server that misbehaves."""

from __future__ import annotations

import fcntl
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError, File
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_fetch import Fetcher, Limiter
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_part import Part
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.web import Request
from ansible_collections.localfirst.llm_fleet.tests.unit.support.download import ARTIFACT, FILE, Download
from ansible_collections.localfirst.llm_fleet.tests.unit.support.range_server import RangeServer
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import BODY, Places, digest


@pytest.fixture
def server():
    with RangeServer() as running:
        yield running


@pytest.fixture
def download(server, tmp_path):
    return Download(server, tmp_path)


def test_a_file_arrives_in_one_request(server, download):
    server.add("/f", BODY)
    assert download.run() == len(BODY)
    assert download.part.read_bytes() == BODY
    assert server.ranges_asked() == [None]
    assert download.left_behind() == [download.part.name]


def test_an_empty_file_needs_no_request(server, download):
    assert download.run(file=File("empty", 0, digest(b""))) == 0
    assert not server.requests


@pytest.mark.parametrize("position", [1, 1 << 20, len(BODY) - 1])
def test_a_later_run_asks_for_the_rest_only(server, download, position):
    server.add("/f", BODY)
    download.interrupt_at(position)
    assert download.run() == len(BODY) - position
    assert server.sent == len(BODY) - position
    assert server.requests[0][1]["if-range"] == server.resources["/f"].tag()
    assert download.part.read_bytes() == BODY


def test_what_arrived_completely_is_not_fetched_again(server, download):
    server.add("/f", BODY)
    download.interrupt_at(len(BODY))
    assert download.run() == 0
    assert not server.requests


def test_a_broken_line_is_taken_up_again_in_the_same_run(server, download):
    server.add("/f", BODY, cuts=[1000, 5000, 1 << 20])
    assert download.run() == len(BODY)
    assert server.sent == len(BODY)
    assert server.ranges_asked() == [None, "bytes=1000-", "bytes=6000-", f"bytes={6000 + (1 << 20)}-"]


def test_a_line_that_keeps_breaking_without_a_byte_is_given_up(server, download):
    server.add("/f", BODY, cuts=[70000, 0, 0, 0, 0])
    error = download.fails(retries=2)
    assert f"70000 of {len(BODY)} bytes" in error.fault.what and "run again" in error.fault.fix
    assert download.part.stat().st_size == 70000
    assert download.pauses == sorted(download.pauses)


def test_a_server_without_ranges_starts_over(server, download):
    server.add("/f", BODY, ranges=False, cuts=[1000])
    assert download.run() == len(BODY) + 1000
    assert download.part.read_bytes() == BODY


def test_a_file_that_changed_on_the_server_is_not_glued_to_the_old_one(server, download):
    server.add("/f", bytes(len(BODY)))
    download.interrupt_at(5000)
    server.add("/f", BODY)
    assert download.run() == len(BODY)
    assert download.part.read_bytes() == BODY


def test_without_any_validator_the_digest_decides(server, download):
    server.add("/f", BODY, etag="")
    download.part.write_bytes(bytes(5000))  # not the beginning of this file
    download.run()
    assert download.part.read_bytes() == BODY
    assert server.ranges_asked() == ["bytes=5000-", None]


def test_a_weak_etag_is_no_reason_to_continue(server, download):
    server.add("/f", BODY, etag='W/"1"', cuts=[5000])
    download.run()
    assert "if-range" not in server.requests[1][1]


@pytest.mark.parametrize("too_much", [1, 1 << 20])
def test_a_part_longer_than_the_file_is_thrown_away(server, download, too_much):
    server.add("/f", BODY)
    download.part.write_bytes(BODY + bytes(too_much))
    assert download.run() == len(BODY)
    assert download.part.read_bytes() == BODY


def test_an_answer_with_another_range_than_asked_is_not_used(server, download):
    resource = server.add("/f", BODY, range_shift=3)
    download.interrupt_at(5000)
    download.run()
    assert download.part.read_bytes() == BODY
    assert resource.range_shift and server.ranges_asked()[-1] is None


def test_a_wrong_digest_leaves_nothing_and_names_both(server, download):
    other = bytes(len(BODY))
    server.add("/f", other)
    error = download.fails()
    assert error.details == {"file": "tiny.gguf", "expected": FILE.sha256, "actual": digest(other)}
    assert all(word in str(error) for word in ("tiny.gguf", FILE.sha256, digest(other), server.url))
    assert download.left_behind() == []


@pytest.mark.parametrize("body", [BODY[:-1], BODY + b"x", b""])
def test_another_size_is_refused_before_it_is_downloaded(server, download, body):
    server.add("/f", body, hold=threading.Event())  # whoever waits for the body gets a timeout
    error = download.fails(timeout=0.5, retries=0)
    assert f"expected {len(BODY)} bytes, actual {len(body)} bytes" in error.fault.what
    assert download.left_behind() == []


def test_a_body_of_unknown_length_is_cut_off_where_the_file_should_end(server, download):
    server.add("/f", BODY + bytes(3 << 20), chunked=True)
    error = download.fails()
    assert "more than" in error.fault.what
    assert download.left_behind() == []


def test_a_chunked_body_arrives(server, download):
    server.add("/f", BODY, chunked=True)
    assert download.run() == len(BODY)


def test_a_server_that_promises_more_than_it_sends(server, download):
    server.add("/f", BODY[:-5], declared=len(BODY))
    error = download.fails()
    assert f"{len(BODY) - 5} of {len(BODY)}" in error.fault.what or "416" in error.fault.what


def test_a_silent_server_is_not_waited_for_for_ever(server, download):
    server.add("/f", BODY, hold=threading.Event())
    error = download.fails(timeout=0.2, retries=0)
    assert "no answer within 0.2" in error.fault.what


def test_a_busy_server_is_asked_again(server, download):
    server.add("/f", BODY, statuses=[503, 429])
    assert download.run() == len(BODY)
    assert len(download.pauses) == 2


@pytest.mark.parametrize(
    ("status", "hint"), [(401, "credentials"), (403, "credentials"), (404, "source"), (410, "gone")]
)
def test_a_refusal_says_what_to_do_and_is_not_repeated(server, download, status, hint):
    server.add("/f", statuses=[status] * 9)
    error = download.fails()
    assert error.details["status"] == status and hint in error.fault.fix and error.fault.where.startswith("http://")
    assert len(server.requests) == 1


def test_an_unknown_host_name(download):
    error = download.fails(url="http://models.invalid/f")
    assert "models.invalid cannot be resolved" in error.fault.what and "DNS" in error.fault.fix


def test_nobody_listens(download):
    download.server.httpd.server_close()
    error = download.fails(retries=1)
    assert "refused" in error.fault.what.lower() and len(download.pauses) == 1


@pytest.fixture
def other():
    with RangeServer() as running:
        yield running


def both(server: RangeServer, other: RangeServer) -> list[str]:
    return [f"{server.url}/f", f"{other.url}/f"]


@pytest.mark.parametrize("status", [401, 404, 503])
def test_where_one_place_fails_the_next_one_is_asked(server, other, download, status):
    server.add("/f", statuses=[status] * 9)
    other.add("/f", BODY)
    assert download.run(url=both(server, other)) == len(BODY)
    assert len(server.requests) == 1 and not download.pauses


def test_a_place_that_breaks_off_is_continued_by_the_next_one(server, other, download):
    server.add("/f", BODY, cuts=[1 << 20])
    other.add("/f", BODY)
    assert download.run(url=both(server, other)) == len(BODY)
    assert other.ranges_asked() == [f"bytes={1 << 20}-"]
    # Each server names the same bytes in its own way.
    assert "if-range" not in other.requests[0][1]
    assert server.sent + other.sent == len(BODY)


def test_a_place_with_wrong_bytes_is_named_only_when_no_other_has_the_right_ones(server, other, download):
    server.add("/f", bytes(len(BODY)))
    other.add("/f", BODY)
    assert download.run(url=both(server, other)) == len(BODY) * 2
    assert download.counted == len(BODY)
    download.part.unlink()
    other.add("/f", statuses=[404] * 9)
    error = download.fails(url=both(server, other))
    assert error.details["actual"] == digest(bytes(len(BODY)))
    assert server.url in error.fault.where and other.url in error.fault.what
    assert download.left_behind() == []


def test_bytes_of_two_places_that_do_not_fit_together_are_fetched_again(server, other, download):
    server.add("/f", bytes(len(BODY)), cuts=[1 << 20])
    other.add("/f", BODY)
    download.run(url=both(server, other))
    assert download.part.read_bytes() == BODY


@pytest.mark.parametrize("body", [BODY[:-1], BODY + b"x"])
def test_another_file_at_one_place_costs_nothing_of_what_has_arrived(server, other, download, body):
    server.add("/f", BODY, cuts=[1 << 20])
    other.add("/f", body)
    assert download.run(url=both(server, other)) == len(BODY)


def test_when_all_places_fail_each_one_is_named(server, other, download):
    server.add("/f", statuses=[404])
    other.add("/f", statuses=[403])
    error = download.fails(url=both(server, other))
    assert all(text in error.fault.what for text in (server.url, other.url, "404", "403"))


@pytest.mark.parametrize("fault", ["range_first", "declared"])
def test_a_place_that_names_a_number_without_end_costs_time_only(server, other, download, fault):
    """Python makes no number of so many digits."""
    server.add("/f", BODY, **{fault: "9" * 5000})
    other.add("/f", BODY)
    download.interrupt_at(5000)
    download.run(url=both(server, other))
    assert download.part.read_bytes() == BODY


def test_all_places_are_given_up_in_the_end(server, other, download):
    server.add("/f", BODY, cuts=[1000, 0, 0, 0, 0, 0])
    other.add("/f", statuses=[503] * 9)
    error = download.fails(url=both(server, other), retries=1)
    assert f"1000 of {len(BODY)} bytes" in error.fault.what
    assert download.part.stat().st_size == 1000


class Expiring(Places):
    """Hands out addresses that answer 403 after their first use, as signed ones do in time."""

    def requests(self, artifact, file):
        self.handed = getattr(self, "handed", 0) + 1
        return [Request(f"{self.urls[0]}{self.handed}")]


def test_an_address_that_ran_out_on_the_way_is_asked_for_again(server, download):
    server.add("/f1", BODY, cuts=[1 << 20])
    server.add("/f2", BODY)
    places = Expiring(f"{server.url}/f")
    with Part.take(download.part, FILE) as part, ThreadPoolExecutor(1) as pool:
        pool.submit(expire, server)
        assert Fetcher([places]).fetch(ARTIFACT, FILE, part) == len(BODY)
    assert places.handed == 2 and server.ranges_asked()[-1] == f"bytes={1 << 20}-"


def expire(server: RangeServer) -> None:
    assert server.started.wait(10)
    server.resources["/f1"].statuses = [403] * 9


def test_a_file_of_this_host_is_copied_and_counted(download, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(BODY)
    assert download.run(url=f"file://{source}") == len(BODY) == download.counted
    assert download.part.read_bytes() == BODY and not download.part.samefile(source)
    source.write_bytes(bytes(len(BODY)))  # what was copied does not share it
    assert download.part.read_bytes() == BODY


def test_a_file_of_this_host_shares_its_blocks_where_the_disk_can(download, tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.write_bytes(BODY)

    def clone(handle, request, descriptor):
        # What FICLONE leaves on a file system that has it: the whole contents, the position untouched.
        assert request == 0x40049409
        with open(descriptor, "rb", closefd=False) as reading:
            download.part.write_bytes(reading.read())

    monkeypatch.setattr(fcntl, "ioctl", clone)
    assert download.run(url=f"file://{source}") == len(BODY) == download.counted
    assert download.part.read_bytes() == BODY


def test_a_copy_goes_on_where_it_was(download, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(BODY)
    download.part.write_bytes(BODY[:1000])
    assert download.run(url=f"file://{source}") == len(BODY) - 1000 == download.counted


def test_a_missing_file_of_this_host_is_named(download, tmp_path):
    error = download.fails(url=f"file://{tmp_path}/nothing")
    assert error.fault.where == f"{tmp_path}/nothing" and download.left_behind() == []


def test_a_file_in_the_lockfile_needs_no_place(download):
    file = File("manifest", 2, digest(b"{}"), content="{}")
    assert download.run(file=file, url=[]) == 0
    assert download.part.read_bytes() == b"{}" and download.counted == 2


def test_without_any_place_it_says_so(download):
    with Part.take(download.part, FILE) as part, pytest.raises(ArtifactError, match="no place to bring it from"):
        Fetcher([]).fetch(ARTIFACT, FILE, part)


def test_a_part_belongs_to_one_run_at_a_time(download):
    with Part.take(download.part, FILE) as part:
        assert Part.take(download.part, FILE) is None
        part.discard()
        with Part.take(download.part, FILE) as other:
            assert other is not None
    with Part.take(download.part, FILE) as part:
        assert part is not None


def test_the_limit_holds_for_all_that_is_fetched_together():
    now = [0.0]
    limiter = Limiter(1000, clock=lambda: now[0], pause=lambda seconds: now.__setitem__(0, now[0] + seconds))
    for _ in range(50):
        limiter.take(100)
    assert 4.8 <= now[0] <= 5.2
    now[0] += 100  # a pause is not made up for by a burst, but for half a second
    limiter.take(1000)
    limiter.take(1000)
    assert now[0] >= 106.3


def test_the_time_that_reading_takes_is_within_the_limit():
    now = [0.0]
    limiter = Limiter(1000, clock=lambda: now[0], pause=lambda seconds: now.__setitem__(0, now[0] + seconds))
    for _ in range(50):
        now[0] += 0.08
        limiter.take(100)
    assert 4.4 <= now[0] <= 5.2


def test_a_slow_limit_reads_in_small_pieces_and_brings_the_same(server, download):
    server.add("/f", BODY)
    slept: list[float] = []
    limiter = Limiter(1 << 20, pause=slept.append)
    with Part.take(download.part, FILE) as part:
        Fetcher([Places(f"{server.url}/f")], limiter).fetch(ARTIFACT, FILE, part)
    assert download.part.read_bytes() == BODY
    assert sum(1 for _ in slept) >= 16 and limiter.piece == 1 << 17
