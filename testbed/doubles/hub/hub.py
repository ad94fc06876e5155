#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Stands for the Hugging Face hub: the read side of its documented API, for models, on files of this machine.

What it does as the hub does: model info at a branch, tag or commit, with and without file metadata (?blobs=true); the
tree of a revision; resolve/<revision>/<path> for GET and HEAD with X-Repo-Commit and ETag, for large (LFS) files as a 302
with X-Linked-Etag and X-Linked-Size to a signed address at another origin (a second port, which refuses an Authorization
header as object stores do), for small ones as a 307 to an address that names the commit; Range and If-Range on the bytes;
private and gated repositories with 401, 403, X-Error-Code and X-Error-Message; bearer tokens.

What it leaves out: everything that writes, git itself, Xet, datasets and spaces, search, pages for people, rate limits,
TLS (put nginx before it). Commits are digests of the files, not git's; history is the set of directories that exist.

    hub.py --root DIR [--host H] [--port P] [--cdn-port Q] [--cdn-url URL]

    DIR/<org>/<name>/<revision>/<files>   a revision: a directory, or a link to one (main -> v2). Move a branch by
                                          moving the link; the commit of the old directory can still be asked for
    DIR/hub.json                          optional: {"tokens": {"hf_x": ["org/name"]}, "repositories": {"org/name":
                                          {"gated": "manual", "private": true, "license": "mit"}}}
                                          a token reads the gated and private repositories that it lists

Only Python's standard library is used (3.9 or later).
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import os
import re
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

LARGE_NAMES = (".safetensors", ".gguf", ".bin", ".h5", ".onnx", ".msgpack", ".pt", ".pth")  # the hub's usual .gitattributes
LARGE = 10 * 2**20
API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?(/.*)?")
RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
RESOLVED = re.compile(r"/api/resolve-cache/models/([^/]+/[^/]+)/([0-9a-f]{40})/(.+)")
CHUNK = 2**20


