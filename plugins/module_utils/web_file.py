# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""A file of this host, answered as a web server answers: with a length, a validator and ranges.

So that what fetches, resumes and verifies needs to know nothing about files.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Mapping
from email.message import Message

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError

RANGE = re.compile(r"bytes=(\d+)-")
FIXES = {
    errno.ENOENT: "check the source in the catalog, or put the file back where it was",
    errno.EACCES: "let the user that runs this read the file and its folders",
}


class FileAnswer:
    """The file at `path`, from the byte that a Range header names; a changed file (If-Range) is sent from the start."""

    def __init__(self, path: str, headers: Mapping[str, str]) -> None:
        asked = {name.lower(): value for name, value in headers.items()}
        try:
            # Without O_NONBLOCK, a pipe by that name would wait for its writer for ever.
            number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            fix = FIXES.get(error.errno or 0, "look at that path")
            raise ArtifactError((error.strerror or str(error)).lower(), path, fix) from error
        found = os.fstat(number)
        if not stat.S_ISREG(found.st_mode):
            os.close(number)
            raise ArtifactError("this is no regular file", path, "name a file")
        self.handle = os.fdopen(number, "rb", buffering=0)
        etag = f'"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"'
        wanted = RANGE.fullmatch(asked.get("range", ""))
        first = int(wanted[1]) if wanted and asked.get("if-range", etag) == etag else 0
        self.status = 200
        self.headers = Message()
        if 0 < first < found.st_size:
            self.status = 206
            self.handle.seek(first)
            self.headers["Content-Range"] = f"bytes {first}-{found.st_size - 1}/{found.st_size}"
        else:
            first = 0
        self.headers["Content-Length"] = str(found.st_size - first)
        self.headers["ETag"] = etag

    def readinto(self, buffer) -> int:
        return self.handle.readinto(buffer)

    def close(self) -> None:
        self.handle.close()
