# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Downloads that survive interruptions: a model is many gigabytes, and lines break.

What has arrived lies in `<sha256>.part`, and beside it the server's validator (ETag or date), so that the next
attempt, in this run or a later one, asks for the rest only. Bytes are hashed on their way to the disk.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import socket
import ssl
import time
from pathlib import Path
from typing import Callable
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError, File
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_files import CHUNK

CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
STATUS_FIXES = {
    401: "the server wants credentials: pass them as headers",
    403: "the server refuses these credentials: check the headers that are passed",
    404: "check the source in models.lock.yml, or put the file back where it was",
    410: "the file is gone for good: lock the model from another source",
}


class Interrupted(Exception):
    """An attempt that ended early; the next one goes on where it stopped."""

    def __init__(self, error: ArtifactError) -> None:
        self.error = error
        super().__init__(str(error))


class Part:
    """What has arrived of one file: the bytes on disk, their running digest and the server's validator."""

    def __init__(self, path: Path, file: File) -> None:
        self.path = path
        self.file = file
        self.position = 0
        self.received = 0  # bytes that came over the line, those of a wasted attempt included
        self.digest = hashlib.sha256()
        self.validator_path = path.with_suffix(".validator")
        self.handle = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+b", buffering=0)
        try:
            self._read_what_is_there()
        except BaseException:
            self.handle.close()
            raise

    def _read_what_is_there(self) -> None:
        if os.fstat(self.handle.fileno()).st_size > self.file.size:
            self.restart()
        buffer = memoryview(bytearray(CHUNK))
        while count := self.handle.readinto(buffer):
            self.digest.update(buffer[:count])
            self.position += count

    @property
    def validator(self) -> str:
        return self.validator_path.read_text() if self.validator_path.exists() else ""

    @validator.setter
    def validator(self, value: str) -> None:
        if value:
            self.validator_path.write_text(value)
        else:
            self.validator_path.unlink(missing_ok=True)

    def restart(self) -> None:
        self.handle.seek(0)
        self.handle.truncate()
        self.position = 0
        self.digest = hashlib.sha256()
        self.validator = ""

    def write(self, data: memoryview) -> None:
        try:
            written = 0
            while written < len(data):
                written += self.handle.write(data[written:])
        except OSError as error:
            # Space was checked before the first byte, so something else filled the disk. The host needs
            # the room more than the next run needs the head start.
            self.discard()
            raise ArtifactError.from_os_error(error, self.path.parent) from error
        self.digest.update(data)
        self.position += len(data)
        self.received += len(data)

    def finish(self) -> None:
        """Write all of it to the disk: what is renamed into place must survive a power cut."""
        os.fsync(self.handle.fileno())
        self.handle.close()
        self.validator = ""

    def discard(self) -> None:
        self.handle.close()
        self.validator = ""
        self.path.unlink(missing_ok=True)


class SafeRedirects(HTTPRedirectHandler):
    """Follows redirects, but never gives the operator's headers to another server, nor https up for http."""

    def __init__(self, private: dict[str, str]) -> None:
        self.private = {name.capitalize() for name in private}

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        here, there = urlsplit(req.full_url), urlsplit(newurl)
        if here.scheme == "https" and there.scheme != "https":
            raise URLError(f"it redirects to {there.scheme}://{there.netloc}, which is not encrypted")
        if following is not None and here[:2] != there[:2]:
            for name in self.private:
                following.remove_header(name)
        return following


