# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Files of a web server: `https://host/path/file`, or a folder where the URL ends with '/'.

HTTP has no listing. A folder's files are those that its SHA256SUMS names (as `sha256sum` writes it: then their digests
are known as well), otherwise those that its index page links to (nginx, Apache and Python write such pages).
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import PurePosixPath
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.source_choice import SUMS, folder_passes_over, is_folder, is_hidden
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.base import (
    RemoteFile,
    Resolution,
    Source,
    guess_format,
    whatever,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.web import Refused, Request, byte_count

SUM_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)")
MOST_FILES = 10_000
DEEPEST = 8
FOLDER_FIX = f"name a file, or put a {SUMS} there (sha256sum -- * > {SUMS})"


class HttpSource(Source):
    """One file of a web server, or a folder of them."""

    def __init__(self, url, settings) -> None:
        super().__init__(url, settings)
        self.parts = urlsplit(url.text)
        self.headers = self.credentials()

    @property
    def is_folder(self) -> bool:
        return is_folder(self.url)

    def resolve(self) -> Resolution:
        files = self._folder() if self.is_folder else [self._measured(unquote(PurePosixPath(self.parts.path).name))]
        left_out = folder_passes_over if self.is_folder else whatever
        return Resolution(self.url.text, tuple(files), guess_format([file.path for file in files]), None, left_out)

    def locate(self, path: str, size: int | None = None, sha256: str | None = None) -> Request:
        parts = self.parts
        if not self.is_folder and unquote(PurePosixPath(parts.path).name) == path:
            return Request(self.url.text, self.headers)
        return self._request(urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(path)}")))

    def beside(self, name: str, resolution: Resolution) -> Request | None:
        # Whether it is there shows when it is asked for: SHA256SUMS is often older than a signature.
        if self.is_folder:
            return self.locate(name)
        return self._request(urljoin(urlunsplit(self.parts._replace(query="")), quote(name)))

    def _request(self, url: str) -> Request:
        return Request(url, self.headers)

    def _folder(self) -> list[RemoteFile]:
        sums = self._sums()
        names = sorted(sums) if sums is not None else sorted(self._linked())
        if not names:
            raise ArtifactError("the folder holds no files", self.url.text, FOLDER_FIX)
        return [self._measured(name, (sums or {}).get(name)) for name in names]

    def _sums(self) -> dict[str, str] | None:
        """What SHA256SUMS says, or None where there is none."""
        request = self.locate(SUMS)
        try:
            text = self.web.get(request).body.decode()
        except Refused as error:
            if error.status in (404, 410):
                return None
            raise
        except UnicodeDecodeError:
            text = "?"
        found = {}
        for number, line in enumerate(text.splitlines(), start=1):
            match = SUM_LINE.fullmatch(line)
            if line and (match is None or not _plain(match[2])):
                raise ArtifactError(f"line {number} is no digest with a file below this folder", request.where, "write it with sha256sum")
            if match:
                found[match[2]] = match[1].lower()
        return found

    def _linked(self) -> set[str]:
        """The files that the index pages of the folder, and of the folders in it, link to."""
        base = urlunsplit(self.parts._replace(query=""))
        base += "" if base.endswith("/") else "/"
        found: set[str] = set()
        waiting, seen = [base], {base}
        while waiting:
            page = waiting.pop()
            for link in self._links(page):
                target = urljoin(page, link).partition("#")[0]
                if not target.startswith(page) or "?" in target or target == page:
                    continue  # upwards, elsewhere, or the page in another order
                name = unquote(target[len(base) :])
                if not _plain(name.rstrip("/")) or is_hidden(name):
                    continue
                if not target.endswith("/"):
                    found.add(name)
                elif target not in seen and name.count("/") <= DEEPEST:
                    seen.add(target)
                    waiting.append(target)
            if len(found) + len(seen) > MOST_FILES:
                raise ArtifactError(f"there are more than {MOST_FILES} files", self.url.text, "name a smaller folder")
        return found

    def _links(self, page: str) -> list[str]:
        request = self._request(page)
        answer = self.web.get(request)
        if "html" not in answer.headers.get("Content-Type", ""):
            raise ArtifactError("the folder has no index page", request.where, FOLDER_FIX)
        links = _Links()
        links.feed(answer.body.decode(errors="replace"))
        return links.found

    def _measured(self, path: str, sha256: str | None = None) -> RemoteFile:
        """The file with its size, as far as the server tells without sending it."""
        request = self.locate(path)
        try:
            answer = self.web.head(request)
        except Refused as error:
            if error.status not in (403, 405, 501):
                raise
            # Some servers and most presigned addresses know GET only.
            length, headers = self.web.patiently(lambda: self._first_byte(request))
        else:
            length, headers = answer.headers.get("Content-Length", ""), answer.headers
        if "text/html" in headers.get("Content-Type", "") and not path.endswith((".html", ".htm")):
            raise ArtifactError(
                f"{path}: the server sends a web page in its place",
                request.where,
                "check whether it wants a login; the URL of a folder has to end with '/'",
            )
        return RemoteFile(path, byte_count(length), sha256)

    def _first_byte(self, request: Request) -> tuple:
        with self.web.open(request, {"Range": "bytes=0-0"}) as response:
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
            return total if response.status == 206 else response.headers.get("Content-Length", ""), response.headers


class _Links(HTMLParser):
    """The targets of a page's links."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]


def _plain(path: str) -> bool:
    """Whether this names something below the folder."""
    return path.isprintable() and all(part not in ("", ".", "..") for part in path.split("/"))
