# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Stands for Docker's API on a socket of a test's own, as far as images go: inspect, load, pull.

It has no layers and runs nothing. What it calls a loaded image is what the original calls it, which depends on where
it keeps images: by the digest of the configuration, or (`containerd`) by that of the manifest.
"""

from __future__ import annotations

import json
import re
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.image_archive import read_archive


class DockerImages:
    """A daemon that has images by name or id."""

    def __init__(self, folder: Path, containerd: bool = False) -> None:
        self.socket = folder / "docker.sock"
        self.folder = folder
        self.containerd = containerd
        self.images: dict[str, str] = {}  # name or id: id
        self.loads = 0
        self.pulls: list[str] = []
        self.refuses = False
        daemon = self

        class Handler(_Handler):
            owner = daemon

        self.server = socketserver.ThreadingUnixStreamServer(str(self.socket), Handler)
        self.server.daemon_threads = True

    def __enter__(self) -> DockerImages:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_error) -> None:
        self.server.shutdown()
        self.server.server_close()

    def load(self, body: bytes) -> list[str]:
        path = self.folder / "loaded.tar"
        path.write_bytes(body)
        ids = [(image.manifest or "sha256:" + "f" * 64) if self.containerd else image.id for image in read_archive(path)]
        self.images.update(zip(ids, ids))
        self.loads += 1
        return ids

    def pull(self, name: str, tag: str) -> None:
        reference = f"{name}@{tag}" if tag.startswith("sha256:") else f"{name}:{tag}"
        self.pulls.append(reference)
        identity = "sha256:" + "d" * 64
        self.images |= {reference: identity, identity: identity}


class _Handler(BaseHTTPRequestHandler):
    owner: DockerImages

    def do_GET(self) -> None:
        path = re.sub(r"^/v[0-9.]+", "", unquote(urlsplit(self.path).path))
        image = re.fullmatch("/images/(.+)/json", path)
        if path == "/version":
            self._send(200, {"ApiVersion": "1.43", "MinAPIVersion": "1.24", "Version": "24.0.9", "Os": "linux", "Arch": "amd64"})
        elif path == "/images/json":
            named = {name: identity for name, identity in self.owner.images.items() if "@" in name}
            self._send(200, [{"Id": identity, "RepoTags": [], "RepoDigests": [name]} for name, identity in named.items()])
        elif image and image[1] in self.owner.images:
            self._send(200, {"Id": self.owner.images[image[1]], "RepoTags": [], "RepoDigests": []})
        else:
            self._send(404, {"message": f"No such image: {path}"})

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        body = self._body()
        if url.path.endswith("/images/load"):
            lines = [{"stream": f"Loaded image ID: {identity}\n"} for identity in self.owner.load(body)]
            self._send(200, *lines)
        elif url.path.endswith("/images/create"):
            if self.owner.refuses:
                self._send(500, {"message": "dial tcp: no such host"})
                return
            self.owner.pull(query["fromImage"], query.get("tag", "latest"))
            self._send(200, {"status": "Status: Downloaded newer image"})
        else:
            self._send(404, {"message": "page not found"})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().strip(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, status: int, *lines: dict | list) -> None:
        body = "\r\n".join(map(json.dumps, lines)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "socket"

    def log_message(self, *_arguments) -> None:
        """Nobody reads it."""
