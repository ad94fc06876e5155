# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What a server's refusal or silence means for an operator, and whether another attempt can help."""

from __future__ import annotations

import email.utils
import http.client
import re
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from email.message import Message
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError

STATUS_FIXES = {
    401: "it wants credentials, or refuses the ones it got: check them in llm_fleet_sources",
    403: "these credentials may not read this: check them in llm_fleet_sources, and the rights they have at that server",
    404: "check the source in the catalog, or put the file back where it was",
    407: "give the proxy's user and password in its address, in llm_fleet_sources or in the environment",
    410: "it is gone for good: lock the model from another source",
    429: "it has had too many requests from here: wait, then run again",
}
WORTH_ANOTHER = {408, 416, 425, 429}
HOPELESS = {501, 505}
LONGEST_WAIT = 120  # seconds; who wants us away for longer gets an error that says so
SAID = 4096  # bytes of a refusal's body that are kept
REFUSED_CERTIFICATE = ("CERTIFICATE_REQUIRED", "BAD_CERTIFICATE", "UNKNOWN_CA", "CERTIFICATE_EXPIRED", "CERTIFICATE_UNKNOWN",
                       "CERTIFICATE_REVOKED", "UNSUPPORTED_CERTIFICATE", "HANDSHAKE_FAILURE")  # fmt: skip
TUNNEL = re.compile(r"Tunnel connection failed: (\d{3})")


class Refused(ArtifactError):
    """A status that is no success. `headers` and `body` let a source say more about it; messages never show them."""

    def __init__(self, what: str, where: str, fix: str, *, status: int, headers: Any, body: bytes) -> None:
        super().__init__(what, where, fix, status=status)
        self.status = status
        self.headers = headers
        self.body = body


class Interrupted(Exception):
    """An attempt that ended early; another one may get further. `after`: seconds for which the server wants to be left alone."""

    def __init__(self, error: ArtifactError, after: float = 0) -> None:
        self.error = error
        self.after = after
        super().__init__(str(error))

    def wait(self, failures: int) -> float:
        """How long to wait before the next attempt, after so many in a row that failed."""
        return max(min(2 ** max(failures, 0), 30), self.after)


def refused(error: HTTPError, where: str, trail: list[str], advice: Mapping[int, str]) -> Exception:
    """What urllib raises for a status. `trail`: the address that was asked, and those that redirects led to."""
    try:
        body = error.read(SAID)
    except (OSError, ValueError, http.client.HTTPException):
        body = b""
    error.close()
    headers = error.headers if error.headers is not None else Message()
    return refusal(error.code, str(error.reason or ""), headers, where, trail=trail, advice=advice, body=body)


def refusal(
    status: int,
    reason: str,
    headers: Any,
    where: str,
    *,
    trail: Sequence[str] = ("", ""),
    advice: Mapping[int, str] | None = None,
    body: bytes = b"",
) -> Exception:
    """A status that is no success, as Refused or, where another attempt can help, as Interrupted."""
    after = retry_after(headers.get("Retry-After", ""))
    reason = re.sub(r"[^\x20-\x7e]+", " ", reason).strip()[:60]
    what = f"the server answers {status} {reason}".rstrip()
    if server(trail[-1]) != server(trail[0]):
        # Not the path of it: that may be presigned.
        what += f" (after a redirect to {server(trail[-1])})"
    if after > LONGEST_WAIT:
        what += f" and wants no request for {after:.0f} seconds"
    fix = (advice or {}).get(status) or STATUS_FIXES.get(status, "look at that server's log, then run again")
    if status in (301, 302, 303, 307, 308):
        what, fix = "it redirects to no web address, or in a circle", "check the address; a proxy or a login page may be in between"
    answer = Refused(what, where, fix, status=status, headers=headers, body=body)
    again = status in WORTH_ANOTHER or (status >= 500 and status not in HOPELESS)
    return Interrupted(answer, after) if again and after <= LONGEST_WAIT else answer


def retry_after(value: str) -> float:
    """The seconds that a Retry-After header means: a number, or the date it names."""
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0)
    except (TypeError, ValueError, OverflowError):
        return 0


def server(url: str) -> str:
    """Scheme, host and port of an address, for messages."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def unreachable(reason: object, where: str, trail: Sequence[str], timeout: float, proxy: str = "") -> Exception:
    """A server that could not be asked, or that broke off before it answered; `proxy` is the one in between."""
    host = server(trail[-1]).partition("://")[2]
    if isinstance(reason, socket.gaierror):
        error = ArtifactError(
            # With a proxy, it is the proxy that looks up all other names.
            f"the name of {f'the proxy {proxy}' if proxy else host} cannot be resolved ({reason.strerror})",
            where,
            "check the name and the DNS of this host",
        )
        return Interrupted(error) if reason.errno == socket.EAI_AGAIN else error
    if isinstance(reason, ssl.SSLError):
        return _tls(reason, host, where)
    if isinstance(reason, str):
        return ArtifactError(f"{host} cannot be used: {reason}", where, "correct the source, or the server's redirect")
    tunnel = TUNNEL.search(str(reason))
    if tunnel:
        status = int(tunnel[1])
        fix = STATUS_FIXES[407] if status == 407 else f"let the proxy through to {host}, or set NO_PROXY for it"
        error = ArtifactError(f"the proxy refuses the way to {host} with {status}", where, fix, status=status)
        return Interrupted(error) if status >= 500 else error
    fix = "check that the server is up and that this host may reach it, then run again"
    if proxy:
        host, fix = f"{host} by way of the proxy {proxy}", "check that both are up and that this host may use the proxy, then run again"
    return Interrupted(ArtifactError(f"{host} cannot be reached ({describe(reason, timeout)})", where, fix))


def describe(error: object, timeout: float) -> str:
    """An error of the network in a few words."""
    if isinstance(error, (socket.timeout, TimeoutError)):
        return f"no answer within {timeout:g} seconds"
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return re.sub(r"[^\x20-\x7e]+", " ", said)[:100]


def _tls(reason: ssl.SSLError, host: str, where: str) -> Exception:
    if isinstance(reason, ssl.SSLCertVerificationError):
        return ArtifactError(
            f"the certificate of {host} is not trusted ({reason.verify_message})", where, "name the CA that signed it (ca_path)"
        )
    kind = reason.reason or ""
    if kind.endswith(REFUSED_CERTIFICATE):
        return ArtifactError(
            f"{host} refuses the client certificate, or misses one ({kind.lower().replace('_', ' ')})",
            where,
            "name one that the server's CA signed (client_cert, client_key)",
        )
    if kind in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE"):
        fix = "check the port; for a server without TLS write http://, or set plain_http in llm_fleet_sources (for images: under oci://<registry>/)"
        return ArtifactError(f"{host} does not speak TLS on this port", where, fix)
    closed = isinstance(reason, (ssl.SSLEOFError, ssl.SSLZeroReturnError))
    detail = "it closed the connection" if closed else kind.lower().replace("_", " ") or type(reason).__name__
    # A server that misses a certificate says so after the handshake, and is often gone before that can be read.
    fix = "run again; if it stays so, the server may want a client certificate, or another version of TLS"
    return Interrupted(ArtifactError(f"the TLS connection to {host} failed ({detail})", where, fix))
