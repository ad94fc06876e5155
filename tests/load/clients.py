# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Clients that ask the fleet all the time: each waits for its answer, thinks a little, and asks the next gateway."""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import time

from ansible_collections.localfirst.llm_fleet.tests.load.http_stream import Connection, Events, Response
from ansible_collections.localfirst.llm_fleet.tests.load.settings import Settings, address_of
from ansible_collections.localfirst.llm_fleet.tests.load.tally import Request, Tally
from ansible_collections.localfirst.llm_fleet.tests.load.verdict import Expected, Verdict

# The same for all, with temperature 0: what an answer begins with is then a mark of the version that gave it.
PROMPT = [{"role": "user", "content": "Which version are you?"}]
PATH = "/v1/chat/completions"
CONNECT_TIMEOUT = 10.0
# A connection that the gateway closes just when it is used again breaks this soon, or it was no such coincidence.
JUST_CLOSED = 0.5
LONGEST_BODY = 1 << 20


def tls(ca: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca)
    context.set_alpn_protocols(["http/1.1"])
    return context


def http_request(gateway: str, token: str, model: str, tokens: int, streamed: bool, by_path: bool, exact: bool) -> bytes:
    """A whole request, as bytes."""
    # A version can only be named in the path.
    name, version, _rest = model.partition("@")
    body = {"model": name, "messages": PROMPT, "max_tokens": tokens, "stream": streamed, "temperature": 0, "seed": 0}
    if exact:
        body["ignore_eos"] = True
    data = json.dumps(body).encode()
    lines = [
        f"POST {f'/m/{model}{PATH}' if by_path or version else PATH} HTTP/1.1",
        f"Host: {gateway}",
        f"Authorization: Bearer {token}",
        "Content-Type: application/json",
        f"Content-Length: {len(data)}",
        "User-Agent: llm-fleet-stream-load",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + data


class Client:
    """One client. `keeps` says whether it uses its connections again or opens one for each request."""

    def __init__(self, number: int, load: Load) -> None:
        self.load = load
        self.keeps = number % 2 == 0
        self.turn = number // 2
        self.random = random.Random(f"{load.settings.seed} {number}")
        self.kept: dict[str, Connection] = {}

    async def run(self) -> None:
        settings = self.load.settings
        # They do not all come in the same instant.
        await self.load.sleep(self.random.uniform(0, settings.pause + 0.01))
        while self.load.another():
            request = await self.ask()
            rest = settings.pause if request.outcome in ("complete", "late") else settings.retry
            await self.load.sleep(rest * self.random.uniform(0.5, 1.5))
        for connection in self.kept.values():
            connection.close()

    async def ask(self) -> Request:
        settings, chance = self.load.settings, self.random
        gateway = settings.gateways[self.turn % len(settings.gateways)]
        self.turn += 1
        # Drawn in this order whatever comes back, so that a seed means the same requests.
        model, tokens = chance.choice(settings.models), chance.randint(*settings.tokens)
        streamed, by_path = chance.random() >= settings.unstreamed, chance.random() < settings.by_path
        data = http_request(gateway, settings.token, model, tokens, streamed, by_path, settings.exact)
        verdict = Verdict(Expected(tokens, settings.exact, settings.stall))
        request = Request(gateway, model, streamed, verdict, time.monotonic())
        self.load.tally.begin(request)
        await self.send(request, data, again=settings.resend)
        self.load.tally.end(request, time.monotonic())
        return request

    async def send(self, request: Request, data: bytes, again: bool) -> None:
        connection = self.kept.pop(request.gateway, None)
        if connection is None or not connection.usable:
            try:
                connection = await self.load.connect(request.gateway)
            except (OSError, asyncio.TimeoutError) as error:
                request.unconnected = f"no connection: {type(error).__name__} {getattr(error, 'strerror', None) or error}".strip()
                return
        # What the answer is measured from: the gateway chooses where a request goes when it has it.
        request.began = time.monotonic()
        answer = _Answer(request)
        why = await connection.exchange(data, answer.response, self.load.settings.timeout)
        just_closed = time.monotonic() - request.began < JUST_CLOSED and connection.used > 1 and not answer.response.begun
        if why and just_closed and again:
            # curl, Go's client and OpenAI's libraries ask once more, on a new connection, and their users notice nothing.
            self.load.tally.resent += 1
            return await self.send(request, data, again=False)
        answer.end(why, time.monotonic())
        if self.keeps and connection.usable:
            self.kept[request.gateway] = connection
        else:
            connection.close()


class _Answer:
    """Takes the answer of a request apart while it comes."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.response = Response(self._on_body)
        self.body = b""
        self.events = Events(self._on_event)

    def _on_body(self, piece: bytes) -> None:
        if self.response.status == 200 and self.request.streamed:
            self.events.feed(piece)
        elif len(self.body) < LONGEST_BODY:
            self.body += piece

    def _on_event(self, data: bytes) -> None:
        self.request.verdict.event(data, time.monotonic())

    def end(self, why: str, now: float) -> None:
        request, headers = self.request, self.response.headers
        request.status = self.response.status
        request.request_id = headers.get("x-request-id", "")[:64]
        if request.status not in (0, 200):
            request.code = _code(self.body)
        elif not request.streamed and not why:
            request.verdict.whole(self.body, now)
        elif not why and self.events.unfinished:
            why = "ends in the middle of an event"
        request.verdict.end(why, now)


def _code(body: bytes) -> str:
    """The code of a refusal in OpenAI's shape."""
    try:
        return str(json.loads(body)["error"]["code"])[:60]
    except (ValueError, KeyError, TypeError):
        return ""


class Load:
    """All clients of a run, until they are told to stop or the time or the number of requests is used up."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.tally = Tally(settings.tell)
        self.stopping = asyncio.Event()
        self._left = settings.requests
        self._context = tls(settings.ca)

    async def run(self) -> None:
        expiry = asyncio.get_running_loop().call_later(self.settings.seconds, self.stopping.set)
        try:
            await asyncio.gather(*(Client(number, self).run() for number in range(self.settings.clients)))
        finally:
            expiry.cancel()

    def another(self) -> bool:
        """Whether there may be another request, which is then counted."""
        if self.stopping.is_set() or self._left <= 0:
            return False
        self._left -= 1
        return True

    async def sleep(self, seconds: float) -> None:
        """Wait, but not beyond the moment of stopping."""
        try:
            await asyncio.wait_for(self.stopping.wait(), seconds)
        except asyncio.TimeoutError:
            return

    async def connect(self, gateway: str) -> Connection:
        host, port = address_of(gateway)
        opening = asyncio.get_running_loop().create_connection(Connection, host, port, ssl=self._context, server_hostname=host)
        _transport, connection = await asyncio.wait_for(opening, CONNECT_TIMEOUT)
        return connection
