# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Bytes are taken apart the same way however they are cut into pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.tests.load.http_stream import Events, MalformedError, Response

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Request-Id: 7\r\n\r\n"
EVENTS = b': ping\n\ndata: {"a": 1}\n\nevent: x\ndata:two\ndata: lines\r\n\r\nerror: {"code": 5}\n\ndata: [DONE]\n\n'
READ = [b'{"a": 1}', b"two\nlines", b'{"error": {"code": 5}}', b"[DONE]"]


def chunked(body: bytes, sizes: list[int]) -> bytes:
    out, position = b"", 0
    for size in [*sizes, len(body)]:
        piece = body[position : position + size]
        position += size
        if piece:
            out += b"%x;ext=1\r\n%b\r\n" % (len(piece), piece)
    return out + b"0\r\nTrailer: yes\r\n\r\n"


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[begin:end] for begin, end in zip(edges, edges[1:])]


def read(parts: list[bytes]) -> tuple[Response, list[bytes], Events]:
    found: list[bytes] = []
    events = Events(found.append)
    response = Response(events.feed)
    for part in parts:
        response.feed(part)
    return response, found, events


@given(sizes=st.lists(st.integers(1, 20)), cuts=st.lists(st.integers(0, 10**4)))
def test_events_in_chunks_in_pieces(sizes, cuts):
    response, found, events = read(pieces(b"HTTP/1.1 103 Early Hints\r\n\r\n" + HEAD + chunked(EVENTS, sizes), cuts))
    assert found == READ
    assert (response.ended, response.unfinished, events.unfinished) == (True, "", False)
    assert (response.status, response.headers["x-request-id"]) == (200, "7")


@given(sizes=st.lists(st.integers(1, 20)), at=st.integers(0, 10**4))
def test_no_cut_passes_for_an_end(sizes, at):
    whole = HEAD + chunked(EVENTS, sizes)
    response, _found, _events = read([whole[: at % len(whole)]])
    assert not response.ended
    assert response.unfinished


@pytest.mark.parametrize("length", [0, 1, 5])
def test_a_body_with_a_length_ends_with_its_last_byte(length):
    body = []
    response = Response(body.append)
    response.feed(b"HTTP/1.1 503 No\r\nContent-Length: 5\r\n\r\n" + b"x" * length)
    assert response.ended == (length == 5)
    assert response.unfinished == ("" if length == 5 else f"cut with {5 - length} bytes of the body to come")
    assert b"".join(body) == b"x" * length


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"SSH-2.0\r\n\r\n", "does not begin"),
        (b"x" * 70000, "no end"),
        (HEAD + b"zz\r\n", "size"),
        (HEAD + b"2\r\nabc\r\n", "longer than its size"),
        (HEAD + b"1" * 70000, "no end"),
    ],
)
def test_what_is_not_http_is_said(data, said):
    with pytest.raises(MalformedError, match=said):
        Response(bytes).feed(data)


@pytest.mark.parametrize(("extra", "keeps"), [(b"", True), (b"Connection: close\r\n", False)])
def test_a_connection_is_kept_where_the_gateway_keeps_it(extra, keeps):
    response = Response(bytes)
    response.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + extra + b"\r\n")
    assert response.keeps_connection == keeps
