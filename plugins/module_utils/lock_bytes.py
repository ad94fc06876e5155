# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The digests of files whose source tells none: each file is read once, and kept in the store.

What was read is noted beside the store's contents, with the validator that the server gave for it (ETag or date). A lock
that broke off, or that found a fault elsewhere, so reads nothing twice; and a later one sees that a file moved without
reading it. No digest is known yet that could prove a continued download, so one is continued only where the server
confirms by a strong ETag that it still has the same file.

    lock/<key>.json       what was read: source, path, size, validator, sha256
    incoming/<key>.part   a download on its way, beside it <key>.validator
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import whole_files
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError, File, human
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_files import CHUNK, digest_of
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_store import Store
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_survey import SOUND
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources import open_source
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.base import RemoteFile, Source
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.web import Interrupted, Request, Response

SMALL = 16 * 2**20  # read into nowhere where nothing may be kept: configurations and tokenizers, never weights
SPACE_FIX = "free some space there, or put the store on a larger disk (llm_fleet_store_dir)"
CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class Unread(Exception):
    """A digest that only a download could tell, where none may be made."""

    def __init__(self, file: RemoteFile) -> None:
        self.file = file
        super().__init__(file.path)


class Digests:
    """Finds the sha256 of files by reading them."""

    def __init__(self, root: str | Path | None, all_settings: dict, keep: bool = True) -> None:
        """Without `root` nothing can be kept, and without `keep` nothing shall be (check mode)."""
        self.store = Store(root) if root else None
        self.all_settings = all_settings
        self.keep = keep
        self.downloaded = 0
        self._one_thread = threading.Lock()
        self._mine = threading.local()

    def of(self, pinned: str, file: RemoteFile) -> RemoteFile:
        """The same file with its size and digest."""
        if file.content is not None:
            return RemoteFile(file.path, len(file.content), hashlib.sha256(file.content).hexdigest(), file.content)
        if file.sha256 is not None and file.size is not None:
            return file
        source = self._source(pinned)
        request = source.locate(file.path, file.size, file.sha256)
        local = _local_path(request)
        size, digest = self._read_local(pinned, file, local) if local else self._read_remote(source, pinned, file, request)
        if file.size not in (None, size):
            raise ArtifactError(
                f"{file.path} has {size} bytes, and its source announced {file.size}", request.where, "lock again: it is being changed"
            )
        if file.sha256 not in (None, digest):
            raise File(file.path, size, file.sha256).wrong_digest(digest, request.where)
        return RemoteFile(file.path, size, digest)

    def here(self, entry: dict) -> Path | None:
        """Where this host's store has a file of the lockfile; None where it has not."""
        if self.store is None:
            return None
        file = File(entry["path"], entry["size"], entry["sha256"])
        return self.store.blob(file) if self.store.state(file) == SOUND else None

    def moved(self, pinned: str, file: RemoteFile, locked: str) -> bool:
        """Whether a file of which no digest is told is surely another one than the locked one."""
        source = self._source(pinned)
        request = source.locate(file.path, file.size, file.sha256)
        local, note = _local_path(request), self._note(pinned, file.path)
        if local:
            return self._read_local(pinned, file, local)[1] != locked
        if note is None or note["sha256"] != locked or not note["validator"]:
            return False
        now = _validator_now(source, request, note)
        return bool(now) and now != note["validator"]

    def _source(self, pinned: str) -> Source:
        """The source of one thread: opened once, so that a registry gives its token once."""
        opened = self._mine.__dict__.setdefault("opened", {})
        if pinned not in opened:
            opened[pinned] = open_source(pinned, self.all_settings)
        return opened[pinned]

    # Reading

    def _read_local(self, pinned: str, file: RemoteFile, path: Path) -> tuple[int, str]:
        """A file of this host is neither copied nor read again while nobody has touched it."""
        try:
            before = _stamp(path)
            note = self._note(pinned, file.path)
            if note is not None and note["validator"] == before:
                return note["size"], note["sha256"]
            digest = digest_of(path.resolve())
            size = path.stat().st_size
            if _stamp(path) != before:
                raise ArtifactError("the file changes while it is read", str(path), "lock again when nobody writes it any more")
        except OSError as error:
            raise ArtifactError.from_os_error(error, path) from error
        self._write_note(pinned, file.path, size, digest, before)
        return size, digest

    def _read_remote(self, source: Source, pinned: str, file: RemoteFile, request: Request) -> tuple[int, str]:
        if self.store is None or not self.keep:
            return self._read_into_nowhere(source, pinned, file, request)
        with self._download(pinned, file.path) as download:
            self._check_space(file, download)
            known = self._stream(source, pinned, file, request, download)
            if known is not None:
                download.restart()
                return known["size"], known["sha256"]
            download.file = File(file.path, download.position, download.digest.hexdigest())
            self._adopt(download)
            self._write_note(pinned, file.path, download.file.size, download.file.sha256, download.seen)
        return download.file.size, download.file.sha256

    def _read_into_nowhere(self, source: Source, pinned: str, file: RemoteFile, request: Request) -> tuple[int, str]:
        note = self._note(pinned, file.path)
        large = file.size is None or file.size > SMALL
        if large and self.keep:
            what = f"{file.path} has to be downloaded to learn its digest, and there is no store to keep it in"
            raise ArtifactError(what, request.where, "set llm_fleet_store_dir to an absolute path")
        if large and note is None:
            raise Unread(file)
        if note is not None:
            now = _validator_now(source, request, note)
            if note["validator"] and now == note["validator"]:
                return note["size"], note["sha256"]
            if large:
                raise Unread(file)
        body = source.web.get(request, SMALL).body
        self._count(len(body))
        return len(body), hashlib.sha256(body).hexdigest()

    def _stream(
        self, source: Source, pinned: str, file: RemoteFile, request: Request, download: Download
    ) -> dict | None:
        """Read a file to its end, after as many attempts as it takes; or return what is noted of the same file."""
        furthest, failures = download.position, 0
        while True:
            try:
                return self._attempt(source, pinned, file, request, download)
            except Interrupted as interruption:
                # Only attempts that came no further count: a long download over a bad line does end.
                failures = 1 if download.position > furthest else failures + 1
                furthest = max(furthest, download.position)
                if failures > source.web.retries:
                    raise interruption.error from interruption
                source.web.pause(interruption.wait(failures))
                request = source.locate(file.path, file.size, file.sha256)  # a presigned one may be past its time

    def _attempt(
        self, source: Source, pinned: str, file: RemoteFile, request: Request, download: Download
    ) -> dict | None:
        headers = {}
        if download.position and _strong(download.validator):
            # From the last byte that is here: of a file that is complete already, nothing more could be asked for.
            headers = {"Range": f"bytes={download.position - 1}-", "If-Range": download.validator}
        elif download.position:
            download.restart()
        with source.web.open(request, headers) as response:
            start = self._start(response, download, request)
            note = self._note(pinned, file.path)
            download.seen = _validator(response)
            if note is not None and download.seen and note["validator"] == download.seen and self._has(note):
                return note
            download.validator = download.seen
            self._read(response, download, start)
        return None

    @staticmethod
    def _start(response: Response, download: Download, request: Request) -> int:
        """Which byte the answer begins with; a server may send all of the file although it was asked for a part."""
        if response.status != 206:
            download.restart()
            return 0
        span = CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
        if span is None or int(span[1]) > download.position:
            download.restart()
            raise Interrupted(ArtifactError("the server sent another part than was asked for", request.where, "run again"))
        return int(span[1])

    def _read(self, response: Response, download: Download, start: int) -> None:
        buffer = memoryview(bytearray(CHUNK))
        overlap = download.position - start
        while count := response.readinto(buffer):
            fresh = buffer[min(overlap, count) : count]
            overlap -= min(overlap, count)
            download.write(fresh)
            self._count(count)

    def _count(self, count: int) -> None:
        with self._one_thread:
            self.downloaded += count

    # Keeping

    @property
    def _folder(self) -> Path:
        return self.store.root / "lock"

    def _prepare(self) -> None:
        with self._one_thread:
            self.store.prepare()
            self.store.ownership.make_directory(self._folder, 0o700)

    def _check_space(self, file: RemoteFile, download: Download) -> None:
        """Refuse before the first byte what cannot fit. Of several at once, the disk has the last word."""
        usage = os.statvfs(self.store.incoming)
        free, needed = usage.f_bavail * usage.f_frsize, (file.size or 0) - download.position
        if needed > free:
            what = f"{file.path} needs {human(needed)} to be locked, and there are {human(free)} free"
            raise ArtifactError(what, str(self.store.root), SPACE_FIX)

    def _has(self, note: dict) -> bool:
        return self.store.state(File(note["path"], note["size"], note["sha256"])) == SOUND

    def _adopt(self, download: Download) -> None:
        if self.store.state(download.file) == SOUND:
            download.restart()
        else:
            self.store.adopt(download)

    @contextlib.contextmanager
    def _download(self, pinned: str, path: str) -> Iterator[Download]:
        """The unfinished file, for this process alone: a second lock of the same file waits, and finds it noted."""
        try:
            self._prepare()
            with contextlib.closing(Download(self.store.incoming / f"{_key(pinned, path)}.part")) as download:
                yield download
        except OSError as error:
            raise ArtifactError.from_os_error(error, self.store.root) from error

    def _note(self, pinned: str, path: str) -> dict | None:
        if self.store is None:
            return None
        try:
            note = json.loads((self._folder / f"{_key(pinned, path)}.json").read_text(encoding="utf-8"))
            sound = isinstance(note["size"], int) and re.fullmatch("[0-9a-f]{64}", note["sha256"])
            return note if sound and isinstance(note["validator"], str) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # a note only spares work

    def _write_note(self, pinned: str, path: str, size: int, sha256: str, validator: str) -> None:
        if self.store is None or not self.keep:
            return
        note = {"source": pinned, "path": path, "size": size, "sha256": sha256, "validator": validator}
        target = self._folder / f"{_key(pinned, path)}.json"
        try:
            self._prepare()
            whole_files.write(target, json.dumps(note), 0o600)
        except OSError as error:
            raise ArtifactError.from_os_error(error, self._folder) from error