class Fetcher:
    """Brings files from web servers."""

    def __init__(
        self,
        *,
        ca_path: str | None = None,
        validate_certs: bool = True,
        headers: dict[str, str] | None = None,
        timeout: float = 30,
        retries: int = 5,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.headers = headers or {}
        self.timeout = timeout
        self.retries = retries
        self.pause = pause
        self.opener = build_opener(
            HTTPSHandler(context=_tls_context(ca_path, validate_certs)), SafeRedirects(self.headers)
        )

    def fetch(self, url: str, path: Path, file: File) -> int:
        """Bring `url` into `path`, complete and with the right digest; return the number of bytes that moved."""
        part = Part(path, file)
        try:
            resumed = part.position > 0
            self._stream(url, part)
            if resumed and part.digest.hexdigest() != file.sha256:
                # What lay here may be at fault (another source, a power cut), so the server gets one fair try.
                part.restart()
                self._stream(url, part)
            if part.digest.hexdigest() != file.sha256:
                part.discard()
                raise file.wrong_digest(part.digest.hexdigest(), url)
            part.finish()
            return part.received
        finally:
            part.handle.close()

    def _stream(self, url: str, part: Part) -> None:
        furthest, failures = part.position, 0
        while part.position < part.file.size:
            try:
                self._attempt(url, part)
            except Interrupted as interruption:
                # Only attempts that came no further count: a long download over a bad line does end.
                failures = 0 if part.position > furthest else failures + 1
                furthest = max(furthest, part.position)
                if failures > self.retries:
                    raise interruption.error from interruption
                self.pause(min(2**failures, 30))

    def _attempt(self, url: str, part: Part) -> None:
        request = Request(url, headers={"User-Agent": "localfirst.llm_fleet", **self.headers})
        # A compressed answer has other bytes than the file, and ranges of it mean something else.
        request.add_header("Accept-Encoding", "identity")
        if part.position:
            request.add_header("Range", f"bytes={part.position}-")
            if part.validator:
                request.add_header("If-Range", part.validator)
        try:
            with self.opener.open(request, timeout=self.timeout) as answer:
                self._begin(answer, part, url)
                self._copy(answer, part, url)
        except HTTPError as error:
            raise _refused(error, part, url) from error
        except URLError as error:
            raise _unreachable(error, url) from error
        except (http.client.HTTPException, OSError) as error:
            raise Interrupted(_broken(part, url, str(error) or type(error).__name__)) from error

    @staticmethod
    def _begin(answer, part: Part, url: str) -> None:
        """Check what the server is about to send, and start over where it does not continue."""
        total = answer.headers.get("Content-Length")
        if answer.status == 206:
            found = CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            if found is None or int(found[1]) != part.position:
                part.restart()
                raise Interrupted(_broken(part, url, "the server sent another range than was asked for"))
            total = found[2] if found[2] != "*" else None
        elif part.position:
            part.restart()
        if total is not None and int(total) != part.file.size:
            part.discard()
            raise part.file.wrong_size(total, url)
        etag = answer.headers.get("ETag", "")
        # A weak ETag says "about the same", which is not good enough to glue bytes together.
        part.validator = etag if etag.startswith('"') else answer.headers.get("Last-Modified", "")

    @staticmethod
    def _copy(answer, part: Part, url: str) -> None:
        buffer = memoryview(bytearray(CHUNK))
        while count := answer.readinto(buffer):
            if part.position + count > part.file.size:
                part.discard()
                raise part.file.wrong_size(f"more than {part.file.size}", url)
            part.write(buffer[:count])
        if part.position < part.file.size:
            raise Interrupted(_broken(part, url, "the connection ended early"))


def _tls_context(ca_path: str | None, validate_certs: bool) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_path or None)
    except OSError as error:
        raise ArtifactError(
            f"the CA certificate cannot be read: {error.strerror or error}",
            str(ca_path),
            "name a file on the host that holds PEM certificates",
        ) from error
    if not validate_certs:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _refused(error: HTTPError, part: Part, url: str) -> Exception:
    error.close()
    answer = ArtifactError(
        f"the server answers {error.code} {error.reason} for {part.file.path}",
        url,
        STATUS_FIXES.get(error.code, "look at that server's log, then run again"),
        status=error.code,
    )
    if error.code == 416:
        # There is nothing after what we have: what we have is not this file.
        part.restart()
    return Interrupted(answer) if error.code in (408, 416, 425, 429) or error.code >= 500 else answer


def _unreachable(error: URLError, url: str) -> Exception:
    reason = error.reason
    host = urlsplit(url).netloc
    if isinstance(reason, socket.gaierror):
        return ArtifactError(
            f"the name of {host} cannot be resolved ({reason.strerror})",
            url,
            "check the name in models.lock.yml and the DNS of this host",
        )
    if isinstance(reason, ssl.SSLCertVerificationError):
        return ArtifactError(
            f"the certificate of {host} is not trusted ({reason.verify_message})",
            url,
            "name the CA that signed it (ca_path)",
        )
    if isinstance(reason, str):
        return ArtifactError(f"{host} cannot be used: {reason}", url, "correct the source in models.lock.yml")
    detail = getattr(reason, "strerror", None) or str(reason)
    fix = "check that the server is up and that this host may reach it, then run again"
    return Interrupted(ArtifactError(f"{host} cannot be reached ({detail})", url, fix))


def _broken(part: Part, url: str, reason: str) -> ArtifactError:
    return ArtifactError(
        f"{part.file.path} stopped after {part.position} of {part.file.size} bytes ({reason})",
        url,
        "run again: it goes on where it stopped",
    )
