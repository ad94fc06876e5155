#!/usr/bin/env python3
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A double: stands for registry.ollama.ai, Ollama's public registry of models, which cannot be had offline.

It does what the original does where that differs from other registries:
  * a manifest by tag comes as text/plain, in chunks, without a length and without Docker-Content-Digest; HEAD is 405;
  * a manifest by digest is an internal error; there is no /v2/ to ask whether this is a registry;
  * a blob is a redirect (307) to a storage of another origin, with a signature in the URL that is good for one digest, one
    method and twenty minutes; the storage knows Range, If-Range and ETag, and refuses whoever sends Authorization as well;
  * a tag can be moved (`put` again), and the manifest it had before is then nowhere to be found.
It leaves out: pushing over HTTP, private models (they need the key pair of their owner's Ollama), search and web pages,
limits and TLS. What it keeps on disk, blobs/sha256-<hex> and manifests/<namespace>/<model>/<tag>, is not how the original
keeps it.

    ollama_registry.py put --root DIR library/tiny:latest --model tiny.gguf --license LICENSE
    ollama_registry.py serve --root DIR --host 0.0.0.0 --port 11500 --storage-port 11501

Whoever has the real thing leaves this out: a source `ollama://model:tag` without an endpoint in llm_fleet_sources asks it.
Standard library only.
"""
from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import os
import re
import secrets
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

NAME = r"([A-Za-z0-9_][A-Za-z0-9._-]*/[A-Za-z0-9_][A-Za-z0-9._-]*)"
MANIFEST = re.compile(rf"/v2/{NAME}/manifests/([^/]+)")
BLOB = re.compile(rf"/v2/{NAME}/blobs/sha256:([0-9a-f]{{64}})")
STORED = re.compile(r"/ollama/docker/registry/v2/blobs/sha256/[0-9a-f]{2}/([0-9a-f]{64})/data")
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
RANGE = re.compile(r"bytes=(\d*)-(\d*)")
SIGNED_SECONDS = 1200
CHUNK = 256 * 1024
IMAGE = "application/vnd.ollama.image"


class Models:
    """The models on disk."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def blob(self, digest: str) -> Path:
        return self.root / "blobs" / f"sha256-{digest}"

    def manifest(self, name: str, tag: str) -> Path:
        return self.root / "manifests" / name / tag

    def put(self, model: str, layers: list[tuple[str, Path | bytes]]) -> bytes:
        """Make a model of layers (their kind and content), and let the tag point to it. Returns the manifest."""
        name, _colon, tag = model.partition(":")
        entries = [self._store(f"{IMAGE}.{kind}", content) for kind, content in layers]
        config = {
            "model_format": "gguf", "model_family": "llama", "model_families": ["llama"], "model_type": "", "file_type": "",
            "architecture": "amd64", "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [entry["digest"] for entry in entries]},
        }  # fmt: skip
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": self._store("application/vnd.docker.container.image.v1+json", _compact(config)),
            "layers": entries,
        }
        path = self.manifest(name if "/" in name else f"library/{name}", tag or "latest")
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.new")
        fresh.write_bytes(_compact(manifest))
        fresh.replace(path)
        return path.read_bytes()

    def _store(self, media_type: str, content: Path | bytes) -> dict:
        blobs = self.root / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)
        fresh = blobs / f".{secrets.token_hex(8)}.new"
        if isinstance(content, bytes):
            fresh.write_bytes(content)
        else:
            shutil.copyfile(content, fresh)
        digest = hashlib.sha256()
        with fresh.open("rb") as file:
            while piece := file.read(CHUNK):
                digest.update(piece)
        path = self.blob(digest.hexdigest())
        fresh.replace(path)
        return {"mediaType": media_type, "digest": f"sha256:{digest.hexdigest()}", "size": path.stat().st_size}


def _compact(data: dict) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()


class OllamaRegistry:
    """The registry on one port and its storage on another; a context manager that serves while it is open."""

    def __init__(
        self, root: Path, host: str = "127.0.0.1", port: int = 0, storage_port: int = 0, storage_url: str = ""
    ) -> None:
        self.models = Models(root)
        self.key = secrets.token_bytes(32)
        self.storage_url = storage_url
        self.requests: list[tuple[str, str, dict[str, str]]] = []  # (method, path, headers in lower case), both servers
        self.registry = self._server((host, port), _Registry)
        self.storage = self._server((host, storage_port), _Storage)
        self.address = f"{host}:{self.registry.server_port}"

    def _server(self, address: tuple[str, int], kind: type[_Handler]) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(address, type(kind.__name__, (kind,), {"owner": self}))
        server.daemon_threads = True
        return server

    def __enter__(self) -> OllamaRegistry:
        for server in (self.registry, self.storage):
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_error) -> None:
        for server in (self.registry, self.storage):
            server.shutdown()
            server.server_close()

    def sign(self, method: str, digest: str, date: str) -> str:
        return hmac.new(self.key, f"{method}\n{digest}\n{date}".encode(), "sha256").hexdigest()


