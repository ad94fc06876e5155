# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 and server-sent events, read as strictly as a count of broken streams needs.

Libraries forgive what this must not: http.client takes a cut for the end of some bodies, and none tells whether the last
chunk was the empty one. It is also cheap: a load test shares its machine with the fleet that it watches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LONGEST_HEAD = 65536
LONGEST_LINE = 1 << 20


class MalformedError(ValueError):
    """What came is not HTTP, or not a stream of events."""


class Response:
    """One response, taken apart as its bytes come. `unfinished` says what is missing, or nothing where it ended properly."""

    def __init__(self, on_body: Callable[[bytes], None]) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.begun = False
        self.ended = False
        self.rest = b""
        self._on_body = on_body
        self._left = 0
        self._step = self._read_head

    def feed(self, data: bytes) -> None:
        self.begun = True
        self.rest += data
        while not self.ended and self._step():
            pass

    @property
    def keeps_connection(self) -> bool:
        return self.ended and not self.rest and "close" not in self.headers.get("connection", "").lower()

    @property
    def unfinished(self) -> str:
        """Why this is no whole response, should nothing more come."""
        if self.ended:
            return f"{len(self.rest)} bytes came after the end of the body" if self.rest else ""
        if not self.begun:
            return "closed before any answer"
        return {
            self._read_head: "cut within the headers",
            self._read_length: f"cut with {self._left} bytes of the body to come",
            self._read_to_close: "the body has neither a length nor chunks: nobody can tell its end from a cut",
        }.get(self._step, "cut before the chunk that ends the body")

    def _line(self) -> bytes | None:
        line, found, rest = self.rest.partition(b"\r\n")
        if not found:
            if len(self.rest) > LONGEST_HEAD:
                raise MalformedError("a line of HTTP has no end")
            return None
        self.rest = rest
        return line

    def _read_head(self) -> bool:
        head, found, rest = self.rest.partition(b"\r\n\r\n")
        if not found:
            if len(self.rest) > LONGEST_HEAD:
                raise MalformedError("the headers have no end")
            return False
        self.rest = rest
        first, *lines = head.decode("latin-1").split("\r\n")
        words = first.split(" ", 2)
        if not words[0].startswith("HTTP/1.") or len(words) < 2 or not words[1].isdigit():
            raise MalformedError("the answer does not begin as HTTP/1.1 does")
        if words[1].startswith("1"):
            return True
        self.status = int(words[1])
        self.headers = {name.strip().lower(): value.strip() for name, _colon, value in (line.partition(":") for line in lines)}
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            self._step = self._read_size
        elif "content-length" in self.headers:
            self._left = int(self.headers["content-length"])
            self._step = self._read_length
            self.ended = self._left == 0
        else:
            self._step = self._read_to_close
            self.ended = self.status in (204, 304)
        return True

    def _read_size(self) -> bool:
        line = self._line()
        if line is None:
            return False
        try:
            self._left = int(line.partition(b";")[0], 16)
        except ValueError as error:
            raise MalformedError("a chunk does not begin with its size") from error
        self._step = self._read_chunk if self._left else self._read_trailer
        return True

    def _read_chunk(self) -> bool:
        if not self._take():
            return False
        self._step = self._read_chunk_end
        return True

    def _read_chunk_end(self) -> bool:
        line = self._line()
        if line:
            raise MalformedError("a chunk is longer than its size")
        self._step = self._read_chunk_end if line is None else self._read_size
        return line is not None

    def _read_trailer(self) -> bool:
        line = self._line()
        self.ended = line == b""
        return bool(line)

    def _read_length(self) -> bool:
        self.ended = self._take()
        return False

    def _read_to_close(self) -> bool:
        self._left = len(self.rest)
        self._take()
        return False

    def _take(self) -> bool:
        """Pass on what there is of the piece that is due, and say whether that was all of it."""
        piece, self.rest = self.rest[: self._left], self.rest[self._left :]
        self._left -= len(piece)
        if piece:
            self._on_body(piece)
        return self._left == 0


class Events:
    """Server-sent events out of a body: the data of each, comments left out."""

    def __init__(self, on_event: Callable[[bytes], None]) -> None:
        self._on_event = on_event
        self._rest = b""
        self._data: list[bytes] = []

    @property
    def unfinished(self) -> bool:
        return bool(self._rest.strip() or self._data)

    def feed(self, piece: bytes) -> None:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > LONGEST_LINE:
            raise MalformedError("a line of the stream has no end")
        for line in lines:
            line = line.rstrip(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].strip())
            elif line.startswith(b"error:"):
                # Older llama-servers report an error so, within a stream that began with 200.
                self._data.append(b'{"error": %b}' % line[6:].strip())
            elif not line and self._data:
                data, self._data = b"\n".join(self._data), []
                self._on_event(data)


class Connection(asyncio.Protocol):
    """A connection to a gateway, for one request after another."""

    def __init__(self) -> None:
        self.usable = False
        self.used = 0
        self._transport: asyncio.Transport | None = None
        self._response: Response | None = None
        self._over: asyncio.Future | None = None

    async def exchange(self, request: bytes, response: Response, timeout: float) -> str:
        """Send a request and feed its response; return why that has no proper end, or nothing."""
        self._response = response
        self._over = asyncio.get_running_loop().create_future()
        expiry = asyncio.get_running_loop().call_later(timeout, self._fail, f"no end within {timeout:g} s")
        self.used += 1
        self._transport.write(request)
        try:
            return await self._over
        finally:
            expiry.cancel()
            self._response = self._over = None

    def close(self) -> None:
        self.usable = False
        if self._transport:
            self._transport.close()

    def _fail(self, why: str) -> None:
        self.usable = False
        self._settle(why)
        self._transport.abort()

    def _settle(self, why: str) -> None:
        if self._over and not self._over.done():
            self._over.set_result(why)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.usable = True

    def data_received(self, data: bytes) -> None:
        if self._response is None:
            # Nobody asked: whatever it is, the next response could not be told from it.
            return self.close()
        try:
            self._response.feed(data)
        except MalformedError as error:
            return self._fail(str(error))
        if self._response.ended:
            self.usable = self._response.keeps_connection
            self._settle(self._response.unfinished)

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        if self._response:
            reason = f" ({type(exc).__name__})" if exc else ""
            self._settle(self._response.unfinished + reason)
