# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The one HTTP client of the collection: what a source, a depot or an API answers, and what to do when it does not.

Models come from many kinds of servers, and each may redirect to another one, ask for a pause, break off or refuse. All of
that is handled here once: what a request carries stays with the server it was meant for, and every error says what
happened, where, and what to do. No message ever shows a header's value or the query of a URL: both may be secret.
"""

from __future__ import annotations

import base64
import functools
import http.client
import json
import os
import re
import ssl
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import Any, Callable
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.web_errors import (
    Interrupted,
    Refused,
    describe,
    refused,
    unreachable,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.web_file import FileAnswer

__all__ = ["DIRECT", "Answer", "Interrupted", "Refused", "Request", "Response", "Web", "origin"]

AGENT = "localfirst.llm_fleet"
DIRECT = "direct"  # as a proxy: none at all, whatever the environment says
SMALL = 8 * 2**20
# These say nothing about who asks, so they may follow a redirect to another server; every other header may be a secret.
HARMLESS = {"accept", "accept-encoding", "user-agent", "range", "if-range", "if-none-match", "if-modified-since"}
SENDABLE = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")
DEFAULT_PORTS = {"http": 80, "https": 443}
PATIENCE = 10  # a small answer may take this many timeouts in all, or a server could trickle it for days


@dataclass(frozen=True)
class Request:
    """What to ask for. `shown` is what messages print in place of the URL; by default it is the URL without its query.

    `advice` says for a status what to do about it, where the source knows better than this module.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    shown: str = ""
    advice: Mapping[int, str] = field(default_factory=dict, repr=False)

    @property
    def where(self) -> str:
        return self.shown or self.url.partition("?")[0]

    def __repr__(self) -> str:
        return f"Request({self.where})"


@dataclass(frozen=True)
class Answer:
    """A whole answer, small enough for memory."""

    status: int
    headers: Message
    body: bytes


def origin(url: str) -> tuple:
    """Scheme, host and port: what two URLs share when the same server answers both."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or DEFAULT_PORTS.get(parts.scheme)


def byte_count(text: str) -> int | None:
    """The number of bytes that a server names; None where it is none, or longer than any file's."""
    return int(text) if re.fullmatch("[0-9]{1,19}", text) else None


class Response:
    """An answer whose body is read piece by piece; whatever breaks it off becomes Interrupted."""

    def __init__(self, raw, request: Request, timeout: float) -> None:
        self.raw = raw
        self.request = request
        self.timeout = timeout
        self.status: int = raw.status
        self.headers: Message = raw.headers
        self.missing = byte_count(self.headers.get("Content-Length", ""))

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *_error) -> None:
        self.raw.close()

    def readinto(self, buffer) -> int:
        try:
            count = self.raw.readinto(buffer)
        except (http.client.HTTPException, OSError) as error:
            raise self._broken(describe(error, self.timeout)) from error
        if self.missing is not None:
            self.missing -= count
            if count == 0 and len(buffer) and self.missing > 0:
                raise self._broken(f"it ended {self.missing} bytes early")
        return count

    def read(self, size: int) -> bytes:
        buffer = bytearray(size)
        return bytes(buffer[: self.readinto(buffer)])

    def _broken(self, reason: str) -> Interrupted:
        return Interrupted(ArtifactError(f"the answer broke off ({reason})", self.request.where, "run again"))