class _Handler(BaseHTTPRequestHandler):
    owner: OllamaRegistry
    protocol_version = "HTTP/1.1"
    server_version = "ollama-registry-double"

    def do_GET(self) -> None:
        self._note()

    def do_HEAD(self) -> None:
        self._note()

    def _note(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.owner.requests.append((self.command, self.path, headers))
        self.answer(urlsplit(self.path))

    def answer(self, url) -> None:
        raise NotImplementedError

    def send(self, status: int, body: bytes = b"", kind: str = "", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if kind:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_arguments) -> None:
        """Requests are kept in `requests`."""


class _Registry(_Handler):
    """Manifests, and where the blobs are."""

    def answer(self, url) -> None:
        if found := MANIFEST.fullmatch(url.path):
            self._manifest(*found.groups())
        elif found := BLOB.fullmatch(url.path):
            self._blob(found[2])
        else:
            self.send(404, b"404 page not found\n", "text/plain; charset=utf-8")

    def _manifest(self, name: str, tag: str) -> None:
        if self.command == "HEAD":
            return self._error(405, "UNSUPPORTED", "The operation is unsupported.", Allow="GET")
        if ":" in tag:
            return self._error(500, "INTERNAL_ERROR", "internal error")
        path = self.owner.models.manifest(name, tag)
        if not TAG.fullmatch(tag) or not path.is_file():
            return self._error(404, "MANIFEST_UNKNOWN", "manifest unknown")
        body = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))

    def _blob(self, digest: str) -> None:
        if not self.owner.models.blob(digest).is_file():
            return self._error(404, "BLOB_UNKNOWN", "blob unknown to registry")
        date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        query = {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Date": date,
            "X-Amz-Expires": SIGNED_SECONDS,
            "X-Amz-SignedHeaders": "host",
            "X-Amz-Signature": self.owner.sign(self.command, digest, date),
        }
        storage = self.owner.storage_url or self._beside()
        path = f"/ollama/docker/registry/v2/blobs/sha256/{digest[:2]}/{digest}/data"
        self.send(307, Location=f"{storage}{path}?{urlencode(query)}")

    def _beside(self) -> str:
        """The storage under the name by which the client knows the registry."""
        asked = urlsplit(f"//{self.headers.get('Host', '')}").hostname or "127.0.0.1"
        return f"http://{asked}:{self.owner.storage.server_port}"

    def _error(self, status: int, code: str, message: str, **headers: str) -> None:
        body = _compact({"errors": [{"code": code, "message": message, "detail": {}}]})
        self.send(status, body, "application/json; charset=utf-8", **headers)


class _Storage(_Handler):
    """Blobs, for whoever has a signed URL."""

    def answer(self, url) -> None:
        found = STORED.fullmatch(url.path)
        if "Authorization" in self.headers:
            return self._refuse(400, "InvalidArgument", "Only one authentication mechanism is allowed")
        if not found or not self._signed(found[1], url.query):
            return self._refuse(403, "AccessDenied", "Request has expired or its signature does not match")
        path = self.owner.models.blob(found[1])
        if not path.is_file():
            return self._refuse(404, "NoSuchKey", "The specified key does not exist.")
        return self._send(path, f'"{found[1][:32]}"')

    def _signed(self, digest: str, query: str) -> bool:
        values = {name: value[0] for name, value in parse_qs(query).items()}
        date, signature = values.get("X-Amz-Date", ""), values.get("X-Amz-Signature", "")
        oldest = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() - SIGNED_SECONDS))
        return hmac.compare_digest(signature, self.owner.sign(self.command, digest, date)) and date >= oldest

    def _send(self, path: Path, tag: str) -> None:
        size = path.stat().st_size
        first, end, status = 0, size, 200
        asked = RANGE.fullmatch(self.headers.get("Range", ""))
        if asked and any(asked.groups()) and self.headers.get("If-Range", tag) == tag:
            status = 206
            if asked[1]:
                first, end = int(asked[1]), min(int(asked[2]) + 1, size) if asked[2] else size
            else:
                first = max(size - int(asked[2]), 0)
            if first >= end:
                return self.send(416, Content_Range=f"bytes */{size}")
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(end - first))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{size}")
        self.end_headers()
        if self.command == "HEAD":
            return None
        try:
            with path.open("rb") as file:
                file.seek(first)
                while first < end and (piece := file.read(min(CHUNK, end - first))):
                    self.wfile.write(piece)
                    first += len(piece)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _refuse(self, status: int, code: str, message: str) -> None:
        body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
        self.send(status, body.encode(), "application/xml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="answer until it is stopped")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=11500)
    serve.add_argument("--storage-port", type=int, default=11501)
    serve.add_argument("--storage-url", default="", help="how clients reach the storage, where that is not the registry's host")
    put = commands.add_parser("put", help="make a model, or move its tag")
    put.add_argument("name", help="[namespace/]model[:tag]")
    for kind in ("model", "template", "system", "params", "license"):
        put.add_argument(f"--{kind}", type=Path, required=kind == "model", help=f"the file of the layer '{kind}'")
    for command in (serve, put):
        command.add_argument("--root", type=Path, required=True, help="directory with the models")
    options = parser.parse_args()
    if options.command == "put":
        kinds = ("model", "template", "system", "license", "params")
        layers = [(kind, getattr(options, kind)) for kind in kinds if getattr(options, kind)]
        manifest = Models(options.root).put(options.name, layers)
        print(f"sha256:{hashlib.sha256(manifest).hexdigest()}")
        return
    registry = OllamaRegistry(options.root, options.host, options.port, options.storage_port, options.storage_url)
    with registry:
        print(f"{registry.address}, storage on port {registry.storage.server_port}, process {os.getpid()}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