class Answer(Exception):
    """An error as the hub tells it: a status, a code for programs, a sentence for people."""

    def __init__(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        self.status, self.code, self.message, self.headers = status, code, message, headers
        super().__init__(message)


class Stored:
    """A file of a revision, with the digests that git and LFS would have for it."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.size = path.stat().st_size
        self.large = name.lower().endswith(LARGE_NAMES) or self.size > LARGE
        content, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % self.size)
        with path.open("rb") as handle:
            while piece := handle.read(CHUNK):
                content.update(piece)
                blob.update(piece)
        self.sha256 = content.hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()
        self.pointer_size = len(pointer)
        # In git lies the pointer of a large file.
        self.blob = hashlib.sha1(b"blob %d\0%b" % (len(pointer), pointer)).hexdigest() if self.large else blob.hexdigest()

    def lfs(self, key: str) -> dict:
        return {"lfs": {key: self.sha256, "size": self.size, "pointerSize": self.pointer_size}} if self.large else {}


def stamp(path: Path) -> tuple | None:
    """What changes when somebody writes a file; None where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


class Hub:
    """The repositories below a directory, and the two servers that give them away."""

    def __init__(self, root: Path, host: str = "127.0.0.1", port: int = 0, cdn_port: int = 0, cdn_url: str = "") -> None:
        self.root = root
        self.key = secrets.token_bytes(32)
        self.known: dict[tuple, Stored] = {}
        self.lock = threading.Lock()
        self.requests: list[tuple[str, str, str, dict[str, str]]] = []  # server, method, path, headers
        self.faults: list[int] = []  # statuses that the next requests are answered with
        hub = self

        class Api(ApiHandler):
            owner = hub

        class Cdn(CdnHandler):
            owner = hub

        self.api = Server((host, port), Api)
        self.cdn = Server((host, cdn_port), Cdn)
        self.cdn_url = cdn_url.rstrip("/")
        self.url = f"http://{host}:{self.api.server_port}"

    def start(self) -> Hub:
        for server in (self.api, self.cdn):
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def stop(self) -> None:
        for server in (self.api, self.cdn):
            server.shutdown()
            server.server_close()

    __enter__ = start

    def __exit__(self, *_error) -> None:
        self.stop()

    def settings(self) -> dict:
        path = self.root / "hub.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def about(self, repository: str) -> dict:
        return self.settings().get("repositories", {}).get(repository, {})

    def folder(self, repository: str) -> Path | None:
        parts = repository.split("/")
        path = self.root.joinpath(*parts)
        return path if all(re.fullmatch(r"\w[\w.-]*", part) for part in parts) and path.is_dir() else None

    def files(self, revision: Path) -> dict[str, Stored]:
        found = {}
        with self.lock:
            for path in sorted(revision.rglob("*")):
                if path.is_file():
                    name = path.relative_to(revision).as_posix()
                    key = (path, name, stamp(path))
                    found[name] = self.known[key] = self.known.get(key) or Stored(path, name)
        return found

    @staticmethod
    def commit(files: dict[str, Stored]) -> str:
        lines = "".join(f"{file.blob} {name}\n" for name, file in sorted(files.items()))
        return hashlib.sha1(lines.encode()).hexdigest()

    def at(self, repository: str, revision: str) -> tuple[str, dict[str, Stored]]:
        """The commit that a branch, tag or commit means, and its files."""
        folder = self.folder(repository)
        if re.fullmatch(r"\w[\w.-]*", revision) and (folder / revision).is_dir():
            # Not by the name of a link: large files are found again later, when it may lead elsewhere.
            files = self.files((folder / revision).resolve())
            return self.commit(files), files
        for place in sorted(folder.iterdir()):
            if place.is_dir() and not place.is_symlink():
                files = self.files(place)
                commit = self.commit(files)
                if revision == commit or (len(revision) >= 7 and commit.startswith(revision)):
                    return commit, files
        raise Answer(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def sign(self, sha256: str) -> str:
        return hmac.new(self.key, sha256.encode(), "sha256").hexdigest()

    def by_digest(self, sha256: str) -> Stored | None:
        with self.lock:
            unchanged = (file for (path, _name, made), file in self.known.items() if file.sha256 == sha256 and stamp(path) == made)
            return next(unchanged, None)


class Server(ThreadingHTTPServer):
    daemon_threads = True


class Handler(BaseHTTPRequestHandler):
    """What both servers share."""

    owner: Hub
    protocol_version = "HTTP/1.1"
    server_name = ""

    def do_GET(self) -> None:
        self.path = unquote(urlsplit(self.path).path)
        self.query = parse_qs(urlsplit(self.requestline.split(" ")[1]).query)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.owner.requests.append((self.server_name, self.command, self.path, headers))
        try:
            if self.owner.faults:
                raise Answer(self.owner.faults.pop(0), message="asked for by the test")
            self.answer()
        except Answer as error:
            body = json.dumps({"error": error.message}).encode()
            extra = {"X-Error-Code": error.code, "X-Error-Message": error.message}
            self.send(error.status, body, {**{k: v for k, v in extra.items() if v}, **error.headers})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_HEAD = do_GET

    def answer(self) -> None:
        raise NotImplementedError

    def send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json; charset=utf-8", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_file(self, file: Stored, etag: str, headers: dict[str, str]) -> None:
        """The bytes, or the range that was asked for (RFC 9110: one range, If-Range by strong comparison)."""
        first, last, status = 0, file.size - 1, 200
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted and any(wanted.groups()) and self.headers.get("If-Range", etag) == etag:
            if wanted[1]:
                first, last = int(wanted[1]), min(int(wanted[2] or last), last)
            else:
                first = max(file.size - int(wanted[2]), 0)
            if first > last:
                raise Answer(416, message="Range Not Satisfiable", **{"Content-Range": f"bytes */{file.size}"})
            status = 206
            headers = {**headers, "Content-Range": f"bytes {first}-{last}/{file.size}"}
        self.send_response(status)
        sent = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", "ETag": etag, **headers}
        for name, value in {**sent, "Content-Length": str(last - first + 1)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        with file.path.open("rb") as handle:
            handle.seek(first)
            left = last - first + 1
            while left > 0 and (piece := handle.read(min(CHUNK, left))):
                self.wfile.write(piece)
                left -= len(piece)

    def log_message(self, *_arguments) -> None:
        """Requests are kept in the hub's `requests`."""


class ApiHandler(Handler):
    """The hub's own origin."""

    server_name = "hub"

    def answer(self) -> None:
        if found := API.fullmatch(self.path):
            repository, kind, revision, below = found.groups()
            self.admit(repository)
            if kind == "tree":
                return self.tree(repository, revision, (below or "").strip("/"))
            if not below:
                return self.info(repository, revision or "main")
        elif found := RESOLVE.fullmatch(self.path):
            return self.resolve(*found.groups())
        elif found := RESOLVED.fullmatch(self.path):
            return self.small_file(*found.groups())
        raise Answer(404, message="Not Found")

    def allowed(self, repository: str) -> bool:
        """Whether the request's token reads what is private and gated; a token that nobody has is an error."""
        scheme, _space, token = self.headers.get("Authorization", "").partition(" ")
        if not token:
            return False
        tokens = self.owner.settings().get("tokens", {})
        if scheme.lower() != "bearer" or token not in tokens:
            raise Answer(401, message="Invalid credentials in Authorization header")
        return repository in tokens[token]

    def admit(self, repository: str) -> None:
        """Whoever may not see a repository is told the same as where there is none."""
        allowed = self.allowed(repository)
        missing = self.owner.folder(repository) is None
        if missing or (self.owner.about(repository).get("private") and not allowed):
            known = bool(self.headers.get("Authorization"))
            raise Answer(404 if known else 401, "RepoNotFound", "Repository not found" if known else "Invalid username or password.")

    def info(self, repository: str, revision: str) -> None:
        commit, files = self.owner.at(repository, revision)
        about = self.owner.about(repository)
        siblings = [{"rfilename": name} for name in files]
        if "blobs" in self.query:
            siblings = [{"rfilename": name, "size": file.size, "blobId": file.blob, **file.lfs("sha256")} for name, file in files.items()]
        licence = about.get("license")
        body = {
            "_id": hashlib.sha1(repository.encode()).hexdigest()[:24],
            "id": repository,
            "modelId": repository,
            "author": repository.split("/")[0],
            "sha": commit,
            "lastModified": "2026-01-01T00:00:00.000Z",
            "createdAt": "2026-01-01T00:00:00.000Z",
            "private": bool(about.get("private")),
            "gated": about.get("gated", False),
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [f"license:{licence}"] if licence else [],
            "cardData": {"license": licence} if licence else {},
            "siblings": siblings,
        }
        self.send(200, json.dumps(body).encode())

    def tree(self, repository: str, revision: str, below: str) -> None:
        commit, files = self.owner.at(repository, revision)
        rows: dict[str, dict] = {}
        for name, file in files.items():
            if below and not name.startswith(f"{below}/"):
                continue
            parts = name[len(below) + 1 if below else 0 :].split("/")
            if len(parts) == 1 or "recursive" in self.query:
                rows[name] = {"type": "file", "oid": file.blob, "size": file.size, "path": name, **file.lfs("oid")}
            for depth in range(1, len(parts) if "recursive" in self.query else min(len(parts), 2)):
                folder = "/".join([*([below] if below else []), *parts[:depth]])
                rows[folder] = {"type": "directory", "oid": hashlib.sha1(folder.encode()).hexdigest(), "size": 0, "path": folder}
        self.send(200, json.dumps(list(rows.values())).encode(), {"X-Repo-Commit": commit})

    def give(self, repository: str, revision: str, name: str) -> tuple[str, Stored]:
        """The file, for whoever may have it."""
        self.admit(repository)
        if self.owner.about(repository).get("gated") and not self.allowed(repository):
            page = f"Access to model {repository} is restricted"
            if not self.headers.get("Authorization"):
                raise Answer(401, "GatedRepo", f"{page}. You must have access to it and be authenticated to access it. Please log in.")
            raise Answer(403, "GatedRepo", f"{page} and you are not in the authorized list. Visit its page to ask for access.")
        commit, files = self.owner.at(repository, revision)
        if name not in files:
            raise Answer(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit})
        return commit, files[name]

    def resolve(self, repository: str, revision: str, name: str) -> None:
        commit, file = self.give(repository, revision, name)
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if file.large:
            place = self.owner.cdn_url or f"http://{self.host()}:{self.owner.cdn.server_port}"
            headers["Location"] = f"{place}/{file.sha256}?Expires=4102444800&Signature={self.owner.sign(file.sha256)}"
            headers["X-Linked-Size"], headers["X-Linked-Etag"] = str(file.size), f'"{file.sha256}"'
            return self.send(302, b"", headers)
        if self.owner.about(repository).get("gated") or self.owner.about(repository).get("private"):
            return self.send_file(file, f'"{file.blob}"', headers)
        headers["Location"] = quote(f"/api/resolve-cache/models/{repository}/{commit}/{name}") + f"?etag=%22{file.blob}%22"
        headers["ETag"], headers["X-Linked-Size"] = f'"{file.blob}"', str(file.size)
        self.send(307, b"", headers)

    def small_file(self, repository: str, commit: str, name: str) -> None:
        commit, file = self.give(repository, commit, name)
        self.send_file(file, f'"{file.blob}"', {"X-Repo-Commit": commit})

    def host(self) -> str:
        """The name by which the client knows this machine."""
        name = self.headers.get("Host", "127.0.0.1")
        return name if name.endswith("]") else re.sub(r":\d+$", "", name)


class CdnHandler(Handler):
    """The object store that large files come from: whoever has the signed address gets the bytes."""

    server_name = "cdn"

    def answer(self) -> None:
        if self.headers.get("Authorization"):
            raise Answer(400, message="Only one auth mechanism allowed")
        sha256 = self.path.strip("/")
        signature = self.query.get("Signature", [""])[0]
        if not hmac.compare_digest(signature.encode(), self.owner.sign(sha256).encode()):
            raise Answer(403, message="Access denied")
        file = self.owner.by_digest(sha256)
        if file is None:
            raise Answer(404, message="Not Found")
        self.send_file(file, f'"{hashlib.md5(sha256.encode()).hexdigest()}"', {})


def main() -> None:
    parser = argparse.ArgumentParser(description="A stand-in for the Hugging Face hub; see the head of this file.")
    parser.add_argument("--root", type=Path, required=True, help="directory with <org>/<name>/<revision>/ and hub.json")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8090, help="port of the hub")
    parser.add_argument("--cdn-port", type=int, default=8091, help="port of the origin that large files come from")
    parser.add_argument("--cdn-url", default="", help="how clients reach that origin, where something stands before it")
    options = parser.parse_args()
    hub = Hub(options.root.resolve(), options.host, options.port, options.cdn_port, options.cdn_url).start()
    print(f"hub on {hub.url}, large files on port {hub.cdn.server_port}, process {os.getpid()}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