class Download:
    """What has arrived of a file whose digest nobody knows yet. The store adopts it when it is known."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: File | None = None
        self.seen = ""  # the validator of the last answer
        self.validator_path = path.with_suffix(".validator")
        self.handle = _taken(path)
        self.position = 0
        self.digest = hashlib.sha256()
        buffer = memoryview(bytearray(CHUNK))
        while count := self.handle.readinto(buffer):
            self.digest.update(buffer[:count])
            self.position += count

    @property
    def validator(self) -> str:
        try:
            return self.validator_path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    @validator.setter
    def validator(self, value: str) -> None:
        if value != self.validator:
            self.validator_path.write_text(value, encoding="utf-8")

    def restart(self) -> None:
        self.handle.seek(0)
        self.handle.truncate()
        self.position = 0
        self.digest = hashlib.sha256()
        self.validator_path.unlink(missing_ok=True)

    def write(self, data: memoryview) -> None:
        try:
            written = 0
            while written < len(data):
                written += self.handle.write(data[written:])
        except OSError as error:
            # Without a digest there is no way to tell in advance whether it fits, so the room is given back.
            self.restart()
            what = f"{error.strerror or error} after {human(self.position + written)}".lower()
            raise ArtifactError(what, str(self.path.parent), SPACE_FIX) from error
        self.digest.update(data)
        self.position += len(data)

    def finish(self) -> None:
        os.fsync(self.handle.fileno())
        self.validator_path.unlink(missing_ok=True)

    def close(self) -> None:
        self.handle.close()
        if not self.position:
            self.path.unlink(missing_ok=True)
            self.validator_path.unlink(missing_ok=True)


def _taken(path: Path) -> FileIO:
    """The file at `path`, made where there is none, and locked for as long as it is open."""
    while True:
        handle = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+b", buffering=0)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            # Whoever had it before may have given it its name in the store while this one waited.
            if whole_files.is_at(handle.fileno(), path):
                return handle
        except BaseException:
            handle.close()
            raise
        handle.close()


def _key(pinned: str, path: str) -> str:
    return hashlib.sha256(f"{pinned}\n{path}".encode()).hexdigest()


def _local_path(request: Request) -> Path | None:
    return Path(request.url[len("file://") :]) if request.url.startswith("file://") else None


def _stamp(path: Path) -> str:
    """What changes with every way of writing a file."""
    status = path.stat()
    return f"{status.st_dev}-{status.st_ino}-{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}"


def _validator_now(source: Source, request: Request, note: dict) -> str:
    """A noted file's validator as its source has it now. Asks for the first byte only; HEAD would not do: signed URLs are for GET."""
    try:
        with source.web.open(request, {"Range": "bytes=0-0"} if note["size"] else {}) as response:
            return _validator(response)
    except Interrupted as interruption:
        raise interruption.error from interruption


def _validator(response: Response) -> str:
    return response.headers.get("ETag") or response.headers.get("Last-Modified") or ""


def _strong(validator: str) -> bool:
    """Whether equal validators promise equal bytes; RFC 9110 allows no other in If-Range for this purpose."""
    return validator.startswith('"')