class _Outgoing(urllib.request.Request):
    """A request that knows which headers are its own (a proxy adds more), and all the addresses that it was led to."""

    def __init__(self, url: str, headers: dict[str, str], method: str, trail: list[str]) -> None:
        super().__init__(url, headers=headers, method=method)
        self.own = headers
        self.trail = trail
        trail.append(url)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but takes private headers to no other server, and never leaves https for http."""

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302  # Python 3.9 and 3.10 lack it

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        fp.close()
        try:
            here, there = origin(req.full_url), origin(newurl)
        except ValueError:
            raise URLError("it redirects to something that is no web address") from None
        if there[0] not in DEFAULT_PORTS or not there[1]:
            raise URLError("it redirects to something that is no web address")
        if here[0] == "https" and there[0] != "https":
            raise URLError(f"it redirects to http://{there[1]}, which is not encrypted")
        if urlsplit(newurl).username is not None:
            raise URLError("it redirects to an address with a password in it")
        keep = req.own if here == there else {k: v for k, v in req.own.items() if k.lower() in HARMLESS}
        return _Outgoing(newurl, keep, req.get_method(), req.trail)


class Web:
    """Asks servers. Without `proxy`, the environment's HTTPS_PROXY, HTTP_PROXY and NO_PROXY hold."""

    def __init__(
        self,
        *,
        ca_path: str | None = None,
        validate_certs: bool = True,
        client_cert: str | None = None,
        client_key: str | None = None,
        proxy: str | None = None,
        timeout: float = 30,
        retries: int = 5,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.proxy = proxy
        self.timeout = timeout
        self.retries = retries
        self.pause = pause
        context = functools.cache(lambda: tls_context(ca_path, validate_certs, client_cert, client_key))
        if ca_path or client_cert:
            context()  # what is named and cannot be read is told at once
        self.opener = urllib.request.OpenerDirector()
        for handler in (
            _Proxies(proxy),
            urllib.request.HTTPHandler(),
            _Https(context),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.UnknownHandler(),
            _Redirects(),
        ):
            self.opener.add_handler(handler)

    def open(self, request: Request, extra_headers: Mapping[str, str] | None = None, method: str = "GET") -> Response:
        """One attempt. Raises ArtifactError where another one is useless, and Interrupted where it is not."""
        own = {**request.headers, **(extra_headers or {})}
        if request.url.startswith("file://"):
            return Response(FileAnswer(request.url[len("file://") :], own), request, self.timeout)
        # A compressed answer has other bytes than the file, and ranges of it mean something else.
        headers = {"User-Agent": AGENT, "Accept-Encoding": "identity", **own}
        outgoing = _outgoing(request, headers, method)
        try:
            return Response(self.opener.open(outgoing, timeout=self.timeout), request, self.timeout)
        except HTTPError as error:
            raise refused(error, request.where, outgoing.trail, request.advice) from None
        except URLError as error:
            raise unreachable(error.reason, request.where, outgoing.trail, self.timeout, self.proxy_of(outgoing.trail[-1])) from error
        except (http.client.InvalidURL, UnicodeError):
            raise _no_url(request) from None
        except (http.client.HTTPException, OSError) as error:
            raise unreachable(error, request.where, outgoing.trail, self.timeout, self.proxy_of(outgoing.trail[-1])) from error

    def get(self, request: Request, limit: int = SMALL, extra_headers: Mapping[str, str] | None = None) -> Answer:
        """The whole answer, after as many attempts as it takes."""
        return self.patiently(lambda: self.get_once(request, limit, extra_headers))

    def json(self, request: Request, extra_headers: Mapping[str, str] | None = None) -> Any:
        """What the answer says, where it is JSON."""
        answer = self.get(request, extra_headers={"Accept": "application/json", **(extra_headers or {})})
        try:
            return json.loads(answer.body)
        except (RecursionError, ValueError) as error:
            raise ArtifactError(
                "the answer is not JSON", request.where, "check that this address is the one of the API, and no login page"
            ) from error

    def head(self, request: Request, extra_headers: Mapping[str, str] | None = None) -> Answer:
        """Status and headers only."""

        def attempt() -> Answer:
            with self.open(request, extra_headers, method="HEAD") as response:
                return Answer(response.status, response.headers, b"")

        return self.patiently(attempt)

    def proxy_of(self, url: str) -> str:
        """Name and port of the proxy by which an address is asked; empty where there is none."""
        parts = urlsplit(url)
        proxy = self.proxy or urllib.request.getproxies().get(parts.scheme, "")
        if proxy == DIRECT or (not self.proxy and urllib.request.proxy_bypass(parts.netloc)):
            return ""
        return urlsplit(proxy).netloc.rpartition("@")[2]

    def patiently(self, attempt: Callable[[], Any]) -> Any:
        """What `attempt` returns; while it raises Interrupted, it is called again after a pause, up to `retries` times."""
        failures = 0
        while True:
            try:
                return attempt()
            except Interrupted as interruption:
                failures += 1
                if failures > self.retries:
                    raise interruption.error from interruption
                self.pause(interruption.wait(failures))

    def get_once(self, request: Request, limit: int = SMALL, extra_headers: Mapping[str, str] | None = None) -> Answer:
        """The whole answer, in one attempt."""
        end = time.monotonic() + PATIENCE * self.timeout
        body = bytearray()
        with self.open(request, extra_headers) as response:
            while piece := response.read(65536):
                body += piece
                if len(body) > limit:
                    raise ArtifactError(
                        f"the answer is longer than {limit} bytes", request.where, "check that this address is the right one"
                    )
                if time.monotonic() > end:
                    raise Interrupted(ArtifactError("the answer trickles in", request.where, "look at that server, then run again"))
            return Answer(response.status, response.headers, bytes(body))


def _outgoing(request: Request, headers: dict[str, str], method: str) -> _Outgoing:
    try:
        parts = urlsplit(request.url)
        usable = parts.scheme in DEFAULT_PORTS and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise _no_url(request)
    if parts.username is not None:
        raise ArtifactError("the address has credentials in it", parts.hostname, "give them in llm_fleet_sources")
    for name, value in headers.items():
        # http.client would refuse it too, but with a message that shows the value.
        if not SENDABLE.fullmatch(f"{name}{value}"):
            raise ArtifactError(
                f"the header {name!r} holds what cannot be sent", request.where, "look for line breaks and odd letters in it"
            )
    return _Outgoing(request.url, headers, method, [])


class _Https(urllib.request.AbstractHTTPHandler):
    """Asks for its context when that is first needed: the system's authorities take longer to read than many a file over HTTP."""

    https_request = urllib.request.AbstractHTTPHandler.do_request_

    def __init__(self, context: Callable[[], ssl.SSLContext]) -> None:
        super().__init__()
        self.context = context

    def https_open(self, req):
        return self.do_open(http.client.HTTPSConnection, req, context=self.context())


class _Proxies(urllib.request.ProxyHandler):
    """The given proxy for everything, or what the environment says."""

    def __init__(self, proxy: str | None) -> None:
        self.given = bool(proxy)
        if proxy == DIRECT:
            super().__init__({})
        else:
            super().__init__({"http": proxy, "https": proxy} if proxy else None)

    def proxy_open(self, req, proxy, type):
        if self.given:
            # Who names a proxy for a source means it: NO_PROXY belongs to the environment's.
            return _through(req, proxy)
        return super().proxy_open(req, proxy, type)


def _through(req, proxy: str) -> None:
    """Sets a request up for a proxy; returning nothing hands it on to the handler of its scheme."""
    parts = urlsplit(proxy)
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        req.add_header("Proxy-authorization", "Basic " + base64.b64encode(pair.encode()).decode("ascii"))
    req.set_proxy(parts.netloc.rpartition("@")[2], parts.scheme)


def tls_context(
    ca_path: str | None, validate_certs: bool = True, client_cert: str | None = None, client_key: str | None = None
) -> ssl.SSLContext:
    """Whom to trust, and what to show of oneself. With `ca_path`, no other authority is trusted."""
    folder = bool(ca_path) and os.path.isdir(ca_path)
    try:
        context = ssl.create_default_context(cafile=None if folder else ca_path or None, capath=ca_path if folder else None)
    except OSError as error:
        raise ArtifactError(
            f"the CA certificate cannot be read: {error.strerror or error}",
            str(ca_path),
            "name a file on the host that holds PEM certificates",
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not validate_certs:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if client_cert:
        try:
            # An encrypted key would make OpenSSL ask at a terminal that nobody looks at.
            context.load_cert_chain(client_cert, client_key or None, password=lambda: b"")
        except OSError as error:
            raise ArtifactError(
                f"the client certificate or its key cannot be read: {error.strerror or error}",
                f"{client_cert}, {client_key or client_cert}",
                "name a certificate and its own key, in PEM, the key without a passphrase",
            ) from error
    return context


def _no_url(request: Request) -> ArtifactError:
    return ArtifactError("this is no web address that can be asked", request.where, "write it as https://host:port/path")
